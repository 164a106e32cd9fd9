"""Everything a worker tells Prometheus. Histograms take whole batches: one vectorised pass, no Python per event."""

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_VERSIONS_KEPT: Final = 16  # that have series of their own
_QUALITY_MEMORY: Final = 10_000  # tested events over which the live quality gauges average


class BatchHistogram(Collector):
    """A histogram that observes arrays.

    >>> histogram = BatchHistogram("seconds", "help", (0.1, 1.0))
    >>> histogram.observe(np.array([0.05, 0.5, 5.0]))
    >>> histogram.quantile(0.5)
    1.0
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text = name, text
        self._bounds = np.array([*bounds, np.inf])
        self._counts = np.zeros(len(self._bounds), np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, values: NDArray[np.float64]) -> None:
        """Count values (N,)."""
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._bounds))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def quantile(self, share: float) -> float:
        """Upper bound of the bucket that holds the quantile; 0 while nothing was observed."""
        total = int(self._counts.sum())
        if not total:
            return 0.0
        return float(self._bounds[int(np.searchsorted(np.cumsum(self._counts), share * total))])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Values counted in each bucket so far, a copy: (buckets,), the last one is beyond all bounds."""
        with self._lock:
            return self._counts.copy()

    def collect(self) -> Iterable[Metric]:
        """The histogram for Prometheus."""
        with self._lock:
            counts, total = np.cumsum(self._counts), self._sum
        buckets = [
            ("+Inf" if np.isinf(bound) else str(float(bound)), float(count))
            for bound, count in zip(self._bounds, counts, strict=True)
        ]
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, total)
        yield family


class LiveQuality:
    """Prequential HR@K and MRR@K of the lists one version served, over its last 10,000 tested events."""

    def __init__(self) -> None:
        self.tested = 0
        self.hit_rate = 0.0
        self.reciprocal_rank = 0.0

    def observe(self, ranks: NDArray[np.int32]) -> None:
        """Count tested events by rank: 1 = first, 0 = missed."""
        self.tested += len(ranks)
        weight = len(ranks) / min(self.tested, _QUALITY_MEMORY)
        hits = ranks > 0
        self.hit_rate += min(weight, 1.0) * (float(hits.mean()) - self.hit_rate)
        reciprocal = np.divide(1.0, ranks, out=np.zeros(len(ranks)), where=hits)
        self.reciprocal_rank += min(weight, 1.0) * (float(reciprocal.mean()) - self.reciprocal_rank)


