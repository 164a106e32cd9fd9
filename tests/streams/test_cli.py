import asyncio
import signal
import socket
import subprocess
import sys
import time

import orjson
import pytest
from typer.testing import CliRunner

from models.registry import Registry
from streams.broker import EmbeddedBroker
from streams.cli import app
from streams.settings import load_settings
from streams.topics import count_records, describe_topics

COMMANDS = [
    ["demo"], ["broker"], ["topics"], ["topics", "create"], ["topics", "describe"], ["worker"], ["replay"], ["fit"],
    ["trainer"], ["tail"], ["forget"], ["doctor"], ["models"], ["models", "list"], ["models", "show"],
    ["models", "promote"], ["models", "rollback"], ["models", "diff"],
]  # fmt: skip
TABLE = "user_id,item_id,timestamp,event_type\n" + "".join(
    f"u{n % 7},i{n * n % 11},{1_700_000_000 + n},{('click', 'view', 'purchase', 'return')[n % 4]}\n" for n in range(200)
)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def broker_with_topics():
    with EmbeddedBroker() as broker:
        assert run("topics", "create", "--brokers", broker.bootstrap, "--partitions", 2).exit_code == 0
        yield broker.bootstrap


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(TABLE)
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_teaches(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command not in (["topics"], ["models"]):
        assert "xample" in result.output or "For example" in result.output


def test_no_command_shows_the_commands():
    result = run()
    assert result.exit_code == 2
    assert all(command[0] in result.output for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["worker", "--workers", "0"],
        ["replay"],
        ["replay", "x.csv", "--rate", "1", "--speed", "1"],
        ["fit", "x.csv", "--model", "transformer"],
        ["unknown"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments):
    assert run(*arguments).exit_code == 2


def test_wrong_settings_are_status_2_with_what_why_and_fix():
    result = run("topics", "describe", "--brokers", "nonsense")
    assert result.exit_code == 2
    assert "error: settings are invalid" in result.stderr
    assert "'nonsense' is not host:port" in result.stderr
    assert "fix: set RECSTREAM_BROKERS or --brokers" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [["topics", "create"], ["topics", "describe"], ["tail"]], ids=" ".join)
def test_no_broker_is_status_1_without_a_traceback(command):
    result = run(*command, "--brokers", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "error: cannot reach Kafka at 127.0.0.1:1" in result.stderr
    assert "recstream broker" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_topics(broker_with_topics):
    again = run("topics", "create", "--brokers", broker_with_topics, "--partitions", 2)
    assert (again.exit_code, "0 topics created, 11 were there" in again.stderr) == (0, True)
    shown = run("topics", "describe", "--brokers", broker_with_topics, "--partitions", 2, "--json")
    assert shown.exit_code == 0
    topics = orjson.loads(shown.stdout.splitlines()[-1])["topics"]
    assert topics["clicks"] == {"partitions": 2, "replication": 1, "cleanup": "", "records": 0, "problem": ""}
    wrong = run("topics", "describe", "--brokers", broker_with_topics, "--partitions", 3)
    assert wrong.exit_code == 1
    assert "clicks has 2 partitions, settings say 3" in wrong.stderr


def test_replay_sends_what_it_says(broker_with_topics, table):
    result = run("replay", table, "--brokers", broker_with_topics, "--partitions", 2, "--json")
    assert result.exit_code == 0, result.output
    summary = orjson.loads(result.stdout.splitlines()[-1])
    assert (summary["events"], summary["skipped"]) == (150, {"unmapped event_type": 50})
    settings = load_settings(brokers=broker_with_topics, partitions=2)
    counts = asyncio.run(count_records(settings, describe_topics(settings)))
    assert {topic: counts[topic] for topic in ("clicks", "views", "purchases")} == {
        "clicks": 50, "views": 50, "purchases": 50,
    }  # fmt: skip


def test_forget_sends_requests_and_says_where_they_stand(broker_with_topics):
    here = ("--brokers", broker_with_topics, "--partitions", 2)
    result = run("forget", "u[red]1", "u2", "u2", *here, "--json")
    assert result.exit_code == 0, result.stderr
    assert "u[red]1: asked, forget-users/" in result.stderr
    requests = orjson.loads(result.stdout.splitlines()[-1])["requests"]
    assert [(one["user_id"], one["receipts"]) for one in requests] == [("u[red]1", []), ("u2", []), ("u2", [])]
    assert len({(one["partition"], one["offset"]) for one in requests}) == 3
    nobody = run("forget", "u2", *here, "--wait", "--timeout", 0.3)
    assert nobody.exit_code == 1
    assert "1 of 1 from the worker and 1 of 1 from the trainer" in nobody.stderr
    assert run("forget", "u" * 257, *here).exit_code == 2
    assert run("forget", "", *here).exit_code == 2


def test_replay_of_a_missing_file_is_status_1(broker_with_topics, tmp_path):
    result = run("replay", tmp_path / "none.csv", "--brokers", broker_with_topics, "--partitions", 2)
    assert (result.exit_code, "error:" in result.stderr, result.stdout) == (1, True, "")


def test_a_malformed_mapping_is_status_2(broker_with_topics, table):
    result = run("replay", table, "--columns", "user_id", "--brokers", broker_with_topics, "--partitions", 2)
    assert result.exit_code == 2


def test_fit_finds_a_registry_that_it_cannot_write_before_the_work(table, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run("fit", table, "--epochs", 1, "--registry", tmp_path / "file")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "epoch" not in result.stderr


def test_fit_publishes_what_it_says(table, tmp_path):
    result = run(
        "fit", table, "--hidden", 8, "--embedding", 4, "--epochs", 1, "--model", "lstm", "--until", 0.5,
        "--registry", tmp_path / "registry", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = orjson.loads(result.stdout.splitlines()[-1])
    version = Registry(tmp_path / "registry").load(summary["model_version"])
    assert (version.config.cell, version.config.hidden, version.config.embedding) == ("lstm", 8, 4)
    assert Registry(tmp_path / "registry").current() == summary["model_version"]
    assert summary["events"] == 75


def test_demo_takes_settings_by_name():
    result = run("demo", "--top-k", "0")
    assert (result.exit_code, "RECSTREAM_TOP_K" in result.stderr) == (2, True)


def test_a_worker_that_cannot_listen_says_so_last(broker_with_topics, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "streams.cli", "worker", "--brokers", broker_with_topics, "--partitions", "2",
             "--state-dir", tmp_path, "--registry", tmp_path / "registry", "--http-port", str(port)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert done.returncode == 1
    what, why, fix = done.stderr.splitlines()[-3:]
    assert what == f"error: cannot listen on 127.0.0.1:{port}"
    assert "in use" in why
    assert "RECSTREAM_HTTP_PORT" in fix
    assert "ConsumerNotStarted" not in done.stderr


@pytest.mark.parametrize("command", [["forget"], ["tail", "--user"]])
def test_a_user_id_that_is_no_text_is_refused(command):
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", *command, b"\xff", "--brokers", "127.0.0.1:1"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be a user id" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_is_status_130_without_a_traceback(broker_with_topics):
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "tail", "--brokers", broker_with_topics, "--partitions", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
