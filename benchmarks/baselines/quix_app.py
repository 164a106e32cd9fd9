"""Baseline (c): Quix Streams doing a stateful update and one output per event, with NO model.

Runs in a virtual environment of its own with nothing but `quixstreams` in it. Every event reads and writes 768 bytes of
the user's state (RocksDB, changelog topic on) and sends an answer of the size and shape a recommendation has (about 395
bytes). Each input topic has its own state store: one store over three topics would need `concat`, which aligns
partitions by time and is slower.
"""

import struct
import time
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found]

from benchmarks.baselines import arguments
from benchmarks.baselines.arguments import INPUTS, STATE_BYTES, Arguments

ITEMS = [{"item_id": f"i{number}", "score": 0.5} for number in range(1, 9)]


def update(value: dict[str, Any], state: State) -> dict[str, Any]:
    """Count the event in the user's 768 bytes and answer."""
    stored = state.get_bytes("state")
    count = struct.unpack_from("<Q", stored)[0] + 1 if stored else 1
    state.set_bytes("state", struct.pack("<Q", count) + (stored[8:] if stored else bytes(STATE_BYTES - 8)))
    return {
        "user_id": value["user_id"],
        "items": ITEMS,
        "model_version": "none",
        "event": {"topic": "clicks", "partition": 0, "offset": count, "timestamp": value["timestamp"]},
        "generated_at": int(time.time() * 1000),
    }


def make_app(args: Arguments) -> Application:
    """The application."""
    app = Application(
        broker_address=args.brokers,
        consumer_group=args.group,
        auto_offset_reset="earliest",
        commit_interval=1.0,  # as often as the others commit
        state_dir=args.state_dir,
        loglevel="WARNING",
    )
    output = app.topic(args.output, key_serializer="bytes", value_serializer="json")
    for name in INPUTS:
        stream = app.dataframe(app.topic(name, key_deserializer="bytes", value_deserializer="json"))
        stream.apply(update, stateful=True).to_topic(output)
    return app


if __name__ == "__main__":
    make_app(arguments.parse(__doc__)).run()
