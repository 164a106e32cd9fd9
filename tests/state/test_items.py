import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from state.items import ItemIndex, item_hash

IDS = st.lists(st.text(max_size=6), max_size=60)


def test_hash_is_the_same_in_every_release() -> None:
    assert item_hash("i9") == 13346599927420350960
    assert item_hash("") != 0


@given(IDS)
def test_numbers_follow_the_order_of_appearance(ids: list[str]) -> None:
    index = ItemIndex()
    numbers = index.numbers(ids)
    distinct = list(dict.fromkeys(ids))
    assert numbers.tolist() == [distinct.index(item_id) + 1 for item_id in ids]
    assert index.ids == [None, *distinct]
    assert len(index) == 1 + len(distinct)
    assert index.hashes.tolist() == [0, *map(item_hash, distinct)]
    assert [index.get(item_id) for item_id in ids] == numbers.tolist()
    assert index.numbers(ids).tolist() == numbers.tolist()


@given(IDS, IDS)
def test_an_item_known_by_its_hash_keeps_its_number_when_its_id_appears(first: list[str], second: list[str]) -> None:
    index = ItemIndex()
    by_hash = index.numbers_of(np.array([item_hash(item_id) for item_id in first], np.uint64))
    assert all(index.ids[number] is None for number in by_hash.tolist())
    assert [index.get(item_id) for item_id in first] == [0] * len(first)
    index.numbers(second)
    assert index.numbers(first).tolist() == by_hash.tolist()
    assert all(index.ids[number] == item_id for number, item_id in zip(by_hash.tolist(), first, strict=True))


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40).map(lambda low: low << 20), max_size=300))
def test_hashes_agree_with_a_dict_however_they_collide(hashes: list[int]) -> None:
    index, numbers = ItemIndex(), {0: 0}
    for start in range(0, len(hashes), 70):
        part = hashes[start : start + 70]
        expected = [numbers.setdefault(value, len(numbers)) for value in part]
        assert index.numbers_of(np.array(part, np.uint64)).tolist() == expected
    assert len(index) == len(numbers)


def test_many_hashes_of_any_shape_survive_growth() -> None:
    rng = np.random.default_rng(3)
    distinct = rng.integers(1, 2**64, 60_000, np.uint64)
    hashes = distinct[rng.integers(0, 60_000, (4_000, 50))]
    hashes[:, 40:] = 0
    index = ItemIndex()
    index.numbers([f"i{n}" for n in range(100)])
    numbers = index.numbers_of(hashes)
    assert numbers.shape == hashes.shape
    assert numbers.dtype == np.int32
    assert (index.hashes[numbers] == hashes).all()
    assert len(index) == 101 + len(np.unique(hashes[:, :40]))


def test_learn_names_what_was_known_by_hash_only() -> None:
    source, target = ItemIndex(), ItemIndex()
    source.numbers(["a", "b"])
    unnamed = source.numbers_of(np.array([77], np.uint64))
    target.number("z")
    numbers = target.learn(source.ids, source.hashes)
    assert numbers[0] == 0
    assert [target.ids[number] for number in numbers.tolist()] == [None, "a", "b", None]
    assert target.get("a") == numbers[1]
    assert target.hashes[numbers[unnamed[0]]] == 77


@given(st.lists(st.text(max_size=4), max_size=60), st.lists(st.text(max_size=4), max_size=20))
def test_ids_of_hashes_are_read_without_numbering_them(named: list[str], asked: list[str]) -> None:
    index = ItemIndex()
    by_hash_alone = ["hash-1", "hash-2"]
    index.numbers_of(np.array([item_hash(item) for item in by_hash_alone], np.uint64))
    index.numbers(named)
    wanted = [*asked, *by_hash_alone, *named]
    known = len(index)
    found = index.ids_of(np.array([0, *(item_hash(item) for item in wanted)], np.uint64))
    assert found == [None, *(item if item in named else None for item in wanted)]
    assert len(index) == known
