"""Baseline (b): aiokafka, orjson and torch in one loop. No framework, no durable state, no validation: the ceiling.

Everything a good engineer would do in an afternoon: uvloop, all partitions of a fetch in one batch, batched GRU steps
(the k-th event of every user at once), batched exact top-10, whole record batches out, sends overlapping with the next
batch, offsets committed once a second behind acknowledged output. A crash loses every user's state.
"""

import asyncio
import signal
import time
from collections import defaultdict
from typing import Any

import numpy as np
import orjson
import torch
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from benchmarks.baselines import arguments, model
from benchmarks.baselines.arguments import INPUTS, Arguments
from benchmarks.baselines.model import Gru

MAX_EVENTS = 4_096  # per batch
ROWS_AT_ONCE = 256  # (256, V) float32 scores are 1.7 MB: they stay in the L2 cache between the product and the top-10
MAX_PENDING = 64  # produce batches on their way


class Users:
    """Hidden vectors and last event times of all users, in memory."""

    def __init__(self, hidden: int) -> None:
        self.slots: dict[bytes, int] = {}
        self.state = torch.zeros(1024, hidden)  # (C, H)
        self.last_seconds = np.full(1024, -1, np.int64)

    def slots_of(self, keys: list[bytes]) -> list[int]:
        """Slot of each user, new ones added."""
        slots = self.slots
        found = [slots.setdefault(key, len(slots)) for key in keys]
        while len(slots) > len(self.state):
            self.state = torch.cat((self.state, torch.zeros_like(self.state)))
            self.last_seconds = np.concatenate((self.last_seconds, np.full_like(self.last_seconds, -1)))
        return found


def advance(gru: Gru, users: Users, records: list[ConsumerRecord], events: list[dict[str, Any]]) -> torch.Tensor:
    """Apply the events in order; the hidden vector after each (E, H)."""
    rows = gru_rows(gru)
    slots = users.slots_of([record.key for record in records])
    items = torch.tensor([rows.get(event["item_id"], 0) for event in events])
    kinds = torch.tensor([INPUTS.index(record.topic) for record in records])
    seconds = np.fromiter((event["timestamp"] for event in events), np.int64, len(events)) // 1000
    waves: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, slot in enumerate(slots):
        wave = seen.get(slot, 0)
        seen[slot] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(position)
    after = torch.empty(len(events), gru.hidden)
    slot_of = np.array(slots)
    for wave_positions in waves:
        at = np.array(wave_positions)
        who = slot_of[at]
        last, now = users.last_seconds[who], seconds[at]
        gaps = np.where(last < 0, 0, np.maximum(now - last, 0)).astype(np.float32)
        users.last_seconds[who] = now
        index, where = torch.from_numpy(who), torch.from_numpy(at)
        state = gru.step(users.state[index], items[where], kinds[where], torch.from_numpy(gaps))
        users.state[index] = state
        after[where] = state
    return after


_ROWS: dict[int, dict[str, int]] = {}


def gru_rows(gru: Gru) -> dict[str, int]:
    """The item table, built once."""
    return _ROWS.setdefault(id(gru), gru.rows)


def encode(
    gru: Gru, name: str, records: list[ConsumerRecord], events: list[dict[str, Any]], after: torch.Tensor
) -> list[bytes]:
    """One recommendation per event."""
    vocabulary = np.array(gru.vocabulary, object)
    now_ms = int(time.time() * 1000)
    values: list[bytes] = []
    for start in range(0, len(events), ROWS_AT_ONCE):
        best, scores = gru.top(after[start : start + ROWS_AT_ONCE])
        ids = vocabulary[best].tolist()
        rounded = np.round(scores.astype(np.float64), 4).tolist()
        part = slice(start, start + ROWS_AT_ONCE)
        for record, event, items, marks in zip(records[part], events[part], ids, rounded, strict=True):
            values.append(
                orjson.dumps(
                    {
                        "user_id": event["user_id"],
                        "items": [{"item_id": item, "score": mark} for item, mark in zip(items, marks, strict=True)],
                        "model_version": name,
                        "event": {
                            "topic": record.topic,
                            "partition": record.partition,
                            "offset": record.offset,
                            "timestamp": event["timestamp"],
                        },
                        "generated_at": now_ms,
                    }
                )
            )
    return values


async def send(
    producer: AIOKafkaProducer, topic: str, records: list[ConsumerRecord], values: list[bytes]
) -> list[asyncio.Future[Any]]:
    """Send each value to its event's partition, in whole batches."""
    placed: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        placed[record.partition].append((record.key, value))
    sent = []
    for partition, entries in placed.items():
        batch = producer.create_batch()
        for key, value in entries:
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        sent.append(await producer.send_batch(batch, topic, partition=partition))
    return sent


async def run(args: Arguments) -> None:
    """Read, step, answer, commit until TERM."""
    gru = model.load(args.version)
    users = Users(gru.hidden)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    consumer = AIOKafkaConsumer(
        *INPUTS,
        bootstrap_servers=args.brokers,
        group_id=args.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=10_000,
        check_crcs=False,
    )
    producer = AIOKafkaProducer(bootstrap_servers=args.brokers, acks="all", max_batch_size=900_000)
    async with consumer, producer:
        pending: list[asyncio.Future[Any]] = []
        offsets: dict[TopicPartition, int] = {}
        committed = time.monotonic()
        while not stopping.is_set():
            fetched = await consumer.getmany(timeout_ms=100, max_records=MAX_EVENTS)
            records = [record for part in fetched.values() for record in part]
            if records:
                events = [orjson.loads(record.value) for record in records]
                values = encode(gru, args.version.name, records, events, advance(gru, users, records, events))
                pending += await send(producer, args.output, records, values)
                offsets.update({tp: part[-1].offset + 1 for tp, part in fetched.items()})
            due = time.monotonic() - committed > 1
            if due or len(pending) > MAX_PENDING:
                await asyncio.gather(*pending)
                pending.clear()
            if due and offsets:
                await consumer.commit(offsets)
                offsets = {}
                committed = time.monotonic()
        await asyncio.gather(*pending)


if __name__ == "__main__":
    uvloop.run(run(arguments.parse(__doc__)))
