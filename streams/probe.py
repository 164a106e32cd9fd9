"""Is there a Kafka broker, and does it speak as the settings say? One connection, one request, no client library."""

import contextlib
import socket
import ssl
import struct
from typing import Final

_CORRELATION: Final = 1
_API_VERSIONS: Final = 18  # the one request a broker answers before a client has signed in
_REQUEST: Final = struct.pack(
    ">ihhih", 10, _API_VERSIONS, 0, _CORRELATION, -1
)  # size, key, version, id, no client name


class HandshakeFailed(OSError):
    """Something accepts connections there, but not as a Kafka broker with this kind of connection."""


def greet(host: str, port: int, context: ssl.SSLContext | None = None, timeout_seconds: float = 1.0) -> None:
    """Connect, with TLS when a context is given, and wait for the answer to one ApiVersions request.

    Raises:
        HandshakeFailed: connected, but the TLS handshake fails or no Kafka answer comes.
        OSError: nothing accepts the connection.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout_seconds))
        try:
            if context is not None:
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
            connection.sendall(_REQUEST)
            reply = b""
            while len(reply) < 8:
                part = connection.recv(4096)
                if not part:
                    message = "the connection was closed without an answer"
                    raise HandshakeFailed(message)
                reply += part
        except TimeoutError as error:
            message = f"connected, but no answer within {timeout_seconds:g} s"
            raise HandshakeFailed(message) from error
        except OSError as error:
            if isinstance(error, HandshakeFailed):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            raise HandshakeFailed(message) from error
    if struct.unpack_from(">i", reply, 4)[0] != _CORRELATION:
        message = "the answer is not Kafka's"
        raise HandshakeFailed(message)


def answers(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Whether a Kafka broker without TLS answers there."""
    try:
        greet(host, port, None, timeout_seconds)
    except OSError:
        return False
    return True
