"""The binary user state record: one user's whole state, fixed width, little endian, checksummed.

The same bytes are a changelog value and a cold-store value. A record is 722 + 2 S bytes for a hidden vector of S
numbers: 978 bytes for GRU(128).

    offset  field        type     meaning
    0       format       u1       1
    1       flags        u1       0, reserved
    2       state_size   u2       S: H for a GRU, 2 H (h then c) for an LSTM
    4       crc          u4       zlib.crc32 of bytes 0-3 and 8-end
    8       model        u4       fingerprint of the model version that made `hidden`, 0 = none
    12      count        u4       events applied
    16      kind_counts  u4[3]    of them by kind
    28      user_key     u4       fingerprint of the key the user is named under, 0 = the id as it comes
    32      last_ms      i8       time of the last applied event, -1 = none
    40      touched_ms   i8       Kafka timestamp of the last applied event, -1 = none
    48      offsets      i8[3]    last applied offset of each input topic, -1 = none
    72      hidden       f2[S]
    72+2S   items        u8[50]   item hashes, a ring: event n is at n % 50
    472+2S  times        u4[50]   epoch seconds
    672+2S  kinds        u1[50]
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat
from operator import itemgetter
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

FORMAT: Final = 1
RING: Final = 50
_BODY: Final = 8  # the checksum covers bytes 0-3 and everything from here
_LENGTH_WITHOUT_HIDDEN: Final = 72 + 13 * RING

Rows = NDArray[np.void]
"""Structured array of `record_dtype(S)`: (N,)."""


@cache
def record_dtype(state_size: int) -> np.dtype[np.void]:
    """Packed little-endian layout of one record whose hidden vector has `state_size` numbers.

    >>> record_dtype(128).itemsize
    978
    """
    return np.dtype(
        [
            ("format", "u1"),
            ("flags", "u1"),
            ("state_size", "<u2"),
            ("crc", "<u4"),
            ("model", "<u4"),
            ("count", "<u4"),
            ("kind_counts", "<u4", (3,)),
            ("user_key", "<u4"),
            ("last_ms", "<i8"),
            ("touched_ms", "<i8"),
            ("offsets", "<i8", (3,)),
            ("hidden", "<f2", (state_size,)),
            ("items", "<u8", (RING,)),
            ("times", "<u4", (RING,)),
            ("kinds", "u1", (RING,)),
        ]
    )


def empty_rows(n: int, state_size: int) -> Rows:
    """`n` zeroed records whose times and offsets say "none"."""
    rows = np.zeros(n, record_dtype(state_size))
    rows["last_ms"] = rows["touched_ms"] = rows["offsets"] = -1
    return rows


def seal(rows: Rows) -> NDArray[np.uint8]:
    """Fill in format, state size and checksum of every row, in place.

    Args:
        rows: (N,) contiguous records.

    Returns:
        The records' bytes (N, size), a view of `rows`.
    """
    return _seal(rows)[0]


def encode(rows: Rows) -> list[bytes]:
    """Each record's bytes, format and checksum filled in (in `rows` too).

    >>> rows, bad = decode(encode(empty_rows(2, 16)), 16)
    >>> rows["count"].tolist(), bad.tolist()
    ([0, 0], [False, False])
    """
    data, bodies = _seal(rows)
    heads: list[bytes] = np.ascontiguousarray(data[:, :_BODY]).view(f"V{_BODY}").ravel().tolist()
    return [head + body for head, body in zip(heads, bodies, strict=True)]


def _seal(rows: Rows) -> tuple[NDArray[np.uint8], list[bytes]]:
    state_size = rows.dtype["hidden"].shape[0]
    rows["format"] = FORMAT
    rows["state_size"] = state_size
    data = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    bodies: list[bytes] = np.ascontiguousarray(data[:, _BODY:]).view(f"V{data.shape[1] - _BODY}").ravel().tolist()
    rows["crc"] = _checksums(rows, bodies)
    return data, bodies


def _checksums(rows: Rows, bodies: Iterable[bytes]) -> NDArray[np.uint32]:
    """The checksum of every row (N,) from its first four bytes and its body."""
    if not len(rows):
        return np.zeros(0, np.uint32)
    heads = rows.view(np.uint8).reshape(len(rows), -1)[:, :4]
    if (heads == heads[0]).all():
        starts: repeat[int] | list[int] = repeat(crc32(heads[0].tobytes()))
    else:
        starts = [crc32(head.tobytes()) for head in heads]
    return np.fromiter(map(crc32, bodies, starts), np.uint32, len(rows))


def decode(values: Sequence[bytes], state_size: int) -> tuple[Rows, NDArray[np.bool_]]:
    """Read records, in bulk.

    Records of another state size (written for another model) are accepted with their hidden vector zeroed and model 0:
    the vector is rebuilt from the recent items.

    Args:
        values: N encoded records.
        state_size: The wanted width of the hidden vector.

    Returns:
        rows (N,) of `record_dtype(state_size)` and bad (N,): True where length, format, size or checksum is wrong. Bad
        rows read as `empty_rows`.
    """
    n = len(values)
    lengths = np.fromiter(map(len, values), np.int64, n)
    length = record_dtype(state_size).itemsize
    if (lengths == length).all():
        return _decode_same_length(values, state_size)
    rows, bad = empty_rows(n, state_size), np.ones(n, np.bool_)
    for other_length in np.unique(lengths).tolist():
        extra = other_length - _LENGTH_WITHOUT_HIDDEN
        if extra < 0 or extra % 2 or extra // 2 > np.iinfo(np.uint16).max:
            continue
        at = np.flatnonzero(lengths == other_length)
        read, wrong = _decode_same_length([values[i] for i in at.tolist()], extra // 2)
        bad[at] = wrong
        if other_length == length:
            rows[at] = read
            continue
        good = at[~wrong]
        for name in _CARRIED:
            rows[name][good] = read[name][~wrong]
    return rows, bad


_CARRIED: Final = (
    "flags", "count", "kind_counts", "user_key", "last_ms", "touched_ms", "offsets", "items", "times", "kinds",
)  # fmt: skip


def _decode_same_length(values: Sequence[bytes], state_size: int) -> tuple[Rows, NDArray[np.bool_]]:
    dtype = record_dtype(state_size)
    rows: Rows = np.frombuffer(bytearray().join(values), dtype)  # a bytearray, so that the rows can be written
    bad = rows["crc"] != _checksums(rows, map(itemgetter(slice(_BODY, None)), values))
    bad |= (rows["format"] != FORMAT) | (rows["state_size"] != state_size)
    if bad.any():
        rows[bad] = empty_rows(1, state_size)
    return rows, bad
