import ast
import os
from pathlib import Path

import pytest
import typer.main

from streams.cli import app
from streams.secrets import SUFFIX
from streams.settings import PREFIX, SECRETS, Settings, SettingsError, load_settings
from streams.supervisor import environment

ROOT = Path(__file__).parents[2]
SECRET = "s3cret-word-" + 32 * "x"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no .env


def variable(name):
    return PREFIX + name.upper()


def test_every_secret_is_known_and_may_come_in_a_file():
    hidden = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert hidden == set(SECRETS)
    assert all(name + SUFFIX in Settings.model_fields for name in SECRETS)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file_without_its_last_newline(monkeypatch, tmp_path, name, end):
    path = tmp_path / "secret"
    path.write_bytes(f" {SECRET} {end}".encode())
    monkeypatch.setenv(variable(name) + "_FILE", str(path))
    settings = load_settings()
    assert getattr(settings, name).get_secret_value() == f" {SECRET} "
    assert SECRET not in repr(settings)


def test_the_path_may_stand_in_dot_env(tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / ".env").write_text("RECSTREAM_SASL_PASSWORD_FILE=secret\n")
    assert load_settings().sasl_password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "not UTF-8"), (b"x" * 70_000, "longer")],
    ids=["missing", "empty", "newline", "binary", "long"],
)
def test_a_file_that_holds_no_secret_is_refused(monkeypatch, tmp_path, content, why):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("RECSTREAM_SASL_PASSWORD_FILE", str(path))
    with pytest.raises(SettingsError, match=why) as caught:
        load_settings()
    assert str(path) in caught.value.what
    assert "RECSTREAM_SASL_PASSWORD_FILE" in caught.value.fix


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_given_twice_is_refused_and_not_shown(monkeypatch, tmp_path, name):
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv(variable(name), SECRET)
    monkeypatch.setenv(variable(name) + "_FILE", str(tmp_path / "secret"))
    with pytest.raises(SettingsError, match="both set") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


def test_an_empty_variable_beside_a_file_is_an_unset_one(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("RECSTREAM_SASL_PASSWORD", "")  # what ${NAME:-} in a compose file gives
    monkeypatch.setenv("RECSTREAM_SASL_PASSWORD_FILE", str(tmp_path / "secret"))
    assert load_settings().sasl_password.get_secret_value() == SECRET


def test_an_invalid_secret_is_not_shown(monkeypatch):
    monkeypatch.setenv("RECSTREAM_PSEUDONYM_KEY", "short-key")
    with pytest.raises(SettingsError, match="fewer than 32 characters") as caught:
        load_settings()
    assert "short-key" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "RECSTREAM_PSEUDONYM_KEY_FILE" in caught.value.fix


def test_a_child_reads_the_file_itself(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("RECSTREAM_SASL_PASSWORD_FILE", str(tmp_path / "secret"))
    handed = environment(load_settings(pseudonym_key=SECRET[::-1]))
    assert handed == {"RECSTREAM_SASL_PASSWORD_FILE": str(tmp_path / "secret"), "RECSTREAM_PSEUDONYM_KEY": SECRET[::-1]}


def test_no_command_has_an_option_for_a_secret():
    def options(command):
        for parameter in command.params:
            yield from parameter.opts
        for sub in getattr(command, "commands", {}).values():
            yield from options(sub)

    found = set(options(typer.main.get_command(app)))
    assert "--brokers" in found
    assert not {option for name in SECRETS for option in found if name.replace("_", "-") in option}
    assert not {option for option in found if "secret" in option or "password" in option or option == "--token"}


def _calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] != ["UnpicklingError"]:
            yield node.module or ""


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source):
    """What in the source could run code that comes in a file or a message."""
    tree = ast.parse(source)
    found = [module for module in _imports(tree) if module.split(".")[0] in RUNS_CODE]
    for name, keywords in _calls(tree):
        if name in ("eval", "exec", "__import__", "compile"):
            found.append(name)
        elif name == "torch.load" and not _is(keywords.get("weights_only"), True):
            found.append("torch.load without weights_only=True")
        elif name in ("np.load", "numpy.load") and not _is(keywords.get("allow_pickle"), False):
            found.append("numpy.load without allow_pickle=False")
        elif name.endswith("yaml.load") or name.endswith("read_pickle") or name in ("os.system", "os.popen"):
            found.append(name)
        elif "shell" in keywords and not _is(keywords["shell"], False):
            found.append(f"{name} with a shell")
        elif name.endswith("jit.load"):
            found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "eval('1')", "torch.load(path)", "torch.load(p, weights_only=False)",
     "np.load(p)", "np.load(p, allow_pickle=True)", "yaml.load(text)",
     "subprocess.run('ls', shell=True)", "pandas.read_pickle(p)"],
)  # fmt: skip
def test_what_runs_code_is_found(source):
    assert unsafe(source)


def test_nothing_that_comes_in_a_file_or_message_runs_as_code():
    files = [path for package in ("streams", "models", "state") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): hits for path in files if (hits := unsafe(path.read_text()))}
    assert not found
