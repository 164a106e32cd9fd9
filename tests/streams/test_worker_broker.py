"""Whole workers as processes: crashes, restarts, suspensions, bad events, model swaps, and what the topics hold after.

State is compared record by record with what one worker that nothing happened to made of the same input, all fields, bit
by bit: a step's arithmetic does not depend on how the stream is cut into batches.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from models.registry import Registry
from state.events import TOPICS
from streams.broker import EmbeddedBroker
from streams.topics import CHANGELOG
from tests.streams.worker_process import (
    PARTITIONS,
    ROOT,
    SESSION_SECONDS,
    Cluster,
    Record,
    Worker,
    decoded,
    differences,
    event,
    event_log,
    free_port,
    open_cluster,
    partition_of,
    publish_model,
    sources,
    wait_for,
)

if TYPE_CHECKING:
    from tests.conftest import KafkaNode

pytestmark = [pytest.mark.broker, pytest.mark.slow]

EVENTS, USERS, ITEMS = 24_000, 1_500, 400
embedded_only = pytest.mark.parametrize("cluster", ["embedded"], indirect=True)


@dataclass(frozen=True, slots=True)
class Reference:
    """An event log, a model, and the state one undisturbed worker makes of them."""

    records: list[Record]
    registry: Path
    states: dict[str, bytes | None]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference")
    registry = directory / "registry"
    publish_model(registry, ITEMS, seed=1)
    records = event_log(EVENTS, USERS, ITEMS, seed=7)
    with EmbeddedBroker() as broker, open_cluster(broker.bootstrap, directory, "reference", registry) as cluster:
        worker = cluster.worker()
        cluster.produce(records)
        cluster.wait_committed(120)
        assert worker.stop() == 0, worker.output()
        states = cluster.state_records()
    assert sum(row["count"] for row in decoded(states).values()) == EVENTS
    return Reference(records, registry, states)


@pytest.fixture(params=["embedded", "kafka"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, reference: Reference, unique: Callable[[str], str]
) -> Iterator[Cluster]:
    """Empty topics on an embedded broker of the test's own, or on the session's Kafka."""
    if request.param == "embedded":
        with (
            EmbeddedBroker() as broker,
            open_cluster(broker.bootstrap, tmp_path, unique("app"), reference.registry) as opened,
        ):
            yield opened
    else:
        bootstrap = request.getfixturevalue("kafka_broker")
        with open_cluster(bootstrap, tmp_path, unique("app"), reference.registry) as opened:
            yield opened


def assert_nothing_lost(cluster: Cluster, reference: Reference) -> None:
    """Every event answered, every user's state that of the undisturbed worker."""
    answered = cluster.answered()
    missing = set(sources(cluster.produced)) - answered.keys()
    assert not missing, f"{len(missing)} events were not answered, such as {sorted(missing)[:5]}"
    different = differences(cluster.state_records(), reference.states)
    assert not different, f"{len(different)} fields differ, such as {different[:5]}"


# -- crashes and suspensions


