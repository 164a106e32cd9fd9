"""Checksummed column files: arrays one after the other, described by a JSON footer (what a snapshot is made of).

Little endian:

    magic (8 bytes: name and format version)
    column bytes, one column after the other
    footer (JSON): what the caller stored, with offset, dtype, shape and crc32 of every column
    footer length u4, footer crc32 u4, magic

A file cut short or of another format is told by its last 8 bytes, damage by a checksum.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from state.errors import StateError

_TAIL: Final = struct.Struct("<II8s")
_PIECE: Final = 1 << 20  # bytes read at once: small enough to be in the L2 cache when its checksum is computed
_NAMES: Final = 8192  # names joined at once: under 1 ms
_TEXT: Final = np.dtype(np.uint8).str

Column = dict[str, Any]
"""Where a column is: offset, dtype, shape, crc."""

Names = dict[str, Any]
"""Where a list of names is: how many, the columns of their joined text and of their lengths."""


class Sink(Protocol):
    """What columns are written to: an empty binary file, or what stands for one."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of it."""


class ColumnWriter:
    """Appends columns to an empty file; `finish` writes the footer."""

    def __init__(self, file: Sink, magic: bytes) -> None:
        self._file, self._magic = file, magic
        self._offset = 0
        self._put(magic)

    def array(self, array: NDArray[Any]) -> Column:
        """Append an array of any shape."""
        return self.arrays([array], list(array.shape))

    def arrays(self, pieces: Sequence[NDArray[Any]], shape: list[int]) -> Column:
        """Append an array of a shape whose rows are those of the pieces, of which there is at least one."""
        start, crc = self._offset, 0
        for piece in pieces:
            data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            crc = crc32(data, crc)
            self._put(data)
        return {"offset": start, "dtype": pieces[0].dtype.str, "shape": shape, "crc": crc}

    def names(self, names: list[str]) -> Names:
        """Append names as one UTF-8 text and their lengths in characters, so that reading needs one decode.

        In pieces: joining a million names at once holds the interpreter, and with it all other threads, for 0.1 s.
        """
        lengths = np.empty(len(names), np.uint32)
        start, crc = self._offset, 0
        for at in range(0, len(names), _NAMES):
            piece = names[at : at + _NAMES]
            text = "".join(piece).encode("utf-8", "surrogatepass")
            crc = crc32(text, crc)
            self._put(text)
            lengths[at : at + len(piece)] = np.fromiter(map(len, piece), np.uint32, len(piece))
        column = {"offset": start, "dtype": _TEXT, "shape": [self._offset - start], "crc": crc}
        return {"n": len(names), "text": column, "lengths": self.array(lengths)}

    def finish(self, footer: dict[str, Any]) -> int:
        """Write the footer; returns the file's size in bytes."""
        encoded = json.dumps(footer).encode()
        self._put(encoded)
        self._put(_TAIL.pack(len(encoded), crc32(encoded), self._magic))
        return self._offset

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._offset += len(data)


class ColumnReader:
    """Reads the columns of a file opened for reading.

    Raises:
        StateError: The file is truncated, of another format or corrupt.
    """

    def __init__(self, file: BinaryIO, path: Path, magic: bytes) -> None:
        self._file, self._path = file, path
        self.footer = self._read_footer(magic)

    def into(self, column: Column, array: NDArray[Any]) -> None:
        """Read a column into a contiguous array of its shape and type."""
        self._same(column, array)
        data = array.reshape(-1).view(np.uint8).data
        self._file.seek(column["offset"])
        crc = 0
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._fill(piece)
            crc = crc32(piece, crc)
        self._check(crc, column)

    def translate(self, column: Column, numbers: NDArray[np.int32], array: NDArray[np.int32]) -> None:
        """Read a column of item numbers into `array` (N, n), each replaced by `numbers[it]`."""
        self._same(column, array)
        rows = max(1, _PIECE // (array.shape[1] * array.itemsize))
        buffer = np.empty((rows, array.shape[1]), array.dtype)
        self._file.seek(column["offset"])
        crc = 0
        for start in range(0, len(array), rows):
            target = array[start : start + rows]
            stored = buffer[: len(target)]
            data = stored.reshape(-1).view(np.uint8).data
            self._fill(data)
            crc = crc32(data, crc)
            numbers.take(stored, out=target, mode="clip")  # a number out of range is damage: the checksum tells
        self._check(crc, column)

    def array(self, column: Column) -> NDArray[Any]:
        """Read a column into a new array."""
        array = np.empty(column["shape"], np.dtype(column["dtype"]))
        self.into(column, array)
        return array

    def names(self, names: Names) -> list[str]:
        """Read a list of names."""
        text = self.array(names["text"]).tobytes().decode("utf-8", "surrogatepass")
        stops = np.cumsum(self.array(names["lengths"]), dtype=np.int64).tolist()
        return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def refuse(self, why: str) -> NoReturn:
        """Raise the error for a file that cannot be used."""
        what = f"{self._path} cannot be used"
        raise StateError(what, why, "delete the file; its content is restored from the changelog instead")

    def _fill(self, data: memoryview) -> None:
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            self.refuse("a column is cut short")

    def _check(self, crc: int, column: Column) -> None:
        if crc != column["crc"]:
            self.refuse(f"the checksum of the column at byte {column['offset']} differs")

    def _same(self, column: Column, array: NDArray[Any]) -> None:
        if column["shape"] != list(array.shape) or column["dtype"] != array.dtype.str:
            self.refuse(f"the column at byte {column['offset']} has another shape or type")

    def _read_footer(self, magic: bytes) -> dict[str, Any]:
        size = self._file.seek(0, os.SEEK_END)
        if size < len(magic) + _TAIL.size:
            self.refuse(f"it has only {size} bytes")
        self._file.seek(0)
        head = self._file.read(len(magic))
        self._file.seek(size - _TAIL.size)
        length, crc, tail = _TAIL.unpack(self._file.read(_TAIL.size))
        if head != magic or tail != magic:
            self.refuse("it is cut short, of another format version or another kind of file")
        start = size - _TAIL.size - length
        if start < len(magic):
            self.refuse("its footer is longer than the file")
        self._file.seek(start)
        encoded = self._file.read(length)
        if crc32(encoded) != crc:
            self.refuse("the checksum of its footer differs")
        footer: dict[str, Any] = json.loads(encoded)
        return footer
