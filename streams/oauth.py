"""Access tokens for SASL OAUTHBEARER: fetched with client credentials, or read from a file that the platform refreshes.

A process has one source for all its connections. Kafka's clients ask it whenever they connect; it asks the token URL
once per token, and after a failure not again for a while, however often they try.

References:
    RFC 6749, section 4.4 (client credentials); RFC 7628 (OAUTHBEARER).
"""

import asyncio
import base64
import binascii
import http.client
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from kafka.net.sasl.oauth import AbstractTokenProvider as BlockingTokenProvider

from state.errors import RecstreamError
from streams.errors import SettingsError
from streams.secrets import read_secret
from streams.settings import Settings

_TIMEOUT_SECONDS: Final = 5.0
_MARGIN_SECONDS: Final = 30.0  # a token is replaced so long before it expires, a short-lived one after 80% of its life
_UNSTATED_LIFE_SECONDS: Final = 300.0  # of a token that says nowhere when it expires
_FIRST_PAUSE_SECONDS: Final = 1.0  # after a failure; doubled by each further one
_LONGEST_PAUSE_SECONDS: Final = 30.0
_PACE_SECONDS: Final = 1.0  # between two tries of a client that got no token: aiokafka itself waits 0.1 s
_FREE_CONNECTIONS: Final = 100  # of a client with one token; a broker that refuses it sees 2.5 a second of each client
_FREE_AGAIN_SECONDS: Final = 10.0  # until one more is free
_LONGEST_WAIT_SECONDS: Final = 5.0
_MAX_REPLY_BYTES: Final = 256 * 1024
_FIX: Final = "check the RECSTREAM_OAUTH_* settings and what the token URL's server logs about this client"
_FILE_VARIABLE: Final = "RECSTREAM_OAUTH_TOKEN_FILE"


class TokenError(RecstreamError):
    """No access token can be had, or only one that has expired."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token.

    Attributes:
        text: What Kafka is shown. Secret.
        expires: When it ends, epoch seconds.
    """

    text: str
    expires: float

    def __repr__(self) -> str:
        return f"Token(expires={self.expires:.0f})"


class TokenSource:
    """Hands out a valid token and fetches a new one shortly before the old one expires. Any thread may ask.

    Args:
        fetch: Gets a token, or raises `TokenError`.
        clock: Epoch seconds.

    >>> made = iter([Token("a", 100.0), Token("b", 200.0)])
    >>> now = [0.0]
    >>> source = TokenSource(lambda: next(made), lambda: now[0])
    >>> source.token(), source.token()
    ('a', 'a')
    >>> now[0] = 99.0
    >>> source.token()
    'b'
    """

    def __init__(self, fetch: Callable[[], Token], clock: Callable[[], float] = time.time) -> None:
        self._fetch, self._clock, self._lock = fetch, clock, threading.Lock()
        self._token: Token | None = None
        self._renew_at = self._again_at = self._pause = 0.0
        self._error: TokenError | None = None

    def token(self) -> str:
        """A valid token; blocks while one is fetched.

        Raises:
            TokenError: there is none. Within the pause after a failure the same error comes at once.
        """
        with self._lock:
            now = self._clock()
            if self._token is None or now >= self._renew_at:
                self._renew(now)
            if self._token is None or now >= self._token.expires:
                raise self._error or _expired(self._token, now)
            return self._token.text

    def _renew(self, now: float) -> None:
        """Replace the token; failing that the old one serves until it expires."""
        if now < self._again_at:
            return
        try:
            token = self._fetch()
            now = self._clock()
            if now >= token.expires:
                raise _expired(token, now)
        except TokenError as error:
            self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
            self._error, self._again_at = error, self._clock() + self._pause
            return
        self._token, self._error, self._pause = token, None, 0.0
        self._renew_at = token.expires - min(_MARGIN_SECONDS, 0.2 * (token.expires - now))


class AsyncTokens(AbstractTokenProvider):  # type: ignore[misc]
    """A source as aiokafka and Faust want it: fetched in a thread, a failure is a connection that failed.

    Nobody says whether the broker accepted a token: aiokafka asks for it with every connection, and connects anew 0.1 s
    after one was closed. So a client that connects with the same token again and again is made to wait, a second longer
    each time up to 5 s; a new token ends that.
    """

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._text = ""
        self._connections = self._connected_at = 0.0  # of late, with this token

    async def token(self) -> str:
        """A valid token.

        Raises:
            KafkaConnectionError: there is none; aiokafka tries again later, as with a broker that is away.
        """
        try:
            text = await asyncio.to_thread(self._source.token)
        except TokenError as error:
            await asyncio.sleep(_PACE_SECONDS)
            raise KafkaConnectionError(str(error)) from error
        await asyncio.sleep(self._wait_seconds(text))
        return text

    def _wait_seconds(self, text: str) -> float:
        if text != self._text:
            self._text, self._connections = text, 0.0
        now = time.monotonic()
        rested = (now - self._connected_at) / _FREE_AGAIN_SECONDS
        self._connections, self._connected_at = max(0.0, self._connections - rested) + 1, now
        return min(max(0.0, self._connections - _FREE_CONNECTIONS), _LONGEST_WAIT_SECONDS)


