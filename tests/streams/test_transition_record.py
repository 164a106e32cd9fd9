import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.transitions import Deltas
from state.errors import StateError
from state.items import ItemIndex
from streams.transition_record import decode_deltas, encode_deltas


def index_of(ids):
    index = ItemIndex()
    for item_id in ids:
        index.number(item_id)
    return index


def deltas_of(pairs):
    before, after = np.array(pairs, np.int32).reshape(-1, 2).T
    weights = np.arange(3 * len(pairs), dtype=np.float32).reshape(-1, 3) % 7
    return Deltas(before.copy(), after.copy(), weights)


def by_name(deltas, index):
    names = ((index.ids[b] or "", index.ids[a]) for b, a in zip(deltas.before, deltas.after, strict=True))
    return dict(zip(names, map(tuple, deltas.weights.tolist()), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=40))
def test_another_worker_reads_what_was_learnt_under_numbers_of_its_own(pairs):
    ours, theirs = index_of([f"ä{n}" for n in range(1, 10)]), index_of(["other", "ä5"])
    deltas = deltas_of(sorted(pairs))
    read = [decode_deltas(message, theirs) for message in encode_deltas(deltas, ours)]
    found = {name: weights for part in read for name, weights in by_name(part, theirs).items()}
    assert found == by_name(deltas, ours)


def test_no_message_is_larger_than_kafka_takes_however_long_the_ids_are():
    index = index_of([f"{n:0256d}" for n in range(1, 20_001)])
    pairs = [(n, n % 20_000 + 1) for n in range(1, 20_001)]
    messages = list(encode_deltas(deltas_of(pairs), index))
    assert max(map(len, messages)) < 1_000_000
    assert sum(len(decode_deltas(message, index).before) for message in messages) == len(pairs)


def test_what_is_no_such_message_is_refused():
    with pytest.raises(StateError, match="unreadable"):
        decode_deltas(b"RSX1 and no more", index_of([]))


def test_counts_beyond_a_half_float_stay_numbers():
    index = index_of(["a", "b"])
    deltas = Deltas(np.array([1], np.int32), np.array([2], np.int32), np.array([[70_000, 1e9, 3]], np.float32))
    (message,) = encode_deltas(deltas, index)
    assert decode_deltas(message, index).weights.tolist() == [[65_504, 65_504, 3]]


@pytest.mark.parametrize("weight", [np.inf, np.nan, -1.0])
def test_a_message_with_a_weight_that_is_none_is_refused(weight):
    index = index_of(["a", "b"])
    (message,) = encode_deltas(deltas_of([(1, 2)]), index)
    with pytest.raises(StateError, match="not finite"):
        decode_deltas(message[:-6] + np.array([1, weight, 0], np.float16).tobytes(), index)
