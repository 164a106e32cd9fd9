"""Small event logs for the tests of the quality benchmarks."""

import numpy as np
import polars as pl

from benchmarks.quality.log import Log
from models.tables import Events


def events(users: list[str], items: list[str], kinds: list[int] | None = None) -> Events:
    n = len(users)
    times = 1_700_000_000_000 + 1_000 * np.arange(n, dtype=np.int64)
    return Events(pl.Series(users), pl.Series(items), np.array(kinds or [0] * n, np.uint8), times)


def random_events(n: int, users: int, items: int, seed: int = 0) -> Events:
    """Walks: half of the time a user goes on to the next item, else anywhere."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, items, users)
    who, what = rng.integers(0, users, n), np.zeros(n, np.int64)
    for place, user in enumerate(who.tolist()):
        at[user] = (at[user] + 1) % items if rng.random() < 0.5 else rng.integers(0, items)
        what[place] = at[user]
    kinds = rng.integers(0, 3, n).tolist()
    return events([f"u{user}" for user in who.tolist()], [f"i{item}" for item in what.tolist()], kinds)


def random_log(n: int, users: int, items: int, seed: int = 0) -> Log:
    return Log.of(random_events(n, users, items, seed))
