"""OAUTHBEARER on a real Kafka that checks signed tokens: who has none ends at once and says why.

That commands get in and outlive their tokens is in `test_leaks_broker`.
"""

from collections.abc import Iterator

import pytest

from tests.streams.secure_commands import environment, oauth, run
from tests.streams.secure_kafka import SecureKafka, counted
from tests.streams.tokens import CLIENT, TokenEndpoint, endpoint

pytestmark = [pytest.mark.broker, pytest.mark.slow]
FEW = 12  # connections and requests that a start may make before it gives up


@pytest.fixture
def tokens(secure_kafka: SecureKafka) -> Iterator[TokenEndpoint]:
    with endpoint(secure_kafka.issuer) as server:
        yield server


@pytest.mark.parametrize("command", [["worker"], ["trainer"]], ids=["worker", "trainer"])
def test_a_wrong_client_secret_is_one_clear_error(secure_kafka, tokens, tmp_path, command):
    with counted(secure_kafka.ports["oauth"]) as door:
        given = oauth(tokens, oauth_client_secret="wrong-word")
        done, seconds = run(environment(secure_kafka, tmp_path, door.server_address[1], **given), *command)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert (
        f"gives no access token to {CLIENT} why: HTTP status 401: invalid_client fix: check the RECSTREAM_OAUTH_"
        in text
    )
    assert "Traceback" not in text
    assert "wrong-word" not in text
    assert seconds < 45
    assert (tokens.asked, door.connections) == (1, 1)  # the connection is the greeting before anybody signs in


def test_a_token_that_another_issuer_signed_is_refused_by_the_broker(secure_kafka, tokens, tmp_path):
    path = tmp_path / "token"
    path.write_text(secure_kafka.issuer.token(key="stranger"))
    given = {"sasl_mechanism": "OAUTHBEARER", "oauth_token_file": str(path)}
    with counted(secure_kafka.ports["oauth"]) as door:
        done, seconds = run(environment(secure_kafka, tmp_path, door.server_address[1], **given), "worker")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert "does not let us in" in text
    assert "RECSTREAM_OAUTH_" in text
    assert path.read_text() not in text
    assert "Traceback" not in text
    assert seconds < 45
    assert 1 <= door.connections <= FEW
