"""How every client reaches Kafka: the settings translated once for aiokafka, kafka-python and Faust."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka.errors import KafkaError as AioKafkaError
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from streams.errors import BrokerError
from streams.settings import Settings, SettingsError

CLIENT_ID = "recstream"

AUTHENTICATION_HINT = (
    "check RECSTREAM_SECURITY_PROTOCOL, RECSTREAM_SASL_MECHANISM, RECSTREAM_SASL_USERNAME and RECSTREAM_SASL_PASSWORD"
)
REACH_HINT = (
    "start a broker (`recstream broker` runs an embedded one) or set RECSTREAM_BROKERS / --brokers to one that runs"
)


def uses_tls(settings: Settings) -> bool:
    """Whether connections are encrypted."""
    return settings.security_protocol in ("SSL", "SASL_SSL")


def uses_sasl(settings: Settings) -> bool:
    """Whether clients sign in with a user name and a password."""
    return settings.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of the settings: system roots or `ssl_ca_file`, and a client certificate when one is given.

    Raises:
        SettingsError: when a file is missing or is not what it should be.
    """
    if not uses_tls(settings):
        return None
    try:
        context = ssl.create_default_context(cafile=str(settings.ssl_ca_file) if settings.ssl_ca_file else None)
    except OSError as error:  # ssl.SSLError is an OSError
        raise SettingsError(
            what=f"cannot read the certificate authority {settings.ssl_ca_file}",
            why=str(error),
            fix="set RECSTREAM_SSL_CA_FILE to a PEM file, or leave it empty for the system's roots",
        ) from error
    if settings.ssl_cert_file:
        try:
            context.load_cert_chain(
                str(settings.ssl_cert_file), str(settings.ssl_key_file) if settings.ssl_key_file else None
            )
        except OSError as error:
            raise SettingsError(
                what=f"cannot use the client certificate {settings.ssl_cert_file}",
                why=str(error),
                fix="set RECSTREAM_SSL_CERT_FILE and RECSTREAM_SSL_KEY_FILE to a matching PEM pair",
            ) from error
    return context


def security_options(settings: Settings) -> dict[str, Any]:
    """Security keywords that aiokafka and kafka-python spell the same way.

    Raises:
        SettingsError: when SASL is asked for without a user, or a certificate cannot be read.
    """
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if uses_tls(settings):
        options["ssl_context"] = ssl_context(settings)
    if uses_sasl(settings):
        if not settings.sasl_username:
            raise SettingsError(
                what=f"RECSTREAM_SECURITY_PROTOCOL={settings.security_protocol} needs a user",
                why="RECSTREAM_SASL_USERNAME is empty",
                fix="set RECSTREAM_SASL_USERNAME and RECSTREAM_SASL_PASSWORD, or use PLAINTEXT or SSL",
            )
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return options


def client_options(settings: Settings, client_id: str = CLIENT_ID) -> dict[str, Any]:
    """Keywords for any aiokafka or kafka-python client: where the brokers are and how to sign in."""
    return {"bootstrap_servers": settings.broker_list, "client_id": client_id, **security_options(settings)}


def producer_options(settings: Settings, client_id: str = CLIENT_ID) -> dict[str, Any]:
    """Keywords for an aiokafka producer that batches well and is acknowledged by all in-sync replicas.

    With no linger every record is its own request and the broker becomes the bottleneck; 2 ms already batch.
    """
    return {
        **client_options(settings, client_id),
        "acks": "all",
        "linger_ms": 2,
        "max_batch_size": 262_144,
        "request_timeout_ms": 60_000,
    }


def faust_options(settings: Settings) -> dict[str, Any]:
    """Keywords `broker` and `broker_credentials` of `faust.App`."""
    import faust

    options: dict[str, Any] = {"broker": ";".join(f"kafka://{address}" for address in settings.broker_list)}
    security = security_options(settings)
    if uses_sasl(settings):
        options["broker_credentials"] = faust.SASLCredentials(
            username=security["sasl_plain_username"],
            password=security["sasl_plain_password"],
            mechanism=security["sasl_mechanism"],
            ssl_context=security.get("ssl_context"),
        )
    elif uses_tls(settings):
        options["broker_credentials"] = faust.SSLCredentials(security["ssl_context"])
    return options


@contextmanager
def broker_errors(settings: Settings, action: str) -> Iterator[None]:
    """Turn the clients' exceptions into one `BrokerError` that says what was tried, why it failed and what to do."""
    try:
        yield
    except (KafkaError, AioKafkaError, OSError) as error:
        raise BrokerError(
            what=f"cannot {action} at {settings.brokers}", why=describe(error), fix=hint(error)
        ) from error


def describe(error: BaseException) -> str:
    """One line about a client exception: its kind, then its own words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def hint(error: BaseException) -> str:
    """What an operator should look at for a client exception."""
    name = type(error).__name__
    if "Authorization" in name:
        return "give this user the missing right on the broker (kafka-acls)"
    if "Auth" in name or "Sasl" in name or "SSL" in name or "SASL" in str(error):
        return AUTHENTICATION_HINT
    return REACH_HINT


@contextmanager
def admin(settings: Settings, timeout_seconds: float = 10.0) -> Iterator[KafkaAdminClient]:
    """A connected admin client, closed at the end.

    Args:
        settings: Where the brokers are.
        timeout_seconds: How long to try to reach one.

    Raises:
        BrokerError: when no broker answers in time or one refuses.
    """
    options = client_options(settings)
    with broker_errors(settings, "reach Kafka"):
        client = KafkaAdminClient(
            **options, bootstrap_timeout_ms=int(timeout_seconds * 1000), request_timeout_ms=30_000
        )
    try:
        with broker_errors(settings, "administer Kafka"):
            yield client
    finally:
        client.close()
