from dataclasses import replace
from pathlib import Path

import numpy as np

from models.finetune import fine_tune
from models.live_test import LiveTest
from models.registry import Registry
from tests.models.learning import FINE, a_buffer, feed, stream


def test_hits_are_of_the_newest_events_in_order_of_arrival(tmp_path: Path) -> None:
    rows = stream(3_000)
    registry = Registry(tmp_path / "registry")
    with a_buffer(tmp_path / "buffer", rows[:2_500]) as buffer:
        candidate = fine_tune(None, buffer.sample(2_500, 0, 0), FINE, 1)
        assert candidate is not None
        version = registry.load(registry.publish(candidate.network, candidate.vocabulary, {}, {}))
        live = LiveTest(version)
        feed(buffer, rows[2_500:])
        hits, users = live.hits(buffer.sample(500, 0, 0))
        assert len(hits) == len(users) == 500
        assert hits.mean() > 0.6  # 10 of 30 items, and the walk is learnt
        by_user = {user: rank for rank, user in enumerate(dict.fromkeys(users.tolist()))}
        order = {user: rank for rank, user in enumerate(dict.fromkeys(row[0] for row in rows[2_500:]))}
        assert [by_user[user] for user in users.tolist()] == [order[row[0]] for row in rows[2_500:]]
        feed(buffer, [(user, "never seen", 10**7 + number) for number, (user, _, _) in enumerate(rows[:50])])
        hits, _ = live.hits(buffer.sample(50, 0, 0))
        assert not hits.any()
        feed(buffer, [(f"newcomer {number}", "i1", 2 * 10**7) for number in range(20)])
        hits, users = live.hits(buffer.sample(20, 0, 0))
        assert len(hits) == len(users) == 0  # a first event cannot be foretold
        assert hits.dtype == np.bool_


def test_what_a_version_was_made_from_is_no_test_of_it(tmp_path: Path) -> None:
    rows = stream(900)
    registry = Registry(tmp_path / "registry")
    with a_buffer(tmp_path / "buffer", rows[:600]) as buffer:
        quick = replace(FINE, first_epochs=1)
        candidate = fine_tune(None, buffer.sample(600, 0, 0), quick, 1)
        assert candidate is not None
        feed(buffer, rows[600:])
        sample = buffer.sample(500, 0, 0)  # 200 of them are in the sample it was made from
        table = {"newest_ms": rows[699][2]}
        lost = table | {"seen": 600, "log": "that of a buffer that was lost"}
        for lineage, tested in ((candidate.lineage, 300), (table, 200), (lost, 200), ({}, 500)):
            version = registry.load(registry.publish(candidate.network, candidate.vocabulary, {}, lineage))
            assert len(LiveTest(version).hits(sample)[0]) == tested
