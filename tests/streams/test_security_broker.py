"""Workers and tools on a real Kafka with TLS and passwords: they get in, or end at once and say why."""

import signal

import pytest

from streams.settings import load_settings
from streams.topics import describe_topics
from tests.streams.event_log import PARTITIONS
from tests.streams.secure_commands import environment, run
from tests.streams.secure_kafka import PASSWORD, USER, counted
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]
FEW = 12  # connections that a start may make before it gives up: no storm


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
def test_a_worker_that_is_not_let_in_ends_at_once_and_says_why(secure_kafka, tmp_path, listener, settings, why):
    with counted(secure_kafka.ports[listener]) as door:
        port = door.server_address[1]
        given = dict(settings)
        if "ssl_ca_file" in given:
            given["ssl_ca_file"] = secure_kafka.certificates.path(given["ssl_ca_file"])
        if "brokers" in given:
            given["brokers"] += f":{port}"
        done, seconds = run(environment(secure_kafka, tmp_path, port, **given), "worker")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert "Traceback" not in text
    assert "does not let us in" in text
    assert why in text
    assert "RECSTREAM_SSL_" in text and "RECSTREAM_SASL_" in text  # the fix names the settings to check
    assert "word" not in text.replace("password", "")
    assert seconds < 45
    assert 1 <= door.connections <= FEW


@pytest.mark.parametrize("dropped", [{2, 3}, set(range(2, 99))], ids=["two tries", "every try"])
def test_a_refusal_lost_with_its_connection_is_heard_at_another_try_or_guessed(secure_kafka, tmp_path, dropped):
    """The first connection is the greeting, before anybody signs in."""
    with counted(secure_kafka.ports["client"], dropped=dropped) as door:
        env = environment(secure_kafka, tmp_path, door.server_address[1], sasl_password="wrong-word")
        done, seconds = run(env, "worker")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert "does not let us in" in text
    assert "Authentication" in text
    assert seconds < 45
    assert 4 <= door.connections <= FEW


@pytest.mark.parametrize("listener", ["client", "mutual"])
def test_a_worker_signs_in_and_gets_ready(secure_kafka, tmp_path, listener):
    mutual = {
        "security_protocol": "SSL",
        "ssl_cert_file": secure_kafka.certificates.path("client.crt"),
        "ssl_key_file": secure_kafka.certificates.path("client.key"),
        "app_id": "mutual",
    }
    env = environment(secure_kafka, tmp_path, secure_kafka.ports[listener], **(mutual if listener == "mutual" else {}))
    worker = Worker(tmp_path / "worker.log", ("-m", "streams.cli", "worker"), env)
    try:
        worker.wait_ready(90)
        wait_for(lambda: len(worker.held()) == PARTITIONS, 30, worker.output)
        worker.signal(signal.SIGTERM)
        assert worker.ended(30) == 0
        assert PASSWORD not in worker.output()
    finally:
        worker.close()


def test_tools_and_clients_sign_in_too(secure_kafka, tmp_path):
    done, _ = run(environment(secure_kafka, tmp_path, secure_kafka.ports["client"]), "topics", "describe", "--json")
    assert done.returncode == 0, done.stderr
    settings = load_settings(
        brokers=f"localhost:{secure_kafka.ports['client']}", security_protocol="SASL_SSL", sasl_username=USER,
        sasl_password=PASSWORD, ssl_ca_file=secure_kafka.certificates.path("ca.pem"), partitions=PARTITIONS,
    )  # fmt: skip
    assert not any(state.problem for state in describe_topics(settings))
