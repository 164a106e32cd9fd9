from itertools import chain
from types import SimpleNamespace

import pytest
from faust.assignor.client_assignment import CopartitionedAssignment
from faust.assignor.copartitioned_assignor import CopartitionedAssignor
from faust.types import TP

from state.events import TOPICS
from streams.app import create_app
from streams.errors import BrokerError
from streams.settings import load_settings


@pytest.mark.parametrize(("partitions", "workers"), [(4, 2), (8, 4), (8, 7), (24, 8)])
def test_a_worker_that_joins_gets_partitions(tmp_path, partitions, workers):
    created = create_app(load_settings(state_dir=tmp_path, partitions=partitions))
    held = {
        number: CopartitionedAssignment(set(range(number, partitions, workers)), set(), set(TOPICS))
        for number in range(workers)
    }
    held[workers] = CopartitionedAssignment(set(), set(), set(TOPICS))
    assignor = CopartitionedAssignor(TOPICS, held, partitions, created.app.assignor.replicas)
    shares = [sorted(share.actives) for share in assignor.get_assignment().values()]
    assert sorted(chain(*shares)) == list(range(partitions))
    assert all(shares)
    created.pipeline._thread.shutdown()


def test_partitions_are_given_by_number_over_all_topics(tmp_path):
    """At 0 Faust's driver takes an assignor that spreads the partitions of each topic by themselves."""
    created = create_app(load_settings(state_dir=tmp_path))
    assert created.app.conf.table_standby_replicas > 0
    created.pipeline._thread.shutdown()


async def test_partitions_added_to_the_input_topics_alone_are_refused_with_what_to_do(tmp_path, monkeypatch):
    """Their users would have no changelog: it was waited for until a time-out, and the worker ended with that."""
    asked = []

    def require(settings):
        asked.append(settings.partitions)
        raise BrokerError("the topic clicks has 8 partitions, settings say 6", "", "set RECSTREAM_PARTITIONS=8")

    monkeypatch.setattr("streams.app.require_topics", require)
    worker = create_app(load_settings(state_dir=tmp_path, partitions=6, _env_file=None))

    async def begin():
        pass

    worker.app.consumer = SimpleNamespace(begin=begin, assignment=lambda: {TP("clicks", 3), TP("clicks", 6)})
    with pytest.raises(BrokerError, match="RECSTREAM_PARTITIONS=8"):
        await worker.app.on_rebalance_complete.send()
    assert asked == [6]
    worker.pipeline._thread.shutdown()
