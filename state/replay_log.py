"""The replay buffer's file: checksummed frames appended one after the other, cut back to the last whole one at open.

    header   magic (8 bytes: name and format version)
    frame    payload length u4, crc32 of the payload u4, payload
    payload  head length u4, head (JSON: what the caller stored, dtype and length of every column), column bytes

Little endian. A frame is there as a whole or not at all: whatever a crash left behind the last whole frame is cut off.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from state.errors import StateError

_MAGIC: Final = b"RSRPLY\x00\x01"
_FRAME: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")
_UNFINISHED: Final = ".new"

Columns = Mapping[str, NDArray[Any]]
Frame = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def encode_frame(head: Mapping[str, Any], columns: Columns) -> bytes:
    """One frame: plain JSON values and one-dimensional arrays."""
    described = {name: [array.dtype.str, len(array)] for name, array in columns.items()}
    encoded = json.dumps({"head": dict(head), "columns": described}, separators=(",", ":")).encode()
    parts = [
        _LENGTH.pack(len(encoded)),
        encoded,
        *(np.ascontiguousarray(array).tobytes() for array in columns.values()),
    ]
    payload = b"".join(parts)
    return _FRAME.pack(len(payload), crc32(payload)) + payload


def decode_payload(payload: bytes) -> Frame:
    """The head and the columns (copies) of a frame whose checksum was right."""
    (length,) = _LENGTH.unpack_from(payload)
    at = _LENGTH.size + length
    described = json.loads(payload[_LENGTH.size : at])
    columns: dict[str, NDArray[Any]] = {}
    for name, (dtype, count) in described["columns"].items():
        columns[name] = np.frombuffer(payload, dtype, count, at).copy()
        at += columns[name].nbytes
    return described["head"], columns


class FrameLog:
    """An append-only file of frames.

    Attributes:
        truncated_bytes: What was cut off behind the last whole frame when the file was opened.

    Raises:
        StateError: The file cannot be opened, or is of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.truncated_bytes = 0
        try:
            if path.suffix != _UNFINISHED:  # what a kill left of `replace` may hold what was to be removed
                path.with_suffix(_UNFINISHED).unlink(missing_ok=True)
            self._file = self._open()
        except OSError as exc:
            raise _trouble(path, exc) from exc

    def frames(self) -> Iterator[Frame]:
        """Every whole frame from the first; then cuts off what is behind the last one, so that appending is safe."""
        try:
            size = self._file.seek(0, os.SEEK_END)
            at = self._file.seek(len(_MAGIC))
            while (payload := self._payload(size - at)) is not None:
                at += _FRAME.size + len(payload)
                yield decode_payload(payload)
            if at < size:
                self.truncated_bytes = size - at
                self._file.truncate(at)
                os.fsync(self._file.fileno())
            self._file.seek(at)
        except OSError as exc:
            raise _trouble(self.path, exc) from exc

    def append(self, frame: bytes) -> None:
        """Add a frame; when this returns, it survives a crash of the machine.

        Raises:
            StateError: The disk refuses.
        """
        try:
            self._file.write(frame)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise _trouble(self.path, exc) from exc

    def replace(self, frame: bytes) -> None:
        """Put one frame in place of everything, atomically: a crash leaves the old file or the new one.

        Raises:
            StateError: The disk refuses.
        """
        temporary = self.path.with_suffix(_UNFINISHED)
        try:
            with temporary.open("wb") as file:
                file.write(_MAGIC + frame)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            os.replace(temporary, self.path)
            sync_directory(self.path.parent)
            self._file = self._open()
            self._file.seek(0, os.SEEK_END)
        except OSError as exc:
            raise _trouble(self.path, exc) from exc

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what a full disk refused again was not promised to anybody
            self._file.close()

    def _open(self) -> BinaryIO:
        new = not self.path.exists() or self.path.stat().st_size < len(_MAGIC)  # a crash may cut the magic itself
        file = self.path.open("w+b" if new else "r+b")
        if new:
            file.write(_MAGIC)
            file.flush()
            os.fsync(file.fileno())
            sync_directory(self.path.parent)
        elif file.read(len(_MAGIC)) != _MAGIC:
            file.close()
            what = f"{self.path} is no replay buffer of this release"
            raise StateError(
                what, "it begins with other bytes", "move the file away; the buffer fills again from Kafka"
            )
        return file

    def _payload(self, left: int) -> bytes | None:
        """The next payload, None where the file ends or no whole frame follows."""
        if left < _FRAME.size:
            return None
        length, crc = _FRAME.unpack(self._file.read(_FRAME.size))
        if length < _LENGTH.size or length > left - _FRAME.size:
            return None
        payload = self._file.read(length)
        return payload if crc32(payload) == crc else None


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory survive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trouble(path: Path, exc: OSError) -> StateError:
    return StateError(f"the replay buffer {path} cannot be used", str(exc), "check the disk and the file's permissions")
