"""Local snapshot of one partition: a checksummed columnar file that restores users at memory speed.

A restart loads the snapshot and then only the changelog records behind its offset. Loading reads each column straight
into the arena's arrays (checksum computed on the piece just read, still in the cache) and translates item numbers with
one gather; per user, Python only builds the name -> slot dict: 1.1 M users/s, where records take 0.4 M users/s.

Users in the cold store follow the resident ones as blocks of sealed records. Recommendations are not stored.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from state.arena import COPIED_FIELDS, Arena
from state.capture import Capture, ColdBlocks
from state.columns import ColumnReader, ColumnWriter
from state.errors import StateError
from state.items import ItemIndex

_MAGIC: Final = b"RECSNAP\x01"  # the last byte is the format version
_PIECE: Final = 1 << 20  # bytes
_UNFINISHED_SECONDS: Final = 60.0  # since the last byte


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot reflects.

    Attributes:
        partition: The partition whose users these are.
        changelog_offset: The next changelog offset to read after loading the snapshot.
        created_ms: When it was captured, epoch ms.
        source: Identity of the changelog (cluster and topic ids): a snapshot of another changelog must not be used.
    """

    partition: int
    changelog_offset: int
    created_ms: int
    source: str


def prepare(
    path: Path, captured: Capture, meta: SnapshotMeta, writer: str = "", wanted: Callable[[], bool] = lambda: True
) -> Path:
    """Write a complete capture into a file beside `path`, which `publish` puts in its place.

    Two processes may do so at a time, where a partition moves between workers of one host. What a kill left unfinished
    is deleted with the next file of the partition; should its writer still be there, it fails, and tries again.

    Args:
        path: Where the snapshot is to lie.
        captured: The users.
        meta: What they reflect.
        writer: Names this process among those that write here.
        wanted: Asked for every MiB; when it says no, the file is given up.

    Returns:
        The file, complete and on disk.

    Raises:
        StateError: It cannot be written, or is not wanted any more; as after any error, nothing is left of it.
    """
    temporary = temporary_beside(path, writer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_unfinished(path)
        with temporary.open("wb") as file:
            _write_columns(ColumnWriter(_Stoppable(file, wanted), _MAGIC), captured, meta)
            file.flush()
            os.fsync(file.fileno())
    except Exception as exc:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError | _UnwantedError):
            raise _unwritable(path, exc) from exc
        raise
    return temporary


def temporary_beside(path: Path, writer: str) -> Path:
    """Where one of several processes prepares what is to lie at `path`."""
    return path.with_name(f".{path.name}.{writer}.tmp")


def delete_unfinished(path: Path) -> None:
    """Delete what killed processes left beside `path` of files they were preparing.

    Raises:
        OSError: That is not possible.
    """
    for other in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _UNFINISHED_SECONDS:
                other.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Replace what was at `path` by a prepared file.

    Raises:
        StateError: That is not possible; what was there before is untouched.
    """
    try:
        temporary.replace(path)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, exc) from exc


def settle(path: Path) -> None:
    """Bring to disk which files `path` lies among: afterwards what was replaced or deleted there is gone for good.

    Raises:
        StateError: That is not possible.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileNotFoundError:  # no folder, no file
        return
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def save(path: Path, arena: Arena, index: ItemIndex, meta: SnapshotMeta, cold: ColdBlocks = ()) -> int:
    """Capture, write and publish at once; returns the file's size in bytes.

    Raises:
        StateError: The file cannot be written; what was there before is untouched.
    """
    captured = Capture(arena, index, cold)
    captured.copy()
    publish(prepare(path, captured, meta), path)
    settle(path)
    return path.stat().st_size


def read(path: Path) -> "Snapshot | None":
    """Open a snapshot and check its footer; None when there is no file.

    Raises:
        StateError: The file is no snapshot of this format, truncated or corrupt: use the changelog alone.
    """
    try:
        with path.open("rb") as file:
            return Snapshot(path, ColumnReader(file, path, _MAGIC).footer)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _unreadable(path, exc) from exc


