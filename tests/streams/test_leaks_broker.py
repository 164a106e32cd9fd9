"""Real commands at the most talkative log level: no secret and no user id in what they print, serve or keep.

User ids and secrets are words that occur nowhere else, so that finding one means it leaked.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.structs import TopicPartition

from state.pseudonyms import Pseudonyms
from streams.broker import EmbeddedBroker
from streams.read_topic import read_to_end, reader
from streams.settings import Settings, load_settings
from streams.topics import CHANGELOG, RECOMMENDATIONS, TRANSITIONS, create_topics
from tests.streams.event_log import PARTITIONS, Load, Record, event_log, partition_of
from tests.streams.secure_commands import bare_environment, environment, oauth, run
from tests.streams.secure_kafka import SecureKafka
from tests.streams.tokens import CLIENT_SECRET, TokenEndpoint, endpoint
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]
USER = "zqx-person"  # begins every user id
KEY = "key-that-nobody-may-see-" + 16 * "7"
EVENTS = 500
LIFE_SECONDS = 5  # of a token


@dataclass
class Surroundings:
    """Where commands run, and everything they printed or served."""

    env: dict[str, str]
    bootstrap: str
    directory: Path
    said: str = ""

    def run(self, *command: str, **settings: str) -> int:
        done, _ = run({**self.env, **{f"RECSTREAM_{key.upper()}": value for key, value in settings.items()}}, *command)
        self.said += f"\n--- {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.returncode

    def worker(self, name: str, **settings: str) -> Worker:
        given = {f"RECSTREAM_{key.upper()}": value for key, value in settings.items()}
        return Worker(self.directory / f"{name}.log", ("-m", "streams.cli", "worker"), {**self.env, **given})

    def served(self, worker: Worker) -> None:
        for path in ("metrics", "health/live", "health/ready"):
            with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/{path}", timeout=5) as reply:
                self.said += reply.read().decode()


QUIET = {  # small, quick, and as talkative as it gets
    "log_level": "debug", "trainer_http_port": "0", "commit_interval_seconds": "0.5", "snapshot_interval_seconds": "1",
    "cold_start_events": "100", "model_hidden": "8", "model_embedding": "8", "train_epochs": "1",
}  # fmt: skip


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Surroundings]:
    """An embedded broker, users under pseudonyms, half of them in the cold store."""
    with EmbeddedBroker() as broker:
        create_topics(load_settings(brokers=broker.bootstrap, partitions=PARTITIONS))
        key = tmp_path / "key"
        key.write_text(KEY + "\n")
        settings = {"brokers": broker.bootstrap, "max_resident_users": "30", "pseudonym_key_file": str(key)}
        yield Surroundings(bare_environment(tmp_path, **QUIET, **settings), broker.bootstrap, tmp_path)


@pytest.fixture
def tokens(secure_kafka: SecureKafka) -> Iterator[TokenEndpoint]:
    with endpoint(secure_kafka.issuer) as server:
        server.seconds = LIFE_SECONDS
        yield server


@pytest.fixture
def secured(secure_kafka: SecureKafka, tokens: TokenEndpoint, tmp_path: Path, unique) -> Surroundings:
    """A real Kafka with TLS and tokens that soon expire, users under their own ids."""
    settings = {**QUIET, **oauth(tokens), "app_id": unique("leaks"), "start_from": "latest"}
    env = environment(secure_kafka, tmp_path, secure_kafka.ports["oauth"], **settings)
    return Surroundings(env, f"127.0.0.1:{secure_kafka.ports['internal']}", tmp_path)


def events() -> list[Record]:
    """Good events of 60 users, and bad ones of every kind that name a user too."""
    good = []
    for record in event_log(EVENTS, users=60, items=50, seed=5):
        value = json.loads(record.value)
        user = value["user_id"] = f"{USER}-{value['user_id']}"
        at = partition_of(user.encode())
        good.append(Record(record.topic, at, user.encode(), json.dumps(value).encode(), record.timestamp_ms))
    bad = [
        b"{" + USER.encode(),
        json.dumps({"user_id": USER}).encode(),
        json.dumps({"user_id": [USER], "item_id": "i1", "timestamp": 5}).encode(),
        json.dumps({"user_id": USER, "item_id": "i1", "timestamp": USER}).encode(),
        json.dumps({"user_id": USER * 100, "item_id": "i1", "timestamp": 5}).encode(),
        json.dumps({"user_id": USER, "item_id": "i1", "timestamp": 5, "price": USER}).encode(),
        json.dumps({"user_id": USER, "item_id": "x" * 70_000, "timestamp": 5}).encode(),
    ]
    return [*good, *(Record("clicks", 0, USER.encode(), value, good[-1].timestamp_ms) for value in bad)]


def table(directory: Path) -> str:
    path = directory / "events.csv"
    rows = [json.loads(record.value) for record in events()[:EVENTS]]
    lines = [f"{row['user_id']},{row['item_id']},{row['timestamp']}" for row in rows]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    return str(path)


def serve_and_learn(around: Surroundings) -> None:
    """A worker that takes up the first model which a trainer makes of the same events."""
    worker = around.worker("worker")
    try:
        worker.wait_ready(90)
        Load(around.bootstrap, events()).start().finish()
        assert around.run("trainer", "--once", "--json", start_from="earliest") == 0, around.said
        wait_for(lambda: worker.applied() >= EVENTS, 40, worker.output)
        wait_for(lambda: any("model_info" in name for name in worker.metrics()), 20, worker.output)
        around.served(worker)
        assert worker.stop() == 0, worker.output()
    finally:
        worker.close()
        around.said += worker.log.read_text()
    assert "Holding partitions" in around.said  # it did say something


def topic_bytes(settings: Settings, topic: str, partitions: int) -> bytes:
    async def read() -> bytes:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        async with reader(settings, places) as consumer:
            return b"\n".join(
                [
                    (record.key or b"") + (record.value or b"")
                    async for records in read_to_end(consumer, places)
                    for record in records
                ]
            )

    return asyncio.run(read())


def test_with_a_key_nothing_but_recommendations_names_a_user(plain):
    serve_and_learn(plain)
    assert USER not in plain.said
    assert KEY not in plain.said
    files = [path for path in plain.directory.rglob("*") if path.is_file() and path.name not in ("events.csv", "key")]
    assert {"events.replay", "users-00000.snapshot"} <= {path.name for path in files}
    assert not [path for path in files if USER.encode() in path.read_bytes() or KEY.encode() in path.read_bytes()]
    settings = load_settings(brokers=plain.bootstrap, partitions=PARTITIONS)
    state = topic_bytes(settings, CHANGELOG, PARTITIONS)
    name = Pseudonyms(KEY).name(f"{USER}-u1").encode()
    assert name in state
    assert name in b"".join(path.read_bytes() for path in files if path.name == "events.replay")
    assert USER.encode() not in state + topic_bytes(settings, TRANSITIONS, 1)
    shown = topic_bytes(settings, RECOMMENDATIONS, PARTITIONS)
    assert f'{{"user_id":"{USER}-u1","items":['.encode() in shown
    assert name not in shown

    worker = plain.worker("other", pseudonym_key_file="", pseudonym_key=KEY[::-1])
    try:
        assert worker.ended(60) == 1
        assert "under another pseudonym key" in worker.output()
        assert "delete the topic user-state-changelog" in worker.output()
    finally:
        worker.close()


def test_without_a_key_logs_metrics_and_health_name_no_user_and_nothing_shows_a_token(secured, tokens):
    """The worker outlives several tokens meanwhile: Kafka closes connections whose token has expired."""
    started = time.monotonic()
    serve_and_learn(secured)
    for command in (["replay", table(secured.directory)], ["doctor", "--json"]):
        assert secured.run(*command, http_port="0") == 0, secured.said
    again = secured.worker("again")  # restores what the first one wrote, from the changelog
    try:
        again.wait_ready(90)
        wait_for(lambda: again.applied() >= EVENTS, 40, again.output)
        secured.served(again)
        assert again.stop() == 0, again.output()
    finally:
        again.close()
        secured.said += again.log.read_text()
    for word in (USER, CLIENT_SECRET, *tokens.granted):
        assert word not in secured.said
    lives = (time.monotonic() - started) / (0.8 * LIFE_SECONDS)
    assert lives > 3
    assert 5 < tokens.asked < 2 * lives + 10  # five processes; a token serves all connections of one until it is old
