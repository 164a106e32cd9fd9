"""Event tables: CSV, TSV, JSON lines, Parquet and RecBole atomic files, plain or compressed, as columns in memory.

A table has the columns ``user_id`` and ``item_id`` and may have ``timestamp``, ``event_type``, ``rating``, ``price``,
``quantity``, ``session_id`` and ``event_id``; any other column is ignored, and one that is all blank counts as absent.
Rows that cannot be events (no user, no item, an unreadable time, a type nobody mapped) are skipped and counted, never
guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.moments import moments_ms
from models.table_files import TableError, TableFile, read_columns
from state.events import CLICK, KIND_OF_TOPIC, KINDS, PURCHASE, VIEW

__all__ = ["Events", "TableError", "parse_columns", "parse_types", "read_recbole", "read_table"]

REQUIRED: Final = ("user_id", "item_id")
NUMBERS: Final = ("rating", "price", "quantity")
TEXTS: Final = ("session_id", "event_id")
COLUMNS: Final = (*REQUIRED, "timestamp", "event_type", *NUMBERS, *TEXTS)
UNKNOWN_KIND: Final = len(KINDS)  # of an event whose type is blank, where such events are kept
TYPES: Final[Mapping[str, int]] = {**{kind: number for number, kind in enumerate(KINDS)}, **KIND_OF_TOPIC}
# RecBole's rating data, as events: most people look at many things, act on some and buy few.
RATING_RULE: Final = "rating 5 is a purchase, 3 and 4 a click, below 3 a view"


@dataclass(frozen=True, slots=True)
class Events:
    """Events as columns, N rows in file order until `time_ordered`.

    Attributes:
        users: User ids (N,), strings as in the source.
        items: Item ids (N,), strings as in the source.
        kinds: (N,) uint8: 0 click, 1 view, 2 purchase; 3 not known, where such events are kept.
        times_ms: (N,) int64, milliseconds since the epoch.
        extras: The optional columns the table has (N rows): rating, price, quantity, session_id, event_id.
        skipped: Rows left out, by reason.
        untimed: (N,) bool, events whose time is that of a neighbouring event of their user; None for none.
    """

    users: pl.Series
    items: pl.Series
    kinds: NDArray[np.uint8]
    times_ms: NDArray[np.int64]
    extras: pl.DataFrame = field(default_factory=pl.DataFrame)
    skipped: Mapping[str, int] = field(default_factory=dict)
    untimed: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, rows: NDArray[np.int64]) -> "Events":
        """The given rows, in the given order."""
        extras = self.extras[rows] if self.extras.width else self.extras
        untimed = None if self.untimed is None else self.untimed[rows]
        columns = (self.users[rows], self.items[rows], self.kinds[rows], self.times_ms[rows])
        return Events(*columns, extras, self.skipped, untimed)

    def time_ordered(self) -> "Events":
        """The events by time; ties keep the file's order."""
        return self.take(np.argsort(self.times_ms, kind="stable"))

    def apart(self) -> "Events":
        """The events, in their order, with times that rise strictly for each user: a tie gets a millisecond more.

        Events of one user go to different topics by their kind, and time alone tells how they followed each other. The
        order of a log in whole seconds would be lost: 76% of MovieLens' events have a tie with another of their user.
        """
        table = pl.DataFrame({"user": self.users, "time": self.times_ms})
        table = table.with_columns(before=pl.int_range(pl.len()).over("user"))  # events of the user before this one
        rising = (pl.col("time") - pl.col("before")).cum_max().over("user") + pl.col("before")
        return replace(self, times_ms=table.select(rising.cast(pl.Int64)).to_series().to_numpy())


def parse_columns(text: str) -> dict[str, str]:
    """Column names from ``user_id=uid,timestamp=ts``: our name to the table's.

    Raises:
        TableError: It is not such a list, or names a column we do not read.
    """
    columns = _pairs(text, "--columns user_id=uid,timestamp=ts")
    for name in columns:
        if name not in COLUMNS:
            what = f"--columns maps {name!r}, which is not a column recstream reads"
            raise TableError(what, f"it reads {', '.join(COLUMNS)}", "Write --columns user_id=uid,timestamp=ts")
    return columns


def parse_types(text: str) -> dict[str, int]:
    """Event types from ``pv=views,fav=clicks,buy=purchases``: the table's value to a kind.

    The given list replaces the default one (click, view, purchase and their topics' names).

    Raises:
        TableError: It is not such a list, or names an unknown topic.
    """
    types = {}
    for value, topic in _pairs(text, "--types pv=views,fav=clicks,buy=purchases").items():
        if topic not in TYPES:
            what = f"--types maps {value!r} to {topic!r}, which is not an input topic"
            raise TableError(what, f"the topics are {', '.join(KIND_OF_TOPIC)}", "Write --types pv=views,buy=purchases")
        types[value] = TYPES[topic]
    return types


