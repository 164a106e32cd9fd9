"""Layouts of well-known public data sets, and usual names of columns, read as event tables.

Recognised by their first line, never by their name:

| layout | looks like |
|---|---|
| MovieLens-100K `u.data` | `196<tab>242<tab>3<tab>881250949` |
| MovieLens `ratings.dat` | `1::1193::5::978300760` |
| MovieLens `ratings.csv` | `userId,movieId,rating,timestamp` |
| Amazon ratings | `A39HTATAQ9V7YF,0205616461,5.0,1369699200`, with or without a header |
| Amazon reviews | JSON lines with reviewerID, asin, overall, unixReviewTime, or user_id, parent_asin, rating |
| RetailRocket `events.csv` | `timestamp,visitorid,event,itemid,transactionid` |
| Yoochoose clicks, buys | `1,2014-04-07T10:51:09.277Z,214536502,0`, `4,2014-04-06T18:44:58.314Z,214537888,12462,1` |
| Diginetica views | `sessionId;userId;itemId;timeframe;eventdate` |
| RecBole atomic files | `user_id:token<tab>item_id:token<tab>timestamp:float` |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from models.table_files import TableFile

_NUMBER: Final = r"\d+(?:\.\d+)?"
_TIME: Final = r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?"
# Files without a header: pattern of the first line, separator, columns.
_BARE: Final = (
    ("MovieLens u.data", rf"\d+\t\d+\t{_NUMBER}\t\d{{6,}}", "\t", ("user_id", "item_id", "rating", "timestamp")),
    ("MovieLens ratings.dat", rf"\d+::\d+::{_NUMBER}::\d{{6,}}", "::", ("user_id", "item_id", "rating", "timestamp")),
    ("Yoochoose clicks", rf"\d+,{_TIME},\d+,\w+", ",", ("user_id", "timestamp", "item_id", "category")),
    ("Yoochoose buys", rf"\d+,{_TIME},\d+,\d+,\d+", ",", ("user_id", "timestamp", "item_id", "price", "quantity")),
    ("Amazon ratings", rf"\w+,\w+,{_NUMBER},\d{{9,13}}", ",", ("user_id", "item_id", "rating", "timestamp")),
)
# Usual names, in order of preference; a table's column counts under the first of ours it fits.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "user_id": (
        "userid", "user", "uid", "reviewerid", "visitorid", "customerid", "customer", "memberid", "profileid",
        "sessionid", "session",
    ),
    "item_id": (
        "itemid", "item", "iid", "movieid", "parentasin", "asin", "productid", "product", "sku", "articleid", "songid",
        "trackid", "bookid", "newsid", "videoid", "stockcode", "contentid",
    ),
    "timestamp": (
        "time", "ts", "datetime", "unixreviewtime", "eventtime", "createdat", "date", "unixtime", "invoicedate",
        "eventdate",
    ),
    "event_type": ("event", "eventname", "action", "behavior", "behaviour", "behaviortype", "interactiontype", "type"),
    "rating": ("overall", "stars", "score"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is to be read.

    Attributes:
        path: The table to read: the given one, or a copy that has a header and one-character separators.
        columns: Our column name to the table's.
        notes: What was recognised, for people.
    """

    path: Path
    columns: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def recognise(path: Path, columns: Mapping[str, str] | None, folder: Path) -> Layout:
    """Find out how a table is to be read.

    Args:
        path: The table.
        columns: Names that are known already; they are kept.
        folder: Where a rewritten copy may be put.

    Raises:
        TableError: The table cannot be opened.
    """
    table = TableFile(path)
    first = table.data[:65_536].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if table.format in ("csv", "tsv"):
        for name, pattern, separator, names in _BARE:
            if re.fullmatch(pattern, first):
                copy = folder / f"{path.name.split('.')[0]}.tsv"
                rows = table.data.replace(separator.encode(), b"\t")
                copy.write_bytes("\t".join(names).encode() + b"\n" + rows)
                return Layout(copy, dict(columns or {}), [f"read as {name}"])
        if ";" in first and "," not in first and "\t" not in first:
            copy = folder / f"{path.name.split('.')[0]}.tsv"
            copy.write_bytes(table.data.replace(b";", b"\t"))
            path, table = copy, TableFile(copy)
            if {"sessionId", "itemId", "timeframe", "eventdate"} <= set(table.header()):
                _diginetica(table, copy)
                return Layout(copy, dict(columns or {}), ["read as Diginetica: a session is a user"])
    found, notes = dict(columns or {}), list[str]()
    header = table.header()
    taken = {*found.values(), *(name for name in _NAMES if name in header)}
    for ours, usual in _NAMES.items():
        if ours in found or ours in header:
            continue
        plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(header) if name not in taken}
        match = next((plain[name] for name in usual if name in plain), None)
        if match is not None:
            found[ours] = match
            taken.add(match)
            notes.append(f"column {match} is read as {ours}")
    return Layout(path, found, notes)


def _diginetica(table: TableFile, copy: Path) -> None:
    """Write sessions as users, and each event's moment: the day plus the milliseconds since its session began."""
    frame = table.read(["sessionId", "itemId", "timeframe", "eventdate"])
    moment = pl.col("eventdate").str.to_datetime("%Y-%m-%d", strict=False, time_unit="ms").dt.epoch("ms")
    frame.select(
        user_id="sessionId", item_id="itemId", timestamp=moment + pl.col("timeframe").cast(pl.Int64, strict=False)
    ).write_csv(copy, separator="\t")
