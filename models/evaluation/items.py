"""What tables say of items: titles and words, categories and other attributes."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import polars as pl

from models.evaluation.item_layouts import beside, readable
from models.family.catalogue import Catalogue
from models.table_files import TableFile, read_columns

_TEXT: Final = ("title", "name", "text", "description", "summary")
_SKIPPED: Final = ("item_id", "user_id", "timestamp", "event_type", "rating", "price", "quantity", "session_id")
_SEVERAL: Final = re.compile(r"ids$|class|genre|tag|categories|attributes")  # columns of several values, by their name
_INLINE: Final = re.compile(r"title|category|genre|brand|class|description|attributes")  # in the event table itself
_MOST_SHARE: Final = 0.5  # a column with more distinct values than this share of the items names them
_FEW: Final = 20  # but so many are always few


def describe(
    events: Path, items: Path | None, vocabulary: list[str], column: str = "item_id"
) -> tuple[Catalogue, list[str]]:
    """The catalogue of a vocabulary, from a table of items or from the event table's own columns.

    Args:
        events: The event table.
        items: The table of items; None looks for one beside the event table.
        vocabulary: Item ids by row (V,).
        column: The event table's column of item ids.

    Returns:
        The catalogue, and what it was made from, for the report.

    Raises:
        TableError: The given table of items cannot be read.
    """
    path = items or beside(events)
    if path is not None:
        with TemporaryDirectory() as folder:
            return _described(events, readable(path, Path(folder)), path, vocabulary, column)
    return _described(events, None, None, vocabulary, column)


def _described(
    events: Path, path: Path | None, named_as: Path | None, vocabulary: list[str], column: str
) -> tuple[Catalogue, list[str]]:
    """As `describe`; the table of items at ``path`` is called by the name of ``named_as``."""
    table = TableFile(path or events)
    header = [name for name in table.header() if name not in _SKIPPED]
    if path is None:
        header = [name for name in header if _INLINE.search(name)]
        if not header or column not in table.header():
            return Catalogue.empty(len(vocabulary)), []
    if path is not None and column not in table.header():
        column = "item_id"
    header = [name for name in header if name != column]
    named = {"item_id": column, **{name: name for name in header}}
    frame = read_columns(path or events, named, must=("item_id",))
    frame = frame.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)
    rows = pl.DataFrame({"item_id": vocabulary[1:]}, schema={"item_id": pl.String})
    frame = rows.join(frame, on="item_id", how="left", maintain_order="left")
    texts, attributes = [name for name in header if any(word in name for word in _TEXT)], list[str]()
    for name in header:
        if name not in texts and (_SEVERAL.search(name) or _describes(frame[name])):
            attributes.append(name)
    words = ["", *frame.select(pl.concat_str(texts, separator=". ", ignore_nulls=True)).to_series()] if texts else None
    valued: list[tuple[str, ...]] = [(), *(() for _ in range(len(frame)))]
    for name in attributes:
        for row, value in enumerate(frame[name], start=1):
            if value is not None:
                valued[row] += tuple(f"{name}={part}" for part in _parts(name, str(value)))
    catalogue = Catalogue(words or [""] * len(vocabulary), valued)
    told = sum(bool(text or values) for text, values in zip(catalogue.texts[1:], catalogue.attributes[1:], strict=True))
    usable, file = ", ".join([*texts, *attributes]), (named_as or events).name
    count = "" if told == len(frame) else f", of {told:,} of {len(frame):,} items"
    return catalogue, [f"items: {usable} from {file}{count}" if usable else f"items: nothing usable from {file}"]


def _describes(column: pl.Series) -> bool:
    """Whether the values of a column group items; one whose values are nearly all different only names them."""
    known = column.drop_nulls()
    distinct = known.n_unique()
    return 1 < distinct < len(known) and distinct <= max(_MOST_SHARE * len(known), _FEW)


def _parts(name: str, value: str) -> list[str]:
    separator = r"[|,;\s]+" if _SEVERAL.search(name) else r"[|;]"
    return [part for part in re.split(separator, value) if part]
