import numpy as np
import orjson

from benchmarks.quality.log import Log
from benchmarks.quality.outside import collect, in_hand_ranks, next_ranks, places
from state.events import TOPICS
from streams.replay import partition_of
from tests.benchmarks.logs import events

LOG = Log.of(events(["a", "b", "a", "a", "b"], ["x", "y", "y", "x", "x"], [0, 0, 2, 0, 0]))


def message(event: int, items: list[str], version: str = "v1") -> bytes:
    user, kind = LOG.user_ids[event], int(LOG.kinds[event])
    partition = partition_of(user, 2)
    before = [e for e in range(event) if LOG.kinds[e] == kind and partition_of(LOG.user_ids[e], 2) == partition]
    source = {"topic": TOPICS[kind], "partition": partition, "offset": len(before), "timestamp": 0}
    listed = [{"item_id": item, "score": 1.0} for item in items]
    return orjson.dumps({"user_id": user, "items": listed, "model_version": version, "event": source})


def test_places_give_each_partition_its_events_in_order() -> None:
    where = places(LOG, 2)
    assert sorted(np.concatenate(list(where.values())).tolist()) == list(range(5))
    for (kind, partition), at in where.items():
        assert (np.diff(at) > 0).all()
        assert {partition_of(LOG.user_ids[e], 2) for e in at.tolist()} == {partition}
        assert set(LOG.kinds[at].tolist()) == {kind}


def test_lists_are_found_by_the_event_they_name_and_the_first_of_two_counts() -> None:
    values = [message(0, ["y"]), message(1, ["x"], "v2"), message(0, ["x"])]
    lists = collect(LOG, places(LOG, 2), values, np.array([1.0, 2.0, 3.0]), 10)
    assert lists.items[0, :2].tolist() == [1, -1]
    assert lists.versions == ["v1", "v2", "", "", ""]
    assert lists.answered.tolist() == [True, True, False, False, False]


def test_the_list_before_by_the_log_and_by_the_clock() -> None:
    values = [message(0, ["y"]), message(1, ["x", "y"]), message(2, ["y", "x"]), message(3, []), message(4, [])]
    lists = collect(LOG, places(LOG, 2), values, np.array([0.5, 1.5, 9.0, 9.5, 9.9]), 10)
    ranks = next_ranks(LOG, lists)
    assert np.isnan(ranks[:2]).all()  # first events of their users
    assert ranks[2:].tolist() == [1.0, 2.0, 1.0]
    sent = np.array([0.0, 1.0, 2.0, 3.0, 1.2])
    by_clock = in_hand_ranks(LOG, lists, sent)
    assert np.isnan(by_clock[[0, 1, 4]]).all()  # the list made for event 1 came after event 4 was sent
    assert by_clock[2] == 1.0
    assert np.isinf(by_clock[3])  # event 2's list was not there yet; event 0's had only y
