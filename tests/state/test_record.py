import struct
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from state.record import RING, decode, empty_rows, encode, record_dtype, seal

SIZES = st.sampled_from([0, 1, 16, 128])


@st.composite
def random_rows(draw: st.DrawFn, min_size: int = 0) -> np.ndarray:
    dtype = record_dtype(draw(SIZES))
    n = draw(st.integers(min_size, 5))
    data = draw(hnp.arrays(np.uint8, (n, dtype.itemsize), elements=st.integers(0, 255), fill=st.integers(0, 255)))
    return np.ascontiguousarray(data).view(dtype).reshape(n)


def state_size(rows: np.ndarray) -> int:
    return rows.dtype["hidden"].shape[0]


def test_layout_is_packed_and_documented() -> None:
    dtype = record_dtype(128)
    assert dtype.itemsize == 978 == 722 + 2 * 128
    offsets = {name: dtype.fields[name][1] for name in dtype.names}
    assert offsets["crc"] == 4
    assert offsets["last_ms"] == 32
    assert offsets["touched_ms"] == 40
    assert offsets["hidden"] == 72
    assert offsets["items"] == 72 + 256
    assert offsets["times"] == 472 + 256
    assert offsets["kinds"] == 672 + 256


def test_bytes_are_those_a_reader_of_the_table_expects() -> None:
    rows = empty_rows(1, 2)
    rows["model"], rows["count"], rows["kind_counts"], rows["touched_ms"] = 7, 3, (1, 0, 2), 1234
    rows["hidden"] = (1.0, -2.0)
    rows["items"][0, :3] = (10, 11, 12)
    body = struct.pack(
        "<II3IIqq3q2e50Q50I50B", 7, 3, 1, 0, 2, 0, -1, 1234, -1, -1, -1, 1.0, -2.0, 10, 11, 12, *[0] * 147
    )
    head = struct.pack("<BBH", 1, 0, 2)
    assert encode(rows) == [head + struct.pack("<I", crc32(head + body)) + body]


@given(random_rows())
def test_round_trip(rows: np.ndarray) -> None:
    values = encode(rows)
    assert b"".join(values) == rows.tobytes() == seal(rows).tobytes()
    read, bad = decode(values, state_size(rows))
    assert not bad.any()
    assert read.tobytes() == rows.tobytes()
    read["count"] = 1  # rows can be written


@settings(max_examples=300)
@given(random_rows(min_size=1), st.data())
def test_any_flipped_bit_is_found(rows: np.ndarray, data: st.DataObject) -> None:
    values = encode(rows)
    hit = data.draw(st.integers(0, len(values) - 1))
    bit = data.draw(st.integers(0, 8 * len(values[0]) - 1))
    broken = bytearray(values[hit])
    broken[bit // 8] ^= 1 << bit % 8
    values[hit] = bytes(broken)
    read, bad = decode(values, state_size(rows))
    assert bad.tolist() == [i == hit for i in range(len(values))]
    assert read[hit] == empty_rows(1, state_size(rows))[0]
    good = np.arange(len(values)) != hit
    assert read[good].tobytes() == rows[good].tobytes()


@given(random_rows(min_size=1), st.data())
def test_any_other_length_is_found(rows: np.ndarray, data: st.DataObject) -> None:
    values = encode(rows)
    values[0] = data.draw(st.sampled_from([values[0][:-1], values[0][:-2], values[0] + b"\0\0", b"", b"\1"]))
    _, bad = decode(values, state_size(rows))
    assert bad.tolist() == [True] + [False] * (len(values) - 1)


def test_a_sealed_record_of_another_format_is_refused() -> None:
    (value,) = encode(empty_rows(1, 4))
    head = b"\2" + value[1:4]
    other = head + struct.pack("<I", crc32(head + value[8:])) + value[8:]
    assert decode([value, other], 4)[1].tolist() == [False, True]


@pytest.mark.parametrize("wanted", [4, 32])
def test_a_record_of_another_state_size_keeps_all_but_its_vector(wanted: int) -> None:
    rng = np.random.default_rng(5)
    rows = empty_rows(3, 16)
    rows["hidden"] = rng.normal(size=(3, 16))
    rows["model"], rows["count"], rows["last_ms"], rows["user_key"] = 9, (1, 2, 3), (10, 20, 30), 77
    rows["items"] = rng.integers(1, 2**60, (3, RING))
    own = empty_rows(1, wanted)
    own["model"], own["hidden"] = 4, 0.5
    read, bad = decode([*encode(rows), *encode(own), b"damage"], wanted)
    assert bad.tolist() == [False, False, False, False, True]
    assert (read["hidden"][:3] == 0).all()
    assert read["model"].tolist() == [0, 0, 0, 4, 0]
    assert (read["hidden"][3] == 0.5).all()
    assert read["count"][:3].tolist() == [1, 2, 3]
    assert read["last_ms"].tolist() == [10, 20, 30, -1, -1]
    assert read["user_key"].tolist() == [77, 77, 77, 0, 0]
    assert (read["items"][:3] == rows["items"]).all()


def test_no_records_at_all() -> None:
    rows, bad = decode([], 8)
    assert len(rows) == len(bad) == 0
    assert encode(rows) == []
