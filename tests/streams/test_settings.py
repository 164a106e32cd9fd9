import os
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

from streams import options
from streams.settings import OPTIONS, Settings, SettingsError, load_settings, misspelt


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("RECSTREAM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no .env


def test_defaults_are_the_documented_ones():
    settings = load_settings()
    assert (settings.brokers, settings.partitions, settings.top_k, settings.emit) == (
        "127.0.0.1:9092", 8, 10, "every-event",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("BROKERS", "a:1, b:2", "a:1,b:2"),
        ("REGISTRY", "s3://models/shop", "s3://models/shop"),
        ("HTTP_PORT", "7000", 7000),
        ("PARTITIONS", "16", 16),
        ("TOP_K", "20", 20),
        ("EMIT", "latest", "latest"),
    ],
)
def test_environment_names(monkeypatch, name, text, value):
    monkeypatch.setenv(f"RECSTREAM_{name}", text)
    assert getattr(load_settings(), name.lower()) == value


def test_an_option_beats_the_environment_and_an_absent_one_does_not(monkeypatch):
    monkeypatch.setenv("RECSTREAM_TOP_K", "20")
    assert load_settings(top_k=5).top_k == 5
    assert load_settings(top_k=None).top_k == 20


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("RECSTREAM_SSL_CA_FILE", "")  # what ${NAME:-} in a compose file gives
    monkeypatch.setenv("RECSTREAM_TOP_K", "")
    settings = load_settings()
    assert (settings.ssl_ca_file, settings.top_k) == (None, 10)


def test_dot_env_of_another_encoding_is_an_error_that_shows_none_of_it(tmp_path):
    (tmp_path / ".env").write_bytes("RECSTREAM_SASL_PASSWORD=geheim-für-alle\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"cannot read the settings in \.env") as caught:
        load_settings()
    assert "UTF-8" in caught.value.fix
    assert "geheim" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can be opened and not read")
def test_dot_env_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / ".env").symlink_to("/proc/self/mem")
    with pytest.raises(SettingsError, match=r"cannot read the settings in \.env"):
        load_settings()


def test_dot_env_file(tmp_path):
    (tmp_path / ".env").write_text("RECSTREAM_PARTITIONS=3\nOTHER=1\n")
    assert load_settings().partitions == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BROKERS", "localhost"),
        ("BROKERS", "localhost:99999"),
        ("PARTITIONS", "0"),
        ("TOP_K", "ten"),
        ("EMIT", "sometimes"),
        ("HTTP_PORT", "-1"),
        ("TRAINER_SEED", "9223372036854775808"),
        ("BUFFER_EVENTS", "100000001"),
        ("APP_ID", "has space"),
    ],
)
def test_an_invalid_setting_says_what_why_and_the_fix(monkeypatch, name, text):
    monkeypatch.setenv(f"RECSTREAM_{name}", text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.what == "settings are invalid"
    assert f"RECSTREAM_{name}={text!r}" in caught.value.why
    assert f"RECSTREAM_{name}" in caught.value.fix
    option = f"--{name.lower().replace('_', '-')}"
    assert (option in caught.value.fix) == (name.lower() in OPTIONS)


def test_options_are_those_that_commands_have():
    shared = [get_args(kind)[1] for kind in vars(options).values() if get_origin(kind) is Annotated]
    names = {str(option.default).removeprefix("--").replace("-", "_") for option in shared}  # typer keeps it there
    assert names & set(Settings.model_fields) == set(OPTIONS)


def test_every_bad_setting_is_named_at_once(monkeypatch):
    monkeypatch.setenv("RECSTREAM_TOP_K", "0")
    monkeypatch.setenv("RECSTREAM_PARTITIONS", "0")
    with pytest.raises(SettingsError, match=r"RECSTREAM_PARTITIONS.*RECSTREAM_TOP_K") as caught:
        load_settings()
    assert "--partitions" in caught.value.fix and "--top-k" in caught.value.fix


def test_settings_do_not_change_and_hide_the_password():
    settings = load_settings(sasl_password="secret-word")
    with pytest.raises(ValueError, match="frozen"):
        settings.top_k = 3  # type: ignore[misc]
    assert "secret-word" not in repr(settings)
    assert settings.sasl_password.get_secret_value() == "secret-word"


def test_every_setting_is_in_the_readme():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`RECSTREAM_{name.upper()}`" in readme


def test_misspelt_settings_are_found_and_other_programs_variables_are_not(monkeypatch, tmp_path):
    for name in ("PSEUDONYM_KEYFILE", "KAFKA_PORT", "GRAFANA_PORT", "DEMO_RATE", "WORKER_PORT_6066_TCP", "TOP_K"):
        monkeypatch.setenv(f"RECSTREAM_{name}", "1")
    (tmp_path / ".env").write_text("RECSTREAM_PARTITION=3\nTOPK=3\nrecstream_emit=latest\n")
    assert misspelt() == {
        "RECSTREAM_PSEUDONYM_KEYFILE": "RECSTREAM_PSEUDONYM_KEY_FILE",
        "RECSTREAM_PARTITION": "RECSTREAM_PARTITIONS",
    }


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = load_settings(registry="~/models", state_dir="~/state", cache_dir="data/~cache")
    assert (settings.registry, str(settings.state_dir)) == ("/home/me/models", "/home/me/state")
    assert str(settings.cache_dir) == "data/~cache"
    assert load_settings(registry="s3://models/~").registry == "s3://models/~"
