"""Workers and tools on a real Kafka with TLS and passwords: they get in, or end at once and say why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka import admin
from streams.settings import load_settings
from streams.topics import create_topics, describe_topics
from tests.streams.event_log import PARTITIONS
from tests.streams.secure_kafka import PASSWORD, USER, SecureKafka, counted
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]
FEW = 6  # connections that a start may make before it gives up: no storm


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    node = SecureKafka(tmp_path_factory.mktemp("secure-kafka"))
    try:
        settings = load_settings(brokers=f"127.0.0.1:{node.ports['internal']}", partitions=PARTITIONS)
        with admin(settings, timeout_seconds=60):
            pass
        create_topics(settings)
        yield node
    finally:
        node.stop()


def environment(kafka: SecureKafka, directory: Path, port: int, **settings: str) -> dict[str, str]:
    """Of a process that may sign in on CLIENT, with the given settings instead."""
    values = {
        "brokers": f"localhost:{port}",
        "security_protocol": "SASL_SSL",
        "sasl_username": USER,
        "sasl_password": PASSWORD,
        "ssl_ca_file": kafka.certificates.path("ca.pem"),
        "partitions": str(PARTITIONS),
        "registry": str(directory / "registry"),
        "state_dir": str(directory / "state"),
        "session_timeout_seconds": "6",
        "rebalance_timeout_seconds": "6",
        **settings,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECSTREAM_")}
    return {
        **inherited,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **{f"RECSTREAM_{name.upper()}": value for name, value in values.items()},
    }


def run(env: dict[str, str], *command: str) -> "tuple[subprocess.CompletedProcess[str], float]":
    """A command to its end, and the seconds it took."""
    started = time.monotonic()
    arguments = [sys.executable, "-W", "ignore", "-m", "streams.cli", *command]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False, timeout=60)
    return done, time.monotonic() - started


@pytest.mark.parametrize(
    ("listener", "settings", "why"),
    [
        ("client", {"sasl_password": "wrong-word"}, "Authentication"),
        ("client", {"ssl_ca_file": "stranger.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        ("client", {"brokers": "127.0.0.1"}, "IP address mismatch"),
        ("expired", {}, "certificate has expired"),
        ("mutual", {"security_protocol": "SSL"}, ""),
        ("client", {"security_protocol": "SASL_PLAINTEXT"}, ""),
    ],
    ids=["wrong password", "unknown authority", "host name mismatch", "expired", "no certificate", "no TLS"],
)
def test_a_worker_that_is_not_let_in_ends_at_once_and_says_why(kafka, tmp_path, listener, settings, why):
    with counted(kafka.ports[listener]) as door:
        port = door.server_address[1]
        given = dict(settings)
        if "ssl_ca_file" in given:
            given["ssl_ca_file"] = kafka.certificates.path(given["ssl_ca_file"])
        if "brokers" in given:
            given["brokers"] += f":{port}"
        done, seconds = run(environment(kafka, tmp_path, port, **given), "worker")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert "Traceback" not in text
    assert "does not let us in" in text
    assert why in text
    assert "RECSTREAM_SSL_" in text and "RECSTREAM_SASL_" in text  # the fix names the settings to check
    assert "word" not in text.replace("password", "")
    assert seconds < 20
    assert 1 <= door.connections <= FEW


@pytest.mark.parametrize("listener", ["client", "mutual"])
def test_a_worker_signs_in_and_gets_ready(kafka, tmp_path, listener):
    mutual = {
        "security_protocol": "SSL",
        "ssl_cert_file": kafka.certificates.path("client.crt"),
        "ssl_key_file": kafka.certificates.path("client.key"),
        "app_id": "mutual",
    }
    env = environment(kafka, tmp_path, kafka.ports[listener], **(mutual if listener == "mutual" else {}))
    worker = Worker(tmp_path / "worker.log", ("-m", "streams.cli", "worker"), env)
    try:
        worker.wait_ready(90)
        wait_for(lambda: len(worker.held()) == PARTITIONS, 30, worker.output)
        worker.signal(signal.SIGTERM)
        assert worker.ended(30) == 0
        assert PASSWORD not in worker.output()
    finally:
        worker.close()


def test_tools_and_clients_sign_in_too(kafka, tmp_path):
    done, _ = run(environment(kafka, tmp_path, kafka.ports["client"]), "topics", "describe", "--json")
    assert done.returncode == 0, done.stderr
    settings = load_settings(
        brokers=f"localhost:{kafka.ports['client']}", security_protocol="SASL_SSL", sasl_username=USER,
        sasl_password=PASSWORD, ssl_ca_file=kafka.certificates.path("ca.pem"), partitions=PARTITIONS,
    )  # fmt: skip
    assert not any(state.problem for state in describe_topics(settings))
