"""Recommendation messages as JSON, all of a micro-batch in one compiled pass.

orjson takes 1.5 us a message after the dictionaries are built, and building them costs more than that. Everything but
the numbers is known before the pass: an item's JSON is a cached fragment, the user id was encoded once, the rest is
constant.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numba as nb
import numpy as np
import orjson
from numpy.typing import NDArray

from state.events import TOPICS
from state.items import ItemIndex
from streams.record_batch import Blobs, blobs

_DECIMALS: Final = 10_000  # scores are written with 4 decimals
_MAX_SCORE: Final = 1e14  # scores beyond are clamped: they must fit an int64 with 4 decimals
_NUMBER_BYTES: Final = 24  # an int64 has at most 20 characters, a score 20 and the two that follow it
_OPENING: Final = np.frombuffer(b'{"user_id":', np.uint8)
_LIST: Final = np.frombuffer(b',"items":[', np.uint8)
_STAMP: Final = np.frombuffer(b',"timestamp":', np.uint8)


class Fragments(NamedTuple):
    """The pieces of JSON that make the lists of one batch."""

    data: NDArray[np.uint8]
    spans: NDArray[np.int64]  # (N, 2) start and end in `data` by item number
    listed_bytes: int  # of all entries of the lists together


class ItemFragments:
    """`{"item_id":"i9","score":` of every item recommended so far, cached in one growing buffer."""

    def __init__(self, items: ItemIndex) -> None:
        self._items = items
        self._used = 0
        self._data = np.zeros(1 << 16, np.uint8)
        self._spans = np.full((1 << 12, 2), -1, np.int64)  # start and end by item number, -1: not encoded yet
        self._spans[0] = 0

    def cover(self, recommended: NDArray[np.int32]) -> Fragments:
        """The fragments of every number in `recommended` (E, K)."""
        if len(self._items) > len(self._spans):
            spans = np.full((2 * len(self._items), 2), -1, np.int64)
            spans[: len(self._spans)] = self._spans
            self._spans = spans
        listed_bytes = _listed_bytes(self._spans, recommended)
        if listed_bytes < 0:
            self._encode(np.unique(recommended[self._spans[:, 0][recommended] < 0]))
            listed_bytes = _listed_bytes(self._spans, recommended)
        return Fragments(self._data, self._spans, listed_bytes)

    def _encode(self, numbers: NDArray[np.int32]) -> None:
        for number in numbers.tolist():
            fragment = b'{"item_id":' + orjson.dumps(self._items.ids[number]) + b',"score":'
            end = self._used + len(fragment)
            if end > len(self._data):
                self._data = np.concatenate([self._data, np.zeros_like(self._data)])
            self._data[self._used : end] = np.frombuffer(fragment, np.uint8)
            self._spans[number] = self._used, end
            self._used = end


@dataclass(frozen=True, slots=True)
class Message:
    """What the messages of one batch share."""

    model_version: str
    generated_at_ms: int


def encode_users(users: list[str]) -> tuple[Blobs, Blobs]:
    """User ids as JSON strings and as raw UTF-8 keys."""
    quoted = [orjson.dumps(user) for user in users]
    as_json = blobs(quoted)
    keys = "".join(users).encode()
    escaped = len(keys) + 2 * len(users) != len(as_json.data)
    if escaped:
        return as_json, blobs([user.encode() for user in users])
    return as_json, Blobs(np.frombuffer(keys, np.uint8), as_json.offsets - 2 * np.arange(len(users) + 1))


@lru_cache(maxsize=16)
def _heads(model_version: str, partitions: int) -> tuple[Blobs, int]:
    """What stands between a message's list and its offset, and the longest of them.

    Entry `partition * 3 + kind`, for the partition numbers below `partitions`.
    """
    parts = (
        b'],"model_version":%b,"event":{"topic":"%b","partition":%d,"offset":'
        % (orjson.dumps(model_version), topic.encode(), partition)
        for partition in range(partitions)
        for topic in TOPICS
    )
    heads = blobs(list(parts))
    return heads, int(np.diff(heads.offsets).max())


def encode_recommendations(
    users: Blobs,
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    kinds: NDArray[np.uint8],
    partitions: NDArray[np.int32],
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    fragments: Fragments,
    message: Message,
) -> Blobs:
    """One JSON value per event.

    Args:
        users: (E) user ids as JSON strings.
        items: (E, K) item numbers, best first, 0 ends the list.
        scores: (E, K).
        kinds: (E,) the source event's kind, which names its topic.
        partitions: (E,) the source event's partition number.
        offsets: (E,) the source event's offset.
        times_ms: (E,) the source event's timestamp.
        fragments: from `ItemFragments.cover(items)`.
        message: what all share.
    """
    highest = int(partitions.max(initial=0))
    heads, longest_head = _heads(message.model_version, 1 << highest.bit_length())
    tail = np.frombuffer(b'},"generated_at":%d}' % message.generated_at_ms, np.uint8)
    fixed = len(_OPENING) + len(_LIST) + longest_head + len(_STAMP) + len(tail) + 2 * _NUMBER_BYTES
    room = len(users.data) + len(items) * fixed + fragments.listed_bytes + items.size * _NUMBER_BYTES
    out = np.empty(room, np.uint8)
    ends = np.zeros(len(items) + 1, np.int64)
    _encode(
        users.data, users.offsets, items, scores, partitions * len(TOPICS) + kinds, offsets, times_ms, fragments.data,
        fragments.spans, heads.data, heads.offsets, tail, out, ends,
    )  # fmt: skip
    return Blobs(out[: ends[-1]], ends)


@nb.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _listed_bytes(spans: NDArray[np.int64], recommended: NDArray[np.int32]) -> int:
    """Bytes of the fragments of all of `recommended` (E, K); -1 when one of them has none yet."""
    total = 0
    for e in range(recommended.shape[0]):
        for j in range(recommended.shape[1]):
            number = recommended[e, j]
            if spans[number, 0] < 0:
                return -1
            total += spans[number, 1] - spans[number, 0]
    return total


@nb.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _put(out: NDArray[np.uint8], at: int, part: NDArray[np.uint8]) -> int:
    out[at : at + len(part)] = part
    return at + len(part)


@nb.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _put_int(out: NDArray[np.uint8], at: int, value: int) -> int:
    if value < 0:
        out[at] = 45
        at += 1
        value = -value
    size = 1
    rest = value // 10
    while rest:
        size += 1
        rest //= 10
    for i in range(size - 1, -1, -1):
        out[at + i] = np.uint8(48 + value % 10)
        value //= 10
    return at + size


@nb.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _put_score(out: NDArray[np.uint8], at: int, score: float) -> int:
    bounded = min(max(score, -_MAX_SCORE), _MAX_SCORE)
    scaled = np.int64(np.rint(bounded * _DECIMALS))
    if scaled < 0:
        out[at] = 45
        at += 1
        scaled = -scaled
    at = _put_int(out, at, scaled // _DECIMALS)
    out[at] = 46
    part = scaled % _DECIMALS
    for i in range(4, 0, -1):
        out[at + i] = np.uint8(48 + part % 10)
        part //= 10
    return at + 5


@nb.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _encode(
    user_data: NDArray[np.uint8],
    user_at: NDArray[np.int64],
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    sources: NDArray[np.int32],  # (E,) index into the heads
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    fragment_data: NDArray[np.uint8],
    spans: NDArray[np.int64],
    head_data: NDArray[np.uint8],
    head_at: NDArray[np.int64],
    tail: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    at = 0
    for e in range(items.shape[0]):
        at = _put(out, at, _OPENING)
        at = _put(out, at, user_data[user_at[e] : user_at[e + 1]])
        at = _put(out, at, _LIST)
        for j in range(items.shape[1]):
            number = items[e, j]
            if number == 0:
                break
            if j:
                out[at] = 44
                at += 1
            at = _put(out, at, fragment_data[spans[number, 0] : spans[number, 1]])
            at = _put_score(out, at, scores[e, j])
            out[at] = 125
            at += 1
        source = sources[e]
        at = _put(out, at, head_data[head_at[source] : head_at[source + 1]])
        at = _put_int(out, at, offsets[e])
        at = _put(out, at, _STAMP)
        at = _put_int(out, at, times_ms[e])
        at = _put(out, at, tail)
        ends[e + 1] = at
