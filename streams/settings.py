"""The one settings object: environment variables `RECSTREAM_*` or a `.env` file, some of them command options too."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from state.pseudonyms import MIN_KEY_CHARACTERS
from streams.errors import SettingsError
from streams.secrets import SUFFIX, fill_in

__all__ = ["OPTIONS", "PREFIX", "SECRETS", "Settings", "SettingsError", "load_settings", "misspelt"]
PREFIX = "RECSTREAM_"
# Those that `streams.options` makes options of the commands that use them.
OPTIONS = ("brokers", "registry", "state_dir", "http_port", "partitions", "replication", "top_k", "emit")
SECRETS = ("sasl_password", "oauth_client_secret", "ssl_key_password", "pseudonym_key")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ALIKE: Final = 0.75  # of difflib's ratio: TOPK and TOP_K have 0.89, Compose's KAFKA_PORT and HTTP_PORT 0.53
_UNREADABLE = "cannot read the settings in .env"


class Settings(BaseSettings):
    """Everything an operator can set. Each field is `RECSTREAM_<NAME>` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    brokers: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port,host:port")
    registry: str = Field("data/registry", description="model registry: a directory or any fsspec URL")
    state_dir: Path = Field(Path("data/state"), description="local snapshots and the cold store")
    cache_dir: Path = Field(Path("data/cache"), description="downloaded data sets")
    http_host: str = Field("127.0.0.1", description="address of metrics, health and the page")
    http_port: int = Field(6066, ge=0, le=65535, description="port of the first worker; worker i uses port + i")
    page: bool = Field(True, description="serve the live page and its API beside metrics and health")
    page_users: Literal["auto", "on", "off"] = Field(
        "auto", description="look up users on the page; auto: only while http_host is a loopback address"
    )
    page_hosts: str = Field(
        "", description="names under which browsers reach the page, comma separated, besides localhost and addresses"
    )
    app_id: str = Field("recstream", min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="consumer group")

    partitions: int = Field(8, ge=1, le=10_000, description="partitions of every input, output and changelog topic")
    replication: int = Field(1, ge=1, le=32, description="replication factor of topics this program creates")
    top_k: int = Field(10, ge=1, le=200, description="recommendations per message")
    emit: Literal["every-event", "latest"] = Field(
        "every-event", description="one message per event, or the latest per user of each batch"
    )
    exclude: Literal["auto", "none", "purchased", "seen"] = Field(
        "auto",
        description="which of a user's last 50 items are not recommended again; auto: seen ones while "
        "fewer than 1% of events repeat an item of the user's history",
    )

    fusion: bool = Field(
        True, description="rank by transitions, popularity and the user's own items together with the model"
    )

    commit_interval_seconds: float = Field(1.0, gt=0, le=60, description="state flush and offset commit interval")
    flush_max_dirty_users: int = Field(50_000, ge=1, description="flush earlier when so many users changed")
    max_batch_events: int = Field(4_096, ge=1, le=100_000, description="events taken from one fetch")
    user_ttl_days: float = Field(0, ge=0, description="forget users idle for so long; 0 keeps them")
    max_resident_users: int = Field(
        0, ge=0, description="users in memory per worker, the rest in the cold store; 0: all"
    )
    snapshot_interval_seconds: float = Field(60.0, ge=0, description="local snapshot interval; 0 only at shutdown")
    popularity_half_life_hours: float = Field(24.0 * 7, gt=0, description="decay of popularity in event time")
    model_poll_seconds: float = Field(1.0, gt=0, le=300, description="how often a worker looks for a new model version")
    max_event_bytes: int = Field(65_536, ge=64, description="larger events are dead-lettered")

    train_every_events: int = Field(2_500, ge=1, description="new events after which the trainer trains")
    train_every_minutes: float = Field(
        5.0, ge=0, description="most minutes between two trainings; 0 counts events only"
    )
    train_recent_events: int = Field(10_000, ge=100, description="most of the newest events of a training")
    train_reservoir_events: int = Field(
        10_000, ge=0, description="most of the older events of each epoch, drawn at random"
    )
    train_epochs: int = Field(3, ge=1, le=100, description="passes over the newest events")
    model_cell: Literal["gru", "lstm"] = Field("gru", description="recurrent cell of a model the trainer fits anew")
    model_hidden: int = Field(128, ge=1, le=4096, description="width of its user state")
    model_embedding: int = Field(64, ge=1, le=4096, description="width of its item vectors")
    cold_start_events: int = Field(2_000, ge=100, description="events before the trainer fits a first model")
    buffer_events: int = Field(  # more do not fit into one frame of its file
        1_000_000, ge=1_000, le=100_000_000, description="events the trainer's replay buffer holds"
    )
    max_items: int = Field(1_000_000, ge=1, description="most items of a model's vocabulary")
    item_idle_days: float = Field(0, ge=0, description="items without an event for so long leave the model; 0: never")
    keep_versions: int = Field(20, ge=1, description="newest model versions kept, beside three to roll back to")
    trainer_seed: int = Field(
        0, ge=-(2**63), lt=2**63, description="randomness of the trainer: the same seed and log give the same models"
    )
    trainer_threads: int = Field(1, ge=1, le=1024, description="CPU threads the trainer computes with")
    trainer_http_port: int = Field(6166, ge=0, le=65535, description="port of the trainer's metrics and health")

    session_timeout_seconds: float = Field(20.0, ge=1, description="Kafka group session timeout")
    rebalance_timeout_seconds: float = Field(
        60.0, ge=1, description="Kafka max.poll.interval: time to hand over partitions"
    )
    start_from: Literal["earliest", "latest"] = Field(
        "earliest", description="where a new consumer group starts to read events"
    )
    isolation: Literal["read_uncommitted", "read_committed"] = Field(
        "read_uncommitted", description="whether messages of open and aborted transactions count"
    )

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to connect to Kafka"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="how to sign in"
    )
    sasl_username: str = Field("", description="user to sign in as")
    sasl_password: SecretStr = Field(SecretStr(""), description="that user's password")
    sasl_password_file: Path | None = Field(None, description="file that holds it instead")
    oauth_token_url: str = Field("", description="OAUTHBEARER: where tokens are issued (client credentials)")
    oauth_client_id: str = Field("", description="client to ask for a token as")
    oauth_client_secret: SecretStr = Field(SecretStr(""), description="that client's secret")
    oauth_client_secret_file: Path | None = Field(None, description="file that holds it instead")
    oauth_scope: str = Field("", description="scope to ask for")
    oauth_ca_file: Path | None = Field(None, description="authority of the token URL (PEM); default: the system's")
    oauth_token_file: Path | None = Field(
        None, description="OAUTHBEARER: a file the platform keeps a fresh token in, instead of a token URL"
    )
    ssl_ca_file: Path | None = Field(None, description="certificate authority (PEM); default: the system's")
    ssl_cert_file: Path | None = Field(None, description="client certificate (PEM)")
    ssl_key_file: Path | None = Field(None, description="key of the client certificate (PEM)")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="password of that key, when it is encrypted")
    ssl_key_password_file: Path | None = Field(None, description="file that holds it instead")
    pseudonym_key: SecretStr = Field(
        SecretStr(""), description="replace user ids by hashes under this key everywhere but in recommendations"
    )
    pseudonym_key_file: Path | None = Field(None, description="file that holds it instead")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level of log lines")

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        return fill_in(given, SECRETS, PREFIX)

    @field_validator("registry", "state_dir", "cache_dir")
    @classmethod
    def _home(cls, value: str | Path) -> str | Path:
        """Of a path that begins with ``~``, which no shell looks at in `.env`."""
        return type(value)(os.path.expanduser(value)) if str(value).startswith("~") else value

    @field_validator("pseudonym_key")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < MIN_KEY_CHARACTERS:
            msg = f"fewer than {MIN_KEY_CHARACTERS} characters: whoever guesses the key can name every user"
            raise ValueError(msg)
        return value

    @field_validator("oauth_token_url")
    @classmethod
    def _encrypted_or_local(cls, value: str) -> str:
        if value:
            url = urlsplit(value)
            local = url.scheme == "http" and url.hostname in _LOOPBACK
            if not url.hostname or not (url.scheme == "https" or local) or "@" in url.netloc:
                msg = "not https://HOST/..., and the client's secret is sent there"
                raise ValueError(msg)
        return value

    @field_validator("brokers")
    @classmethod
    def _host_port_list(cls, value: str) -> str:
        for part in value.split(","):
            host, _, port = part.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                msg = f"{part.strip()!r} is not host:port"
                raise ValueError(msg)
        return ",".join(part.strip() for part in value.split(","))

    @property
    def broker_list(self) -> list[str]:
        """Bootstrap servers as a list of `host:port`."""
        return self.brokers.split(",")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with the given (not None) values on top.

    Raises:
        SettingsError: naming every bad setting, why, and the variable to set; or `.env` cannot be read.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except UnicodeDecodeError as error:
        why = f"byte {error.start + 1} is not UTF-8 text"  # the cause would show what the file holds
        raise SettingsError(_UNREADABLE, why, "save .env as UTF-8, or move it away") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise SettingsError(_UNREADABLE, why, "let this user read .env, or move it away") from error
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        names = dict.fromkeys(str(item["loc"][0]) for item in error.errors())
        raise SettingsError(
            what="settings are invalid",
            why=problems,
            fix=f"set {', and '.join(map(_set_by, names))} to what is allowed",
        ) from None  # its text has every value in it, secrets too


def misspelt() -> dict[str, str]:
    """Variables of the environment and of `.env` that set nothing, and the setting that each looks like.

    Others that begin with `RECSTREAM_` may be somebody else's, such as Compose's or Kubernetes' own.
    """
    given = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    names = [name.upper() for name in Settings.model_fields]
    strange = {name.upper().removeprefix(PREFIX) for name in given if name.upper().startswith(PREFIX)} - {*names}
    alike = {name: get_close_matches(name, names, 1, _ALIKE) for name in sorted(strange)}
    return {PREFIX + name: PREFIX + found[0] for name, found in alike.items() if found}


def _set_by(name: str) -> str:
    """What sets a setting, for people."""
    variable = f"{PREFIX}{name.upper()}"
    if name in SECRETS:
        return f"{variable} or {variable}{SUFFIX.upper()}"
    return f"{variable} or --{name.replace('_', '-')}" if name in OPTIONS else variable


def _problem(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    shown = "(hidden)" if name in (*SECRETS, "oauth_token_url") else repr(item.get("input"))  # that may hold one too
    return f"{PREFIX}{name.upper()}={shown}: {item['msg']}"
