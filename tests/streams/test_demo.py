"""The demo's parts: what it counts, what it shows, what it sets. That all of it runs together is `recstream demo`."""

import asyncio
import io
import socket
import sys
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from rich.console import Console

from streams.children import Child
from streams.demo import _own, _Process, _require_free_ports
from streams.demo_table import table, trainer_line
from streams.demo_watch import Samples, Served, Watch, read_samples
from streams.errors import BrokerError, SettingsError
from streams.kafka import client_options
from streams.settings import Settings, load_settings
from streams.topics import INVALID_EVENTS, RECOMMENDATIONS
from streams.trainer_http import TrainerHttp
from streams.trainer_metrics import TrainerMetrics
from tests.streams.worker_process import free_port

OLD, NEW = "v0001-0000000a", "v0002-0000000b"
KEYS = {
    "events", "recommendations", "invalid", "events_per_second", "latency_ms", "hit_rate_at_10",
    "popularity_hit_rate_at_10", "model_version", "versions",
}  # fmt: skip


def message(user: str, version: str, offset: int, partition: int) -> bytes:
    event = {"topic": "clicks", "partition": partition, "offset": offset, "timestamp": 1}
    items = [{"item_id": "i1", "score": 0.5}]
    return orjson.dumps({"user_id": user, "items": items, "model_version": version, "event": event, "generated_at": 2})


def watch_with(tested: dict[str, int], hits: dict[str, int], popular: int) -> Watch:
    watch = Watch(load_settings(), {"i1": "One"})
    watch._now.update({("recstream_live_tested_total", name): value for name, value in tested.items()})
    watch._now.update({("recstream_live_hits_total", name): value for name, value in hits.items()})
    watch._now[("recstream_live_popularity_hits_total", "")] = popular
    return watch


@pytest.mark.broker
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_it_counts_answers_by_version_and_every_event_once(contract_settings: Settings) -> None:
    settings = contract_settings.model_copy(update={"http_port": free_port(), "trainer_http_port": free_port()})
    async with AIOKafkaProducer(**client_options(settings)) as producer, Watch(settings, {}) as watch:
        await watch.begin()
        for number in range(6):
            version = OLD if number < 4 else NEW
            await producer.send("clicks", b"{}", partition=1)
            await producer.send(RECOMMENDATIONS, message(f"u{number}", version, number, 1), partition=1)
        await producer.send(RECOMMENDATIONS, message("u5", NEW, 5, 1), partition=1)  # a repeat
        await producer.send(INVALID_EVENTS, b"{", partition=0)
        await producer.flush()
        for _ in range(100):
            if await watch.look() >= 7 and watch.summary()["recommendations"] == 7:
                break
        await asyncio.sleep(0.1)
        found = watch.summary()
    assert found.keys() == KEYS
    assert (found["events"], found["recommendations"], found["invalid"]) == (7, 7, 1)
    assert found["model_version"] == NEW
    assert [(served["version"], served["recommendations"]) for served in found["versions"]] == [(OLD, 4), (NEW, 3)]
    assert found["versions"][1]["after_events"] == 4
    assert 0 <= found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] < 60_000
    assert len(watch.users) == 4


def test_hit_rates_are_over_all_versions_and_of_each() -> None:
    watch = watch_with({OLD: 100, NEW: 300}, {OLD: 10, NEW: 90}, 20)
    assert watch.hit_rates() == (0.25, 0.05)
    assert watch.hit_rate_of(NEW) == 0.3
    assert watch.hit_rate_of("v0009-00000001") == 0.0


def shown(watch: Watch) -> str:
    output = io.StringIO()
    Console(width=160, file=output).print(table(watch))
    return output.getvalue()


def test_the_table_shows_versions_and_what_the_trainer_does() -> None:
    watch = watch_with({OLD: 100, NEW: 300}, {OLD: 10, NEW: 90}, 20)
    assert "trainer: starting" in shown(watch)
    watch.versions = {OLD: Served(0.0, 0, 1_234), NEW: Served(5.0, 1_200, 300)}
    watch.model_version = NEW
    found: Samples = {
        ("recstream_trainer_training", ""): 1.0,
        ("recstream_trainer_progress", ""): 0.42,
        ("recstream_trainer_loss", ""): 5.25,
        ("recstream_trainer_buffer_events", ""): 52_000.0,
        ("recstream_trainer_versions_total", "promoted"): 2.0,
        ("recstream_trainer_versions_total", "rejected"): 1.0,
    }
    watch.trainer = found
    text = shown(watch)
    assert OLD in text and NEW in text and "1,234" in text and "0.3000" in text
    assert trainer_line(watch) == (
        "trainer: training, 42% of the pass, loss 5.250; 52,000 events in its buffer; versions: 2 promoted, 1 rejected"
    )
    watch.trainer = {**found, ("recstream_trainer_training", ""): 0.0}
    assert "waiting for new events" in trainer_line(watch)


async def test_samples_come_from_metrics_over_http() -> None:
    metrics, port = TrainerMetrics(), free_port()
    metrics.versions.labels("promoted").inc(3)
    metrics.progress.set(0.5)
    http = TrainerHttp("127.0.0.1", port, metrics, lambda: True)
    await http.start()
    try:
        found = await asyncio.to_thread(read_samples, "127.0.0.1", port)
    finally:
        await http.stop()
    assert found["recstream_trainer_versions_total", "promoted"] == 3
    assert found["recstream_trainer_progress", ""] == 0.5
    assert await asyncio.to_thread(read_samples, "127.0.0.1", port) == {}


def test_what_the_user_set_stays_and_the_rest_is_the_demos_own(tmp_path: Path) -> None:
    own = _own(load_settings(train_every_events=77), "127.0.0.1:1", tmp_path)
    assert own.train_every_events == 77
    assert own.train_recent_events < load_settings().train_recent_events
    assert (own.brokers, own.registry) == ("127.0.0.1:1", str(tmp_path / "registry"))
    assert own.trainer_http_port != load_settings().trainer_http_port


def test_a_taken_port_is_told_before_anything_is_fitted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = _own(load_settings(http_port=taken.getsockname()[1]), "127.0.0.1:1", tmp_path)
        with pytest.raises(SettingsError, match="--http-port 7066"):
            _require_free_ports(own)
        own = _own(load_settings(http_port=0, trainer_http_port=taken.getsockname()[1]), "127.0.0.1:1", tmp_path)
        with pytest.raises(SettingsError, match="RECSTREAM_TRAINER_HTTP_PORT"):
            _require_free_ports(own)
    _require_free_ports(load_settings(http_port=0, trainer_http_port=0))


def test_a_process_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        child = Child([sys.executable, "-c", "print('no such port')"], output=output)
        process = _Process("worker", child, log, 6066)
        child.wait(20)
    with pytest.raises(BrokerError, match="worker ended") as caught:
        process.check()
    assert caught.value.why == "no such port"
    child.stop()