class Metrics:
    """One worker's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        self.events = Counter("recstream_events", "Input events by topic and outcome", ["topic", "outcome"], registry=r)
        self.dead_letters = Counter("recstream_dead_letters", "Events sent to invalid-events", ["reason"], registry=r)
        self.recommendations = Counter(
            "recstream_recommendations", "Recommendation messages sent", ["model_version"], registry=r
        )
        self.latency = BatchHistogram(
            "recstream_event_to_recommendation_seconds",
            "Kafka timestamp of the event to its recommendation handed to the producer",
            LATENCY_BUCKETS,
        )
        self.batch_events = BatchHistogram("recstream_batch_events", "Events processed together", BATCH_BUCKETS)
        r.register(self.latency)
        r.register(self.batch_events)
        self.compute_seconds = Counter("recstream_compute_seconds", "Time spent computing batches", registry=r)
        self.model = Info("recstream_model", "The version being served", registry=r)
        self.model_number = Gauge("recstream_model_number", "Number of the version being served, 0 none", registry=r)
        self.model_loaded = Gauge("recstream_model_loaded_timestamp_seconds", "When it was swapped in", registry=r)
        self.model_created = Gauge(
            "recstream_model_created_timestamp_seconds", "When the version being served was made, 0 unknown", registry=r
        )
        self.model_refused = Counter("recstream_model_refused", "Versions that could not be loaded", registry=r)
        self.swaps = Counter("recstream_model_swaps", "Versions swapped in", registry=r)
        self.tested = Counter(
            "recstream_live_tested", "Events whose user had been shown a list before", ["model_version"], registry=r
        )
        self.hits = Counter("recstream_live_hits", "Of them, found in that list", ["model_version"], registry=r)
        self.popularity_hits = Counter(
            "recstream_live_popularity_hits", "Of them, found in the popularity list", registry=r
        )
        self.hit_rate = Gauge(
            "recstream_live_hit_rate", "Prequential HR@K, last 10,000 tested events", ["model_version"], registry=r
        )
        self.mrr = Gauge(
            "recstream_live_mrr", "Prequential MRR@K, last 10,000 tested events", ["model_version"], registry=r
        )
        self.popularity_hit_rate = Gauge(
            "recstream_live_popularity_hit_rate", "HR@K of popularity on the same events", registry=r
        )
        self.users = Gauge("recstream_users", "Users with state", ["tier"], registry=r)
        self.state_bytes = Gauge("recstream_state_bytes", "Bytes of user state in memory", registry=r)
        self.items = Gauge("recstream_items", "Items known to this process", registry=r)
        self.rehydrations = Counter(
            "recstream_rehydrations", "Hidden vectors rebuilt for the serving version", registry=r
        )
        self.expired = Counter("recstream_users_expired", "Users forgotten after their time to live", registry=r)
        self.forgotten = Counter("recstream_forgotten_users", "Requests to be forgotten answered", registry=r)
        self.forget_pending = Gauge("recstream_forget_pending", "Requests read and not answered yet", registry=r)
        self.flushes = Counter("recstream_flushes", "State flushes acknowledged", registry=r)
        self.flush_seconds = Gauge("recstream_flush_seconds", "Duration of the last flush, acknowledged", registry=r)
        self.snapshots = Counter("recstream_snapshots", "Local snapshots by what came of them", ["result"], registry=r)
        self.snapshot_seconds = Gauge("recstream_snapshot_seconds", "Time to write the last snapshot", registry=r)
        self.changelog_records = Counter("recstream_changelog_records", "State records written", registry=r)
        self.restore_seconds = Gauge(
            "recstream_restore_seconds", "Duration of the last restore", ["source"], registry=r
        )
        self.restore_users = Gauge("recstream_restore_users", "Users of the last restore", ["source"], registry=r)
        self.restore_records = Counter("recstream_restore_records", "State records read", ["source"], registry=r)
        self.restore_bad = Counter("recstream_restore_bad_records", "Unreadable state records skipped", registry=r)
        self.lag = Gauge("recstream_consumer_lag", "Events not yet read", ["topic", "partition"], registry=r)
        self.ready = Gauge("recstream_ready", "1 while state is restored and Kafka answers", registry=r)
        self.behind: int | None = None  # all of `lag` together, None until it was looked at
        self.live: dict[str, LiveQuality] = {}
        self._by_version = (self.recommendations, self.tested, self.hits, self.hit_rate, self.mrr)
        self._versions: dict[str, None] = {}  # that have series, the one used last at the end
        self.live_popularity = LiveQuality()

    def count_sent(self, version: str, recommendations: int) -> None:
        """Count recommendations that a version made."""
        self._use(version)
        self.recommendations.labels(version).inc(recommendations)

    def _use(self, version: str) -> None:
        """Keep series of the versions used last only: a trainer makes hundreds a day, each with five."""
        self._versions.pop(version, None)
        self._versions[version] = None
        if len(self._versions) <= _VERSIONS_KEPT:
            return
        oldest = next(iter(self._versions))
        del self._versions[oldest]
        self.live.pop(oldest, None)
        for metric in self._by_version:
            with suppress(KeyError):  # it made no list, or none of its lists was tested
                metric.remove(oldest)

    def observe_ranks(
        self, names: dict[int, str], ranks: NDArray[np.int32], models: NDArray[np.uint32], popular: NDArray[np.int32]
    ) -> None:
        """Count a batch's prequential tests.

        Args:
            names: version name of each model fingerprint.
            ranks: (E,) place in the list shown before the event: 0 missed, -1 there was none.
            models: (E,) fingerprint of the version that made the list.
            popular: (E,) place in the popularity list, 0 missed.
        """
        tested = ranks >= 0
        if not tested.any():
            return
        for fingerprint in np.unique(models[tested]).tolist():
            name = names.get(fingerprint, f"{fingerprint:08x}")
            of_model = ranks[tested & (models == fingerprint)]
            self._use(name)
            self.tested.labels(name).inc(len(of_model))
            self.hits.labels(name).inc(int((of_model > 0).sum()))
            quality = self.live.setdefault(name, LiveQuality())
            quality.observe(of_model)
            self.hit_rate.labels(name).set(quality.hit_rate)
            self.mrr.labels(name).set(quality.reciprocal_rank)
        self.live_popularity.observe(popular[tested])
        self.popularity_hits.inc(int((popular[tested] > 0).sum()))
        self.popularity_hit_rate.set(self.live_popularity.hit_rate)
