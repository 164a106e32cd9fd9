"""How every client reaches Kafka: the settings translated once for aiokafka, kafka-python and Faust."""

import logging
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiokafka.errors import KafkaError as AioKafkaError
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError, SaslAuthenticationFailedError
from kafka.net.compat import KafkaNetClient

from streams.errors import BrokerError, SettingsError
from streams.oauth import AsyncTokens, BlockingTokens, token_source
from streams.probe import HandshakeFailed, greet
from streams.settings import Settings

CLIENT_ID = "recstream"

AUTHENTICATION_HINT = (
    "check RECSTREAM_SECURITY_PROTOCOL, the RECSTREAM_SASL_*, the RECSTREAM_SSL_* and, with OAUTHBEARER, the "
    "RECSTREAM_OAUTH_* settings against the broker's"
)
REACH_HINT = (
    "start a broker (`recstream broker` runs an embedded one) or set RECSTREAM_BROKERS / --brokers to one that runs"
)


def uses_tls(settings: Settings) -> bool:
    """Whether connections are encrypted."""
    return settings.security_protocol in ("SSL", "SASL_SSL")


def uses_sasl(settings: Settings) -> bool:
    """Whether clients sign in, with a password or a token."""
    return settings.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")


def uses_tokens(settings: Settings) -> bool:
    """Whether clients sign in with an access token."""
    return uses_sasl(settings) and settings.sasl_mechanism == "OAUTHBEARER"


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
                str(settings.ssl_cert_file),
                str(settings.ssl_key_file) if settings.ssl_key_file else None,
                settings.ssl_key_password.get_secret_value,  # without one OpenSSL would ask the terminal, and wait
            )
        except OSError as error:
            raise SettingsError(
                what=f"cannot use the client certificate {settings.ssl_cert_file}",
                why=str(error),
                fix="set RECSTREAM_SSL_CERT_FILE and RECSTREAM_SSL_KEY_FILE to a matching PEM pair, and "
                "RECSTREAM_SSL_KEY_PASSWORD_FILE when the key is encrypted",
            ) from error
    return context


def security_options(settings: Settings) -> dict[str, Any]:
    """Security keywords of aiokafka, which kafka-python spells the same way (but see `admin` about tokens).

    Raises:
        SettingsError: when SASL is asked for without a user or a token, or a certificate cannot be read.
    """
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if uses_tls(settings):
        options["ssl_context"] = ssl_context(settings)
    if uses_tokens(settings):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_oauth_token_provider"] = AsyncTokens(token_source(settings))
    elif uses_sasl(settings):
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
    """Keywords for any aiokafka client: where the brokers are and how to sign in."""
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
    if uses_tokens(settings):
        options["broker_credentials"] = faust.OAuthCredentials(
            oauth_cb=security["sasl_oauth_token_provider"], ssl_context=security.get("ssl_context")
        )
    elif uses_sasl(settings):
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
    kind, words = type(error).__name__, " ".join(str(error).split())
    if not words or words.startswith(kind):  # the clients' errors often say their own name
        return words or kind
    return f"{kind}: {words}"


def hint(error: BaseException) -> str:
    """What an operator should look at for a client exception."""
    name = type(error).__name__
    if "Authorization" in name:
        return "give this user the missing right on the broker (kafka-acls)"
    if "Auth" in name or "Sasl" in name or "SSL" in name or "SASL" in str(error):
        return AUTHENTICATION_HINT
    return REACH_HINT


@contextmanager
def admin(settings: Settings, timeout_seconds: float = 3.0) -> Iterator[KafkaAdminClient]:
    """A connected admin client, closed at the end.

    Args:
        settings: Where the brokers are.
        timeout_seconds: How long to try to reach one.

    Raises:
        BrokerError: when no broker answers in time or one refuses.
        TokenError: when no access token can be had.
    """
    options = client_options(settings)
    _await_broker(settings, options.get("ssl_context"), timeout_seconds)
    if uses_tokens(settings):
        source = token_source(settings)
        source.token()  # before anything is tried with it: the clients would only say that they cannot connect
        options["sasl_oauth_token_provider"] = BlockingTokens(source)
    client = _connected(settings, options, timeout_seconds, rounds=2 if uses_sasl(settings) else 1)
    try:
        with broker_errors(settings, "administer Kafka"):
            yield client
    finally:
        client.close()


