import numpy as np

from benchmarks.quality.log import Log
from benchmarks.rehydration import WAYS, _swapped, _Users, tastes
from models.serving import ServingModel
from tests.models.conftest import Build


def test_the_ways_differ_in_the_vectors_alone_and_the_original_stays(build_version: Build) -> None:
    log = Log.of(tastes(400, seed=1))
    words = ["", *sorted(set(log.item_ids))]
    first, second = (
        ServingModel.from_version(build_version(vocabulary=words, seed=seed, fingerprint=100 + seed)[1])
        for seed in (1, 2)
    )
    users, own = _Users(first), _Users(second)
    users.advance(log, 0, 300)
    own.advance(log, 0, 300)
    before = users.store.arena.hidden.copy()
    ranks = {way: _swapped(users, second, way).ranks(log, 300, 400) for way in WAYS if way != "unbroken"}
    unbroken = own.copy().ranks(log, 300, 400)
    np.testing.assert_array_equal(ranks["rebuilt"], unbroken)  # nobody has more than 50 events
    assert not np.array_equal(ranks["stale"], ranks["rebuilt"])
    assert not np.array_equal(ranks["zero"], ranks["rebuilt"])
    np.testing.assert_array_equal(users.store.arena.hidden, before)
    assert users.recommender.model is first
