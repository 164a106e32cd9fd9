"""What one worker learnt since its last export, as one binary message for the others: arrays, no object per pair.

    magic "RSX1" | u4 items, u4 pairs, u4 id bytes | u2 id lengths (items) | ids, UTF-8
    | u4 before (pairs), u4 after (pairs): 1-based places in the item list, 0 = start of a history
    | f2 weights (pairs, 3): skip, adjacent, back

A pair takes 14 bytes. Item numbers are local to a process, so items travel by id, each once per message.
"""

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.transitions import Deltas
from state.errors import StateError
from state.items import ItemIndex

_MAGIC: Final = b"RSX1"
_HEADER: Final = struct.Struct("<4sIII")
_PAIRS_PER_MESSAGE: Final = 40_000  # 560 kB and the ids
_MOST_BYTES: Final = 900_000  # below the broker's 1 MB, long ids included
_MOST_WEIGHT: Final = 65_504.0  # the largest float16


class _Malformed(ValueError):
    """Why a message cannot be read."""


def encode_deltas(deltas: Deltas, index: ItemIndex) -> Iterator[bytes]:
    """Messages that hold all pairs whose items' ids are known here."""
    for start in range(0, len(deltas.before), _PAIRS_PER_MESSAGE):
        yield from _messages(_part(deltas, slice(start, start + _PAIRS_PER_MESSAGE)), index)


def _part(deltas: Deltas, part: slice) -> Deltas:
    return Deltas(deltas.before[part], deltas.after[part], deltas.weights[part])


def _messages(deltas: Deltas, index: ItemIndex) -> Iterator[bytes]:
    """One message, or those of both halves where it would be too large; none without a pair whose ids are known."""
    before, after, weights = deltas
    used = np.zeros(int(max(before.max(), after.max())) + 1, np.bool_)
    used[before] = used[after] = True
    used[0] = False
    numbers = np.flatnonzero(used)
    ids = [(index.ids[number] or "").encode() for number in numbers.tolist()]
    blob = b"".join(ids)
    if len(before) > 1 and _HEADER.size + 2 * len(ids) + len(blob) + 14 * len(before) > _MOST_BYTES:
        half = len(before) // 2
        yield from _messages(_part(deltas, slice(half)), index)
        yield from _messages(_part(deltas, slice(half, None)), index)
        return
    named = np.array([bool(item_id) for item_id in ids], np.bool_)
    place = np.zeros(int(numbers.max(initial=0)) + 1, np.uint32)
    place[numbers] = np.where(named, np.arange(1, len(numbers) + 1), 0)
    kept = (place[after] > 0) & ((before == 0) | (place[before] > 0))
    if not kept.any():
        return
    yield b"".join(
        (
            _HEADER.pack(_MAGIC, len(ids), int(kept.sum()), len(blob)),
            np.array([len(item_id) for item_id in ids], np.uint16).tobytes(),
            blob,
            place[before[kept]].tobytes(),
            place[after[kept]].tobytes(),
            np.minimum(weights[kept], _MOST_WEIGHT).astype(np.float16).tobytes(),
        )
    )


def decode_deltas(message: bytes, index: ItemIndex) -> Deltas:
    """The pairs of a message in this process's item numbers; items new here are interned.

    Raises:
        StateError: the message is not one of this format.
    """
    try:
        magic, n_items, n_pairs, n_bytes = _HEADER.unpack_from(message)
        if magic != _MAGIC or len(message) != _HEADER.size + 2 * n_items + n_bytes + 14 * n_pairs:
            raise _Malformed(f"{len(message)} bytes beginning with {message[:4]!r}")  # noqa: EM102
        at = _HEADER.size
        lengths = np.frombuffer(message, np.uint16, n_items, at)
        at += 2 * n_items
        stops = np.cumsum(lengths, dtype=np.int64).tolist()
        blob = message[at : at + n_bytes]
        ids = [blob[start:stop].decode() for start, stop in zip([0, *stops], stops, strict=False)]
        at += n_bytes
        before = np.frombuffer(message, np.uint32, n_pairs, at)
        after = np.frombuffer(message, np.uint32, n_pairs, at + 4 * n_pairs)
        weights = np.frombuffer(message, np.float16, 3 * n_pairs, at + 8 * n_pairs).reshape(-1, 3)
        if n_pairs and max(int(before.max()), int(after.max())) > n_items:
            raise _Malformed("a pair names an item outside the list")  # noqa: EM101
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise _Malformed("a weight is negative or not finite")  # noqa: EM101
    except (_Malformed, UnicodeDecodeError, struct.error) as error:
        what = "a message of shared transitions is unreadable"
        raise StateError(what, str(error), "check which program writes to the topic item-transitions") from error
    numbers: NDArray[np.int32] = np.zeros(n_items + 1, np.int32)
    numbers[1:] = [index.number(item_id) if item_id else 0 for item_id in ids]
    return Deltas(numbers[before], numbers[after], weights.astype(np.float32))