class Snapshot:
    """A snapshot file whose footer was read and checked; the columns are checked while they are loaded.

    Attributes:
        meta: What the snapshot reflects.
        state_size: Width S of its hidden vectors.
        resident: Users that were in the arena.
        cold: Users that were in the cold store.

    >>> from tempfile import TemporaryDirectory
    >>> arena, index, restored = Arena(state_size=4, top_k=2), ItemIndex(), Arena(state_size=4, top_k=2)
    >>> slots = arena.slots(["ann", "bob"])
    >>> with TemporaryDirectory() as folder:
    ...     size = save(Path(folder, "users"), arena, index, SnapshotMeta(0, 17, 1_700_000_000_000, "cluster/topic"))
    ...     snapshot = read(Path(folder, "users"))
    ...     users = snapshot.load(restored, ItemIndex())
    >>> users, restored.users, snapshot.meta.changelog_offset
    (2, ['ann', 'bob'], 17)
    """

    def __init__(self, path: Path, footer: dict[str, Any]) -> None:
        self.path, self._footer = path, footer
        self.meta = SnapshotMeta(**footer["meta"])
        self.state_size: int = footer["state_size"]
        self.resident: int = footer["users"]["n"]
        self.cold: int = sum(block["users"]["n"] for block in footer["cold"])

    def load(self, arena: Arena, index: ItemIndex) -> int:
        """Load the resident users into an empty arena; returns how many.

        Hidden vectors of another width than the arena's are dropped (model 0): they are rebuilt from the recent items.

        Raises:
            StateError: The arena holds users; or the file is corrupt, and the arena is left empty.
        """
        if len(arena):
            what = f"cannot load {self.path} into an arena of {len(arena)} users"
            raise StateError(what, "a snapshot replaces everything", "load it before anything else")
        try:
            with self.path.open("rb") as file:
                self._load(self._reader(file), arena, index)
        except OSError as exc:
            arena.clear()
            raise _unreadable(self.path, exc) from exc
        except StateError:
            arena.clear()
            raise
        return len(arena)

    def cold_blocks(self) -> Iterator[tuple[list[str], list[bytes]]]:
        """Users of the cold store and their sealed records, block by block.

        Raises:
            StateError: The file is corrupt.
        """
        try:
            with self.path.open("rb") as file:
                reader = self._reader(file)
                for block in self._footer["cold"]:
                    records = reader.array(block["records"])
                    stops = np.cumsum(reader.array(block["lengths"]), dtype=np.int64).tolist()
                    data = records.tobytes()
                    cut = [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
                    yield reader.names(block["users"]), cut
        except OSError as exc:
            raise _unreadable(self.path, exc) from exc

    def _reader(self, file: BinaryIO) -> ColumnReader:
        reader = ColumnReader(file, self.path, _MAGIC)
        if reader.footer != self._footer:
            reader.refuse("it was replaced while it was being read")
        return reader

    def _load(self, reader: ColumnReader, arena: Arena, index: ItemIndex) -> None:
        columns, items = self._footer["columns"], self._footer["items"]
        known = reader.array(items["known"]).tolist()
        ids = [item_id if has_id else None for item_id, has_id in zip(reader.names(items["ids"]), known, strict=True)]
        numbers = index.learn(ids, reader.array(items["hashes"]))  # (I,) the file's numbers -> ours
        n = len(arena.add(reader.names(self._footer["users"])))
        for name in COPIED_FIELDS:
            if name != "hidden" or self.state_size == arena.state_size:
                reader.into(columns[name], getattr(arena, name)[:n])
        if self.state_size != arena.state_size:
            arena.model[:n] = 0
        reader.translate(columns["items"], numbers, arena.items[:n])


def _write_columns(writer: ColumnWriter, captured: Capture, meta: SnapshotMeta) -> int:
    ids, n = captured.index.ids, captured.items
    footer = {
        "meta": asdict(meta),
        "state_size": captured.state_size,
        "items": {
            "ids": writer.names([ids[number] or "" for number in range(n)]),
            "known": writer.array(np.fromiter((ids[number] is not None for number in range(n)), np.bool_, n)),
            "hashes": writer.array(captured.index.hashes[:n]),
        },
        "users": writer.names(captured.users),
        "columns": {
            name: writer.arrays([piece[name] for piece in captured.pieces], [len(captured.users), *array.shape[1:]])
            for name, array in captured.pieces[0].items()
        },
        "cold": [
            {
                "users": writer.names(users),
                "records": writer.array(np.frombuffer(b"".join(records), np.uint8)),
                "lengths": writer.array(np.fromiter(map(len, records), np.uint32, len(records))),
            }
            for users, records in captured.cold
        ],
    }
    return writer.finish(footer)


class _UnwantedError(Exception):
    """Nobody wants the file any more."""


class _Stoppable:
    """A file that stops being written when nobody wants it any more."""

    def __init__(self, file: BinaryIO, wanted: Callable[[], bool]) -> None:
        self._file, self._wanted = file, wanted

    def write(self, data: bytes | memoryview) -> None:
        """Write it, piece by piece."""
        for start in range(0, len(data), _PIECE):
            if not self._wanted():
                message = "it is not wanted any more"
                raise _UnwantedError(message)
            self._file.write(data[start : start + _PIECE])


def _unwritable(path: Path, exc: Exception) -> StateError:
    what = f"cannot write the snapshot {path}"
    return StateError(what, str(exc), "check the free space and the permissions of RECSTREAM_STATE_DIR")


def _unreadable(path: Path, exc: OSError) -> StateError:
    return StateError(f"cannot read the snapshot {path}", str(exc), "check the disk and the file's permissions")