def read_table(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    types: Mapping[str, int] | None = None,
    rows_per_second: float = 100.0,
    start_ms: int = 0,
    keep_missing: bool = False,
) -> Events:
    """Read an event table in file order.

    Args:
        path: CSV, TSV, JSON lines, Parquet or RecBole ``.inter``, plain or compressed; TSV is read without quoting.
        columns: Our column name to the table's, for those that differ (`parse_columns`).
        types: Value of event_type to kind (`parse_types`); click, view, purchase by default. A table without the
            column is all clicks.
        rows_per_second: Pace of the times given to a table without a timestamp column.
        start_ms: Time of the first row of such a table.
        keep_missing: Keep rows whose type is blank, as `UNKNOWN_KIND`, and rows whose time is blank, at the time of
            the row before of the same user (or behind it, at the beginning; of any user where the user has no
            time at all) and marked in ``untimed``.

    Returns:
        The events, with rows that could not be read counted in ``skipped``.

    Raises:
        TableError: The file or a needed column is missing, or the content is not a table.
    """
    if not rows_per_second > 0:
        what = f"A pace of {rows_per_second} rows per second was asked for"
        raise TableError(what, "time would not advance", "Give a pace above 0")
    named = {name: (columns or {}).get(name, name) for name in COLUMNS}
    frame = read_columns(Path(path), named, must=(*REQUIRED, *(columns or {})))
    frame = frame.drop(
        name for name in frame.columns if name not in REQUIRED and frame[name].null_count() == len(frame)
    )
    rows = np.arange(len(frame), dtype=np.int64)
    if "timestamp" in frame.columns:
        times = moments_ms(frame["timestamp"])
        if times.null_count() == len(times):
            what = f"No row of {path} has a readable timestamp"
            why = f"the first is {frame['timestamp'].drop_nulls()[0]!r}"
            raise TableError(what, why, "Give epoch seconds or milliseconds, or ISO 8601 such as 2024-05-01T12:00:00Z")
    else:
        times = pl.Series(start_ms + (rows * 1000 / rows_per_second).astype(np.int64))
    kinds = _kinds(frame, TYPES if types is None else types, Path(path))
    untimed: NDArray[np.bool_] | None = None
    if keep_missing:
        if "event_type" in frame.columns:
            kinds = kinds.set(frame["event_type"].is_null(), UNKNOWN_KIND)
        if "timestamp" in frame.columns and frame["timestamp"].null_count():
            untimed = frame["timestamp"].is_null().to_numpy()
            times = _filled(times, frame["user_id"], untimed)
    reasons = {
        "missing user_id": frame["user_id"].is_null(),
        "missing item_id": frame["item_id"].is_null(),
        "unreadable timestamp": times.is_null(),
        "unmapped event_type": kinds.is_null(),
    }
    good, skipped = np.ones(len(frame), np.bool_), {}
    for reason, bad in reasons.items():
        first = bad.to_numpy() & good  # a row counts once, under its first reason
        good &= ~first
        if first.any():
            skipped[reason] = int(first.sum())
    extras = frame.select(
        *(pl.col(name).cast(pl.Float64, strict=False) for name in NUMBERS if name in frame.columns),
        *(pl.col(name) for name in TEXTS if name in frame.columns),
    )
    kept = rows[good]
    return Events(
        frame["user_id"][kept],
        frame["item_id"][kept],
        kinds[kept].to_numpy().astype(np.uint8),
        times[kept].to_numpy().astype(np.int64),
        extras[kept] if extras.width else extras,
        skipped,
        None if untimed is None or not untimed[kept].any() else untimed[kept],
    )


def read_recbole(directory: str | Path, name: str) -> tuple[Events, dict[str, str]]:
    """Read a RecBole data set of atomic files (``ml-100k.inter``, ``ml-100k.item``) as events.

    Ratings become kinds by `RATING_RULE`; a data set without ratings is all clicks.

    Args:
        directory: The folder of the data set.
        name: The data set's name.

    Returns:
        The events in file order, and the titles by item id (empty where there is no ``.item`` file or no title in it).

    Raises:
        TableError: The interactions cannot be read.
    """
    events = read_table(Path(directory, f"{name}.inter"))
    if "rating" in events.extras.columns:
        ratings = events.extras["rating"].fill_null(0).to_numpy()
        kinds = np.select([ratings >= 5, ratings >= 3], [PURCHASE, CLICK], VIEW).astype(np.uint8)
        events = Events(events.users, events.items, kinds, events.times_ms, events.extras, events.skipped)
    titles: dict[str, str] = {}
    catalogue = Path(directory, f"{name}.item")
    if catalogue.is_file():
        header = TableFile(catalogue).header()
        column = next((c for c in header if "title" in c), next((c for c in header if "name" in c), None))
        if column:
            frame = read_columns(catalogue, {"item_id": "item_id", "title": column}, must=("item_id",)).drop_nulls()
            titles = dict(zip(frame["item_id"], frame["title"], strict=True))
    return events, titles


def _kinds(frame: pl.DataFrame, types: Mapping[str, int], path: Path) -> pl.Series:
    if "event_type" not in frame.columns:
        return pl.repeat(CLICK, len(frame), dtype=pl.UInt8, eager=True)
    kinds = frame["event_type"].replace_strict(list(types), list(types.values()), default=None, return_dtype=pl.UInt8)
    if len(kinds) and kinds.null_count() == len(kinds):
        found = frame["event_type"].drop_nulls().unique(maintain_order=True).head(10).to_list()
        what = f"No row of {path} has a known event type"
        why = f"it has {', '.join(map(repr, found)) or 'blanks'}; known are {', '.join(map(repr, types))}"
        raise TableError(what, why, "Map its types to topics, for example --types pv=views,buy=purchases")
    return kinds


def _filled(times: pl.Series, users: pl.Series, untimed: NDArray[np.bool_]) -> pl.Series:
    """Times with those of untimed rows taken from a row near by, before if possible, of the user if there is one."""
    frame = pl.DataFrame({"user": users, "time": times, "untimed": untimed})
    near = pl.coalesce(
        pl.col("time").forward_fill().backward_fill().over("user"), pl.col("time").forward_fill().backward_fill()
    )
    return frame.select(pl.when(pl.col("untimed")).then(near).otherwise(pl.col("time")).alias("time"))["time"]


def _pairs(text: str, example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value) or name in pairs:
            what = f"{part!r} in {text!r} is not a new name=value pair"
            raise TableError(what, "", f"Write it like {example}")
        pairs[name] = value
    return pairs
