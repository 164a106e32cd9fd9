"""An issuer of signed access tokens for the OAUTHBEARER tests: keys, JWTs, and a token endpoint.

The broker checks signature, issuer, audience and expiry against `jwks.json`, as with a real provider.
"""

import base64
import http.server
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CLIENT, CLIENT_SECRET = "recstream-client", "open-sesame-81f2"
ISSUER, AUDIENCE = "https://issuer.test", "kafka"
_E = "AQAB"  # 65537, what openssl makes keys with


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Signs tokens; `jwks.json` in its directory is what the broker checks them against."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._openssl("genrsa", "-out", "issuer.key", "2048")
        self._openssl("genrsa", "-out", "stranger.key", "2048")
        modulus = self._openssl("rsa", "-in", "issuer.key", "-noout", "-modulus").decode().strip().split("=")[1]
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": _encoded(bytes.fromhex(modulus)), "e": _E}
        (directory / "jwks.json").write_text(json.dumps({"keys": [key]}))

    def token(self, seconds: float = 3600, key: str = "issuer", **claims: Any) -> str:
        """A token for CLIENT that lives so long from now."""
        now = int(time.time())
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": CLIENT, "scope": "kafka", "iat": min(now, now + int(seconds)),
                "exp": now + int(seconds), **claims}  # fmt: skip
        parts = [_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1", "typ": "JWT"}, body)]
        signed = ".".join(parts)
        signature = self._openssl("dgst", "-sha256", "-sign", f"{key}.key", data=signed.encode())
        return f"{signed}.{_encoded(signature)}"

    def _openssl(self, *arguments: str, data: bytes | None = None) -> bytes:
        done = subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, input=data)
        return done.stdout


class TokenEndpoint(http.server.ThreadingHTTPServer):
    """Grants client credentials, and counts who asks.

    Attributes:
        seconds: Life of the tokens it grants.
        key: Which key signs them.
        asked: How often it was asked.
        granted: Every token it gave.
    """

    daemon_threads = True

    def __init__(self, issuer: Issuer, certificate: Path | None = None) -> None:
        self.issuer, self.seconds, self.key = issuer, 3600.0, "issuer"
        self.asked, self.granted, self.scopes = 0, list[str](), list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        if certificate is not None:
            self.scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_address[1]}/token"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate hangs up: no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, TokenEndpoint)
        server.asked += 1
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        expected = base64.b64encode(f"{CLIENT}:{CLIENT_SECRET}".encode()).decode()
        if self.path == "/redirect":
            return self._answer(307, {}, Location="/token")
        if self.headers.get("Authorization") != f"Basic {expected}":
            return self._answer(401, {"error": "invalid_client", "error_description": self.headers["Authorization"]})
        if "grant_type=client_credentials" not in form:
            return self._answer(400, {"error": "unsupported_grant_type"})
        server.scopes.append(form)
        token = server.issuer.token(server.seconds, server.key)
        server.granted.append(token)
        return self._answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": server.seconds})

    def _answer(self, status: int, body: dict[str, Any], **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def endpoint(issuer: Issuer, certificate: Path | None = None) -> Iterator[TokenEndpoint]:
    """A running token endpoint; over TLS with a certificate (PEM with its key)."""
    with TokenEndpoint(issuer, certificate) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()
