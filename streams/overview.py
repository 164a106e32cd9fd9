"""What a worker has done lately: one sample of its metrics a second, the last quarter of an hour of them kept.

A sample costs about 0.1 ms of the event loop. Rates and latencies are those of the seconds before it, long enough to
hold two flushes: counters move once a flush.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from mode import Service
from numpy.typing import NDArray
from prometheus_client.metrics import MetricWrapperBase

from streams.metrics import LATENCY_BUCKETS, Metrics
from streams.pipeline import Pipeline

EVERY_SECONDS: Final = 1.0
KEPT_SAMPLES: Final = 900
KEPT_SWAPS: Final = 100
LEAST_TESTED: Final = 50  # a hit rate of fewer events is noise
LEAST_SHARE: Final = 0.1  # of the lists tested lately: an old version's last few say nothing about now
_LEAST_WINDOW: Final = 5  # samples


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at one moment; times in epoch ms, None where there is nothing to tell.

    Attributes:
        number: counts samples since the worker started.
        at: when it was taken.
        events_per_second: events applied.
        p50_ms: median of event to recommendation, estimated from the histogram's buckets.
        p99_ms: its 99th percentile.
        lag: events not yet read.
        users: users with state.
        hit_rate: version -> prequential HR@K over its last 10,000 tested events, of versions that made at least a tenth
            of the lists tested lately.
        popularity_hit_rate: the same of popularity.
    """

    number: int
    at: int
    events_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    lag: int | None
    users: int
    hit_rate: dict[str, float]
    popularity_hit_rate: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """A version and since when it serves, epoch ms; `fingerprint` is 0 for popularity."""

    version: str
    fingerprint: int
    at: int


@dataclass(frozen=True, slots=True)
class _Counted:
    """Cumulative figures at one moment (monotonic seconds)."""

    at: float
    events: float
    latency: NDArray[np.int64]  # (buckets,)
    tested: dict[str, int]


class Overview(Service):  # type: ignore[misc]
    """Samples a worker's metrics.

    Args:
        metrics: what to sample.
        pipeline: whose model and partitions are told.
        window_seconds: over which rates are taken, at least 5.
        clock: monotonic seconds.

    Attributes:
        started_at: epoch ms; sample numbers begin anew with it.
    """

    def __init__(
        self,
        metrics: Metrics,
        pipeline: Pipeline,
        window_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._metrics, self._pipeline, self._clock = metrics, pipeline, clock
        self.started_at = _now_ms()
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._served: deque[Served] = deque(maxlen=KEPT_SWAPS)
        window = max(_LEAST_WINDOW, round(window_seconds / EVERY_SECONDS))
        self._counted: deque[_Counted] = deque(maxlen=window)
        self._number = 0

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        while not self.should_stop:
            self.sample()
            await self.sleep(EVERY_SECONDS)

    def sample(self) -> Sample:
        """Take one sample."""
        self._note_model()
        metrics = self._metrics
        # A copy, since the compute thread may add a version meanwhile.
        live = dict(metrics.live)
        tested = {name: quality.tested for name, quality in live.items()}
        applied = total(metrics.events, outcome="applied")
        now = _Counted(self._clock(), applied, metrics.latency.counts, tested)
        then = self._counted[0] if self._counted else now
        self._counted.append(now)
        seconds = max(now.at - then.at, 1e-9)
        waited = now.latency - then.latency
        lately = {name: count - then.tested.get(name, 0) for name, count in tested.items()}
        enough = max(1.0, LEAST_SHARE * sum(lately.values()))
        self._number += 1
        popularity = metrics.live_popularity
        sample = Sample(
            number=self._number,
            at=_now_ms(),
            events_per_second=round((now.events - then.events) / seconds, 1),
            p50_ms=quantile_ms(waited, 0.5),
            p99_ms=quantile_ms(waited, 0.99),
            lag=metrics.behind,
            users=int(total(metrics.users)),
            hit_rate={
                name: round(quality.hit_rate, 5)
                for name, quality in live.items()
                if tested[name] >= LEAST_TESTED and lately[name] >= enough
            },
            popularity_hit_rate=round(popularity.hit_rate, 5) if popularity.tested >= LEAST_TESTED else None,
        )
        self._samples.append(sample)
        return sample

    def after(self, number: int) -> list[Sample]:
        """Samples kept whose number is above `number`, oldest first."""
        newer = min(max(self._number - number, 0), len(self._samples))
        return list(self._samples)[len(self._samples) - newer :]

    @property
    def served(self) -> list[Served]:
        """The last 100 versions served, oldest first."""
        return list(self._served)

    def version_of(self, fingerprint: int) -> str:
        """Name of a version served lately; its fingerprint when it is not among them."""
        names = (served.version for served in reversed(self._served) if served.fingerprint == fingerprint)
        return next(names, f"{fingerprint:08x}")

    def totals(self) -> dict[str, int]:
        """Counters since the start, and the size of the state."""
        metrics = self._metrics
        return {
            "events": int(total(metrics.events, outcome="applied")),
            "duplicates": int(total(metrics.events, outcome="duplicate")),
            "rejected": int(total(metrics.events, outcome="rejected")),
            "recommendations": int(total(metrics.recommendations)),
            "users_resident": int(total(metrics.users, tier="resident")),
            "users_cold": int(total(metrics.users, tier="cold")),
        }

    def _note_model(self) -> None:
        recommender = self._pipeline.recommender
        model, version = recommender.model, recommender.model_version
        if not self._served or self._served[-1].version != version:
            self._served.append(Served(version, model.fingerprint if model else 0, _now_ms()))


def quantile_ms(counts: NDArray[np.int64], share: float) -> float | None:
    """A quantile of what was counted in the latency buckets, linear within a bucket as Prometheus estimates it.

    Args:
        counts: (buckets,) values per bucket of `LATENCY_BUCKETS`; the last one is beyond all bounds.
        share: between 0 and 1.

    Returns:
        Milliseconds, the last bound for what lies beyond it; None when nothing was counted.

    >>> quantile_ms(np.array([0, 10, *[0] * 15]), 0.5)
    0.75
    """
    cumulative = np.cumsum(counts)
    wanted = share * int(cumulative[-1])
    if not cumulative[-1]:
        return None
    bucket = int(np.searchsorted(cumulative, wanted))
    if bucket >= len(LATENCY_BUCKETS):
        return 1000.0 * LATENCY_BUCKETS[-1]
    lower, upper = (LATENCY_BUCKETS[bucket - 1] if bucket else 0.0), LATENCY_BUCKETS[bucket]
    within = (wanted - int(cumulative[bucket] - counts[bucket])) / int(counts[bucket])
    return round(1000.0 * (lower + (upper - lower) * within), 3)


def total(metric: MetricWrapperBase, **labels: str) -> float:
    """Sum of a counter's or gauge's samples that carry these labels."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    values: Iterator[float] = (
        sample.value
        for sample in samples
        if not sample.name.endswith("_created") and labels.items() <= sample.labels.items()
    )
    return sum(values)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
