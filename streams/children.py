"""Child processes that never outlive this one, even when it is killed with no chance to clean up."""

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

# A shell that holds one end of a pipe: when our end closes, because we stopped or were killed, it ends the child.
_LIFELINE = 'read _; kill -TERM "$1" 2>/dev/null; sleep "$2"; kill -KILL "$1" 2>/dev/null'


class Child:
    """One child process in a session of its own (a terminal's Ctrl-C reaches only the parent), tied to our life.

    Args:
        argv: Program and arguments.
        env: Its whole environment; None inherits ours.
        output: Where its standard output and error go; None inherits ours.
        grace_seconds: How long it may take to end after SIGTERM before it is killed.

    Raises:
        OSError: when the program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        grace_seconds: float = 30.0,
    ) -> None:
        self.grace_seconds = grace_seconds
        self._process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )
        self._lifeline = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE, "lifeline", str(self._process.pid), str(max(1, round(grace_seconds)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status (negative: the signal that ended it), or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._cut()
        return code

    def terminate(self) -> None:
        """Ask it to end (SIGTERM) and return at once."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it now (SIGKILL)."""
        if self._process.poll() is None:
            self._process.kill()

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its end: the exit status, or None when the time ran out first."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def stop(self) -> int:
        """SIGTERM, then SIGKILL after the grace period. Returns the exit status."""
        self.terminate()
        if self.wait(self.grace_seconds) is None:
            self.kill()
        code = self._process.wait()
        self._cut()
        return code

    def _cut(self) -> None:
        # The watcher must be gone before its pipe closes: it would signal a process id that may be someone else's now.
        if self._lifeline.poll() is None:
            self._lifeline.kill()
            self._lifeline.wait()
        if self._lifeline.stdin is not None:
            with contextlib.suppress(OSError):
                self._lifeline.stdin.close()
