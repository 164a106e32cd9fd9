import orjson
import pytest
from typer.testing import CliRunner

from streams.cli import app

pytest.importorskip("optuna")
LINES = ["user_id,item_id,timestamp"] + [f"u{n % 6},i{(n // 6 + n % 6) % 7},{1_700_000_000 + n}" for n in range(180)]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSTREAM_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "log.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_what_was_found_is_printed_kept_and_understood_by_evaluate(log, tmp_path):
    best = tmp_path / "out" / "best.json"
    result = run("tune", log, "--model", "skip-markov", "--trials", 3, "--out", best, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.strip().splitlines()
    body = orjson.loads(line)
    assert len(body["trials"]) == 3
    assert orjson.loads(best.read_bytes()) == {"skip-markov": body["best"]["settings"]}
    assert (tmp_path / "state" / "tune" / "log.skip-markov.leave-one-out.0.5.0.journal").is_file()
    assert "best on 6 validation events" in result.stderr
    again = orjson.loads(run("tune", log, "--model", "skip-markov", "--trials", 3, "--json").stdout)
    assert again["resumed"] == 3
    given = tmp_path / "given.json"
    given.write_text('{"skip-markov": {"latest": 3, "farthest": 4}}')
    result = run("evaluate", log, "--models", "skip-markov", "--settings", best, "--settings", given, "--json")
    body = orjson.loads(result.stdout.strip().splitlines()[-1])
    assert body["model_settings"] == {"skip-markov": {"latest": 3, "farthest": 4}}
    assert body["models"]["skip-markov"]["cost"]["state_bytes"] == 16


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["tune", "LOG", "--model", "popularity"], 1, "nothing to tune"),
        (["tune", "LOG", "--protocol", "prequential"], 2, "prequential"),
        (["evaluate", "LOG", "--models", "gru", "--settings", "LOG"], 2, "holds no settings"),
        (["evaluate", "LOG", "--models", "gru", "--settings", "missing.json"], 2, "holds no settings"),
        (["evaluate", "LOG", "--models", "gru", "--settings", "WRONG"], 1, "cannot be built with layers=2"),
        (["evaluate", "LOG", "--models", "gru", "--settings", "UNKNOWN"], 2, "settings of 'GRU', which is no model"),
    ],
)
def test_mistakes_are_said_with_their_fix(log, tmp_path, arguments, status, words):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"gru": {"layers": 2}}')
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"GRU": {"hidden": 16}}')
    files = {"LOG": str(log), "WRONG": str(wrong), "UNKNOWN": str(unknown)}
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output