def _connected(settings: Settings, options: dict[str, Any], timeout_seconds: float, rounds: int) -> KafkaAdminClient:
    """A client of a broker that answers, so that a failure is about who we are: `rounds` of about four tries.

    A refused user or token is tried until the time is over, and known by one heard refusal. kafka-python throws away
    an answer that it reads together with the end of the connection, and Kafka hangs up 0.1 s after it refused: on a
    busy machine every try of a round may miss it.
    """
    started: list[KafkaNetClient] = []  # a constructor that raises leaves its sockets and thread to us

    def net_client(**config: Any) -> KafkaNetClient:
        started.append(KafkaNetClient(**config))
        return started[0]

    with _failures() as failures:
        try:
            return KafkaAdminClient(
                **options,
                bootstrap_timeout_ms=int(timeout_seconds * 1000),
                request_timeout_ms=30_000,
                kafka_client=net_client,
            )
        except BaseException as error:
            for half_open in started:
                half_open.close()
            if not isinstance(error, KafkaError | OSError):
                raise
            failures.append(error)
    if rounds > 1 and not _refusals(failures):
        return _connected(settings, options, timeout_seconds, rounds - 1)
    raise _unwelcome(settings, _reason(failures, uses_sasl(settings))) from failures[-1]


def _refusals(failures: Sequence[BaseException]) -> list[BaseException]:
    return [failure for failure in failures if isinstance(failure, SaslAuthenticationFailedError)]


def _reason(failures: Sequence[BaseException], signs_in: bool) -> str:
    """The broker's refusal if it was heard, else the first failure and, where somebody signs in, what it may mean."""
    refusals = _refusals(failures)
    if refusals or not signs_in:
        return describe((refusals or failures)[0])
    return (
        f"{describe(failures[0])}. Kafka hung up at every try to sign in, as it does after a failed Authentication: "
        "the user, the password or the token may be wrong"
    )


@contextmanager
def _failures() -> Iterator[list[BaseException]]:
    """Collect why kafka-python's connections fail: its exception says only that time ran out, its log says why."""
    failures: list[BaseException] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            arguments = record.args if isinstance(record.args, tuple) else ()
            failures.extend(
                value
                for value in arguments
                if isinstance(value, BaseException) and not isinstance(value, KafkaTimeoutError)
            )

    logger, handler = logging.getLogger("kafka.net"), Collect(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield failures
    finally:
        logger.removeHandler(handler)


def _await_broker(settings: Settings, context: ssl.SSLContext | None, timeout_seconds: float) -> None:
    """Wait until one of the brokers answers.

    Quicker and plainer than the clients' own retries, and a must with TLS: kafka-python 3.0.12 has no time-out for a
    handshake that never ends, as with a listener that speaks plaintext.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        for address in settings.broker_list:
            host, _, port = address.rpartition(":")
            try:
                greet(host.strip("[]"), int(port), context, max(0.1, timeout_seconds))
                return
            except OSError as error:
                failure = error
        # Somebody who answers but not as we expect will hardly change within seconds: three tries, not fifteen.
        pause = 1.0 if isinstance(failure, HandshakeFailed) else 0.2
        if time.monotonic() + pause > deadline:
            if isinstance(failure, HandshakeFailed):
                raise _unwelcome(settings, str(failure)) from failure
            raise BrokerError(
                what=f"cannot reach Kafka at {settings.brokers}", why=describe(failure), fix=REACH_HINT
            ) from failure
        time.sleep(pause)


def _unwelcome(settings: Settings, why: str) -> BrokerError:
    return BrokerError(what=f"Kafka at {settings.brokers} does not let us in", why=why, fix=AUTHENTICATION_HINT)
