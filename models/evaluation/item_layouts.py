"""Tables of items of well-known public data sets, found beside their events and rewritten as a table with a header.

| events | items beside them |
|---|---|
| MovieLens `u.data`, `ratings.dat`, `ratings.csv` | `u.item`, `movies.dat`, `movies.csv` |
| Amazon reviews `Beauty.json`, `reviews_Beauty_5.json`, `Beauty.jsonl` | `meta_Beauty.json`, `meta_Beauty.jsonl` |
| RetailRocket `events.csv` | `item_properties_part1.csv`, `..._part2.csv`: the latest category of each item |
| Diginetica `train-item-views.csv` | `products.csv`, `product-categories.csv` |
| RecBole `NAME.inter` | `NAME.item` |
| `NAME_events.*` | `NAME_items.*` |
"""

import ast
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from models.table_files import TableError, TableFile

_GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_META: Final = ("title", "brand", "main_category", "store")
_EXTRA: Final = re.compile(r"^reviews_|_\d+$")  # what names of Amazon's reviews have besides the category's


def beside(events: Path) -> Path | None:
    """The table of items that belongs to an event table by its name, None where there is none."""
    stem, _, ending = events.name.partition(".")
    pattern: list[str] = []
    if ending.startswith("inter"):
        pattern = [f"{stem}.item", f"{stem}.item.gz"]
    elif events.name == "u.data":
        pattern = ["u.item"]
    elif stem == "ratings":
        pattern = ["movies.dat", "movies.csv", "movies.csv.gz"]
    elif stem == "train-item-views":
        pattern = ["products.csv", "product-categories.csv"]
    elif stem == "events":
        pattern = ["item_properties_part1.csv", "item_properties_part1.csv.gz"]
    if stem.endswith("_events"):
        pattern += [f"{stem.removesuffix('_events')}_items.*"]
    if ending.startswith("json"):
        pattern += [f"meta_{_EXTRA.sub('', stem)}.json*"]
    found = (path for name in pattern for path in sorted(events.parent.glob(name)))
    return next((path for path in found if path.is_file()), None)


def readable(path: Path, folder: Path) -> Path:
    """A table of items with a header: the given one, or a copy of it in ``folder`` where its layout is a known one.

    Raises:
        TableError: The table cannot be opened.
    """
    table = TableFile(path)
    first = table.data[:65_536].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    for pattern, rewrite in _LAYOUTS.items():
        if re.match(pattern, first):
            copy = folder / f"{path.name.split('.')[0]}_items.tsv"
            try:
                rewrite(table, path).write_csv(copy, separator="\t", quote_style="never")
            except (pl.exceptions.PolarsError, IndexError, OSError) as exc:
                what = f"The table of items {path} is not what its first line says"
                raise TableError(what, str(exc).strip().split("\n")[0], "Check the file and those beside it") from exc
            return copy
    return path


def _u_item(table: TableFile, path: Path) -> pl.DataFrame:
    del path
    rows = [line.split("|") for line in _text(table).splitlines() if line.count("|") >= 23]
    genres = [[name for name, flag in zip(_GENRES, row[5:24], strict=False) if flag == "1"] for row in rows]
    return _frame(
        {
            "item_id": [row[0] for row in rows],
            "title": [row[1] for row in rows],
            "genres": ["|".join(names) for names in genres],
        }
    )


def _movies_dat(table: TableFile, path: Path) -> pl.DataFrame:
    del path
    rows = [line.split("::") for line in _text(table).splitlines() if line.count("::") >= 2]
    return _frame(
        {
            "item_id": [row[0] for row in rows],
            "title": [row[1] for row in rows],
            "genres": [row[2] for row in rows],
        }
    )


def _amazon(table: TableFile, path: Path) -> pl.DataFrame:
    """Lines of JSON, or of Python dictionaries as in 2014; categories may be lists of lists."""
    del path
    found: dict[str, list[str]] = {name: [] for name in ("item_id", *_META, "categories")}
    for line in _text(table).splitlines():
        entry = _entry(line)
        item = entry.get("parent_asin") or entry.get("asin")
        if not item:
            continue
        found["item_id"].append(str(item))
        for name in _META:
            value = entry.get(name)
            found[name].append(str(value) if isinstance(value, str | int | float) else "")
        named = _flat(entry.get("categories") or entry.get("category") or [])
        found["categories"].append("|".join(re.sub(r"[|,;\s]+", "-", name) for name in dict.fromkeys(named)))
    return _frame({name: values for name, values in found.items() if any(values)})


def _properties(table: TableFile, path: Path) -> pl.DataFrame:
    """The latest category of each item, over all parts of RetailRocket's properties."""
    del table
    parts = sorted(path.parent.glob(re.sub(r"part\d", "part*", path.name)))
    frames = [TableFile(part).read(["timestamp", "itemid", "property", "value"]) for part in parts]
    frame = (
        pl.concat(frames)
        .filter(pl.col("property") == "categoryid")
        .with_columns(pl.col("timestamp").cast(pl.Int64, strict=False))
    )
    latest = frame.sort("timestamp").unique("itemid", keep="last", maintain_order=True)
    return latest.select(item_id="itemid", category="value")


def _products(table: TableFile, path: Path) -> pl.DataFrame:
    """Names (as tokens) and categories of Diginetica's products, whichever of the two tables was given."""
    del table
    frames = []
    for name, ours in (("products.csv", "name_tokens"), ("product-categories.csv", "category")):
        part = path.with_name(name)
        if part.is_file():
            theirs = {"name_tokens": "product.name.tokens", "category": "categoryId"}[ours]
            frame = pl.read_csv(io.BytesIO(TableFile(part).data), separator=";", infer_schema=False)
            frame = frame.select(item_id="itemId", **{ours: pl.col(theirs)}).unique("item_id", maintain_order=True)
            frames.append(frame.with_columns(pl.col(ours).str.replace_all(",", " ")))
    found = frames[0]
    for frame in frames[1:]:
        found = found.join(frame, on="item_id", how="full", coalesce=True)
    return found


_LAYOUTS: Final[Mapping[str, Callable[[TableFile, Path], pl.DataFrame]]] = {
    r"\d+\|[^|]*\|[^|]*\|[^|]*\|[^|]*(\|[01]){19}$": _u_item,
    r"\d+::.*::": _movies_dat,
    r"\{.*['\"](parent_asin|asin)['\"]\s*:": _amazon,
    r"timestamp,itemid,property,value$": _properties,
    r"itemId;(pricelog2;product\.name\.tokens|categoryId)$": _products,
}


def _text(table: TableFile) -> str:
    """The whole file; MovieLens' older ones are in Latin-1."""
    try:
        return table.data.decode("utf-8")
    except UnicodeDecodeError:
        return table.data.decode("latin-1")


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        try:
            entry = ast.literal_eval(line)
        except (ValueError, SyntaxError):
            return {}
    return entry if isinstance(entry, dict) else {}


def _flat(value: object) -> list[str]:
    if isinstance(value, list):
        return [name for part in value for name in _flat(part)]
    return [value] if isinstance(value, str) and value else []


def _frame(columns: dict[str, list[str]]) -> pl.DataFrame:
    """Columns of text without what a TSV cannot hold."""
    clean = {name: [re.sub(r"[\s\"]+", " ", value).strip() for value in values] for name, values in columns.items()}
    return pl.DataFrame(clean, schema=dict.fromkeys(clean, pl.String))
