"""One worker process: settings in, running until a signal, exit code out."""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from state.errors import RecstreamError, StateError
from streams.logs import faust_logging
from streams.settings import Settings
from streams.topics import TRANSITIONS, changelog_id, ensure_topic, require_topics, topic_specs

_CLOSE_SECONDS: Final = 10.0  # to close all clients once the last events are flushed
_LONGEST_STOP_SECONDS: Final = 40.0  # below the supervisor's grace period
_GC_ALLOCATIONS: Final = 20_000  # a batch is thousands of small objects, none of them in a cycle
_SWITCH_SECONDS: Final = 0.0005  # the event loop waits at most so long for the compute thread to yield the interpreter

log = logging.getLogger(__name__)


def run_worker(settings: Settings, index: int = 0) -> None:
    """Consume, advance and recommend until SIGTERM or Ctrl-C; then flush, commit and leave the group.

    Args:
        settings: all settings.
        index: number of this worker on its host.

    Raises:
        RecstreamError: the broker cannot be reached, a topic is not as it must be, or what ended the worker later.
        SystemExit: with a non-zero code when the worker crashed.
    """
    require_topics(settings, {spec.name for spec in topic_specs(settings)} - {TRANSITIONS})
    shared = settings.fusion
    if settings.fusion and (refused := ensure_topic(settings, TRANSITIONS)):
        log.warning("Workers will not share what they learn: the topic %s cannot be created: %s", TRANSITIONS, refused)
        shared = False
    _prepare(settings.state_dir / settings.app_id)

    import faust  # late, as torch: whoever is not let in is told so seconds sooner
    import uvloop

    from streams.app import create_app
    from streams.warmup import warm_up

    warm_up()
    sys.setswitchinterval(_SWITCH_SECONDS)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker_app = create_app(settings, index, changelog_id(settings), shared)
    worker = faust.Worker(worker_app.app, loop=loop, redirect_stdouts=False, quiet=True, **faust_logging(settings))
    # What is loaded by now stays for good; looking through it again and again stopped the worker for 0.3 s at a time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 50, 100)
    limit = min(settings.rebalance_timeout_seconds + _CLOSE_SECONDS, _LONGEST_STOP_SECONDS)
    threading.Thread(target=_end_in_time, args=(worker_app.app, limit), daemon=True).start()
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        reason = end.__context__
        if isinstance(reason, RecstreamError):
            raise reason from None  # told once more, below the tracebacks: what, why and the fix
        raise


def _end_in_time(app: Any, seconds: float) -> None:
    """End the process when a stop or a crash does not come to its end: a supervisor waits for that before it restarts.

    Closing the clients takes a minute with a broker that does not answer. It is a failure only of a worker that has not
    finished what it took.
    """
    while not app.should_stop:
        time.sleep(0.5)
    time.sleep(seconds)
    finished = app.transport.finished and not app.crashed
    if finished:
        log.warning("Kafka did not let the worker go within %.0f s: ending it, with all that it took finished", seconds)
    else:
        log.critical("The worker did not stop within %.0f s: ending it. Events since its last commit repeat", seconds)
    logging.shutdown()
    os._exit(0 if finished else 1)


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what, fix = f"cannot create {directory}", "set RECSTREAM_STATE_DIR (or --state-dir) to a writable directory"
        raise StateError(what, str(error), fix) from error
