"""Commands run against the secured Kafka of `secure_kafka`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.streams.event_log import PARTITIONS
from tests.streams.secure_kafka import PASSWORD, USER, SecureKafka
from tests.streams.tokens import CLIENT, CLIENT_SECRET, TokenEndpoint


def environment(kafka: SecureKafka, directory: Path, port: int, **settings: str) -> dict[str, str]:
    """Of a process that may sign in on CLIENT, with the given settings instead."""
    return bare_environment(
        directory,
        **{
            "brokers": f"localhost:{port}",
            "security_protocol": "SASL_SSL",
            "sasl_username": USER,
            "sasl_password": PASSWORD,
            "ssl_ca_file": kafka.certificates.path("ca.pem"),
            "log_level": "debug",
            **settings,
        },
    )


def oauth(tokens: TokenEndpoint, **settings: str) -> dict[str, str]:
    """Settings that sign in on OAUTH with tokens from the endpoint."""
    return {
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_username": "",
        "sasl_password": "",
        "oauth_token_url": tokens.url,
        "oauth_client_id": CLIENT,
        "oauth_client_secret": CLIENT_SECRET,
        **settings,
    }


def bare_environment(directory: Path, **settings: str) -> dict[str, str]:
    """Of a process with these settings, its files in a directory, and nothing of ours besides."""
    values = {
        "partitions": str(PARTITIONS),
        "registry": str(directory / "registry"),
        "state_dir": str(directory / "state"),
        "session_timeout_seconds": "6",
        "rebalance_timeout_seconds": "6",
        **settings,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECSTREAM_")}
    return {
        **inherited,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **{f"RECSTREAM_{name.upper()}": value for name, value in values.items()},
    }


def run(env: dict[str, str], *command: str) -> "tuple[subprocess.CompletedProcess[str], float]":
    """A command to its end, and the seconds it took."""
    started = time.monotonic()
    arguments = [sys.executable, "-W", "ignore", "-m", "streams.cli", *command]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False, timeout=150)
    return done, time.monotonic() - started
