import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.repeats import LastItems, add_repeats

ITEMS, LATEST, WIDTH = 9, 4, 6
HISTORIES = st.lists(st.lists(st.integers(1, ITEMS), max_size=WIDTH), min_size=1, max_size=5)


def padded(rows, width=WIDTH):
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


@given(HISTORIES, st.data())
def test_the_d_th_last_item_gets_the_d_th_weight_and_a_newer_event_moves_all_back(rows, data):
    """Against a definition in words: item numbers 7 and above have no row of the model."""
    repeats = np.array([8.0, 4.0, 2.0, 1.0], np.float32)
    row_of = np.array([0, 5, 4, 3, 2, 1, 6, 0, 0, 0], np.int32)
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=7))
    newest = [data.draw(st.integers(0, ITEMS) | st.just(-1)) for _ in at]
    last = LastItems(
        padded(rows), np.array([len(row) for row in rows], np.int32), np.array(at, np.int64),
        np.array(newest, np.int32), row_of,
    )  # fmt: skip
    scores = np.zeros((len(at), 7), np.float32)
    add_repeats(scores, repeats, last)
    for event, (history, new) in enumerate(zip(at, newest, strict=True)):
        had = ([new] if new >= 0 else []) + rows[history]
        expected = np.zeros(7, np.float32)
        for item, weight in zip(had[:LATEST], repeats, strict=False):
            expected[row_of[item]] += weight
        assert scores[event, 1:].tolist() == expected[1:].tolist()


def test_rows_alone_are_histories_of_their_own():
    rows = np.array([[3, 1, 0], [2, 2, 5]], np.int32)
    scores = np.zeros((2, 6), np.float32)
    add_repeats(scores, np.array([1, 10, 100], np.float32), LastItems.of_rows(rows))
    assert scores[:, 1:].tolist() == [[10, 0, 1, 0, 0], [0, 11, 0, 0, 100]]


def test_some_of_the_events_are_those_at_their_places():
    last = LastItems.of_rows(np.array([[1], [2], [3]], np.int32)).of(slice(1, 3))
    scores = np.zeros((2, 4), np.float32)
    add_repeats(scores, np.ones(1, np.float32), last)
    assert scores[:, 1:].tolist() == [[0, 1, 0], [0, 0, 1]]
