"""Data to evaluate on: an event table as it is, grouped by user, with what is known of its items.

Letters: N events, V item rows.

Unlike a stream, a table of somebody else's has columns and event types that nobody mapped. What can be guessed safely
is guessed and said (`Dataset.notes`): common names of event types, ratings as kinds, missing times.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.evaluation.items import describe
from models.family.catalogue import Catalogue
from models.family.coding import MISSING_GAP
from models.layouts import Layout, named_as, recognise
from models.sequences import Histories, histories
from models.table_files import TableFile, read_columns
from models.tables import TYPES, UNKNOWN_KIND, Events, TableError, read_table
from state.events import CLICK, PURCHASE, VIEW

_NO_TIME_START_MS: Final = 1_577_836_800_000
_MOST_TYPES: Final = 50  # no list of event types is longer
_NO_TIME_PACE: Final = 1000.0  # rows per second of tables without times: one millisecond a row
_SYNONYMS: Final[Mapping[str, int]] = {
    **TYPES,
    **dict.fromkeys(("pv", "impression", "detail", "page_view", "pageview", "detail_view"), VIEW),
    **dict.fromkeys(("buy", "bought", "transaction", "order", "orders", "sale", "pay", "checkout"), PURCHASE),
    **dict.fromkeys(("conversion", "purchased"), PURCHASE), **dict.fromkeys(("basket", "carted"), CLICK),
    **dict.fromkeys(("fav", "favorite", "favourite", "like", "cart", "carts", "addtocart", "add_to_cart"), CLICK),
    **dict.fromkeys(("interaction", "play", "listen", "watch", "read", "rating", "rate", "review", "visit"), CLICK),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events by user and what is known of them.

    Attributes:
        name: What the report calls it.
        source: The events (N), users end to end, each user's in order of time.
        vocabulary: Item ids by row (V,); row 0 is the unknown item.
        catalogue: Texts and attributes by row.
        ratings: (N,) float32, NaN where there is none; None without ratings.
        timed: Whether the table has times. Without them its order of rows stands for time within a user.
        notes: What was guessed or left out, for the report.
        users: User ids in the order of the histories.
        candidates: (V,) items that compete when events are judged; None for all.
        when: (N,) place of each event in the log's order of time, ties as in the table.
    """

    name: str
    source: Histories
    vocabulary: list[str]
    catalogue: Catalogue
    ratings: NDArray[np.float32] | None = None
    timed: bool = True
    notes: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    candidates: NDArray[np.bool_] | None = None
    when: NDArray[np.int64] | None = None

    def order(self) -> NDArray[np.int64]:
        """Places of the events (N,) in order of time; ties as in the table where it is known, else user by user."""
        return np.argsort(self.source.times_ms if self.when is None else self.when, kind="stable")

    @property
    def items(self) -> int:
        """V."""
        return len(self.vocabulary)


