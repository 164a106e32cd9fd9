"""The one settings object: environment variables `RECSTREAM_*`, a `.env` file, or the same names as command options."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from state.errors import RecstreamError

PREFIX = "RECSTREAM_"


class SettingsError(RecstreamError):
    """A setting is missing or invalid."""


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

    train_every_events: int = Field(5_000, ge=1, description="new events after which the trainer trains")
    train_every_minutes: float = Field(
        5.0, ge=0, description="most minutes between two trainings; 0 counts events only"
    )
    train_recent_events: int = Field(20_000, ge=100, description="newest events of a training")
    train_reservoir_events: int = Field(20_000, ge=0, description="older events of a training, drawn at random")
    train_epochs: int = Field(4, ge=1, le=100, description="passes over those events")
    model_cell: Literal["gru", "lstm"] = Field("gru", description="recurrent cell of a model the trainer fits anew")
    model_hidden: int = Field(128, ge=1, le=4096, description="width of its user state")
    model_embedding: int = Field(64, ge=1, le=4096, description="width of its item vectors")
    cold_start_events: int = Field(2_000, ge=100, description="events before the trainer fits a first model")
    buffer_events: int = Field(1_000_000, ge=1_000, description="events the trainer's replay buffer holds")
    max_items: int = Field(1_000_000, ge=1, description="most items of a model's vocabulary")
    item_idle_days: float = Field(0, ge=0, description="items without an event for so long leave the model; 0: never")
    keep_versions: int = Field(20, ge=1, description="newest model versions kept in the registry")
    trainer_seed: int = Field(0, description="randomness of the trainer: the same seed and log give the same models")
    trainer_threads: int = Field(1, ge=1, le=1024, description="CPU threads the trainer computes with")
    trainer_http_port: int = Field(6166, ge=0, le=65535, description="port of the trainer's metrics and health")

    session_timeout_seconds: float = Field(20.0, ge=1, description="Kafka group session timeout")
    rebalance_timeout_seconds: float = Field(
        60.0, ge=1, description="Kafka max.poll.interval: time to hand over partitions"
    )
    start_from: Literal["earliest", "latest"] = Field("earliest", description="where a new consumer group starts")

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to connect to Kafka"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="how to sign in"
    )
    sasl_username: str = Field("", description="user to sign in as")
    sasl_password: SecretStr = Field(SecretStr(""), description="that user's password")
    ssl_ca_file: Path | None = Field(None, description="certificate authority (PEM); default: the system's")
    ssl_cert_file: Path | None = Field(None, description="client certificate (PEM)")
    ssl_key_file: Path | None = Field(None, description="key of the client certificate (PEM)")

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
        SettingsError: naming every bad setting, why, and the variable to set.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{PREFIX}{'.'.join(str(part) for part in item['loc']).upper()}={item.get('input')!r}: {item['msg']}"
            for item in error.errors()
        )
        name = str(error.errors()[0]["loc"][0])
        raise SettingsError(
            what="settings are invalid",
            why=problems,
            fix=f"set {PREFIX}{name.upper()} or --{name.replace('_', '-')} to a valid value",
        ) from error
