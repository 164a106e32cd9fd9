import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from streams.broker import EmbeddedBroker
from streams.probe import HandshakeFailed, answers, greet


@pytest.fixture
def listener():
    """A listener that answers every connection with what `reply` holds, then closes it."""
    server = socket.create_server(("127.0.0.1", 0))

    class Listener:
        port = server.getsockname()[1]
        reply = b""

    def run():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                connection.sendall(Listener.reply)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield Listener
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def test_a_broker_answers():
    with EmbeddedBroker() as broker:
        greet(broker.host, broker.port)
        assert answers(broker.host, broker.port)


def test_nobody_there_is_not_a_failed_handshake():
    with pytest.raises(OSError, match="refused") as caught:
        greet("127.0.0.1", 1)
    assert not isinstance(caught.value, HandshakeFailed)
    assert not answers("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("reply", "words"),
    [(b"", "closed without an answer"), (b"abc", "closed without an answer"), (b"HTTP/1.1 400 Bad", "not Kafka's")],
)
def test_what_is_not_a_broker(listener, reply, words):
    listener.reply = reply
    with pytest.raises(HandshakeFailed, match=words):
        greet("127.0.0.1", listener.port)


def test_silence_ends_in_time():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(HandshakeFailed, match=r"no answer within 0\.2 s"),
    ):
        greet("127.0.0.1", silent.getsockname()[1], timeout_seconds=0.2)


def test_plaintext_where_tls_is_wanted():
    with EmbeddedBroker() as broker, pytest.raises(HandshakeFailed):
        greet(broker.host, broker.port, ssl.create_default_context(), timeout_seconds=0.5)


def test_a_certificate_nobody_vouches_for(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    try:
                        with context.wrap_socket(connection, server_side=True) as secure:
                            secure.sendall(secure.recv(100)[:8])  # its length is no answer, its id is ours
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        with pytest.raises(HandshakeFailed, match="CERTIFICATE_VERIFY_FAILED"):
            greet("127.0.0.1", port, ssl.create_default_context())
        with pytest.raises(HandshakeFailed, match="not Kafka's"):  # vouched for: the handshake succeeds
            greet("127.0.0.1", port, ssl.create_default_context(cafile=str(tmp_path / "pem")))
        thread.join(5)
