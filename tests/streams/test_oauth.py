import shutil
import threading
import time

import pytest
from aiokafka.errors import KafkaConnectionError

from streams.errors import SettingsError
from streams.kafka import client_options, faust_options
from streams.oauth import AsyncTokens, Token, TokenError, TokenSource, token_source
from streams.settings import load_settings
from tests.streams.secure_kafka import Certificates
from tests.streams.tokens import CLIENT, CLIENT_SECRET, Issuer, endpoint


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to sign tokens")
    return Issuer(tmp_path_factory.mktemp("oauth") / "issuer")


@pytest.fixture
def server(issuer):
    with endpoint(issuer) as running:
        yield running


def settings(url, **given):
    return load_settings(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", oauth_token_url=url,
        **{"oauth_client_id": CLIENT, "oauth_client_secret": CLIENT_SECRET, **given},
    )  # fmt: skip


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


class Issue:
    """Tokens that live so long, or errors."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.asked, self.failing = clock, seconds, 0, False

    def __call__(self):
        self.asked += 1
        if self.failing:
            raise TokenError("no", "down")
        return Token(f"t{self.asked}", self.clock() + self.seconds)


@pytest.mark.parametrize(("life", "renewed_after"), [(3600, 3570), (10, 8)])
def test_a_token_is_replaced_shortly_before_it_expires(life, renewed_after):
    clock = Clock()
    issue = Issue(clock, life)
    source = TokenSource(issue, clock)
    assert source.token() == "t1"
    clock.now += renewed_after - 1
    assert source.token() == "t1"
    clock.now += 2
    assert source.token() == "t2"


def test_a_failure_is_remembered_for_a_while_that_doubles():
    clock = Clock()
    issue = Issue(clock, 100)
    issue.failing = True
    source = TokenSource(issue, clock)
    asked = []
    for _ in range(600):  # a client that connects ten times a second
        with pytest.raises(TokenError, match="down"):
            source.token()
        clock.now += 0.1
        asked.append(issue.asked)
    assert asked[8] == 1
    assert asked[-1] == 6  # at 0, 1, 3, 7, 15 and 31 s
    issue.failing = False
    clock.now += 60
    assert source.token() == "t7"


def test_the_old_token_serves_while_no_new_one_can_be_had():
    clock = Clock()
    issue = Issue(clock, 100)
    source = TokenSource(issue, clock)
    source.token()
    issue.failing = True
    clock.now += 90
    assert source.token() == "t1"
    clock.now += 11
    with pytest.raises(TokenError, match="down"):
        source.token()


def test_connections_that_ask_at_once_share_one_request():
    clock = Clock()

    def slowly():
        time.sleep(0.05)
        return issue()

    issue = Issue(clock, 100)
    source = TokenSource(slowly, clock)
    threads = [threading.Thread(target=source.token) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert issue.asked == 1


def test_client_credentials_are_exchanged_for_a_token(server):
    source = token_source(settings(server.url, oauth_scope="kafka read"))
    assert source.token() == source.token() == server.granted[0]
    assert server.asked == 1
    assert "scope=kafka+read" in server.scopes[0]


async def test_both_clients_are_given_the_tokens(server):
    options = client_options(settings(server.url))
    assert options["sasl_mechanism"] == "OAUTHBEARER"
    assert await options["sasl_oauth_token_provider"].token() == server.granted[0]
    credentials = faust_options(settings(server.url))["broker_credentials"]
    assert await credentials.oauth_cb.token() == server.granted[0]
    assert server.asked == 1  # one source for the process
    assert server.granted[0] not in repr(credentials)


@pytest.mark.parametrize("path", ["/token", "/redirect"])
def test_a_refusal_names_the_code_and_no_secret(server, path):
    wrong = settings(server.url.replace("/token", path), oauth_client_secret="wrong-word")
    with pytest.raises(TokenError) as caught:
        token_source(wrong).token()
    assert caught.value.why == ("HTTP status 401: invalid_client" if path == "/token" else "HTTP status 307")
    assert "wrong-word" not in str(caught.value)
    assert server.asked == 1  # no redirect is followed: it could lead anywhere


async def test_a_server_that_is_away_is_a_failed_connection_to_aiokafka(server):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(KafkaConnectionError, match=r"cannot get an access token from http://localhost.*refused"):
        await AsyncTokens(token_source(settings(url))).token()


async def test_a_client_that_connects_again_and_again_with_one_token_is_made_to_wait():
    """As when the broker refuses the token."""
    made = [Token("new", 1e12), Token("refused", 1.0)]
    now = [0.0]
    tokens = AsyncTokens(TokenSource(made.pop, lambda: now[0]))

    async def seconds(connections: int) -> float:
        started = time.monotonic()
        for _ in range(connections):
            await tokens.token()
        return time.monotonic() - started

    assert await seconds(100) < 0.8
    assert 0.8 < await seconds(1) < 2
    now[0] = 1.0
    assert await seconds(1) < 0.5
    assert await tokens.token() == "new"


def test_an_expired_token_is_not_handed_out(server):
    server.seconds = -5
    with pytest.raises(TokenError, match=r"access token expired \d+ s ago"):
        token_source(settings(server.url)).token()


def test_the_token_url_must_have_a_certificate_we_trust(issuer, tmp_path):
    certificates = Certificates(tmp_path / "tls")
    with endpoint(issuer, certificates.directory / "broker.pem") as server:
        with pytest.raises(TokenError, match="CERTIFICATE_VERIFY_FAILED"):
            token_source(settings(server.url)).token()
        trusting = settings(server.url, oauth_ca_file=certificates.path("ca.pem"))
        assert token_source(trusting).token() == server.granted[0]
        elsewhere = settings(server.url.replace("localhost", "127.0.0.1"), oauth_ca_file=certificates.path("ca.pem"))
        with pytest.raises(TokenError, match="IP address mismatch"):
            token_source(elsewhere).token()
    with pytest.raises(SettingsError, match="RECSTREAM_OAUTH_CA_FILE"):
        token_source(settings("https://issuer.test/t", oauth_ca_file=tmp_path / "missing.pem"))


def test_a_token_file_is_read_again_before_its_token_expires(issuer, tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(issuer.token(100) + "\n")
    source = token_source(settings("", oauth_client_id="", oauth_client_secret="", oauth_token_file=path))
    first = source.token()
    assert first == path.read_text().strip()
    path.write_text(issuer.token(200))
    assert source.token() == first
    late = time.time() + 90
    monkeypatch.setattr(source, "_clock", lambda: late)
    assert source.token() == path.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "No such file"), ("", "empty"), ("a b", "characters"), ("x\x01auth=y", "characters")],
    ids=["missing", "empty", "space", "control character"],
)
def test_a_token_file_that_holds_no_token_says_so(tmp_path, text, why):
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    source = token_source(settings("", oauth_client_id="", oauth_client_secret="", oauth_token_file=path))
    with pytest.raises(TokenError, match=why):
        source.token()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"oauth_client_secret": ""}, "RECSTREAM_OAUTH_CLIENT_SECRET: empty"),
        ({"oauth_token_file": "/run/token"}, "so are others"),
        ({"oauth_token_url": "", "oauth_client_id": "", "oauth_client_secret": ""}, "RECSTREAM_OAUTH_TOKEN_URL, "),
    ],
    ids=["half", "both", "none"],
)
def test_it_must_be_said_once_where_tokens_come_from(given, why):
    with pytest.raises(SettingsError, match=why):
        token_source(
            settings(
                **{"url": "https://issuer.test/t", **{k.replace("oauth_token_url", "url"): v for k, v in given.items()}}
            )
        )


@pytest.mark.parametrize("url", ["http://issuer.test/t", "issuer.test", "ftp://issuer.test", "https://u:p@issuer.test"])
def test_a_token_url_is_https_or_on_this_machine(url):
    with pytest.raises(SettingsError, match="RECSTREAM_OAUTH_TOKEN_URL") as caught:
        settings(url)
    assert "u:p" not in str(caught.value)


def test_a_token_does_not_print_itself():
    assert "secret-token" not in repr(Token("secret-token", 5.0))
