"""A Faust worker for the transport's broker tests: reads topics in batches and logs which records it acknowledged.

    python transport_worker.py BOOTSTRAP GROUP LOGFILE TOPIC,TOPIC [delay seconds per batch [isolation level]]

Each acknowledged batch is one line `topic partition offset,offset,...` in LOGFILE, written before its acknowledgement.
"""

import asyncio
import sys
from pathlib import Path

import faust
from faust.types import TP

from streams.transport import IsolationLevel, batch_topic, install, take


def main(
    bootstrap: str,
    group: str,
    log_file: str,
    topics: str,
    delay_seconds: str = "0",
    isolation_level: IsolationLevel = "read_uncommitted",
) -> None:
    """Run until SIGTERM."""
    app = faust.App(
        group,
        broker=f"kafka://{bootstrap}",
        datadir=str(Path(log_file).with_suffix(".data")),
        web_enabled=False,
        topic_disable_leader=True,
        broker_commit_interval=0.2,
        broker_session_timeout=6.0,
        broker_rebalance_timeout=6.0,
        broker_max_poll_interval=6.0,
        broker_heartbeat_interval=1.0,
        stream_recovery_delay=0.0,
        consumer_auto_offset_reset="earliest",
    )
    transport = install(app, max_batch_events=500, isolation_level=isolation_level)
    waiting: asyncio.Queue[faust.Event] = asyncio.Queue(maxsize=3)
    log = Path(log_file).open("a", buffering=1)

    async def work() -> None:
        while True:
            events = [await waiting.get()]
            while len(events) < 3 and not waiting.empty():
                events.append(waiting.get_nowait())
            await asyncio.sleep(float(delay_seconds) * len(events))
            for event in reversed(events):  # the newest first: acknowledgements arrive out of order
                finish(event)
                waiting.task_done()

    def finish(event: faust.Event) -> None:
        for batch in take(event):
            if batch.offsets:
                log.write(f"{batch.topic} {batch.partition} {','.join(map(str, batch.offsets))}\n")
        event.ack()

    async def before_revoke(_revoked: set[TP]) -> None:
        await waiting.join()  # everything the agents took is finished

    transport.before_revoke = before_revoke

    async def read(stream: faust.Stream[object]) -> None:
        async for event in stream.noack().events():
            await waiting.put(event)

    for topic in topics.split(","):
        app.agent(batch_topic(app, topic), name=f"read-{topic}")(read)

    app.task(work)
    faust.Worker(app, loglevel="WARNING", console_port=None, debug=False).execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
