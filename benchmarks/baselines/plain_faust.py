"""Baseline (a): the Faust agent anyone would write. One event at a time, user state in a Table, `topic.send` per event.

Stock Faust settings, the same GRU(128) in torch, exact top-10 and the same JSON. The state is as compact as such an
agent would make it (778 bytes: float32 hidden vector, last 50 items with their kinds, last time, count), kept in the
in-memory store, which is quicker than RocksDB. It does less than recstream: no validation, no exclusion of items, no
deduplication.
"""

import time

import faust
import numpy as np
import torch
from faust.types import EventT, StreamT

from benchmarks.baselines import arguments, model
from benchmarks.baselines.arguments import INPUTS, Arguments

RECENT = 50


def state_dtype(hidden: int) -> np.dtype[np.void]:
    """Layout of one user's state."""
    fields = [("last_ms", "<i8"), ("count", "<u8"), ("hidden", "<f4", (hidden,))]
    return np.dtype([*fields, ("items", "<i4", (RECENT,)), ("kinds", "u1", (RECENT,))])


def make_app(args: Arguments) -> faust.App:
    """The application."""
    gru = model.load(args.version)
    rows, dtype = gru.rows, state_dtype(gru.hidden)
    name = args.version.name
    app = faust.App(
        args.group,
        broker=f"kafka://{args.brokers}",
        store="memory://",
        topic_partitions=args.partitions,
        datadir=str(args.state_dir),
        web_enabled=False,
    )
    events = app.topic(*INPUTS, key_type=bytes, value_serializer="json")
    output = app.topic(args.output, key_type=bytes, value_serializer="json")
    users = app.Table("users", key_type=bytes, value_type=bytes)

    @app.agent(events)  # type: ignore[untyped-decorator]
    async def recommend(stream: StreamT[dict[str, object]]) -> None:
        event: EventT[dict[str, object]]
        async for event in stream.events():
            value, source = event.value, event.message
            key, kind, now_ms = event.key, INPUTS.index(source.topic), int(value["timestamp"])
            stored = users.get(key)
            state = np.frombuffer(bytearray(stored), dtype)[0] if stored else np.zeros(1, dtype)[0]
            gap = max(now_ms // 1000 - int(state["last_ms"]) // 1000, 0) if state["count"] else 0
            row = rows.get(value["item_id"], 0)
            hidden = gru.step(
                torch.from_numpy(state["hidden"].copy()).unsqueeze(0),
                torch.tensor([row]),
                torch.tensor([kind]),
                torch.tensor([float(gap)]),
            )
            best, scores = gru.top(hidden)
            at = int(state["count"]) % RECENT
            state["hidden"], state["last_ms"], state["items"][at], state["kinds"][at] = (
                hidden[0].numpy(),
                now_ms,
                row,
                kind,
            )
            state["count"] += 1
            users[key] = state.tobytes()
            await output.send(
                key=key,
                value={
                    "user_id": value["user_id"],
                    "items": [
                        {"item_id": gru.vocabulary[item], "score": round(score, 4)}
                        for item, score in zip(best[0].tolist(), scores[0].tolist(), strict=True)
                    ],
                    "model_version": name,
                    "event": {
                        "topic": source.topic,
                        "partition": source.partition,
                        "offset": source.offset,
                        "timestamp": now_ms,
                    },
                    "generated_at": int(time.time() * 1000),
                },
                partition=source.partition,
            )

    return app


def main() -> None:
    """Run one worker until TERM."""
    app = make_app(arguments.parse(__doc__))
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


if __name__ == "__main__":
    main()
