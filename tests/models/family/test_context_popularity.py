from dataclasses import replace

import numpy as np
import torch

from models.family.asking import queries_before
from models.family.context_popularity import ContextPopularity
from models.family.counting import Popularity
from models.family.interface import clock_of
from models.sequences import Histories
from tests.models.family.walks import ITEMS, lesson, walks

HOUR = 3_600_000


def days(events: int = 3000, seed: int = 0) -> Histories:
    """Users of five events within one hour: low items in the morning, high ones in the evening, 3 at any time."""
    rng = np.random.default_rng(seed)
    users = events // 5
    evening = rng.random(users) < 0.5
    begin = rng.integers(0, 300, users) * 24 + np.where(evening, 20, 8)
    low, high = rng.integers(1, 4, (users, 5)), rng.integers(3, 6, (users, 5))
    items = np.where(evening[:, None], high, low)
    times = begin[:, None] * HOUR + np.arange(5) * 60_000
    gaps = np.tile([0, 60, 60, 60, 60], users)
    none = np.zeros(events, np.uint8)
    return Histories(items.ravel().astype(np.int32), none, gaps, times.ravel(), np.arange(0, events + 1, 5))


def test_new_users_get_what_is_popular_at_this_hour():
    source = days()
    model = ContextPopularity(6)
    model.fit(lesson(source, held_out=1, items=6))
    assert model.prior > 0
    scores = model.item_scores(model.greeting(torch.tensor([8, 20])))
    assert scores[0, 1] > scores[0, 5] and scores[1, 5] > scores[1, 1]
    first = source.starts[:-1]
    asked = queries_before(model, source, first)
    plain = Popularity(6)
    plain.fit(lesson(source, held_out=1, items=6))
    targets = torch.from_numpy(source.items[first].astype(np.int64))
    hits = [
        (one.item_scores(queries).topk(2).indices == targets[:, None]).any(1).float().mean().item()
        for one, queries in ((model, asked), (plain, queries_before(plain, source, first)))
    ]
    assert hits[0] > hits[1] + 0.1


def test_without_times_or_without_hours_that_matter_it_is_popularity():
    untimed = ContextPopularity(6)
    untimed.fit(replace(lesson(days(), held_out=1, items=6), timed=False))
    assert untimed.prior == 0
    flat = ContextPopularity(ITEMS)
    flat.fit(lesson(walks()))
    order = flat.scores(flat.initial_state(1))[0, 1:].argsort(descending=True, stable=True)
    counts = torch.from_numpy(lesson(walks()).past.counts(ITEMS)[1:])
    assert torch.equal(counts[order], counts.sort(descending=True).values)


def test_hours_of_the_week_begin_on_monday():
    assert clock_of(np.array([0, 4 * 24 * HOUR])).tolist() == [72, 0]  # the epoch was a Thursday
