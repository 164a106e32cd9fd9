import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from state.pseudonyms import Pseudonyms
from streams.held import Held
from streams.metrics import Metrics
from streams.settings import load_settings


@pytest.fixture
def held(tmp_path):
    settings = load_settings(state_dir=tmp_path, max_resident_users=10)
    held = Held(settings, Recommender(ItemIndex(), k=3), Metrics(), Pseudonyms(""), 0)
    yield held
    held.close()


def test_partitions_share_what_may_be_in_memory_as_they_come_and_go(held):
    held.add([1, 2, 3])
    assert {number: partition.store.max_resident for number, partition in held.partitions.items()} == {1: 3, 2: 3, 3: 3}
    held.drop([2, 3])
    assert [partition.store.max_resident for partition in held.partitions.values()] == [10]
    held.add(range(4, 20))
    assert {partition.store.max_resident for partition in held.partitions.values()} == {1}  # never none


def test_users_of_a_partition_that_left_are_not_there_when_it_comes_back(held):
    held.add([1])
    held.partitions[1].store.slots([f"u{number}" for number in range(30)])
    held.partitions[1].store.evict()
    assert held.partitions[1].store.cold >= 20  # a few more leave at once, not one by one
    held.drop([1])
    held.add([1])
    assert (held.partitions[1].store.resident, held.partitions[1].store.cold) == (0, 0)


def test_changed_users_are_those_the_next_flush_writes(held):
    held.add([1, 2])
    for number, users in ((1, ["ann", "bob"]), (2, ["cid"])):
        arena = held.partitions[number].store.arena
        arena.dirty[held.partitions[number].store.slots(users)] = True
    assert held.changed == 3
    held.count()
    assert held._metrics.users.labels("resident")._value.get() == 3
