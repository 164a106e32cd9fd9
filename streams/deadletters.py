"""Dead letters: rejected events as they came, with the reason and their origin in the headers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.producer.message_accumulator import BatchBuilder

from streams.decode import Rejected
from streams.fetch import RecordBatch

_MAX_DETAIL_BYTES: Final = 300
_MAX_RECORD_BYTES: Final = (
    900_000  # key and value: a record at the broker's limit (1 MB) would not fit with its headers
)
_MAX_KEY_BYTES: Final = 100_000
_BATCH_BYTES: Final = 900_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be used and why."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


def dead_letter(batch: RecordBatch, rejected: Rejected) -> DeadLetter:
    """The rejected record of a batch, with the headers of the contract.

    A key or value too large to send on is cut, and a header `truncated` tells how large the value was; its origin is in
    the headers.
    """
    key, value = batch.keys[rejected.position], batch.values[rejected.position] or b""
    headers = [
        ("error", _shortened(f"{rejected.reason}: {rejected.detail}", _MAX_DETAIL_BYTES)),
        ("source-topic", batch.topic.encode()),
        ("source-partition", str(batch.partition).encode()),
        ("source-offset", str(batch.offsets[rejected.position]).encode()),
    ]
    if len(value) + len(key or b"") > _MAX_RECORD_BYTES:
        headers.append(("truncated", str(len(value)).encode()))
        key = key and key[:_MAX_KEY_BYTES]
        value = value[: _MAX_RECORD_BYTES - len(key or b"")]
    return DeadLetter(key, value, headers)


def _shortened(text: str, limit: int) -> bytes:
    """UTF-8 of at most `limit` bytes that ends with a whole character."""
    return text.encode()[:limit].decode(errors="ignore").encode()


def encode_dead_letters(letters: list[DeadLetter]) -> Iterator[Any]:
    """Closed aiokafka batches: these records have headers and are rare enough for its own builder."""
    now_ms = int(time.time() * 1000)
    builder = None
    for letter in letters:
        record = {"timestamp": now_ms, "key": letter.key, "value": letter.value, "headers": letter.headers}
        if builder is None or builder.append(**record) is None:
            if builder is not None:
                yield builder  # full, which closed it
            builder = BatchBuilder(_BATCH_BYTES, 0)
            builder.append(**record)  # the first record of a batch always fits
    if builder is not None:
        builder.close()
        yield builder
