import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from models.sequences import Histories, batch, cut, grouped, histories, recent_items, vocabulary_of
from models.tables import Events

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 2), st.integers(0, 8_000)), min_size=1)


def events_of(rows: list[tuple[int, int, int, int]]) -> Events:
    users, items, kinds, times = zip(*rows, strict=True)
    return Events(
        pl.Series([f"u{user}" for user in users]),
        pl.Series([f"i{item}" for item in items]),
        np.array(kinds, np.uint8),
        np.array(times, np.int64),
    )


def random_histories(lengths: list[int], seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    size = int(starts[-1])
    # Items count upward, so that an event is known by its item.
    items, kinds = np.arange(1, size + 1, dtype=np.int32), rng.integers(0, 3, size).astype(np.uint8)
    return Histories(items, kinds, rng.integers(0, 999, size), np.arange(size, dtype=np.int64), starts)


def test_vocabulary_is_by_count_then_by_first_appearance() -> None:
    events = events_of([(0, item, 0, 0) for item in (3, 1, 2, 2, 5, 1)])
    assert vocabulary_of(events) == ["", "i1", "i2", "i3", "i5"]
    assert vocabulary_of(events, limit=2) == ["", "i1", "i2"]


@given(ROWS)
def test_histories_are_what_a_loop_over_the_events_would_collect(rows: list[tuple[int, int, int, int]]) -> None:
    events = events_of(rows)
    vocabulary = vocabulary_of(events, limit=4)
    expected: dict[int, list[tuple[int, int, int, int]]] = {}
    for user, item, kind, time in sorted(rows, key=lambda row: row[3]):  # stable
        seen = expected.setdefault(user, [])
        row = vocabulary.index(f"i{item}") if f"i{item}" in vocabulary else 0
        seen.append((row, kind, time // 1000 - seen[-1][3] // 1000 if seen else 0, time))
    found = histories(events, vocabulary)
    columns = list(zip(found.items, found.kinds, found.gaps_seconds, found.times_ms, strict=True))
    users = [columns[start:end] for start, end in zip(found.starts[:-1], found.starts[1:], strict=True)]
    assert users == list(expected.values())
    assert found.users == len(expected)
    assert len(found) == len(rows)


def test_before_keeps_users_and_drops_what_came_later() -> None:
    source = histories(events_of([(0, 1, 0, 10), (1, 2, 0, 20), (0, 3, 0, 30), (1, 4, 0, 15)]), ["", "i1", "i2", "i3"])
    past = source.before(20)
    assert past.starts.tolist() == [0, 1, 2]
    assert past.items.tolist() == [1, 0]
    assert source.before(0).starts.tolist() == [0, 0, 0]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 15), st.integers(0, 99))
def test_windows_cover_every_transition_once(lengths: list[int], length: int, seed: int) -> None:
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    transitions = sorted(at for start, n in zip(starts, lengths, strict=False) for at in range(start, start + n - 1))
    for rng in (None, np.random.default_rng(seed)):
        windows = cut(starts, length, rng)
        assert all(1 <= steps <= length for steps in windows[:, 1])
        assert sorted(at for begin, steps in windows for at in range(begin, begin + steps)) == transitions


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 60))
def test_groups_keep_order_and_size(widths: list[int], steps: int) -> None:
    windows = np.array([(number, width) for number, width in enumerate(widths)], np.int64).reshape(-1, 2)
    groups = grouped(windows, steps)
    assert [row for group in groups for row in group.tolist()] == windows.tolist()
    assert all(len(group) == 1 or len(group) * group[:, 1].max() <= steps for group in groups)
    assert all(len(group) for group in groups)


def test_only_wanted_events_are_targets() -> None:
    source = random_histories([6])
    wanted = np.array([True, False, True, False, False, True])
    data = batch(source, np.array([[0, 5]]), wanted)
    assert data.targets.tolist() == [[0, 3, 0, 0, 6]]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), number=st.integers(1, 6))
def test_recent_items_are_those_a_loop_would_collect(lengths: list[int], number: int) -> None:
    source = random_histories(lengths)
    found = recent_items(source, np.arange(len(source)), number)
    for user in range(source.users):
        past: list[int] = []
        for event in range(source.starts[user], source.starts[user + 1]):
            newest_first = past[::-1][:number]
            assert found[event].tolist() == newest_first + [0] * (number - len(newest_first))
            past.append(int(source.items[event]))
