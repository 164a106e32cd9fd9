"""What the demo sees from outside: the topics as a consumer reads them, and the metrics of worker and trainer."""

import asyncio
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from state.events import TOPICS
from streams.kafka import client_options
from streams.settings import Settings
from streams.topics import INVALID_EVENTS, RECOMMENDATIONS

_SHOWN_USERS: Final = 4
_METRICS_SECONDS: Final = 0.5
_TESTED, _HITS, _POPULAR = (f"recstream_live_{name}_total" for name in ("tested", "hits", "popularity_hits"))

Samples = dict[tuple[str, str], float]
"""Value of each sample by its name and its first label's value, empty without one."""


@dataclass(slots=True)
class Served:
    """A model version as the recommendations name it.

    Attributes:
        first_seen: When its first recommendation came, `time.monotonic` seconds.
        after_events: Live events answered before that.
        recommendations: How many it made.
    """

    first_seen: float
    after_events: int
    recommendations: int = 0


class Watch:
    """Reads events, recommendations and dead letters; measures latency from the event's Kafka timestamp to here.

    Args:
        settings: Brokers, partitions, and the HTTP ports of worker and trainer.
        titles: Titles of items.

    Attributes:
        answered: Live events answered.
        invalid: Live events that were dead-lettered.
        model_version: The version that made the newest recommendation.
        versions: Versions in the order in which they were first seen; the last one serves.
        users: The newest recommendation of some users.
        trainer: The trainer's metrics; empty while it does not answer.
    """

    def __init__(self, settings: Settings, titles: dict[str, str]) -> None:
        self.settings, self.titles = settings, titles
        self.answered = self.invalid = 0
        self.model_version = ""
        self.versions: dict[str, Served] = {}
        self.users: dict[str, dict[str, Any]] = {}
        self.trainer: Samples = {}
        self._sent_ms: dict[tuple[str, int, int], int] = {}
        self._unmatched: dict[tuple[str, int, int], float] = {}
        self._seen: set[tuple[str, int, int]] = set()
        self._latency_ms: list[float] = []
        self._base: Counter[tuple[str, str]] = Counter()
        self._now: Counter[tuple[str, str]] = Counter()
        self._started = self._looked = time.monotonic()
        self._recommendations = 0
        self._last_answer = self._started
        self._consumer: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            **client_options(self.settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )
        await self._consumer.start()
        self._consumer.assign(
            [
                TopicPartition(topic, number)
                for topic in (*TOPICS, RECOMMENDATIONS, INVALID_EVENTS)
                for number in range(self.settings.partitions)
            ]
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def begin(self) -> None:
        """Everything before was catching up: start counting."""
        await self._read_metrics()
        self._base = self._now.copy()
        self.answered = self.invalid = self._recommendations = 0
        self._latency_ms.clear()
        self._started = self._last_answer = time.monotonic()
        self.versions = {}

    async def look(self) -> int:
        """Read what has come, for up to 50 ms; returns how many events are answered or dead-lettered."""
        if self._consumer is None:
            return 0
        for tp, records in (await self._consumer.getmany(timeout_ms=50)).items():
            now_ms = time.time() * 1000
            for record in records:
                if tp.topic == RECOMMENDATIONS:
                    self._answer(orjson.loads(record.value), now_ms)
                elif tp.topic == INVALID_EVENTS:
                    self.invalid += 1
                else:
                    event = (tp.topic, tp.partition, record.offset)
                    arrived_ms = self._unmatched.pop(event, None)
                    if arrived_ms is None:
                        self._sent_ms[event] = record.timestamp
                    else:
                        self._latency_ms.append(arrived_ms - record.timestamp)
        if time.monotonic() > self._looked + _METRICS_SECONDS:
            self._looked = time.monotonic()
            await self._read_metrics()
        return self.answered + self.invalid

    async def finish(self) -> None:
        """Take the last metrics: the worker brings them up to date with every flush."""
        await asyncio.sleep(1.5 * self.settings.commit_interval_seconds)
        await self._read_metrics()

    def hit_rates(self) -> tuple[float, float]:
        """Live hit rate of the lists shown and of popularity, on the same events since `begin`."""
        tested, hits, popular = (self._since(name) for name in (_TESTED, _HITS, _POPULAR))
        return (hits / tested, popular / tested) if tested else (0.0, 0.0)

    def hit_rate_of(self, version: str) -> float:
        """Live hit rate of the lists that one version made, since `begin`."""
        tested = self._since(_TESTED, version)
        return self._since(_HITS, version) / tested if tested else 0.0

    def latency_ms(self) -> tuple[float, float]:
        """p50 and p99 since `begin`."""
        if not self._latency_ms:
            return 0.0, 0.0
        p50, p99 = np.percentile(np.array(self._latency_ms), (50, 99))
        return round(float(p50), 1), round(float(p99), 1)

    def events_per_second(self) -> float:
        """Events answered per second, from the first to the last answer since `begin`."""
        seconds = self._last_answer - self._started
        return self.answered / seconds if seconds > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """The demo's JSON object."""
        p50, p99 = self.latency_ms()
        hit_rate, popularity = self.hit_rates()
        return {
            "events": self.answered + self.invalid,
            "recommendations": self._recommendations,
            "invalid": self.invalid,
            "events_per_second": round(self.events_per_second(), 1),
            "latency_ms": {"p50": p50, "p99": p99},
            "hit_rate_at_10": round(hit_rate, 5),
            "popularity_hit_rate_at_10": round(popularity, 5),
            "model_version": self.model_version,
            "versions": [
                {
                    "version": name,
                    "after_events": served.after_events,
                    "recommendations": served.recommendations,
                    "hit_rate_at_10": round(self.hit_rate_of(name), 5),
                }
                for name, served in self.versions.items()
            ],
        }

    def _answer(self, message: dict[str, Any], now_ms: float) -> None:
        event = (message["event"]["topic"], message["event"]["partition"], message["event"]["offset"])
        version = message["model_version"]
        if version not in self.versions:
            self.versions[version] = Served(time.monotonic(), self.answered)
        self.versions[version].recommendations += 1
        self._recommendations += 1
        if event not in self._seen:
            self._seen.add(event)
            self.answered += 1
            sent_ms = self._sent_ms.pop(event, None)
            if sent_ms is None:
                self._unmatched[event] = now_ms
            else:
                self._latency_ms.append(now_ms - sent_ms)
        self._last_answer = time.monotonic()
        self.model_version = version
        user = message["user_id"]
        if user in self.users or len(self.users) < _SHOWN_USERS:
            self.users[user] = message
        elif message["event"]["offset"] % 500 == 0:  # let other users come in now and then
            self.users.pop(next(iter(self.users)))
            self.users[user] = message

    def _since(self, name: str, label: str | None = None) -> float:
        """How much a counter of the worker grew since `begin`; without a label over all of its labels."""
        return sum(
            value - self._base[sample]
            for sample, value in self._now.items()
            if sample[0] == name and label in (None, sample[1])
        )

    async def _read_metrics(self) -> None:
        host = self.settings.http_host
        now, self.trainer = await asyncio.gather(
            asyncio.to_thread(read_samples, host, self.settings.http_port),
            asyncio.to_thread(read_samples, host, self.settings.trainer_http_port),
        )
        if now:
            self._now = Counter(now)


def read_samples(host: str, port: int) -> Samples:
    """The samples of a `/metrics`; none when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError):
        return {}
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_bucket" not in sample.name
    }
