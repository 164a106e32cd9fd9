"""Small logs for the tests of evaluation."""

from pathlib import Path

import numpy as np

from models.evaluation.dataset import Dataset
from models.family.catalogue import Catalogue
from models.sequences import Histories


def histories(rows: list[list[int]], times: list[list[int]] | None = None) -> Histories:
    """Histories of item rows, one list per user; an event a second unless times (s) are given."""
    starts = np.cumsum([0, *map(len, rows)])
    items = np.array([row for user in rows for row in user], np.int32)
    moments = [list(range(len(user))) for user in rows] if times is None else times
    seconds = np.array([moment for user in moments for moment in user], np.int64)
    gaps = np.diff(seconds, prepend=0)
    gaps[starts[:-1][np.diff(starts) > 0]] = 0
    return Histories(items, np.zeros(len(items), np.uint8), gaps, seconds * 1000, starts.astype(np.int64))


def dataset(source: Histories, timed: bool = True) -> Dataset:
    """A data set of histories, its items without descriptions."""
    rows = int(source.items.max(initial=0)) + 1
    return Dataset("test", source, ["", *(f"i{row}" for row in range(1, rows))], Catalogue.empty(rows), timed=timed)


def ring(users: int = 30, length: int = 20, items: int = 15, seed: int = 0) -> Histories:
    """Users who walk along a ring of items, eight times in ten to the next one; all act in turn."""
    rng = np.random.default_rng(seed)
    at = rng.integers(1, items, users)
    rows: list[list[int]] = [[] for _ in range(users)]
    times: list[list[int]] = [[] for _ in range(users)]
    for step in range(length):
        for user in range(users):
            at[user] = at[user] % (items - 1) + 1 if rng.random() < 0.8 else rng.integers(1, items)
            rows[user].append(int(at[user]))
            times[user].append(1_700_000_000 + step * users + user)
    return histories(rows, times)


def table(path: Path, lines: list[str]) -> Path:
    """A table of the given lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
