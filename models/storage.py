"""Where a model registry lies: a directory or an object store, its errors told as `StorageRefused`."""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.version import StorageRefused, VersionRefused
from state.errors import RecstreamError

_LOCK: Final = ".lock"
_LOCK_SECONDS: Final = 10.0  # it is held for one small file's flush to the disk, unless its holder is suspended
_POLL_SECONDS: Final = 0.005
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # EBADF: NFS, read only


class Storage:
    """Files below one path or fsspec URL.

    Args:
        url: The path or URL.

    Attributes:
        fs: The file system.
        root: The path there.
        local: Whether that is a disk: it renames, creates exclusively and can lose what was not flushed.
        url: As it was given.

    Raises:
        VersionRefused: The URL's protocol is unknown, its package is not installed, or it lacks credentials.
    """

    def __init__(self, url: str | Path) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(str(url))
        except Exception as exc:  # no such protocol, its package is missing, or its client finds no credentials
            what, fix = f"No model registry can be opened at {str(url)!r}", "Use a path or an installed fsspec protocol"
            raise VersionRefused(what, str(exc), fix) from exc
        self.local = isinstance(self.fs, LocalFileSystem)
        self.url = str(url)

    @contextmanager
    def guard(self, trouble: str) -> Iterator[None]:
        """Whatever is raised inside becomes a refusal that says what the trouble is.

        Raises:
            StorageRefused: Something was raised.
        """
        try:
            yield
        except RecstreamError:
            raise
        except Exception as exc:  # object stores' clients have errors of their own, which are no OSError
            what = f"The model registry {self.url} {trouble}"
            fix = "Check that the path exists and can be reached, its permissions and the space left"
            raise StorageRefused(what, str(exc) or type(exc).__name__, fix) from exc

    @contextmanager
    def alone(self) -> Iterator[None]:
        """On a disk one process and thread at a time is inside; the others wait.

        No promise in an object store, nor on a file system that cannot lock. Not to be entered twice.

        Raises:
            StorageRefused: Somebody has been inside for ten seconds, or there is no such folder.
        """
        if not self.local:
            yield
            return
        with self.guard("cannot be changed now"):
            lock = os.open(Path(self.root, _LOCK), os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            with self.guard("cannot be changed now"):
                _lock(lock)
            yield
        finally:
            os.close(lock)  # and with it the lock, as when the process dies

    def read(self, file: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        return bytes(self.fs.cat_file(f"{self.root}/{file}"))

    def holds(self, file: str) -> bool:
        """Whether there is such a file; a storage that cannot tell raises, where fsspec's `exists` would say no."""
        path = f"{self.root}/{file}"
        self.fs.invalidate_cache(path.rsplit("/", 1)[0])
        try:
            self.fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def replace(self, file: str, data: bytes) -> None:
        """Write a file so that readers find the old content or the new."""
        path = f"{self.root}/{file}"
        if self.local:
            temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
            write_durably(Path(temporary), data)
            os.replace(temporary, path)
        else:
            self.fs.pipe_file(path, data)

    def try_out(self) -> None:
        """On a disk: make the folder and a file in it that leaves nothing behind; an object store is not tried.

        Raises:
            OSError: nothing can be written there.
        """
        if self.local:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()

    def entries(self, folder: str = "") -> list[str]:
        """Names of what is in a folder, none where there is no such folder."""
        path = f"{self.root}/{folder}".rstrip("/")
        self.fs.invalidate_cache(path)  # object stores cache listings; another process may have published
        try:
            return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []


def write_durably(path: Path, data: bytes) -> None:
    """Write a local file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a crash after a rename must not leave an empty file behind the new name


def _lock(file: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not `lockf`, which knows no threads
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                what = f"another process has been changing it for {_LOCK_SECONDS:.0f} seconds"
                raise TimeoutError(what) from exc
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            return None
        time.sleep(_POLL_SECONDS)
