"""Whole workers as processes: bad events, model versions, settings, and what a worker says when it cannot start."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.registry import Registry
from state.events import TOPICS
from streams.broker import EmbeddedBroker
from tests.streams.event_log import Record, event, partition_of, sources
from tests.streams.worker_cluster import ONE_BROKER, ROOT, Cluster, decoded, publish_model
from tests.streams.worker_process import free_port, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ITEMS = 400
embedded_only = pytest.mark.parametrize("cluster", ["embedded"], indirect=True)


@pytest.mark.parametrize("cluster", ONE_BROKER, indirect=True)
def test_malformed_events_are_dead_lettered_and_valid_ones_answered(cluster: Cluster) -> None:
    now = int(time.time() * 1000)
    random_ = random.Random(5)
    bad = [malformed(random_, n, now) for n in range(10_000)]
    good = [event(TOPICS[n % 3], f"u{n % 97}", f"i{n % 50 + 1}", now + n) for n in range(2_000)]
    mixed: list[tuple[Record, str]] = [*bad, *((record, "") for record in good)]
    random_.shuffle(mixed)
    worker = cluster.worker().wait_ready()
    cluster.produce([record for record, _ in mixed])
    cluster.wait_committed()

    letters, answered = cluster.dead_letters(), cluster.answered()
    places = sources([record for record, _ in mixed])
    expected = {place: pair for place, pair in zip(places, mixed, strict=True) if pair[1]}
    assert letters.keys() == expected.keys()
    for place, (record, reason) in expected.items():
        letter = letters[place]
        assert letter["error"].startswith(f"{reason}: "), (record.value[:100], letter["error"])
        assert letter["value"] == record.value
        assert (letter["key"], letter["partition"]) == (record.key, record.partition)
    assert answered.keys() == set(places) - expected.keys()
    metrics = worker.metrics()
    counted = sum(value for name, value in metrics.items() if name.startswith("recstream_dead_letters_total"))
    assert counted == len(bad)
    assert worker.ready()
    assert worker.stop() == 0, worker.output()


def malformed(random_: random.Random, number: int, now: int) -> tuple[Record, str]:
    """An event no worker can use, and why."""
    user, item = f"u{random_.randrange(200)}", f"i{random_.randrange(50)}"
    valid: dict[str, Any] = {"user_id": user, "item_id": item, "timestamp": now}
    whole = orjson.dumps(valid)
    name = random_.choice(("user_id", "item_id"))
    kinds: list[tuple[Any, str]] = [
        (whole[: random_.randrange(1, len(whole))], "bad-json"),
        (bytes(random_.randrange(128, 256) for _ in range(random_.randrange(1, 80))), "bad-json"),
        (b'{"user_id":"u","item_id":"i","timestamp":NaN}', "bad-json"),
        (b'{"user_id":"\xff\xfe","item_id":"i","timestamp":1}', "bad-json"),
        (b"[" * 5_000, "bad-json"),
        (random_.choice((b"[]", b"1", b'"text"', b"null", b"true", b"[1,2]")), "not-an-object"),
        ({key: value for key, value in valid.items() if key != name}, "missing-id"),
        ({**valid, name: ""}, "missing-id"),
        ({**valid, name: random_.choice((1, None, True, ["x"], {"a": 1}))}, "bad-id"),
        ({**valid, name: random_.choice(("x" * 257, "é" * 129))}, "oversized-id"),
        ({key: value for key, value in valid.items() if key != "timestamp"}, "bad-timestamp"),
        ({**valid, "timestamp": random_.choice(("yesterday", None, [], -5, 1.5, True, ""))}, "bad-timestamp"),
        ({**valid, "timestamp": now + 2 * 86_400_000}, "future-timestamp"),
        ({**valid, "price": random_.choice(("cheap", [], True))}, "bad-number"),
        ({**valid, "context": random_.choice(("phone", {"a": ["b"]}, {"a": "x" * 300}))}, "bad-context"),
    ]
    value, reason = random_.choice(kinds)
    if number % 500 == 0:
        value, reason = {**valid, "note": "x" * 70_000}, "oversized"
    key = user.encode()
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return Record(random_.choice(TOPICS), partition_of(key), key, raw, now), reason


@embedded_only
def test_idle_users_are_forgotten(cluster: Cluster) -> None:
    now = int(time.time() * 1000)
    old = [event("clicks", f"old{n}", "i1", now - 3_600_000) for n in range(50)]
    new = [event("views", f"new{n}", "i1", now + 15_000) for n in range(50)]
    worker = cluster.worker(user_ttl_days=str(8 / 86_400))
    cluster.produce(old + new)
    cluster.wait_committed()
    wait_for(lambda: all(cluster.state_records().get(f"old{n}", b"") is None for n in range(50)), 30, worker.output)
    kept = cluster.state_records()
    assert all(kept[f"new{n}"] is not None for n in range(50))
    wait_for(lambda: not any(cluster.state_records().values()), 60, worker.output)
    assert worker.metrics()["recstream_users_expired_total"] == 100

    cluster.produce([event("clicks", "old1", "i2", int(time.time() * 1000) + 60_000)])
    cluster.wait_committed()
    record = cluster.state_records()["old1"]
    assert record is not None
    assert decoded({"old1": record})["old1"]["count"] == 1
    assert worker.stop() == 0, worker.output()


@embedded_only
def test_models_are_swapped_while_serving(cluster: Cluster, tmp_path: Path) -> None:
    """Popularity, then a model, then a damaged one; one list of three items for the last event of a user in a batch."""
    cluster.registry = tmp_path / "registry"
    now = int(time.time() * 1000)
    backlog = [event("clicks", f"u{n % 20}", f"i{n % 37 + 1}", now + n) for n in range(4_000)]
    cluster.produce(backlog)
    worker = cluster.worker(emit="latest", top_k="3", exclude="none")
    cluster.wait_committed()
    messages = cluster.recommendations()
    assert 20 <= len(messages) < len(backlog) / 5
    assert all(message["model_version"].startswith("popularity") for message in messages)
    last = {record.key.decode(): place for record, place in zip(backlog, sources(backlog), strict=True)}
    latest = {message["user_id"]: tuple(message["event"].values())[:3] for message in messages}
    assert latest == last
    assert max(len(message["items"]) for message in messages) == 3

    first = publish_model(cluster.registry, ITEMS, seed=2)
    published = time.monotonic()
    wait_for(lambda: worker.metrics().get("recstream_model_number") == 1, 30, worker.output)
    assert time.monotonic() - published < 5
    assert answers(cluster, now, "a") == {first}

    broken = publish_model(cluster.registry, ITEMS, seed=3)
    Registry(cluster.registry).promote(first)
    weights = cluster.registry / broken / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + b"\x01" * 64)
    Registry(cluster.registry).promote(broken)
    wait_for(lambda: worker.metrics()["recstream_model_refused_total"] > 0, 20, worker.output)
    assert answers(cluster, now, "b") == {first}

    good = publish_model(cluster.registry, ITEMS, seed=4)
    wait_for(lambda: worker.metrics()["recstream_model_number"] == 3, 20, worker.output)
    assert answers(cluster, now, "c") == {good}
    wait_for(lambda: worker.metrics()["recstream_rehydrations_total"] >= 20, 10, worker.output)
    assert worker.stop() == 0, worker.output()
    for message in cluster.recommendations():
        assert len(message["items"]) == 3 or message["model_version"].startswith("popularity")
        assert [one["score"] for one in message["items"]] == sorted(
            (i["score"] for i in message["items"]), reverse=True
        )


def answers(cluster: Cluster, now: int, name: str) -> set[str]:
    """The versions that answer a new user's event and one of each known user."""
    records = [event("clicks", f"u{n}", "i5", now) for n in range(20)] + [event("views", name, "i1", now)]
    cluster.produce(records)
    cluster.wait_committed()
    places = set(sources(cluster.produced)[-len(records) :])
    found = {
        (message["event"]["topic"], message["event"]["partition"], message["event"]["offset"]): message["model_version"]
        for message in cluster.recommendations()
    }
    assert places <= found.keys()
    return {found[place] for place in places}


def run_worker(cluster: Cluster, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "worker"],
        env={**cluster.environment(), **env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """That its port is taken is in `test_cli`."""
    absent = Cluster(f"127.0.0.1:{free_port()}", tmp_path, "app", tmp_path / "registry")
    ended = run_worker(absent)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False), ended.stderr
    assert f"cannot reach Kafka at {absent.bootstrap}" in ended.stderr
    assert "recstream broker" in ended.stderr

    with EmbeddedBroker() as broker:
        cluster = Cluster(broker.bootstrap, tmp_path, "app", tmp_path / "registry")
        ended = run_worker(cluster)
        assert (ended.returncode, "Traceback" in ended.stderr) == (1, False), ended.stderr
        assert "does not exist" in ended.stderr
        assert "recstream topics create" in ended.stderr
