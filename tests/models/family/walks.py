"""Small data and small models for the tests of the family."""

import numpy as np
import torch

from models.family.catalogue import Catalogue
from models.family.interface import EventBatch, Lesson, SequenceModel
from models.family.registry import MODELS
from models.sequences import Histories

ITEMS = 14
SMALL = {
    **{name: {"hidden": 8, "embedding": 6} for name in ("rnn", "lstm", "gru", "time-lstm")},
    "bpr": {"width": 6},
    "ensemble": {"member_settings": {"gru": {"hidden": 8, "embedding": 6}}},
    "transformer": {"width": 8, "reach": 5},
    "bert": {"width": 8, "window": 6},
    "fusion": {"width": 8, "reach": 5},
}


def walks(users: int = 30, length: int = 20, items: int = ITEMS, seed: int = 0) -> Histories:
    """Users who walk along a ring of items, eight times in ten to the next one, else anywhere."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((users, length), np.int32)
    rows[:, 0] = rng.integers(1, items, users)
    for step in range(1, length):
        onward = rows[:, step - 1] % (items - 1) + 1
        rows[:, step] = np.where(rng.random(users) < 0.8, onward, rng.integers(1, items, users))
    size = users * length
    gaps = rng.integers(1, 5000, (users, length))
    gaps[:, 0] = 0
    times = (1_700_000_000 + np.cumsum(gaps, axis=1)) * 1000
    kinds = rng.integers(0, 3, size).astype(np.uint8)
    return Histories(rows.ravel(), kinds, gaps.ravel(), times.ravel(), np.arange(0, size + 1, length))


def lesson(source: Histories, held_out: int = 2, items: int = ITEMS, **changes: object) -> Lesson:
    """All but each user's last events to learn from, those to choose by."""
    place = np.arange(len(source)) - np.repeat(source.starts[:-1], np.diff(source.starts))
    judged = place >= np.repeat(np.diff(source.starts), np.diff(source.starts)) - held_out
    kept = np.concatenate(([0], np.cumsum(~judged)))
    columns = (source.items, source.kinds, source.gaps_seconds, source.times_ms)
    past = Histories(*(column[~judged] for column in columns), starts=kept[source.starts])
    texts = ["", *(f"film number {row} of series {row // 4}" for row in range(1, items))]
    catalogue = Catalogue(texts, [(), *((f"series={row // 4}",) for row in range(1, items))])
    return Lesson(past, source, judged, catalogue, effort=1e-6, **changes)  # type: ignore[arg-type]


def windows(users: int = 4, steps: int = 13, items: int = ITEMS, seed: int = 1) -> EventBatch:
    """Random events, unknown items among them."""
    rng = np.random.default_rng(seed)
    shape = (users, steps)
    items_, kinds, clock = (torch.from_numpy(rng.integers(0, most, shape)) for most in (items, 3, 168))
    return EventBatch(items_, kinds, torch.from_numpy(rng.integers(0, 99_999, shape).astype(np.float32)), clock)


def fitted(name: str, seed: int = 0) -> SequenceModel:
    """A small model of that name fitted to `walks`."""
    model = MODELS[name](ITEMS, **SMALL.get(name, {}))
    model.fit(lesson(walks(), seed=seed))
    return model
