"""Requests to be forgotten (`forget-users`) and the receipts that answer them (`forgotten-users`)."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from state.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from streams.decode import MAX_ID_BYTES, Reason, Rejected
from streams.fetch import RecordBatch
from streams.topics import FORGET_USERS

By = Literal["worker", "trainer"]
BOTH: Final[tuple[By, ...]] = ("worker", "trainer")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        key: the message's key: the user id as producers know it.
        user: the same as text, as it stands in events.
        name: the name that the user's state is kept under.
        partition: where the request stands on `forget-users`: the partition number of everything about the user.
        offset: its offset there.
    """

    key: bytes
    user: str
    name: str
    partition: int
    offset: int


def read_requests(batch: RecordBatch, pseudonyms: Pseudonyms = NO_PSEUDONYMS) -> tuple[list[Request], list[Rejected]]:
    """The requests of a batch and those that name nobody; values are not looked at."""
    requests: list[Request] = []
    rejected: list[Rejected] = []
    for position, (key, offset) in enumerate(zip(batch.keys, batch.offsets, strict=True)):
        if not key:
            rejected.append(Rejected(position, Reason.MISSING_ID, "the message has no key, which names the user"))
        elif len(key) > MAX_ID_BYTES:
            rejected.append(Rejected(position, Reason.OVERSIZED_ID, f"the key is longer than {MAX_ID_BYTES} bytes"))
        else:
            try:
                user = key.decode()
                requests.append(Request(key, user, pseudonyms.name(user), batch.partition, offset))
            except UnicodeDecodeError as error:
                rejected.append(Rejected(position, Reason.BAD_ID, f"the key is not UTF-8: {error}"))
    pseudonyms.forget(request.user for request in requests)
    return requests, rejected


def receipt(request: Request, by: By, events: int | None, now_ms: int) -> bytes:
    """The value of a receipt, whose key is that of the request.

    Args:
        request: what it answers.
        by: who has erased.
        events: how many events of the user were held, None when the user was not known.
        now_ms: when the erasure was complete.

    >>> receipt(Request(b"u1", "u1", "u1", 3, 7), "worker", 12, 5).decode()
    '{"user_id":"u1","by":"worker","found":true,"events_removed":12,"forgotten_at":5,\
"request":{"topic":"forget-users","partition":3,"offset":7}}'
    """
    return orjson.dumps(
        {
            "user_id": request.key.decode(),
            "by": by,
            "found": events is not None,
            "events_removed": events or 0,
            "forgotten_at": now_ms,
            "request": {"topic": FORGET_USERS, "partition": request.partition, "offset": request.offset},
        }
    )


def read_receipt(value: bytes | None) -> dict[str, Any]:
    """A receipt as a dictionary, empty when it cannot be read."""
    try:
        decoded = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}
