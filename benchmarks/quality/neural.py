"""Full-ranking test of a model version alone, on the states the stream keeps.

Letters: E events, U users, H hidden width, V rows of the model.
"""

import numpy as np
from numpy.typing import NDArray

from models.batches import Histories
from models.context import histories_before
from models.history import Part, distinct
from models.recommend import Recommender
from models.repeats import LastItems
from models.serving import ServingModel, gap_feature
from state.arena import Arena
from state.events import EventBatch
from state.store import UserStore

_BLOCK_SCORES = 1 << 20  # 4 MiB at once


class NeuralTest:
    """Ranks events by the serving version's scores alone, right before the recommender applies them.

    Every item seen so far competes: those of the vocabulary by score, the others below them, tied.

    Args:
        recommender: Whose version and whose users' vectors are used; they are only read.
        store: Its users.
    """

    def __init__(self, recommender: Recommender, store: UserStore) -> None:
        self._recommender, self._store = recommender, store
        self._model: ServingModel | None = None
        self._row_of = np.zeros(1, np.int32)
        self._scratch = np.zeros(0, np.int32)

    def ranks(self, batch: EventBatch, seen: NDArray[np.int64], first: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Ranks (E,) of a batch's items, from 1, `inf` for an item's first event ever.

        Args:
            batch: What `Recommender.advance` gets next.
            seen: (E,) how many items had appeared before each event.
            first: (E,) whether it is the first event of its item.
        """
        model = self._recommender.model
        if model is None:  # nothing tells the items apart: all tie
            return np.where(first, np.inf, 0.5 * (seen + 1))
        numbers = self._recommender.items.numbers(batch.items)
        rows = self._rows(model, numbers)
        before, past = self._states(model, batch, numbers, rows)
        known = len(model.vocabulary) - 1
        last = LastItems.before(past.items, past.lengths, self._row_of)
        ranks = 0.5 * (1 + known + seen)  # of an item without a row: behind the known ones, tied with the others
        block = max(1, _BLOCK_SCORES // (known + 1))
        for start in range(0, len(rows), block):
            at = np.flatnonzero(rows[start : start + block]) + start
            scores = model.scores(before[at], last.of(at))[:, 1:]
            wanted = scores[np.arange(len(at)), rows[at] - 1][:, None]
            better, ties = (scores > wanted).sum(1), (scores == wanted).sum(1) - 1
            ranks[at] = 1 + better + 0.5 * ties
        return np.where(first, np.inf, ranks)

    def _rows(self, model: ServingModel, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        items = self._recommender.items
        if self._model is not model or len(self._row_of) < len(items):
            self._row_of = np.zeros(2 * len(items) + 2, np.int32)
            self._row_of[items.numbers(model.vocabulary[1:])] = np.arange(1, len(model.vocabulary), dtype=np.int32)
            self._model = model
        return self._row_of[numbers]

    def _states(
        self, model: ServingModel, batch: EventBatch, numbers: NDArray[np.int32], rows: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], Histories]:
        """Hidden vectors before each event (E, H) and what users did until then, as `advance` will have them."""
        slots, arena = self._store.slots(batch.users), self._store.arena
        self._bring_up_to_date(model, arena, slots)
        if len(self._scratch) < arena.capacity:
            self._scratch = np.zeros(arena.capacity, np.int32)
        seconds = np.maximum(batch.times_ms // 1000, 0)
        past, previous = histories_before(
            [Part(arena, slots, slice(0, len(slots)))], numbers, batch.kinds, seconds, self._scratch
        )
        gaps = np.where(past.lengths > 0, np.maximum(seconds - past.seconds[:, 0], 0), 0)
        users, user = distinct(slots, self._scratch)
        state = arena.hidden[users].astype(np.float32)  # (U, S), a copy
        start = state[:, : model.hidden].copy()
        after = model.steps(state, user, rows, batch.kinds, gap_feature(gaps))
        return np.where(previous[:, None] >= 0, after[previous], start[user]), past

    def _bring_up_to_date(self, model: ServingModel, arena: Arena, slots: NDArray[np.int32]) -> None:
        """Rebuild vectors another version made, as the recommender would do a moment later."""
        if arena.state_size != model.state_size:
            arena.resize_state(model.state_size)
        self._recommender.rehydrate(arena, np.unique(slots[arena.model[slots] != model.fingerprint]))
