import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import orjson
import pytest
from typer.testing import CliRunner

from streams.cli import app

LINES = ["user_id,item_id,timestamp,event_type"] + [
    f"u{n % 6},i{(n // 6 + n % 6) % 7},{1_700_000_000 + n},{('view', 'click', 'buy')[n % 3]}" for n in range(180)
]


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def last_json(result):
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("protocol", ["leave-one-out", "time-split", "prequential"])
def test_figures_by_model_come_as_one_line_of_json(log, protocol):
    result = run(log, "--models", "popularity, markov", "--protocol", protocol, "--json")
    body = last_json(result)
    assert list(body["models"]) == ["popularity", "markov"]
    for figures in body["models"].values():
        assert {"unmasked", "masked", "seconds"} <= figures.keys()
        assert {"ndcg@10", "hr@10"} <= figures["unmasked"].keys() & figures["masked"].keys()
    assert len(result.stdout.strip().splitlines()) == 1
    assert "markov" in result.stderr and "buy is a purchase" in result.stderr


def test_heads_sessions_and_variations_are_switched_on(log):
    more = ["--heads", "next,type,purchase", "--horizon", "2", "--session-gap", "auto", "--augment", "crop,reorder"]
    result = run(log, "--models", "session-knn,gru", "--effort", "0.01", *more, "--json")
    body = last_json(result)
    assert set(body["models"]["gru"]["heads"]) == {"type", "purchase", "ahead-2"}
    assert "heads" not in body["models"]["session-knn"]
    assert any("sessions part after 30 minutes" in note for note in body["data"]["notes"])
    assert "heads beside the next item" in result.stderr


def test_what_another_log_brings_is_told(log, tmp_path):
    other = tmp_path / "other.csv"
    lines = (f"u{n % 6},b{n % 5},{1_700_000_000 + n}" for n in range(90))
    other.write_text("user_id,item_id,timestamp\n" + "\n".join(lines))
    result = run(log, "--models", "markov", "--with", other, "--json")
    found = last_json(result)["models"]["markov"]
    assert {"without", "with", "difference", "interval", "relative"} == found["lift"]["unmasked"]["ndcg@10"].keys()
    assert "6 users are in both logs" in result.stderr and "what the other log brings" in result.stderr


def test_people_get_a_table(log):
    result = run(log, "--models", "markov,popularity")
    assert result.exit_code == 0
    assert result.stdout.index("markov") < result.stdout.index("popularity")  # the better one first
    assert "unmasked" in result.stdout and "NDCG@10" in result.stdout


def test_a_report_holds_everything_in_one_page(log, tmp_path):
    pytest.importorskip("matplotlib")
    result = run(log, "--models", "popularity,markov", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "popularity_bias@10" in page and "markov" in page and "Masked" in page
    body = orjson.loads((tmp_path / "out" / "result.json").read_bytes())
    assert list(body["models"]) == ["popularity", "markov"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"accuracy.png", "cost.png"}
    assert "Smaller copies" not in page


def test_the_report_sets_smaller_copies_beside_the_whole_model(log, tmp_path):
    pytest.importorskip("matplotlib")
    names = "popularity,gru,gru:fp16,gru:int8,gru:pruned"
    assert run(log, "--models", names, "--effort", "0.01", "--out", tmp_path).exit_code == 0
    page = (tmp_path / "report.html").read_text()
    section = page.partition("<h2>Smaller copies</h2>")[2].partition("<h2>")[0]
    rows = [line.partition("<td>")[0] for line in section.split("<tr><td>")[1:]]
    assert rows == ["gru", "gru:fp16", "gru:int8", "gru:pruned"]
    assert "share of whole" in section and "<td>1.0000" in section


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_fitted(log, tmp_path):
    result = run(log, "--models", "popularity", "--out", log)
    assert result.exit_code == 2
    assert "cannot be made" in result.stderr and "popularity" not in result.stderr


def test_what_data_hold_is_printed_as_it_is(tmp_path):
    path = tmp_path / "x[bold]y.csv"
    path.write_text("\n".join(["user_id,item_id,event_type", *(f"u{n % 3},i{n % 5},[/b]" for n in range(30))]))
    result = run(path, "--models", "popularity")
    assert result.exit_code == 0
    assert "unknown event types are clicks: [/b]" in result.stderr
    assert "x[bold]y, leave-one-out" in result.stdout


def test_other_columns_and_types_are_named(tmp_path):
    path = tmp_path / "log.csv"
    lines = [
        "uid,sku,ts,act",
        *(line.replace("view", "1").replace("click", "2").replace("buy", "3") for line in LINES[1:]),
    ]
    path.write_text("\n".join(lines) + "\n")
    columns = "user_id=uid,item_id=sku,timestamp=ts,event_type=act"
    body = last_json(run(path, "--models", "markov", "--columns", columns, "--types", "1=views,3=purchases", "--json"))
    assert body["data"]["events"] == 120


def test_a_plain_table_of_users_and_items_is_enough(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{n % 5},i{n % 9}\n" for n in range(60)))
    body = last_json(run(path, "--models", "popularity,skip-markov", "--protocol", "time-split", "--json"))
    assert any("no timestamps" in note for note in body["data"]["notes"])


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["missing.csv"], 1, "There is no table"),
        (["LOG", "--models", "oracle"], 2, "the models are popularity"),
        (["LOG", "--models", ","], 2, "No model was named"),
        (["LOG", "--columns", "nonsense"], 2, "name=value"),
        (["LOG", "--protocol", "random"], 2, "random"),
        (["LOG", "--heads", "price"], 2, "the heads are next"),
        (["LOG", "--session-gap", "soon"], 2, "--session-gap 30m"),
        (["LOG", "--augment", "rotate"], 2, "--augment crop,reorder"),
        (["LOG", "--with", "missing.csv"], 1, "There is no table"),
        (["LOG", "--heads", "type", "--protocol", "prequential"], 1, "test-then-learn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_said_with_their_fix(log, arguments, status, words):
    result = run(*(str(log) if argument == "LOG" else argument for argument in arguments))
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    assert "For example" in result.output and "skip-markov" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_behind_standard_output_is_told_and_the_report_is_written_before(log, tmp_path):
    command = [sys.executable, "-m", "streams.cli", "evaluate", str(log), "--models", "popularity", "--json"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*command, "--out", str(tmp_path / "report")], stdout=full, stderr=PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert "The JSON cannot be written" in ended.stderr and "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "report" / "result.json").is_file()


def test_what_is_done_is_told_when_a_time_limit_ends_it(log):
    command = [sys.executable, "-m", "streams.cli", "evaluate", str(log), "--models", "popularity,gru", "--json"]
    with subprocess.Popen(
        [*command, "--effort", "100", "--seeds", "50"], stdout=PIPE, stderr=PIPE, text=True
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        while "popularity (1 of 2)" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        body = orjson.loads(process.stdout.read())
        assert process.wait() == 130
    assert list(body["models"]) == ["popularity"] and body["interrupted"] == "gru"
