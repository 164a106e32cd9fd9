import os
import subprocess
import sys
from pathlib import Path

import faust
import pytest

from streams.transport import TransportError, batch_topic, install
from tests.streams.transport_harness import CLICKS, Harness

ROOT = Path(__file__).parents[2]


def test_install_comes_before_anything_else(tmp_path: Path) -> None:
    app = faust.App("late", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))
    app.topic("x")
    _ = app.transport
    with pytest.raises(TransportError, match="right after the app is created"):
        install(app)


def test_batch_topic_needs_the_transport(tmp_path: Path) -> None:
    app = faust.App("stock", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))
    with pytest.raises(TransportError, match="install"):
        batch_topic(app, "clicks")


async def test_the_channel_is_as_small_as_asked(harness: Harness) -> None:
    """`faust.App.topic(maxsize=...)` of 0.15.3 ignores its argument."""
    assert harness.topics[CLICKS].clone(is_iterator=True).queue.maxsize == 2


async def test_isolation_level_reaches_the_consumer(harness: Harness) -> None:
    harness.transport.isolation_level = "read_committed"
    consumer = harness.consumer._thread._create_worker_consumer(harness.transport)
    await consumer.stop()
    assert consumer._isolation_level == "read_committed"


@pytest.mark.skipif(bool(os.environ.get("NO_CYTHON")), reason="this is that process")
def test_everything_again_without_cython() -> None:
    files = [Path(__file__).with_name(f"test_{name}.py") for name in ("transport", "consumer", "hand_over", "offsets")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        cwd=ROOT, env={**os.environ, "NO_CYTHON": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
    from faust import streams

    assert streams._CStreamIterator is not None, "this process tests the Cython streams"
