"""What `doctor` finds. Where it is not about the broker there is one: an absent one is waited for three seconds."""

import socket

import orjson
import pytest
from typer.testing import CliRunner

from models.network import Network, NetworkConfig
from models.registry import Registry
from streams.broker import EmbeddedBroker
from streams.cli import app
from streams.doctor import examine
from streams.settings import load_settings
from streams.topics import create_topics


@pytest.fixture
def place(tmp_path):
    """A registry with a model and a state directory."""
    Registry(tmp_path / "registry").publish(Network(NetworkConfig(3, hidden=4, embedding=2)), ["", "a", "b"], {}, {})
    return tmp_path


def checks_of(**settings):
    return {check.name: check for check in examine(load_settings(http_port=0, **settings))}


def test_all_is_well(place):
    with EmbeddedBroker() as broker:
        here = {"brokers": broker.bootstrap, "registry": str(place / "registry"), "state_dir": place / "state"}
        create_topics(load_settings(**here))
        checks = checks_of(**here)
    assert {check.status for check in checks.values()} <= {"ok", "warn"}
    assert checks["broker"].status == checks["model"].status == checks["state directory"].status == "ok"
    assert "gru, hidden 4, 2 items" in checks["model"].detail
    assert sum(name.startswith("topic ") for name in checks) == 11
    assert "torch 2.13" in checks["packages"].detail
    assert not (place / "state").exists()  # looking changes nothing


def test_no_broker(place):
    checks = checks_of(brokers="127.0.0.1:1", registry=str(place / "registry"))
    assert checks["broker"].status == "fail"
    assert not any(name.startswith("topic") for name in checks)  # ten more failures would say nothing new
    assert "recstream broker" in checks["broker"].fix
    assert checks["model"].status == "ok"  # one failing check does not hide the others


def test_wrong_topics_and_too_few_brokers(place):
    with EmbeddedBroker() as broker:
        create_topics(load_settings(brokers=broker.bootstrap, partitions=2))
        checks = checks_of(brokers=broker.bootstrap, partitions=4, replication=3)
    assert checks["topic clicks"].status == "fail"
    assert "RECSTREAM_PARTITIONS=2" in checks["topic clicks"].fix
    assert checks["topic model-versions"].status == "warn"  # partitions right, replicas too few
    assert checks["broker"].status == "fail"
    assert "RECSTREAM_REPLICATION" in checks["broker"].fix


def test_no_model_is_a_warning_and_a_damaged_one_a_failure(place, embedded_broker):
    empty = checks_of(brokers=embedded_broker, registry=str(place / "empty"))["model"]
    assert (empty.status, "recstream fit" in empty.fix) == ("warn", True)
    weights = next((place / "registry").glob("v0001-*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = checks_of(brokers=embedded_broker, registry=str(place / "registry"))["model"]
    assert damaged.status == "fail"
    assert "weights.safetensors" in damaged.detail


def test_a_state_directory_that_is_a_file(place, embedded_broker):
    (place / "file").touch()
    assert checks_of(brokers=embedded_broker, state_dir=place / "file" / "state")["state directory"].status == "fail"


def test_a_taken_port(place, embedded_broker):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        checks = {check.name: check for check in examine(load_settings(brokers=embedded_broker, http_port=port))}
    assert (checks["http port"].status, "RECSTREAM_HTTP_PORT" in checks["http port"].fix) == ("warn", True)


def test_a_misspelt_setting_is_a_warning(monkeypatch, embedded_broker):
    monkeypatch.setenv("RECSTREAM_PSEUDONYM_KEYFILE", "/run/secrets/key")
    check = {check.name: check for check in examine(load_settings(brokers=embedded_broker, http_port=0))}[
        "setting RECSTREAM_PSEUDONYM_KEYFILE"
    ]
    assert (check.status, "RECSTREAM_PSEUDONYM_KEY_FILE" in check.fix) == ("warn", True)


@pytest.mark.parametrize("host", ["::", "::1"])
def test_a_free_port_of_ipv6(host, embedded_broker):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    checks = {
        check.name: check for check in examine(load_settings(brokers=embedded_broker, http_host=host, http_port=0))
    }
    assert checks["http port"].status == "ok", checks["http port"]


def test_the_command_fails_and_prints_json_last():
    result = CliRunner().invoke(app, ["doctor", "--json", "--brokers", "127.0.0.1:1", "--http-port", "0"])
    assert result.exit_code == 1
    report = orjson.loads(result.stdout.splitlines()[-1])
    assert report["status"] == "fail"
    assert {"name", "status", "detail", "fix"} == set(report["checks"][0])
