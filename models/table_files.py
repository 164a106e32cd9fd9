"""Files of tables: CSV, TSV, JSON lines, Parquet and RecBole atomic files, plain or compressed, as columns of text."""

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import cramjam
import orjson
import polars as pl

from state.errors import RecstreamError

_SUFFIXES: Final = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".inter": "tsv", ".item": "tsv", ".user": "tsv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")
_PARQUET: Final = b"PAR1"
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_VALUE: Final = re.compile(r"-?\d+(\.\d+)?|\d{4}-\d\d-\d\d([T ].*)?")  # no name of a column
_ATOMIC: Final = re.compile(r":(token|token_seq|float|float_seq)$")  # RecBole headers: user_id:token


class TableError(RecstreamError):
    """An input table cannot be read."""


class TableFile:
    """One file in memory: its bytes, its format and its header.

    The format comes from the name's ending and, where that says nothing, from the first line. TSV is read without
    quoting, so a stray quotation mark in a title does not swallow the rows behind it. A byte order mark is taken off,
    UTF-16 is turned into UTF-8, and one JSON array of objects into lines.

    Raises:
        TableError: The file is missing, empty, no table or a damaged gzip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = _decompressed(path.read_bytes())
        except FileNotFoundError as exc:
            what = f"There is no table at {path}"
            raise TableError(what, "", "Check the path") from exc
        except IsADirectoryError as exc:
            what = f"{path} is a folder"
            raise TableError(what, "a table is one file", "Name the file in it") from exc
        except (OSError, EOFError, zlib.error, lzma.LZMAError, cramjam.DecompressionError) as exc:
            what = f"The table {path} cannot be read"
            raise TableError(what, str(exc), "Check its permissions, or compress it again") from exc
        if not data.strip():
            what = f"The table {path} is empty"
            raise TableError(what, "it has no header and no rows", "Give a file with rows")
        if data[:4] == b"PK\x03\x04":
            what = f"{path} is a ZIP archive"
            raise TableError(what, "a table is one file", f"unzip {path}, and name the file that was in it")
        if data[:4] != _PARQUET and data[:2] not in _UTF16 and b"\0" in data[:65_536].split(b"\n", 1)[0]:
            what = f"{path} is no text"
            raise TableError(what, f"it begins with {data[:8]!r}", "Give CSV, TSV, JSON lines or Parquet")
        if data[:2] in _UTF16:
            data = data.decode("utf-16", "replace").encode()
        self.data = data.removeprefix(_BOM)
        self.format = self._format()
        if self.format == "json" and self.data.lstrip()[:1] == b"[":
            self.data = self._lines_of_array()

    def header(self) -> list[str]:
        """Column names, as the file has them (RecBole's type suffixes and blanks around them taken off)."""
        return list(self._names(self._raw_header()).values())

    def read(self, names: list[str]) -> pl.DataFrame:
        """The named columns; text formats give strings only.

        Raises:
            TableError: The content is not what the format wants.
        """
        with self._readable():
            if self.format == "json":
                frame = pl.read_ndjson(io.BytesIO(self.data), schema=dict.fromkeys(names, pl.String()))
            elif self.format == "parquet":
                frame = pl.read_parquet(io.BytesIO(self.data), columns=names)
            else:
                # Every column is read: of some only, polars does not see that a row has too many fields, and shifts it.
                try:
                    frame = pl.read_csv(io.BytesIO(self.data), **self._dialect())  # type: ignore[arg-type]
                except pl.exceptions.ComputeError:
                    even = io.BytesIO(self._without_blank_ends())
                    frame = pl.read_csv(even, **self._dialect())  # type: ignore[arg-type]
                frame = frame.rename(self._names(frame.columns))
            return frame.select(names)

    @staticmethod
    def _names(columns: list[str]) -> dict[str, str]:
        """The names that columns go by."""
        names = {column: _ATOMIC.sub("", column.strip()) for column in columns}
        return names if len(set(names.values())) == len(names) else {column: column for column in columns}

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError, csv.Error) as exc:
            what = f"The table {self.path} is not readable as {self.format}"
            why = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            raise TableError(what, why, "Check the file, its name's ending and that it is UTF-8") from exc

    def _without_blank_ends(self) -> bytes:
        """The rows without blank fields behind the header's last; one that has more there is refused by its number."""
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if self.format == "tsv" else {}
        out = io.StringIO()
        rows, write = csv.reader(io.StringIO(self.data.decode(), newline=""), **dialect), csv.writer(out, **dialect)  # type: ignore[arg-type]
        header = next(rows)
        write.writerow(header)
        for row in rows:
            if any(field.strip() for field in row[len(header) :]):
                what = f"Line {rows.line_num} of {self.path} has {len(row)} fields"
                why = f"the header has {len(header)}: {', '.join(header)}"
                raise TableError(what, why, "Put values that hold the separator in quotation marks, or mend the line")
            write.writerow(row[: len(header)])
        return out.getvalue().encode()

    def _lines_of_array(self) -> bytes:
        try:
            return b"\n".join(orjson.dumps(entry) for entry in orjson.loads(self.data))
        except orjson.JSONDecodeError as exc:
            what, fix = f"The table {self.path} is not readable as JSON", "Check that the file is whole"
            raise TableError(what, str(exc), fix) from exc

    def _format(self) -> str:
        if self.data[:4] == _PARQUET:
            return "parquet"
        suffixes = [suffix for suffix in self.path.suffixes if suffix not in _COMPRESSED]
        known = _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
        if known:
            return known
        first = self.data[:65_536].split(b"\n", 1)[0]
        return "json" if first.lstrip()[:1] in (b"{", b"[") else "tsv" if b"\t" in first else "csv"

    def _dialect(self) -> dict[str, object]:
        tsv = self.format == "tsv"
        return {"infer_schema": False, "separator": "\t" if tsv else ",", "quote_char": None if tsv else '"'}

    def _raw_header(self) -> list[str]:
        with self._readable():
            if self.format == "parquet":
                return list(pl.read_parquet_schema(io.BytesIO(self.data)))
            if self.format == "json":
                lines = io.BytesIO(self.data)
                sample = b"".join(line for line, _ in zip(lines, range(1000), strict=False))
                names = dict.fromkeys(pl.read_ndjson(io.BytesIO(sample), infer_schema_length=None).columns)
                for line in lines:  # a rare key, such as the type of purchases, may come late
                    with suppress(orjson.JSONDecodeError, TypeError):  # such lines are refused when they are read
                        names.update(dict.fromkeys(orjson.loads(line)))
                return list(names)
            return pl.read_csv(io.BytesIO(self.data), n_rows=0, **self._dialect()).columns  # type: ignore[arg-type]