def load(
    path: Path,
    columns: Mapping[str, str] | None = None,
    types: Mapping[str, int] | None = None,
    items: Path | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read an event table for evaluation.

    Args:
        path: CSV, TSV, JSON lines, Parquet or RecBole ``.inter``, plain or compressed.
        columns: Our column name to the table's, where they differ.
        types: Value of event_type to kind; without it common names are known, and if none occurs all are clicks.
        items: Table of the items (item_id, title, category, ...). Without it ``NAME.item`` beside ``NAME.inter`` and
            ``NAME_items.*`` beside ``NAME_events.*`` are taken.
        limit: Only the first so many events, in order of time.

    Raises:
        TableError: A table cannot be read, or no event is left.
    """
    with TemporaryDirectory() as folder, named_as(path, Path(folder)):
        layout = recognise(path, columns, Path(folder))
        notes = list(layout.notes)
        if types is None:
            types = _guessed_types(layout, "event_type" in (columns or {}), notes)
        pace = {"rows_per_second": _NO_TIME_PACE, "start_ms": _NO_TIME_START_MS, "keep_missing": True}
        events = read_table(layout.path, layout.columns, types, **pace)  # type: ignore[arg-type]
    notes += [f"{count:,} rows left out: {reason}" for reason, count in events.skipped.items()]
    if not len(events):
        what, why = f"No event of {path} can be used", "; ".join(notes) or "it has no rows"
        raise TableError(what, why, "Check its columns, or name its types: --types pv=views,buy=purchases")
    rows = len(events) + sum(events.skipped.values())
    timed = not (events.times_ms.min() >= _NO_TIME_START_MS and events.times_ms.max() < _NO_TIME_START_MS + rows)
    if not timed:
        notes.append("no timestamps: the order of the rows stands for time")
    elif (events.times_ms == events.times_ms[0]).all():
        timed = False
        notes.append("all timestamps are equal: the order of the rows stands for time")
        events = replace(events, times_ms=_NO_TIME_START_MS + np.arange(len(events)))
    events = events.time_ordered()
    if limit is not None and limit < len(events):
        events = events.take(np.arange(limit))
    ratings = _ratings(events)
    if ratings is not None and (events.kinds == events.kinds[0]).all():
        events = replace(events, kinds=_kinds(ratings))
        notes.append("ratings as kinds: the highest is a purchase, below the middle of the scale a view, else a click")
    missing = {"type": events.kinds == UNKNOWN_KIND, "time": events.untimed}
    for name, gone in missing.items():
        if gone is not None and gone.any():
            notes.append(f"{gone.sum():,} events without a {name}")
    vocabulary = ["", *events.items.unique(maintain_order=True).to_list()]
    try:
        catalogue, found = describe(path, items, vocabulary, layout.columns.get("item_id", "item_id"))
    except TableError as error:
        if items is not None:
            raise
        catalogue, found = Catalogue.empty(len(vocabulary)), [f"items stay undescribed: {error}"]
    notes += found
    source = histories(events, vocabulary)
    order = _by_user(events)
    if not timed:
        source.gaps_seconds[:] = 0
    elif events.untimed is not None:
        _forget_gaps(source, events.untimed[order])
    name = path.name.split(".")[0]
    ratings = None if ratings is None else ratings[order]
    users = events.users.unique(maintain_order=True).to_list()
    return Dataset(name, source, vocabulary, catalogue, ratings, timed, notes, users, when=order)


def _guessed_types(layout: Layout, asked_for: bool, notes: list[str]) -> dict[str, int] | None:
    """Value of event_type to kind for the values in the table; None without such a column.

    Args:
        layout: The table.
        asked_for: Whether the user named the column; one that was only found and has no list of types is no event type.
        notes: Told what was guessed.
    """
    name = layout.columns.get("event_type", "event_type")
    if name not in TableFile(layout.path).header():
        return None
    values = read_columns(layout.path, {"event_type": name}, ("event_type",))["event_type"]
    found = values.drop_nulls().unique(maintain_order=True).to_list()
    plain = {value: re.sub(r"[\s_-]+", "_", value.lower()) for value in found}  # Add To Cart, add-to-cart
    known = {value: _SYNONYMS[word] for value, word in plain.items() if word in _SYNONYMS}
    if known or not found:
        if any(value not in TYPES for value in known):
            notes.append("event types as usual: " + ", ".join(f"{v} is a {_word(k)}" for v, k in known.items()))
        return known or None
    if len(found) > _MOST_TYPES and not asked_for:
        notes.append(f"column {name} has {len(found):,} values and is no event type: all events are clicks")
        return dict.fromkeys(found, CLICK)
    if len(found) > _MOST_TYPES:
        what = f"The column {name} of {layout.path} does not look like an event type"
        raise TableError(what, f"it has {len(found)} values, such as {found[0]!r}", "Map it: --types pv=views")
    notes.append(f"unknown event types are clicks: {', '.join(found)}")
    return dict.fromkeys(found, CLICK)


def _word(kind: int) -> str:
    return {CLICK: "click", VIEW: "view", PURCHASE: "purchase"}[kind]


def _ratings(events: Events) -> NDArray[np.float32] | None:
    """Ratings (N,) where the table has at least two different ones."""
    if "rating" not in events.extras.columns:
        return None
    ratings = events.extras["rating"].fill_null(np.nan).to_numpy().astype(np.float32)
    ratings[~np.isfinite(ratings)] = np.nan
    return ratings if len(np.unique(ratings[np.isfinite(ratings)])) > 1 else None


def _kinds(ratings: NDArray[np.float32]) -> NDArray[np.uint8]:
    best, middle = np.nanmax(ratings), (np.nanmax(ratings) + np.nanmin(ratings)) / 2
    kinds = [UNKNOWN_KIND, PURCHASE, CLICK]
    return np.select([~np.isfinite(ratings), ratings >= best, ratings >= middle], kinds, VIEW).astype(np.uint8)


def _forget_gaps(source: Histories, untimed: NDArray[np.bool_]) -> None:
    """Mark the gaps before and after events without a time of their own as not known."""
    after = np.append(False, untimed[:-1])
    opens = np.zeros(len(source), np.bool_)
    opens[source.starts[:-1][np.diff(source.starts) > 0]] = True
    source.gaps_seconds[(untimed | after) & ~opens] = MISSING_GAP


def _by_user(events: Events) -> NDArray[np.int64]:
    """Rows of time-ordered events in the order of `models.sequences.histories`."""
    names = events.users.unique(maintain_order=True)
    users = events.users.replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64).to_numpy()
    return np.argsort(users, kind="stable")
