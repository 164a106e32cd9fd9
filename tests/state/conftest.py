from collections.abc import Callable

import numpy as np
import pytest

from state.arena import Arena
from state.items import ItemIndex

Populate = Callable[..., tuple[Arena, ItemIndex]]


@pytest.fixture(scope="session")
def populate() -> Populate:
    """Build an arena whose users u0, u1, ... have random histories."""

    def build(n_users: int, n_events: int = 400, state_size: int = 8, seed: int = 1) -> tuple[Arena, ItemIndex]:
        rng = np.random.default_rng(seed)
        arena, index = Arena(state_size, top_k=3, capacity=4), ItemIndex()
        for event in range(n_events):
            slots = np.unique(arena.slots([f"u{i}" for i in rng.integers(0, n_users, 5)]))
            n = len(slots)
            items = index.numbers([f"i{i}" for i in rng.integers(0, 40, n)])
            kinds = rng.integers(0, 3, n)
            times_ms = 1_700_000_000_000 + 1000 * event + rng.integers(0, 999, n)
            arena.apply(slots, items, kinds, times_ms, np.arange(n) + 10 * event, times_ms + 5)
            arena.hidden[slots] = rng.normal(size=(n, state_size))
            arena.model[slots] = rng.integers(1, 2**32)
        return arena, index

    return build