def _decompressed(data: bytes) -> bytes:
    """What was compressed by gzip, bzip2, xz or zstd; other bytes as they are."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:3] == b"BZh":
        return bz2.decompress(data)
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return bytes(cramjam.zstd.decompress(data))
    return data


def read_columns(path: Path, named: Mapping[str, str], must: Collection[str]) -> pl.DataFrame:
    """Read the columns of a file that exist, as text without surrounding blanks, nothing as null.

    Args:
        path: The file.
        named: Our column name to the table's.
        must: Our names of the columns the table must have.

    Returns:
        The columns under our names, the times of a temporal type as they are.

    Raises:
        TableError: The file cannot be read, or a column of ``must`` is not in it.
    """
    source = TableFile(path)
    header = source.header()
    missing = [named[name] for name in dict.fromkeys(must) if named[name] not in header]
    if missing:
        what = f"The table {path} has no column {', '.join(missing)}"
        raise TableError(what, *_why_not(header))
    present = {ours: theirs for ours, theirs in named.items() if theirs in header}
    frame = source.read(list(dict.fromkeys(present.values())))
    return frame.select(_text(frame[theirs], ours) for ours, theirs in present.items())


def _why_not(header: list[str]) -> tuple[str, str]:
    """Why columns are missing from a header, and what to do: without a header or with odd separators no name helps."""
    if any(_VALUE.fullmatch(name) for name in header):
        why = f"its first line has values where names should be: {', '.join(header[:30])}"
        return why, "Put a line with names before it, such as user_id,item_id,timestamp"
    odd = next((mark for mark in (";", "|", "\t", ",", " ") if mark in header[0]), "") if len(header) == 1 else ""
    if odd:
        return f"it has one column, {header[0]!r}", f"Separate values by commas or tabs (a .tsv) instead of {odd!r}"
    why = f"its columns are {', '.join(header[:30])}"
    return why, "Name the table's own columns, for example --columns user_id=uid,timestamp=ts"


def _text(column: pl.Series, name: str) -> pl.Series:
    if column.dtype.is_temporal() and name == "timestamp":
        return column.alias(name)
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)  # ids that became floats because some were missing: 12.0 is "12"
        column = whole if (whole == column).all() else column
    if column.dtype.is_nested():
        what = f"The column {name} does not hold plain values"
        raise TableError(what, f"its type is {column.dtype}", "Give ids, times and types as text or numbers")
    if column.dtype == pl.Binary:
        column = pl.Series([None if value is None else value.decode("utf-8", "replace") for value in column])
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None).alias(name)
