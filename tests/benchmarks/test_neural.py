import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.quality.log import Log
from benchmarks.quality.neural import NeuralTest
from models.network import Network, NetworkConfig
from models.recommend import Recommender
from models.registry import Registry, Version
from models.serving import ServingModel
from state.arena import Arena
from state.items import ItemIndex
from state.store import UserStore
from tests.benchmarks.logs import random_log

LOG = random_log(600, 25, 40)
KNOWN = 30  # items with a row: the first ones to appear


@pytest.fixture(scope="module")
def version() -> Version:
    torch.manual_seed(0)
    network = Network(NetworkConfig(items=KNOWN + 1, hidden=16, embedding=8))
    with torch.no_grad():
        network.item_embedding.weight.normal_(0, 1)
    ids = {number: item_id for item_id, number in zip(LOG.item_ids, LOG.items.tolist(), strict=True)}
    registry = Registry("memory://neural-test")
    return registry.load(registry.publish(network, ["", *(ids[number] for number in range(KNOWN))], {}, {}))


def ranks(version: Version, batch: int) -> NDArray[np.float64]:
    items = ItemIndex()
    recommender = Recommender(items, 10, exclude="none")
    store = UserStore(Arena(0, 10), items)
    recommender.swap(ServingModel.from_version(version))
    test, found = NeuralTest(recommender, store), []
    for start in range(0, len(LOG), batch):
        events = LOG.batch(start, start + batch)
        at = slice(start, start + batch)
        found.append(test.ranks(events, LOG.seen[at], LOG.items[at] == LOG.seen[at]))
        recommender.advance(store, events)
    return np.concatenate(found)


def by_network(version: Version, log: Log) -> NDArray[np.float64]:
    network = version.network().eval()
    found = np.full(len(log), np.inf)
    for user in range(int(log.users.max()) + 1):
        own = np.flatnonzero(log.users == user)
        rows = np.where(log.items[own] < KNOWN, log.items[own] + 1, 0)
        gaps = np.diff(log.times_ms[own] // 1000, prepend=log.times_ms[own[0]] // 1000)
        with torch.inference_mode():
            columns = (torch.from_numpy(part[None]) for part in (rows, log.kinds[own].astype(np.int64), gaps))
            outputs, _ = network.sequence(*columns)
            states = torch.cat([torch.zeros(1, outputs.shape[2]), outputs[0, :-1]])
            scores = network.scores(states)[:, 1:].numpy()
        for place, event in enumerate(own.tolist()):
            if 0 < rows[place] and log.items[event] < log.seen[event]:
                found[event] = 1 + (scores[place] > scores[place, rows[place] - 1]).sum()
    return found


def test_ranks_are_those_of_the_network(version: Version) -> None:
    found, expected = ranks(version, 50), by_network(version, LOG)
    here = np.isfinite(expected)
    assert (np.abs(found[here] - expected[here]) <= 1).mean() > 0.98  # vectors are kept as float16
    assert (found[here] == expected[here]).mean() > 0.9


def test_the_micro_batch_does_not_matter(version: Version) -> None:
    assert (ranks(version, 7) == ranks(version, 200)).mean() > 0.99


def test_items_without_a_row_rank_behind_and_first_events_miss(version: Version) -> None:
    found = ranks(version, 50)
    first = LOG.items == LOG.seen
    assert np.isinf(found[first]).all()
    unknown = (LOG.items >= KNOWN) & ~first
    assert unknown.any()
    assert np.array_equal(found[unknown], KNOWN + 1 + 0.5 * (LOG.seen[unknown] - KNOWN - 1))


def test_without_a_model_all_items_tie() -> None:
    recommender = Recommender(ItemIndex(), 10)
    test = NeuralTest(recommender, UserStore(Arena(0, 10), recommender.items))
    found = test.ranks(LOG.batch(0, 2), np.array([9, 9]), np.array([False, True]))
    assert found.tolist() == [5.0, np.inf]
