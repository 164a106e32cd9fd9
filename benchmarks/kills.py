"""The trainer is killed (SIGKILL) at random points, again and again, while events keep coming.

After each kill the registry and the replay buffer are examined as the dead process left them; then it is started again.
In the end every pass that was interrupted must have become a version, once, and be the version that an uninterrupted
run of the same pass makes, weight by weight and bit by bit: training is deterministic, so an event trained twice, or
left out, in any epoch would show. Events of the log have distinct times, so one twice in the buffer would show too.
"""

import asyncio
import json as jsonlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import torch
import typer

from benchmarks.harness import processes
from benchmarks.harness.bench import http_get
from benchmarks.harness.broker import Broker, free_port, running_broker
from benchmarks.harness.contenders import TRAINER
from benchmarks.harness.machine import describe
from benchmarks.harness.processes import BenchmarkError, Cores
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from models.finetune import fine_tune
from models.job import Job, fine_settings
from models.learner import carried_by
from models.registry import Registry
from models.tables import Events
from state.replay_buffer import ReplayBuffer, ReplaySettings
from state.replay_sample import Sample
from streams.replay import produce_events
from streams.settings import Settings, load_settings
from streams.topics import create_topics
from streams.trainer import learn_settings

EVENTS_PER_SECOND: Final = 300
USERS, ITEMS = 300, 200
LONGEST_SECONDS: Final = 7.0  # from the moment the process answers to its kill
START_SECONDS: Final = 8.0  # about what starting takes on a busy machine; events come meanwhile
SMALL: Final = {  # passes of a few seconds, one after the other, so that most kills fall into one
    "partitions": "4",
    "session_timeout_seconds": "2",
    "rebalance_timeout_seconds": "2",
    "cold_start_events": "1000",
    "train_every_events": "1000",
    "train_recent_events": "4000",
    "train_reservoir_events": "4000",
    "model_hidden": "64",
    "model_embedding": "32",
    "keep_versions": "1000",
}


