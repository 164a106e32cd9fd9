"""What the trainer tells: Prometheus metrics, and TensorBoard scalars where that is installed."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from models.finetune import Step
from models.job import Outcome

_SECONDS = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)

log = logging.getLogger(__name__)


class TrainerMetrics:
    """The trainer's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.events = Counter("recstream_trainer_events", "events taken into the buffer", registry=registry)
        self.invalid = Counter("recstream_trainer_invalid", "events that cannot be used", registry=registry)
        self.forgotten = Counter(
            "recstream_trainer_forgotten_users", "requests to be forgotten answered", registry=registry
        )
        self.forget_pending = Gauge(
            "recstream_trainer_forget_pending", "requests read and not answered yet", registry=registry
        )
        self.lag = Gauge("recstream_trainer_lag", "events not read yet, all partitions", registry=registry)
        self.buffer_events = Gauge("recstream_trainer_buffer_events", "events in the buffer", registry=registry)
        self.buffer_bytes = Gauge("recstream_trainer_buffer_bytes", "size of the buffer's file", registry=registry)
        self.buffer_items = Gauge("recstream_trainer_buffer_items", "items the buffer knows", registry=registry)
        self.versions = Counter(
            "recstream_trainer_versions",
            "passes by what came of them: promoted, rejected, failed",
            ["result"],
            registry=registry,
        )
        for result in ("promoted", "rejected", "failed"):
            self.versions.labels(result)
        self.passes = Counter("recstream_trainer_passes", "passes begun, by trigger", ["trigger"], registry=registry)
        self.seconds = Histogram(
            "recstream_trainer_pass_seconds", "training, judging and publishing", buckets=_SECONDS, registry=registry
        )
        self.training = Gauge("recstream_trainer_training", "1 while a pass runs", registry=registry)
        self.progress = Gauge("recstream_trainer_progress", "share of the running pass done", registry=registry)
        self.loss = Gauge("recstream_trainer_loss", "mean loss of the newest epoch", registry=registry)
        self.samples = Gauge("recstream_trainer_samples_per_second", "events learnt per second", registry=registry)
        self.alarms = Counter("recstream_trainer_drift_alarms", "abrupt falls of the hit rate", registry=registry)
        self.hit_rate = Gauge(
            "recstream_trainer_hit_rate", "HR@10 of the serving network since the last change", registry=registry
        )
        self.ndcg = Gauge("recstream_trainer_gate_ndcg", "NDCG@10 at the gate", ["model"], registry=registry)
        self.epsilon = Gauge(
            "recstream_trainer_epsilon", "differential privacy spent by the newest version", registry=registry
        )
        self.model = Info("recstream_trainer_model", "the serving version", registry=registry)

    def finished(self, outcome: Outcome, seconds: float) -> None:
        """Count a pass that came to its end."""
        gate = outcome.metrics["gate"]
        result = "promoted" if outcome.promoted else "failed" if outcome.version is None else "rejected"
        self.versions.labels(result).inc()
        self.seconds.observe(seconds)
        self.ndcg.labels("candidate").set(gate["candidate"]["ndcg@10"])
        self.ndcg.labels("rival").set(gate["rival_quality"]["ndcg@10"])
        if "epsilon" in outcome.metrics:
            self.epsilon.set(outcome.metrics["epsilon"])


class Scalars:
    """TensorBoard scalars of every pass; nothing where the package `tensorboard` is not installed.

    Args:
        directory: Where the event files go.
    """

    def __init__(self, directory: Path) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("No TensorBoard scalars: install recstream[train] for them")
            return
        with self._or_without():
            self._writer = SummaryWriter(str(directory))

    def step(self, seen: int, step: Step) -> None:
        """A batch of a pass; `seen` orders passes on TensorBoard's axis."""
        with self._or_without():
            if self._writer is not None:
                self._writer.add_scalar("train/loss", step.loss, seen + int(1000 * step.done), time.time())

    def outcome(self, seen: int, outcome: Outcome) -> None:
        """The gate's findings."""
        gate = outcome.metrics["gate"]
        with self._or_without():
            if self._writer is None:
                return
            for name in ("hr@10", "ndcg@10", "mrr@10"):
                self._writer.add_scalars(
                    f"gate/{name}", {"candidate": gate["candidate"][name], "rival": gate["rival_quality"][name]}, seen
                )
            self._writer.add_scalar("gate/promoted", int(outcome.promoted), seen)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with self._or_without():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """A full or broken disk costs the curves, not the trainer."""
        try:
            yield
        except OSError as error:
            log.warning("No TensorBoard scalars from now on: %s", error)
            self._writer = None