def test_one_of_three_workers_is_killed_under_load_and_a_new_one_joins(cluster: Cluster, reference: Reference) -> None:
    workers = [cluster.worker() for _ in range(3)]
    for worker in workers:
        worker.wait_ready()
    load = cluster.load(reference.records, rate=3_000)
    wait_for(lambda: load.sent > EVENTS // 4, 30, cluster.output)
    assert applied(workers[1]) > 0
    workers[1].kill()
    assert load.sent < EVENTS // 2, "the load was over before the kill"
    newcomer = cluster.worker()
    load.finish()
    cluster.wait_committed()
    newcomer.wait_ready()

    assert_nothing_lost(cluster, reference)
    assert cluster.stop() == [0, -signal.SIGKILL, 0, 0], cluster.output()


def test_a_suspended_worker_comes_back(cluster: Cluster, reference: Reference) -> None:
    """Stopped for longer than its session: the other takes over, and what it held must not be written over."""
    suspended, other = cluster.worker(), cluster.worker()
    wait_for(lambda: bool(suspended.held() and other.held()), 60, cluster.output)
    load = cluster.load(reference.records, rate=2_500)
    wait_for(lambda: applied(suspended) > 500, 20, cluster.output)
    suspended.signal(signal.SIGSTOP)
    time.sleep(SESSION_SECONDS + 3)
    suspended.signal(signal.SIGCONT)
    load.finish()
    cluster.wait_committed()
    wait_for(lambda: suspended.ready() and bool(suspended.held()), 30, cluster.output)

    assert_nothing_lost(cluster, reference)
    late = [event("clicks", f"late{n}", "i1", reference.records[-1].timestamp_ms) for n in range(60)]
    before = applied(suspended)
    cluster.produce(late)
    cluster.wait_committed()
    assert applied(suspended) > before
    assert cluster.stop() == [0, 0], cluster.output()


@embedded_only
def test_a_worker_whose_batch_takes_longer_than_its_session_goes_on(cluster: Cluster, reference: Reference) -> None:
    """Nothing is polled meanwhile, which must not count as dead: aiokafka would leave the group and not join again."""
    worker = cluster.worker(command=["-c", _STALLING.format(seconds=SESSION_SECONDS + 3)])
    cluster.load(reference.records, rate=6_000).finish()
    cluster.wait_committed()
    assert "the stalled batch goes on" in worker.log.read_text()
    assert worker.ready()
    assert_nothing_lost(cluster, reference)
    assert worker.stop() == 0, worker.output()


_STALLING = """
import time
from streams.compute import Compute
from streams.settings import load_settings
from streams.worker import run_worker

step, rounds = Compute.round, []

def stalling(self, partition, batches):
    if len(partition.store) > 50:  # the warm-up has three users
        rounds.append(partition.number)
        if len(rounds) == 5:
            time.sleep({seconds})
            print("the stalled batch goes on", flush=True)
    return step(self, partition, batches)

Compute.round = stalling
run_worker(load_settings())
"""


def test_a_broker_that_dies_and_comes_back(tmp_path: Path, reference: Reference, kafka_node: "KafkaNode") -> None:
    with open_cluster(kafka_node.bootstrap, tmp_path, "app", reference.registry) as cluster:
        worker = cluster.worker().wait_ready()
        cluster.produce(reference.records[: EVENTS // 3])
        cluster.wait_committed()
        cluster.produce(reference.records[EVENTS // 3 : 2 * EVENTS // 3])
        kafka_node.kill()
        time.sleep(1)
        kafka_node.start()
        cluster.produce(reference.records[2 * EVENTS // 3 :])
        cluster.wait_committed(90)
        assert worker.poll() is None
        assert_nothing_lost(cluster, reference)
        assert worker.stop() == 0, worker.output()


def test_a_broker_that_comes_back_empty(tmp_path: Path, reference: Reference) -> None:
    """The embedded broker forgets everything when it ends: a worker goes on with the new topics, or ends with 1."""
    with EmbeddedBroker() as first:
        port, cluster = first.port, Cluster(first.bootstrap, tmp_path, "app", reference.registry)
        cluster.make_topics()
        worker = cluster.worker().wait_ready()
        cluster.produce(reference.records[:4_000])
        wait_for(lambda: applied(worker) > 0, 20, cluster.output)
    try:
        with EmbeddedBroker(port):
            cluster.make_topics()
            late = [event("clicks", f"late{n}", "i1", int(time.time() * 1000)) for n in range(60)]

            def settled() -> bool:
                cluster.produce(late)
                time.sleep(1)
                users = {message["user_id"] for message in cluster.recommendations()}
                return worker.poll() is not None or users >= {record.key.decode() for record in late}

            wait_for(settled, 60, worker.output)
            assert worker.poll() in (None, 1)
    finally:
        cluster.close()


# -- restarts


def test_restarts_from_the_snapshot_and_from_the_changelog(cluster: Cluster, reference: Reference) -> None:
    """Stop, start from snapshots, stop, start without them, each time going on with the log; then read it all again.

    The second and the third worker keep 60 users in memory and the others on disk.
    """
    third = EVENTS // 3
    cluster.produce(reference.records[:third])
    first = cluster.worker()
    cluster.wait_committed()
    assert first.stop() == 0, first.output()
    assert cluster.committed() == cluster.log_end()
    snapshots = sorted((cluster.directory / "state" / cluster.app_id).glob("users-*.snapshot"))
    assert len(snapshots) == PARTITIONS

    users = len(cluster.state_records())
    second = cluster.worker(max_resident_users="60").wait_ready()
    metrics = second.metrics()
    assert metrics["recstream_restore_users{source=snapshot}"] == users
    assert metrics["recstream_restore_records_total{source=changelog}"] == 0
    assert metrics["recstream_users{tier=resident}"] <= 60
    assert metrics["recstream_users{tier=cold}"] >= users - 60
    cluster.produce(reference.records[third : 2 * third])
    cluster.wait_committed()
    assert second.stop() == 0, second.output()

    for number, snapshot in enumerate(snapshots):  # half are gone, half are damaged
        if number % 2:
            snapshot.unlink()
        else:
            snapshot.write_bytes(snapshot.read_bytes()[:-300] + bytes(300))
    records = len(cluster.read(CHANGELOG))
    last = cluster.worker(max_resident_users="60").wait_ready()
    metrics = last.metrics()
    assert metrics.get("recstream_restore_users{source=snapshot}", 0) == 0
    assert metrics["recstream_restore_records_total{source=changelog}"] == records
    assert metrics["recstream_restore_bad_records_total"] == 0
    cluster.produce(reference.records[2 * third :])
    cluster.wait_committed()
    metrics = last.metrics()
    assert metrics["recstream_users{tier=resident}"] + metrics["recstream_users{tier=cold}"] == len(reference.states)
    assert last.stop() == 0, last.output()
    assert_nothing_lost(cluster, reference)
    assert max(cluster.answered().values()) == 1, "a clean stop repeats nothing"

    # A group that never committed reads the log again: every event is known, and nothing is written twice.
    records, sent = len(cluster.read(CHANGELOG)), len(cluster.recommendations())
    cluster.app_id += "-again"
    again = cluster.worker()
    cluster.wait_committed()
    metrics = again.metrics()
    assert sum(metrics[f"recstream_events_total{{outcome=duplicate,topic={topic}}}"] for topic in TOPICS) == EVENTS
    assert again.stop() == 0, again.output()
    assert (len(cluster.read(CHANGELOG)), len(cluster.recommendations())) == (records, sent)


@embedded_only
def test_idle_users_are_forgotten(cluster: Cluster) -> None:
    now = int(time.time() * 1000)
    old = [event("clicks", f"old{n}", "i1", now - 3_600_000) for n in range(50)]
    new = [event("views", f"new{n}", "i1", now) for n in range(50)]
    worker = cluster.worker(user_ttl_days=str(12 / 86_400)).wait_ready()
    cluster.produce(old + new)
    cluster.wait_committed()
    wait_for(lambda: all(cluster.state_records().get(f"old{n}", b"") is None for n in range(50)), 15, worker.output)
    kept = cluster.state_records()
    assert all(kept[f"new{n}"] is not None for n in range(50))
    wait_for(lambda: not any(cluster.state_records().values()), 30, worker.output)
    assert worker.metrics()["recstream_users_expired_total"] == 100

    cluster.produce([event("clicks", "old1", "i2", int(time.time() * 1000))])
    cluster.wait_committed()
    record = cluster.state_records()["old1"]
    assert record is not None
    assert decoded({"old1": record})["old1"]["count"] == 1
    assert worker.stop() == 0, worker.output()


# -- events and models


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
    assert {message["model_version"] for message in messages} == {"popularity"}
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
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    Registry(cluster.registry).promote(broken)
    wait_for(lambda: worker.metrics()["recstream_model_refused_total"] > 0, 20, worker.output)
    assert answers(cluster, now, "b") == {first}

    good = publish_model(cluster.registry, ITEMS, seed=4)
    wait_for(lambda: worker.metrics()["recstream_model_number"] == 3, 20, worker.output)
    assert answers(cluster, now, "c") == {good}
    assert worker.metrics()["recstream_rehydrations_total"] > 0
    assert worker.stop() == 0, worker.output()
    for message in cluster.recommendations():
        assert len(message["items"]) == 3 or message["model_version"] == "popularity"  # the first know of no items yet
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


# -- starting up


def run_worker(cluster: Cluster, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "worker"],
        env={**cluster.environment(), **env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
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

        cluster.make_topics()
        with Taken() as port:
            ended = run_worker(cluster, RECSTREAM_HTTP_PORT=str(port))
        assert ended.returncode == 1, ended.stderr
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        assert "RECSTREAM_HTTP_PORT" in ended.stderr


class Taken:
    """A TCP port somebody listens on."""

    def __enter__(self) -> int:
        import socket

        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def applied(worker: Worker) -> float:
    """Events this process has applied."""
    metrics = worker.metrics()
    return sum(metrics.get(f"recstream_events_total{{outcome=applied,topic={topic}}}", 0) for topic in TOPICS)
