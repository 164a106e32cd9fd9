"""Layouts of well-known public data sets, and usual names of columns, read as event tables.

Recognised by their first line, never by their name:

| layout | looks like |
|---|---|
| MovieLens-100K `u.data` | `196<tab>242<tab>3<tab>881250949` |
| MovieLens `ratings.dat` | `1::1193::5::978300760` |
| MovieLens `ratings.csv` | `userId,movieId,rating,timestamp` |
| Amazon ratings | `A39HTATAQ9V7YF,0205616461,5.0,1369699200`, the item first as in 2018, or with a header |
| Amazon reviews | JSON lines with reviewerID, asin, overall, unixReviewTime, or user_id, parent_asin, rating |
| RetailRocket `events.csv` | `timestamp,visitorid,event,itemid,transactionid` |
| Yoochoose clicks, buys | `1,2014-04-07T10:51:09.277Z,214536502,0`, `4,2014-04-06T18:44:58.314Z,214537888,12462,1` |
| Diginetica views | `sessionId;userId;itemId;timeframe;eventdate` |
| RecBole atomic files | `user_id:token<tab>item_id:token<tab>timestamp:float` |
| bare user, item, perhaps a rating, time | `196,242,881250949`, by commas, tabs or blanks |
| Taobao `UserBehavior.csv` | `1,2268318,2520377,pv,1511544070` |
| Gowalla, Foursquare check-ins | `0<tab>2010-10-19T23:55:27Z<tab>30.2359<tab>-97.7951<tab>22847` |
| rows of a user and its items, as S3Rec's | `1 30 20 10`, rows of different lengths |
| bare pairs, as SASRec's and BERT4Rec's | `1 242`, in order of time |

Tables separated by semicolons, bars, `::`, blanks, or tabs in a `.csv`, with decimal commas or not, and tables in
Latin-1 are understood too.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from models.table_files import TableError, TableFile

_NUMBER: Final = r"\d+(?:\.\d+)?"
_ID: Final = r"[\w-]+"
_TIME: Final = r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?"
_PLACE: Final = r"-?\d+\.\d+\t-?\d+\.\d+"
_SEQUENCE: Final = re.compile(rb"\d+(?: \d+)+")
# Files without a header: pattern of the first line, separator, columns.
_BARE: Final = (
    ("MovieLens u.data", rf"\d+\t\d+\t{_NUMBER}\t\d{{6,}}", "\t", ("user_id", "item_id", "rating", "timestamp")),
    ("MovieLens ratings.dat", rf"\d+::\d+::{_NUMBER}::\d{{6,}}", "::", ("user_id", "item_id", "rating", "timestamp")),
    ("Yoochoose clicks", rf"\d+,{_TIME},\d+,\w+", ",", ("user_id", "timestamp", "item_id", "category")),
    ("Yoochoose buys", rf"\d+,{_TIME},\d+,\d+,\d+", ",", ("user_id", "timestamp", "item_id", "price", "quantity")),
    ("Amazon ratings", rf"{_ID},{_ID},{_NUMBER},\d{{9,13}}", ",", ("user_id", "item_id", "rating", "timestamp")),
    ("Taobao's user behaviour", r"\d+,\d+,\d+,(pv|buy|cart|fav),\d{9,13}", ",",
     ("user_id", "item_id", "category", "event_type", "timestamp")),
    ("check-ins", rf"\d+\t{_TIME}\t{_PLACE}\t\w+", "\t", ("user_id", "timestamp", "latitude", "longitude", "item_id")),
    ("Foursquare check-ins", rf"\d+\t\w{{24}}\t\w{{24}}\t[^\t]*\t{_PLACE}\t-?\d+\t[^\t]{{30}}", "\t",
     ("user_id", "item_id", "category_id", "category", "latitude", "longitude", "offset", "timestamp")),
    *((f"user, item, time by {word}", rf"{_ID}{mark}{_ID}{mark}\d{{9,13}}", mark, ("user_id", "item_id", "timestamp"))
      for word, mark in (("commas", ","), ("tabs", "\t"), ("blanks", " "))),
    *((f"user, item, rating, time by {word}", rf"{_ID}{mark}{_ID}{mark}{_NUMBER}{mark}\d{{9,13}}", mark,
       ("user_id", "item_id", "rating", "timestamp")) for word, mark in (("tabs", "\t"), ("blanks", " "))),
    ("pairs of user and item", r"\d+ \d+", " ", ("user_id", "item_id")),
)  # fmt: skip
# Separators other than the one that the file's name tells of, in order of preference; of a header without that one.
_SEPARATORS: Final = ("\t", "::", ";", "|", ",", " ")
_WORDS: Final = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", " ": "blanks"}
# Usual names, in order of preference; a table's column counts under the first of ours it fits.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "user_id": (
        "userid", "user", "uid", "reviewerid", "visitorid", "customerid", "customer", "memberid", "profileid",
        "useridx", "userindex", "userno", "userkey", "username", "custid", "clientid", "client", "buyerid", "accountid",
        "personid", "authorid", "readerid", "viewerid", "studentid", "learnerid", "steamid",
        "householdkey", "householdid",
        "sessionid", "session", "u",
    ),
    "item_id": (
        "itemid", "item", "iid", "movieid", "parentasin", "asin", "productid", "product", "sku", "articleid", "songid",
        "trackid", "bookid", "isbn", "newsid", "videoid", "stockcode",
        "contentid", "aid", "traid", "artistid", "artid",
        "itemidx", "itemindex", "itemno", "itemkey", "prodid", "goodsid", "businessid", "gmapid", "recipeid", "venueid",
        "placeid", "poiid", "locationid", "hotelid", "listingid", "restaurantid", "jobid", "courseid", "gameid",
        "appid", "animeid", "beerid", "filmid", "showid", "docid", "documentid", "postid", "pageid", "adid", "movie",
        "film", "song", "track", "book", "article", "video", "game", "artist", "i",
    ),
    "timestamp": (
        "timestamp", "time", "ts", "timems", "tsms", "eventts", "datetime", "unixreviewtime", "eventtime",
        "createdat", "date", "unixtime",
        "invoicedate", "eventdate", "eventtimestamp", "clicktimestamp", "unixtimestamp", "timestampms", "clicktime",
        "dateadded", "addedat", "tdat", "orderdate", "purchasedate", "reviewdate", "reviewtime",
        "epoch", "localtime", "utctime", "transactiondate", "transactiondt", "submitted", "ratedat",
        "playedat", "listenedat", "watchedat", "viewedat", "clickedat", "visitedat", "purchasedat", "orderedat", "t",
    ),
    "event_type": (
        "eventtype", "event", "eventname", "action", "behavior", "behaviour", "behaviortype", "interactiontype", "type",
    ),
    "rating": ("rating", "overall", "stars", "score", "bookrating"),
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
    table, notes, named = straightened(path, folder, columns)
    if named:
        return Layout(table.path, dict(columns or {}), notes)
    header = table.header()
    found = dict(columns or {})
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
    if not {"timestamp", found.get("timestamp")} & set(header):
        notes.append(f"no column is known to hold times; there are {', '.join(header[:20])}")
    return Layout(table.path, found, notes)


def straightened(
    path: Path, folder: Path, columns: Mapping[str, str] | None = None
) -> tuple[TableFile, list[str], bool]:
    """A table that has a header, commas or tabs between its values, and UTF-8: the given one, or a copy of it.

    Args:
        path: The table.
        folder: Where the copy may be put.
        columns: Names that are known already; a table whose own columns they are keeps those.

    Returns:
        The table, what was recognised, and whether the layout is known as a whole: then its columns have our names.

    Raises:
        TableError: The table cannot be opened.
    """
    table, notes = TableFile(path), list[str]()
    first = table.data[:65_536].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if table.format in ("csv", "tsv"):
        if _SEQUENCE.fullmatch(table.data.split(b"\n", 1)[0].strip()) and (pairs := _pairs_of_sequences(table.data)):
            copy = folder / f"{path.name.split('.')[0]}.tsv"
            copy.write_bytes(pairs)
            return TableFile(copy), ["read as rows of a user and its items, in order of time"], True
        for name, pattern, separator, names in _BARE:
            if re.fullmatch(pattern, first):
                copy = folder / f"{path.name.split('.')[0]}.tsv"
                turned = name == "Amazon ratings" and _items_first(table.data)
                titles = (names[1], names[0], *names[2:]) if turned else names
                rows = table.data.replace(separator.encode(), b"\t")
                copy.write_bytes("\t".join(titles).encode() + b"\n" + rows)
                return TableFile(copy), [f"read as {name}{', items first' if turned else ''}"], True
        if not _is_utf8(table.data):
            copy = folder / f"latin-{path.name.removesuffix('.gz')}"
            copy.write_bytes(table.data.decode("latin-1").encode())
            path, table = copy, TableFile(copy)
            notes.append("not UTF-8: read as Latin-1")
        usual = "\t" if table.format == "tsv" else ","
        mark = next((mark for mark in _SEPARATORS if mark in first), "") if usual not in first else ""
        if mark:
            copy = folder / f"{path.name.split('.')[0]}.csv"
            _without_marks(table, mark, copy)
            path, table = copy, TableFile(copy)
            if not columns and {"sessionId", "itemId", "timeframe", "eventdate"} <= set(table.header()):
                _diginetica(table, copy)
                return TableFile(copy), ["read as Diginetica: a session is a user"], True
    return table, notes, False


@contextmanager
def named_as(path: Path, folder: Path) -> Iterator[None]:
    """Let errors name the table that was given, not a copy of it in a folder that is gone afterwards."""
    try:
        yield
    except TableError as error:
        told = (
            re.sub(rf"{re.escape(str(folder))}/\S+", str(path), text) for text in (error.what, error.why, error.fix)
        )
        raise TableError(*told) from error


def _pairs_of_sequences(data: bytes) -> bytes:
    """Rows of a user and its items as pairs with a header; nothing where all rows have one length, as tables have."""
    rows = [line.split() for line in data.splitlines() if line.strip()]
    if len({len(row) for row in rows}) < 2 or not all(_SEQUENCE.fullmatch(b" ".join(row)) for row in rows):
        return b""
    return b"user_id\titem_id\n" + b"".join(b"%s\t%s\n" % (row[0], item) for row in rows for item in row[1:])


def _items_first(data: bytes) -> bool:
    """Whether Amazon's ids of products (10 characters; users' have more) stand in the first column."""
    rows = [line.split(b",", 2) for line in data[:65_536].splitlines()[:-1] or data.splitlines()]
    first, second = ({len(row[column]) for row in rows if len(row) > 1} for column in (0, 1))
    return first == {10} and second != {10}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_marks(table: TableFile, mark: str, copy: Path) -> None:
    """Write a table that something else separates as CSV, with decimal points for the commas such tables may have.

    Raises:
        TableError: The rows do not fit the header.
    """
    data, one = (table.data.replace(mark.encode(), b"\t"), "\t") if len(mark) > 1 else (table.data, mark)
    try:
        frame = pl.read_csv(io.BytesIO(data), separator=one, infer_schema=False)
    except pl.exceptions.PolarsError as exc:
        what = f"The table {table.path} is not readable with {_WORDS.get(mark, repr(mark))} as separators"
        raise TableError(what, str(exc).strip().splitlines()[0], "Check its quotation marks and rows") from exc
    for name in frame.columns:
        known = frame[name].drop_nulls()
        if len(known) and known.str.contains(r"^\s*-?\d+(,\d+)?\s*$").all():
            frame = frame.with_columns(pl.col(name).str.replace(",", "."))
    frame.write_csv(copy)


def _diginetica(table: TableFile, copy: Path) -> None:
    """Write sessions as users, and each event's moment: the day plus the milliseconds since its session began."""
    frame = table.read(["sessionId", "itemId", "timeframe", "eventdate"])
    moment = pl.col("eventdate").str.to_datetime("%Y-%m-%d", strict=False, time_unit="ms").dt.epoch("ms")
    frame.select(
        user_id="sessionId", item_id="itemId", timestamp=moment + pl.col("timeframe").cast(pl.Int64, strict=False)
    ).write_csv(copy)
