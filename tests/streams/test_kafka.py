import shutil
import ssl
import subprocess

import pytest
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError

from streams.broker import EmbeddedBroker
from streams.errors import BrokerError
from streams.kafka import (
    REACH_HINT,
    _reason,
    admin,
    broker_errors,
    client_options,
    describe,
    faust_options,
    hint,
    producer_options,
    ssl_context,
)
from streams.settings import SettingsError, load_settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A self-signed certificate and its key, as PEM files."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "ca.pem", folder / "ca.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_plaintext_needs_nothing_else():
    options = client_options(load_settings(brokers="a:1,b:2"))
    assert options == {"bootstrap_servers": ["a:1", "b:2"], "client_id": "recstream", "security_protocol": "PLAINTEXT"}


def test_a_producer_waits_for_all_replicas_and_lingers():
    options = producer_options(load_settings())
    assert options["acks"] == "all"
    assert options["linger_ms"] >= 2


def test_sasl_options():
    settings = load_settings(security_protocol="SASL_SSL", sasl_username="worker", sasl_password="pw")
    options = client_options(settings)
    assert isinstance(options["ssl_context"], ssl.SSLContext)
    assert (options["sasl_mechanism"], options["sasl_plain_username"], options["sasl_plain_password"]) == (
        "SCRAM-SHA-512", "worker", "pw",
    )  # fmt: skip


def test_sasl_without_a_user_is_refused():
    with pytest.raises(SettingsError, match="RECSTREAM_SASL_USERNAME"):
        client_options(load_settings(security_protocol="SASL_PLAINTEXT"))


def test_tls_with_own_authority_and_client_certificate(authority):
    certificate, key = authority
    settings = load_settings(
        security_protocol="SSL", ssl_ca_file=certificate, ssl_cert_file=certificate, ssl_key_file=key
    )
    context = ssl_context(settings)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert [dict(part[0] for part in entry["subject"]) for entry in context.get_ca_certs()] == [{"commonName": "test"}]


@pytest.mark.parametrize("name", ["ssl_ca_file", "ssl_cert_file"])
def test_an_unusable_pem_file_names_its_setting(tmp_path, name):
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    for path in (broken, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=f"RECSTREAM_{name.upper()}"):
            ssl_context(load_settings(security_protocol="SSL", **{name: path}))


def test_faust_reads_the_same_settings():
    import faust

    assert faust_options(load_settings(brokers="a:1,b:2")) == {"broker": "kafka://a:1;kafka://b:2"}
    signed_in = faust_options(
        load_settings(security_protocol="SASL_PLAINTEXT", sasl_username="worker", sasl_password="pw")
    )["broker_credentials"]
    assert isinstance(signed_in, faust.SASLCredentials)
    assert (signed_in.protocol.value, signed_in.mechanism.value) == ("SASL_PLAINTEXT", "SCRAM-SHA-512")
    encrypted = faust_options(load_settings(security_protocol="SASL_SSL", sasl_username="u", sasl_password="p"))
    assert encrypted["broker_credentials"].protocol.value == "SASL_SSL"
    assert isinstance(faust_options(load_settings(security_protocol="SSL"))["broker_credentials"], faust.SSLCredentials)


def test_nobody_there_is_a_broker_error_with_a_cure():
    settings = load_settings(brokers="127.0.0.1:1")
    with pytest.raises(BrokerError) as caught, admin(settings, timeout_seconds=0.5):
        pass
    assert caught.value.what == "cannot reach Kafka at 127.0.0.1:1"
    assert caught.value.fix == REACH_HINT


def test_a_listener_that_is_not_what_the_settings_say_is_told_from_nobody_there():
    with EmbeddedBroker() as broker:  # speaks plaintext only
        settings = load_settings(brokers=broker.bootstrap, security_protocol="SSL")
        with pytest.raises(BrokerError, match="does not let us in") as caught, admin(settings, timeout_seconds=0.5):
            pass
    assert "RECSTREAM_SECURITY_PROTOCOL" in caught.value.fix


def test_client_exceptions_are_described_once_and_hinted():
    from aiokafka.errors import TopicAuthorizationFailedError
    from kafka.errors import KafkaTimeoutError, SaslAuthenticationFailedError

    assert describe(KafkaTimeoutError("no luck")).count("KafkaTimeoutError") == 1
    assert "rights" in hint(TopicAuthorizationFailedError()) or "right" in hint(TopicAuthorizationFailedError())
    assert "RECSTREAM_SASL_" in hint(SaslAuthenticationFailedError())
    with pytest.raises(BrokerError, match="cannot do it at"), broker_errors(load_settings(), "do it"):
        raise KafkaTimeoutError


def test_a_refusal_counts_more_than_the_lost_connections_before_it():
    lost, refused = KafkaConnectionError("socket disconnected"), SaslAuthenticationFailedError("wrong user")
    assert _reason([lost, refused, lost], signs_in=True) == describe(refused)


@pytest.mark.parametrize("signs_in", [True, False])
def test_lost_connections_may_be_a_refusal_where_somebody_signs_in(signs_in):
    reason = _reason([KafkaConnectionError("first"), KafkaConnectionError("second")], signs_in)
    assert reason.startswith(describe(KafkaConnectionError("first")))
    assert ("password" in reason) == signs_in
