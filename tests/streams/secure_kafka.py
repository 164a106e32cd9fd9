"""An Apache Kafka node that asks for TLS and a password, or for a client certificate, and certificates for them.

CLIENT     TLS and SCRAM-SHA-512: user `worker`, password `right-word`; certificate of `localhost` by our authority
EXPIRED    the same with a certificate that ended yesterday
MUTUAL     TLS and a client certificate by our authority
OAUTH      TLS and an access token (OAUTHBEARER) that our issuer signed
"""

import os
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.streams.tokens import AUDIENCE, ISSUER, Issuer

USER, PASSWORD = "worker", "right-word"
_CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listeners=INTERNAL://127.0.0.1:{internal},CLIENT://127.0.0.1:{client},EXPIRED://127.0.0.1:{expired},\
MUTUAL://127.0.0.1:{mutual},OAUTH://127.0.0.1:{oauth},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=INTERNAL://127.0.0.1:{internal},CLIENT://localhost:{client},EXPIRED://localhost:{expired},\
MUTUAL://localhost:{mutual},OAUTH://localhost:{oauth}
listener.security.protocol.map=\
CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,CLIENT:SASL_SSL,EXPIRED:SASL_SSL,MUTUAL:SSL,OAUTH:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.expired.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
sasl.oauthbearer.jwt.validator.class=org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator
sasl.oauthbearer.jwks.endpoint.url=file://{issuer}/jwks.json
sasl.oauthbearer.expected.issuer={issuer_name}
sasl.oauthbearer.expected.audience={audience}
ssl.keystore.type=PEM
ssl.truststore.type=PEM
ssl.keystore.location={tls}/broker.pem
ssl.truststore.location={tls}/ca.pem
listener.name.expired.ssl.keystore.type=PEM
listener.name.expired.ssl.keystore.location={tls}/expired.pem
listener.name.mutual.ssl.client.auth=required
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=1
num.io.threads=2
"""
_LOGGING = "Configuration: {status: warn, Loggers: {Root: {level: error}}}\n"


class Certificates:
    """An authority and what it signed, as PEM files in a directory: `ca.pem`, `NAME.pem` (key and certificate)."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl to make certificates")
        self.directory = directory
        directory.mkdir()
        self.authority("ca")
        self.authority("stranger")
        self.sign("broker", days=2)
        self.sign("expired", days=-1)
        self.sign("client", days=2)

    def authority(self, name: str) -> None:
        """A self-signed authority: `NAME.pem` and `NAME.key`."""
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip

    def sign(self, name: str, days: int) -> None:
        """A certificate of `localhost` (and of no address), by our authority."""
        self._openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        (self.directory / "names").write_text("subjectAltName=DNS:localhost\n")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", "names", "-out", f"{name}.crt",
        )  # fmt: skip
        parts = [(self.directory / f"{name}.{kind}").read_text() for kind in ("key", "crt")]
        (self.directory / f"{name}.pem").write_text("".join(parts))

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


class SecureKafka:
    """The node; its addresses are `host:port` by listener."""

    def __init__(self, directory: Path) -> None:
        home = os.environ.get("KAFKA_HOME", "")
        if not home or not any(Path(home, "libs").glob("kafka*.jar")):
            pytest.skip("KAFKA_HOME does not name a Kafka release (a directory with libs/*.jar)")
        if shutil.which("java") is None:
            pytest.skip("a real Kafka needs java 17 or newer on the path")
        self.certificates = Certificates(directory / "tls")
        self.ports = {name: free_port() for name in ("controller", "internal", "client", "expired", "mutual", "oauth")}
        settings, logging = directory / "server.properties", directory / "log4j2.yaml"
        self.issuer = Issuer(directory / "issuer")
        settings.write_text(
            _SETTINGS.format(
                **self.ports,
                tls=directory / "tls",
                data=directory / "data",
                issuer=self.issuer.directory,
                issuer_name=ISSUER,
                audience=AUDIENCE,
            )
        )
        logging.write_text(_LOGGING)
        self.output = directory / "output.log"
        java = [
            "java", "-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={logging}",
            f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{self.issuer.directory}/jwks.json",
            "-cp", f"{home}/libs/*",
        ]  # fmt: skip
        scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID, "--config", str(settings)]
        subprocess.run([*java, *tool, "--add-scram", scram], check=True, stdout=subprocess.DEVNULL)
        with self.output.open("wb") as log:
            self.process = subprocess.Popen([*java, "kafka.Kafka", str(settings)], stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Forward(socketserver.BaseRequestHandler):
    """One connection, passed on byte for byte."""

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Counting)
        server.connections += 1
        if server.connections in server.dropped:
            return
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.target)) as there:
            back = threading.Thread(target=_pump, args=(there, self.request), daemon=True)
            back.start()
            _pump(self.request, there)
            back.join(5)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65_536):
            sink.sendall(part)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class _Counting(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: int, dropped: Collection[int]) -> None:
        self.target, self.dropped, self.connections = target, dropped, 0
        super().__init__(("127.0.0.1", 0), _Forward)


@contextmanager
def counted(port: int, dropped: Collection[int] = ()) -> Iterator[_Counting]:
    """A door before a broker's port that counts who comes in: `server_address[1]`, `connections`.

    Connections whose number is in `dropped`, from 1, end before the broker has said anything.
    """
    with _Counting(port, dropped) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
