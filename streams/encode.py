"""Recommendation messages as JSON, all of a micro-batch in one compiled pass.

orjson takes 1.5 us a message after the dictionaries are built, and building them costs more than that. Everything but the
numbers is known before the pass: an item's JSON is a cached fragment, the user id was encoded once, the rest is constant.
"""

from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
import orjson
from numpy.typing import NDArray

from state.events import TOPICS
from state.items import ItemIndex
from streams.record_batch import Blobs, blobs

_DECIMALS: Final = 10_000  # scores are written with 4 decimals
_MAX_SCORE: Final = 1e14  # scores beyond are clamped: they must fit an int64 with 4 decimals
_NUMBER_BYTES: Final = 24


class ItemFragments:
    """`{"item_id":"i9","score":` of every item recommended so far, cached in one growing buffer."""

    def __init__(self, items: ItemIndex) -> None:
        self._items = items
        self._used = 0
        self._data = np.zeros(1 << 16, np.uint8)
        self._spans = np.full((1 << 12, 2), -1, np.int64)  # start and end by item number, -1: not encoded yet
        self._spans[0] = 0

    def cover(self, recommended: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Buffer and (N, 2) spans in it, covering every number in `recommended`."""
        if len(self._items) > len(self._spans):
            spans = np.full((2 * len(self._items), 2), -1, np.int64)
            spans[: len(self._spans)] = self._spans
            self._spans = spans
        missing = self._spans[:, 0][recommended] < 0
        if missing.any():
            for number in np.unique(recommended[missing]).tolist():
                fragment = b'{"item_id":' + orjson.dumps(self._items.ids[number]) + b',"score":'
                end = self._used + len(fragment)
                if end > len(self._data):
                    self._data = np.concatenate([self._data, np.zeros_like(self._data)])
                self._data[self._used : end] = np.frombuffer(fragment, np.uint8)
                self._spans[number] = self._used, end
                self._used = end
        return self._data, self._spans


@dataclass(frozen=True, slots=True)
class Message:
    """What the messages of one batch share."""

    model_version: str
    partition: int
    generated_at_ms: int


def encode_users(users: list[str]) -> tuple[Blobs, Blobs]:
    """User ids as JSON strings and as raw UTF-8 keys."""
    quoted = [orjson.dumps(user) for user in users]
    as_json = blobs(quoted)
    keys = (
        blobs([json[1:-1] for json in quoted]) if 92 not in as_json.data else blobs([user.encode() for user in users])
    )
    return as_json, keys


def encode_recommendations(
    users: Blobs,
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    kinds: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    fragments: tuple[NDArray[np.uint8], NDArray[np.int64]],
    message: Message,
) -> Blobs:
    """One JSON value per event.

    Args:
        users: (E) user ids as JSON strings.
        items: (E, K) item numbers, best first, 0 ends the list.
        scores: (E, K).
        kinds: (E,) the source event's kind, which names its topic.
        offsets: (E,) the source event's offset.
        times_ms: (E,) the source event's timestamp.
        fragments: from `ItemFragments.cover(items)`.
        message: what all share.
    """
    data, spans = fragments
    listed = int((spans[:, 1] - spans[:, 0])[items].sum()) + items.size * _NUMBER_BYTES
    opening = np.frombuffer(b'{"user_id":', np.uint8)
    heads = blobs(
        [
            b'],"model_version":'
            + orjson.dumps(message.model_version)
            + b',"event":{"topic":"'
            + topic.encode()
            + b'","partition":%d,"offset":' % message.partition
            for topic in TOPICS
        ]
    )
    tail = np.frombuffer(b'},"generated_at":%d}' % message.generated_at_ms, np.uint8)
    fixed = len(opening) + int(np.max(np.diff(heads.offsets))) + len(tail) + 2 * _NUMBER_BYTES + 64
    out = np.empty(int(users.offsets[-1]) + len(items) * fixed + listed, np.uint8)
    ends = np.zeros(len(items) + 1, np.int64)
    _encode(
        users.data, users.offsets, items, scores, kinds, offsets, times_ms, data, spans, opening, heads.data, heads.offsets,
        tail, out, ends,
    )  # fmt: skip
    return Blobs(out[: ends[-1]], ends)


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
    kinds: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    fragment_data: NDArray[np.uint8],
    spans: NDArray[np.int64],
    opening: NDArray[np.uint8],
    head_data: NDArray[np.uint8],
    head_at: NDArray[np.int64],
    tail: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    at = 0
    middle = np.array([44, 34, 105, 116, 101, 109, 115, 34, 58, 91], np.uint8)  # ,"items":[
    stamp = np.array([44, 34, 116, 105, 109, 101, 115, 116, 97, 109, 112, 34, 58], np.uint8)  # ,"timestamp":
    for e in range(items.shape[0]):
        at = _put(out, at, opening)
        at = _put(out, at, user_data[user_at[e] : user_at[e + 1]])
        at = _put(out, at, middle)
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
        kind = kinds[e]
        at = _put(out, at, head_data[head_at[kind] : head_at[kind + 1]])
        at = _put_int(out, at, offsets[e])
        at = _put(out, at, stamp)
        at = _put_int(out, at, times_ms[e])
        at = _put(out, at, tail)
        ends[e + 1] = at
