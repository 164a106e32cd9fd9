"""Raw Kafka values -> valid events and rejected ones. A bad event is a value, never an exception.

This loop is the one place where Python touches every event, so it does nothing twice: about 1 us an event, most of it
orjson's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

MAX_ID_BYTES: Final = 256
MAX_FUTURE_MS: Final = 24 * 3600 * 1000
MAX_CONTEXT_ENTRIES: Final = 64
_ALWAYS_SHORT: Final = MAX_ID_BYTES // 4  # a string of so many characters cannot exceed MAX_ID_BYTES in UTF-8
_REQUIRED: Final = 3
_NUMBERS: Final = ("rating", "price", "quantity")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_loads = orjson.loads


class Reason:
    """Why events are rejected: labels of the metric and first word of a dead letter's `error` header."""

    EMPTY: Final = "empty"
    OVERSIZED: Final = "oversized"
    BAD_JSON: Final = "bad-json"
    NOT_AN_OBJECT: Final = "not-an-object"
    MISSING_ID: Final = "missing-id"
    BAD_ID: Final = "bad-id"
    OVERSIZED_ID: Final = "oversized-id"
    BAD_TIMESTAMP: Final = "bad-timestamp"
    FUTURE_TIMESTAMP: Final = "future-timestamp"
    BAD_NUMBER: Final = "bad-number"
    BAD_CONTEXT: Final = "bad-context"


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that cannot be used: its place in the batch and why."""

    position: int
    reason: str
    detail: str


@dataclass(slots=True)
class Decoded:
    """The valid events of a batch, field by field, and the rejected ones."""

    positions: NDArray[np.int64]  # (E,) places in the batch
    users: list[str]
    items: list[str]
    times_ms: NDArray[np.int64]  # (E,)
    rejected: list[Rejected] = field(default_factory=list)


class _Invalid(ValueError):
    """Why an event is refused: a short reason for metrics and a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)


def decode(values: Sequence[bytes | None], now_ms: int, max_bytes: int = 65_536) -> Decoded:
    """Parse and validate a batch of event values.

    Args:
        values: raw message values.
        now_ms: wall time; events more than a day later are rejected.
        max_bytes: larger values are rejected unparsed.

    >>> decoded = decode([b'{"user_id":"u","item_id":"i","timestamp":5}', b"oops"], now_ms=10)
    >>> decoded.users, decoded.times_ms.tolist(), [(bad.position, bad.reason) for bad in decoded.rejected]
    (['u'], [5], [(1, 'bad-json')])
    """
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    positions: list[int] = []
    rejected: list[Rejected] = []
    latest = now_ms + MAX_FUTURE_MS
    add_user, add_item, add_time, add_position = users.append, items.append, times.append, positions.append
    for position, value in enumerate(values):
        try:
            if not value or len(value) > max_bytes:
                raise _size_problem(value, max_bytes)
            event = _loads(value)
            user, item, time_ms = event["user_id"], event["item_id"], event["timestamp"]
            if type(user) is not str or type(item) is not str or not user or not item:
                raise _id_problem(event)
            if (len(user) > _ALWAYS_SHORT and len(user.encode()) > MAX_ID_BYTES) or (
                len(item) > _ALWAYS_SHORT and len(item.encode()) > MAX_ID_BYTES
            ):
                raise _Invalid(Reason.OVERSIZED_ID, f"user_id or item_id is longer than {MAX_ID_BYTES} bytes")
            if type(time_ms) is not int:
                time_ms = _timestamp(time_ms)
            if time_ms > latest:
                raise _Invalid(Reason.FUTURE_TIMESTAMP, f"timestamp {time_ms} is more than a day after now ({now_ms})")
            if time_ms < 0:
                raise _Invalid(Reason.BAD_TIMESTAMP, f"timestamp {time_ms} is before 1970")
            if len(event) > _REQUIRED:
                _check_optional(event)
        except orjson.JSONDecodeError as error:
            rejected.append(Rejected(position, Reason.BAD_JSON, f"not JSON: {error}"))
        except _Invalid as error:
            rejected.append(Rejected(position, error.reason, error.detail))
        except (KeyError, TypeError, IndexError):
            rejected.append(_shape_problem(position, event))
        else:
            add_user(user)
            add_item(item)
            add_time(time_ms)
            add_position(position)
    return Decoded(np.array(positions, np.int64), users, items, np.array(times, np.int64), rejected)


def _size_problem(value: bytes | None, max_bytes: int) -> _Invalid:
    if not value:
        return _Invalid(Reason.EMPTY, "the message has no value")
    return _Invalid(Reason.OVERSIZED, f"the value has {len(value)} bytes, more than {max_bytes}")


def _shape_problem(position: int, event: Any) -> Rejected:
    if not isinstance(event, dict):
        return Rejected(position, Reason.NOT_AN_OBJECT, f"the value is a JSON {type(event).__name__}, not an object")
    missing = [name for name in ("user_id", "item_id", "timestamp") if name not in event]
    reason = Reason.BAD_TIMESTAMP if missing == ["timestamp"] else Reason.MISSING_ID
    return Rejected(position, reason, f"missing {', '.join(missing)}")


def _id_problem(event: dict[str, Any]) -> _Invalid:
    for name in ("user_id", "item_id"):
        if not isinstance(event[name], str):
            return _Invalid(Reason.BAD_ID, f"{name} is a {type(event[name]).__name__}, not a string")
        if not event[name]:
            return _Invalid(Reason.MISSING_ID, f"{name} is empty")
    return _Invalid(Reason.BAD_ID, "user_id or item_id cannot be used")


def _timestamp(value: Any) -> int:
    """Milliseconds since the epoch from a whole float or an ISO 8601 string (UTC where it names no zone)."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            return (moment - _EPOCH) // _MILLISECOND  # exact, where a float of seconds loses a millisecond now and then
        except (ValueError, OverflowError):
            pass
    shown = repr(value)[:80]
    raise _Invalid(Reason.BAD_TIMESTAMP, f"timestamp {shown} is neither integer milliseconds nor ISO 8601")


def _check_optional(event: dict[str, Any]) -> None:
    for name in _NUMBERS:
        value = event.get(name)
        if value is not None and not _finite(value):
            raise _Invalid(Reason.BAD_NUMBER, f"{name} is {repr(value)[:80]}, not a finite number")
    context = event.get("context")
    if context is None:
        return
    if not isinstance(context, dict) or len(context) > MAX_CONTEXT_ENTRIES:
        raise _Invalid(Reason.BAD_CONTEXT, f"context is not an object of at most {MAX_CONTEXT_ENTRIES} entries")
    for name, value in context.items():
        if isinstance(value, str):
            if len(value) > MAX_ID_BYTES:
                raise _Invalid(Reason.BAD_CONTEXT, f"context.{name[:40]} is longer than {MAX_ID_BYTES} characters")
        elif value is not None and not isinstance(value, bool) and not _finite(value):
            raise _Invalid(Reason.BAD_CONTEXT, f"context.{name[:40]} is neither a short string nor a finite number")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
