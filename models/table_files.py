"""Files of tables: CSV, TSV, JSON lines, Parquet and RecBole atomic files, plain or gzipped, as columns of text."""

import gzip
import io
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import polars as pl

from state.errors import RecstreamError

_SUFFIXES: Final = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".inter": "tsv", ".item": "tsv", ".user": "tsv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_ATOMIC: Final = re.compile(r":(token|token_seq|float|float_seq)$")  # RecBole headers: user_id:token


class TableError(RecstreamError):
    """An input table cannot be read."""


class TableFile:
    """One file in memory: its bytes, its format and its header.

    The format comes from the name's ending and, where that says nothing, from the first line. TSV is read without
    quoting, so a stray quotation mark in a title does not swallow the rows behind it.

    Raises:
        TableError: The file is missing, empty or a damaged gzip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
            if data[:2] == b"\x1f\x8b":
                data = gzip.decompress(data)
        except FileNotFoundError as exc:
            what = f"There is no table at {path}"
            raise TableError(what, "", "Check the path") from exc
        except (OSError, EOFError, zlib.error) as exc:
            what = f"The table {path} cannot be read"
            raise TableError(what, str(exc), "Check its permissions, or compress it again") from exc
        if not data.strip():
            what = f"The table {path} is empty"
            raise TableError(what, "it has no header and no rows", "Give a file with rows")
        self.data = data
        self.format = self._format()

    def header(self) -> list[str]:
        """Column names, as the file has them (RecBole's type suffixes taken off)."""
        return [_ATOMIC.sub("", name) for name in self._raw_header()]

    def read(self, names: list[str]) -> pl.DataFrame:
        """The named columns; text formats give strings only."""
        if self.format == "json":
            frame = pl.read_ndjson(io.BytesIO(self.data), schema=dict.fromkeys(names, pl.String()))
        elif self.format == "parquet":
            frame = pl.read_parquet(io.BytesIO(self.data), columns=names)
        else:
            raw = self._raw_header()
            wanted = [column for column in raw if _ATOMIC.sub("", column) in names]
            frame = pl.read_csv(io.BytesIO(self.data), columns=wanted, **self._dialect())  # type: ignore[arg-type]
            frame = frame.rename({column: _ATOMIC.sub("", column) for column in wanted})
        return frame.select(names)

    def _format(self) -> str:
        if self.data[:4] == b"PAR1":
            return "parquet"
        suffixes = [suffix for suffix in self.path.suffixes if suffix != ".gz"]
        known = _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
        if known:
            return known
        first = self.data[:65_536].split(b"\n", 1)[0]
        return "json" if first.lstrip().startswith(b"{") else "tsv" if b"\t" in first else "csv"

    def _dialect(self) -> dict[str, object]:
        tsv = self.format == "tsv"
        return {"infer_schema": False, "separator": "\t" if tsv else ",", "quote_char": None if tsv else '"'}

    def _raw_header(self) -> list[str]:
        if self.format == "parquet":
            return list(pl.read_parquet_schema(io.BytesIO(self.data)))
        if self.format == "json":
            lines = io.BytesIO(self.data)
            sample = b"".join(line for line, _ in zip(lines, range(1000), strict=False))
            return pl.read_ndjson(io.BytesIO(sample), infer_schema_length=None).columns
        return pl.read_csv(io.BytesIO(self.data), n_rows=0, **self._dialect()).columns  # type: ignore[arg-type]


def read_columns(path: Path, named: Mapping[str, str], must: Collection[str]) -> pl.DataFrame:
    """Read the columns of a file that exist, as text without surrounding blanks, nothing as null.

    Args:
        path: The file.
        named: Our column name to the table's.
        must: Our names of the columns the table must have.

    Returns:
        The columns under our names, temporal ones as they are.

    Raises:
        TableError: The file cannot be read, or a column of ``must`` is not in it.
    """
    source = TableFile(path)
    try:
        header = source.header()
        missing = [named[name] for name in dict.fromkeys(must) if named[name] not in header]
        if missing:
            what = f"The table {path} has no column {', '.join(missing)}"
            why = f"its columns are {', '.join(header[:30])}"
            raise TableError(what, why, "Name the table's own columns, for example --columns user_id=uid,timestamp=ts")
        present = {ours: theirs for ours, theirs in named.items() if theirs in header}
        frame = source.read(list(dict.fromkeys(present.values())))
        return frame.select(_text(frame[theirs], ours) for ours, theirs in present.items())
    except (pl.exceptions.PolarsError, OSError) as exc:
        what = f"The table {path} is not readable as {source.format}"
        why = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise TableError(what, why, "Check the file, its name's ending and that it is UTF-8") from exc


def _text(column: pl.Series, name: str) -> pl.Series:
    if column.dtype.is_temporal():
        return column.alias(name)
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)  # ids that became floats because some were missing: 12.0 is "12"
        column = whole if (whole == column).all() else column
    if column.dtype.is_nested():
        what = f"The column {name} does not hold plain values"
        raise TableError(what, f"its type is {column.dtype}", "Give ids, times and types as text or numbers")
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None).alias(name)