class BlockingTokens(BlockingTokenProvider):  # type: ignore[misc]
    """A source as kafka-python wants it."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        """A valid token."""
        return self._source.token()


@lru_cache(maxsize=4)
def token_source(settings: Settings) -> TokenSource:
    """The process's source for these settings.

    Raises:
        SettingsError: it is not said where tokens come from, or in two ways.
    """
    by_url = {
        "RECSTREAM_OAUTH_TOKEN_URL": settings.oauth_token_url,
        "RECSTREAM_OAUTH_CLIENT_ID": settings.oauth_client_id,
        "RECSTREAM_OAUTH_CLIENT_SECRET": settings.oauth_client_secret.get_secret_value(),
    }
    missing = [name for name, value in by_url.items() if not value]
    if settings.oauth_token_file is not None and len(missing) == len(by_url):
        return TokenSource(lambda: read_token(settings))
    if settings.oauth_token_file is not None or missing:
        both = settings.oauth_token_file is not None
        raise SettingsError(
            what="RECSTREAM_SASL_MECHANISM=OAUTHBEARER needs one place where tokens come from",
            why=f"{_FILE_VARIABLE} is set and so are others" if both else f"{', '.join(missing)}: empty",
            fix=f"set {', '.join(by_url)}, or {_FILE_VARIABLE} alone",
        )
    context = _context(settings) if settings.oauth_token_url.startswith("https:") else None
    return TokenSource(lambda: fetch_token(settings, context))


def read_token(settings: Settings) -> Token:
    """The token that is in the file now. It is read again when it is about to expire: the platform replaces it earlier.

    Raises:
        TokenError: the file cannot be read, or holds no token.
    """
    path = settings.oauth_token_file
    if path is None:
        raise TokenError(what=f"{_FILE_VARIABLE} is empty")
    try:
        text = read_secret(path, _FILE_VARIABLE).strip()
    except SettingsError as error:  # while it is being replaced, or the platform is not there yet
        raise TokenError(what=f"cannot use the access token in {path}", why=error.why, fix=error.fix) from error
    return _checked(text, None, f"the file {path}", time.time())


def fetch_token(settings: Settings, context: ssl.SSLContext | None) -> Token:
    """Ask the token URL for a token, with the client's id and secret as HTTP Basic credentials.

    Redirects are not followed: the secret goes where the setting says and nowhere else.

    Raises:
        TokenError: the server cannot be reached in time, refuses, or answers with something else.
    """
    url, asked_at = settings.oauth_token_url, time.time()
    form = {"grant_type": "client_credentials"} | ({"scope": settings.oauth_scope} if settings.oauth_scope else {})
    secret = settings.oauth_client_secret.get_secret_value()
    pair = ":".join(urllib.parse.quote(part, safe="") for part in (settings.oauth_client_id, secret))
    request = urllib.request.Request(
        url,
        data=urllib.parse.urlencode(form).encode(),
        headers={"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}", "Accept": "application/json"},
    )
    opener = urllib.request.build_opener(
        _NoRedirects, *([urllib.request.HTTPSHandler(context=context)] if context else [])
    )
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as reply:
            body = _object(reply.read(_MAX_REPLY_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            what = f"{url} gives no access token to {settings.oauth_client_id}"
            raise TokenError(what, _refusal(error), _FIX) from None
    except (OSError, http.client.HTTPException) as error:
        why = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise TokenError(what=f"cannot get an access token from {url}", why=why, fix=_FIX) from error
    text, life = body.get("access_token"), body.get("expires_in")
    if not isinstance(text, str):
        raise TokenError(what=f"{url} gives no access token", why="the answer has no access_token", fix=_FIX)
    return _checked(text, asked_at + life if isinstance(life, int | float) else None, url, asked_at)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Treat a redirect as the error it is here."""


def _context(settings: Settings) -> ssl.SSLContext:
    path = settings.oauth_ca_file
    try:
        return ssl.create_default_context(cafile=None if path is None else str(path))
    except OSError as error:
        raise SettingsError(
            what=f"cannot read the certificate authority {path}",
            why=str(error),
            fix="set RECSTREAM_OAUTH_CA_FILE to a PEM file, or leave it empty for the system's roots",
        ) from error


def _checked(text: str, expires: float | None, source: str, now: float) -> Token:
    # RFC 6750 gives a token's alphabet; anything else, a line break say, would change the message it is sent in.
    if not text.isascii() or not all(letter.isalnum() or letter in "-._~+/=" for letter in text):
        raise TokenError(what=f"{source} holds no access token", why="it has characters that no token has", fix=_FIX)
    stated = _expiry(text)
    ends = [moment for moment in (stated, expires) if moment is not None]
    return Token(text, min(ends) if ends else now + _UNSTATED_LIFE_SECONDS)


def _expiry(token: str) -> float | None:
    """The `exp` of a JWT; None for a token of another kind. Nothing is verified: that is the broker's task."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = _object(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    expires = claims.get("exp")
    return float(expires) if isinstance(expires, int | float) else None


def _expired(token: Token | None, now: float) -> TokenError:
    ago = now - token.expires if token is not None else 0.0
    return TokenError(
        f"the access token expired {ago:.0f} s ago",
        "whoever issues or refreshes it does not, or this machine's clock is wrong",
        _FIX,
    )


def _refusal(error: urllib.error.HTTPError) -> str:
    """Status and the error code of RFC 6749; the rest of the answer might repeat what it was sent."""
    try:
        code = _object(error.read(_MAX_REPLY_BYTES)).get("error")
    except (OSError, http.client.HTTPException):
        code = None
    named = isinstance(code, str) and len(code) <= 64 and code.replace("_", "").isalnum()
    return f"HTTP status {error.code}" + (f": {code}" if named else "")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