def main(
    kills: Annotated[int, typer.Option(min=1, help="how often the trainer is killed")] = 20,
    seed: Annotated[int, typer.Option(help="when it is killed, and the log")] = 0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Kill the trainer at random points and examine what it leaves behind.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    with ExitStack() as stack:
        stack.enter_context(processes.unwinding_on_term())
        directory = Path(tempfile.mkdtemp(prefix="recstream-kills-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        cores = processes.split_cores()
        broker = stack.enter_context(running_broker(directory / "broker", cores.others))
        machine = describe(broker, cores)
        result = _Drill(broker, cores, directory, seed).run(kills) | {"machine": machine}
    rows = [(name, f"{result[name]:,}") for name in _FIGURES]
    table(f"{kills} kills at random points, {machine['broker']}", ("what", "count"), rows)
    save("kills", result, out, lambda axes: _draw(axes, result))
    conclude(result, json)


_FIGURES: Final = (
    "kills", "kills_during_a_pass", "passes_interrupted", "passes_resumed_to_a_version", "versions",
    "versions_equal_to_an_uninterrupted_run", "broken_versions", "events", "events_twice",
)  # fmt: skip


class _Drill:
    """The log, the trainer's settings, and what was found after each kill."""

    def __init__(self, broker: Broker, cores: Cores, directory: Path, seed: int) -> None:
        self._cores, self._directory = cores, directory
        self._rng = np.random.default_rng(seed)
        own = {
            "brokers": broker.address,
            "registry": str(directory / "registry"),
            "state_dir": str(directory / "state"),
            "trainer_http_port": str(free_port()),
            **SMALL,
        }
        self._env = {f"RECSTREAM_{name.upper()}": value for name, value in own.items()}
        self._settings: Settings = load_settings(**own)
        self._registry = Registry(directory / "registry")
        self._home = directory / "state" / self._settings.app_id / "trainer"
        self._interrupted: Counter[str] = Counter()  # kills by pass
        self._broken = self._twice = 0
        self._phases: list[tuple[float, str]] = []  # seconds before the kill, and where it fell
        create_topics(self._settings)

    def run(self, kills: int) -> dict[str, Any]:
        log = _walks(round(kills * (START_SECONDS + LONGEST_SECONDS) * EVENTS_PER_SECOND), self._rng)
        with _sending(self._settings, log) as sent:
            for number in range(kills):
                with console.status(f"kill {number + 1} of {kills}"):
                    self._kill(float(self._rng.uniform(0.0, LONGEST_SECONDS)))
                    self._examine()
        with console.status("the last run, to the end"):
            self._last_run(sent())
        equal = sum(self._equal(name) for name in self._interrupted)
        made = Counter(self._registry.describe(name).lineage["pass"] for name in self._registry.versions())
        return {
            "kills": kills,
            "kills_during_a_pass": sum(self._interrupted.values()),
            "passes_interrupted": len(self._interrupted),
            "passes_resumed_to_a_version": sum(made[name] == 1 for name in self._interrupted),
            "versions": sum(made.values()),
            "passes_with_two_versions": sum(count > 1 for count in made.values()),
            "versions_equal_to_an_uninterrupted_run": equal,
            "broken_versions": self._broken,
            "events": sent(),
            "events_twice": self._twice,
            "kill_points": [[round(seconds, 2), phase] for seconds, phase in self._phases],
        }

    @contextmanager
    def _trainer(self) -> Iterator[processes.Measured]:
        with processes.running(
            "trainer", TRAINER, cores=self._cores.measured, log=self._directory / "log", env=self._env
        ) as process:
            yield process

    def _kill(self, seconds: float) -> None:
        with self._trainer() as process:
            self._wait_live(process)
            time.sleep(seconds)
            process.check()
            process.child.kill()
            process.child.wait(10)
        self._phases.append((seconds, "reading"))

    def _wait_live(self, process: processes.Measured) -> None:
        port = self._settings.trainer_http_port
        processes.wait_until(lambda: http_get(port, "/health/live")[0] == 200, process, 60, "up")

    def _examine(self) -> None:
        """What the dead process left: whole versions, a buffer without repeats, perhaps a pass to go on with."""
        for name in self._registry.versions():
            self._registry.load(name)  # a broken version is an error and ends the drill
        self._check_buffer()
        try:
            head = jsonlib.loads((self._home / "pass" / "pass.json").read_text())
        except OSError:
            return
        self._interrupted[head["id"]] += 1
        kept = self._directory / "passes" / head["id"]
        if not kept.exists():
            kept.mkdir(parents=True)
            for name in ("pass.json", "sample.replay"):
                shutil.copy(self._home / "pass" / name, kept / name)
            if (self._home / "carried").exists():
                shutil.copytree(self._home / "carried", kept / "carried")
        made = [self._registry.describe(name).lineage["pass"] for name in self._registry.versions()]
        phase = "published" if head["id"] in made else "training"
        if phase == "training" and not (self._home / "pass" / "checkpoint.pt").exists():
            phase = "training, no checkpoint yet"
        self._phases[-1] = (self._phases[-1][0], phase)

    def _check_buffer(self) -> int:
        replay = ReplaySettings(capacity=self._settings.buffer_events, seed=self._settings.trainer_seed)
        with ReplayBuffer(self._home, replay) as buffer:
            times = buffer.sample(len(buffer), 0, 0).times_ms
            self._twice += len(times) - len(np.unique(times))
            if buffer.seen != len(times) or buffer.seen != sum(buffer.offsets.values()):
                what = f"the buffer has {len(times):,} events, counts {buffer.seen:,}, and read up to {buffer.offsets}"
                raise BenchmarkError(what, "events were lost or repeated")
            return buffer.seen

    def _last_run(self, sent: int) -> None:
        """Until everything sent is in the buffer and no pass is left."""
        with self._trainer() as process:
            self._wait_live(process)
            started, quiet = time.monotonic(), time.monotonic()
            while time.monotonic() - quiet < 3:
                process.check()
                if (self._home / "pass").exists():
                    quiet = time.monotonic()
                if time.monotonic() - started > 120:
                    what = "the trainer did not come to rest within 120 s"
                    raise BenchmarkError(what, process.log_tail())
                time.sleep(0.05)
            status = process.child.stop()
        if status:
            what = f"the trainer ended with status {status} when it was asked to stop"
            raise BenchmarkError(what, process.log_tail())
        if (seen := self._check_buffer()) != sent:
            what = f"{sent:,} events were sent and {seen:,} are in the buffer"
            raise BenchmarkError(what, "events were lost")
        self._examine_last()

    def _examine_last(self) -> None:
        for name in self._registry.versions():
            self._registry.load(name)

    def _equal(self, name: str) -> bool:
        """Whether the version an interrupted pass became is the one that an uninterrupted run makes."""
        versions = [self._registry.load(version) for version in self._registry.versions()]
        made = next((version for version in versions if version.lineage["pass"] == name), None)
        if made is None:
            return False
        kept = self._directory / "passes" / name
        head, sample = jsonlib.loads((kept / "pass.json").read_text()), Sample.load(kept / "sample.replay")
        parent = None if head["parent"] is None else self._registry.load(head["parent"])
        torch.set_num_threads(self._settings.trainer_threads)
        with console.status(f"running {made.name} again without interruption"):
            fine = fine_settings(learn_settings(self._settings), Job(**head, sample=sample))
            carried = None if parent is None else carried_by(kept / "carried", parent)
            candidate = fine_tune(parent, sample, fine, head["seed"], anew=head["anew"], carried=carried)
        if candidate is None or candidate.vocabulary != made.vocabulary:
            return False
        again = candidate.network.state_dict()
        return all(torch.equal(weights, again[part]) for part, weights in made.weights.items())


def _walks(count: int, rng: np.random.Generator) -> Events:
    """Users who walk along the items, now and then jumping; every event has a time of its own."""
    at = rng.integers(0, ITEMS, USERS)
    who, jumps, to = rng.integers(0, USERS, count), rng.random(count) < 0.1, rng.integers(0, ITEMS, count)
    items = np.empty(count, np.int64)
    for number, (user, jump, item) in enumerate(zip(who.tolist(), jumps.tolist(), to.tolist(), strict=True)):
        items[number] = at[user] = item if jump else (at[user] + 1) % ITEMS
    times = int(time.time() * 1000) - 10 * count + 10 * np.arange(count)
    users = pl.Series([f"u{user}" for user in who.tolist()])
    return Events(users, pl.Series([f"i{item}" for item in items.tolist()]), np.zeros(count, np.uint8), times)


@contextmanager
def _sending(settings: Settings, log: Events) -> Iterator[Any]:
    """Send the log at a steady rate, in a thread, until the block ends; gives a function that tells how much it was."""
    stop, done = threading.Event(), 0

    def send() -> None:
        nonlocal done
        while not stop.is_set() and done < len(log):
            part = log.take(np.arange(done, min(done + EVENTS_PER_SECOND, len(log))))
            asyncio.run(produce_events(settings, part, rate=EVENTS_PER_SECOND))
            done += len(part)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield lambda: done
    finally:
        stop.set()
        thread.join(30)


def _draw(axes: Any, result: dict[str, Any]) -> None:
    phases = sorted({phase for _, phase in result["kill_points"]})
    for place, phase in enumerate(phases):
        points = [seconds for seconds, where in result["kill_points"] if where == phase]
        axes.plot(points, [place] * len(points), "x", color=f"C{place}")
    axes.set_yticks(range(len(phases)), phases)
    axes.set(xlabel="seconds from the first answer of the process to its kill", ylim=(-0.5, len(phases) - 0.5))
    axes.set_title(f"{result['kills']} kills: where they fell")
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    run(main)
