"""The online path of one micro-batch: skip what is applied, rebuild stale states, step, rank, recommend.

    fresh = offset beyond the user's last applied one          a redelivered event never advances a state twice
    rebuild hidden vectors another model version made          from the user's last 50 events
    append to histories -> time gaps, exclusions               event by event
    step -> hidden vectors                                     event by event
    scores -> exact top-K                                      a matrix product per block of events
    or, fused: scores, transition memory, popularity, own items -> weights learn -> top-K       (`models.fusion`)
        lists with too few candidates are filled up: by the model's scores, then by popularity
    where did each event stand in the list shown before it?    prequential hit rate, of the model and of popularity
    learn popularity

Letters: E events, K recommendations, V rows of the model's vocabulary, X exclusions (0 or 50).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.context import histories_before
from models.decayed_popularity import DecayedPopularity
from models.exclusion import Exclude, Exclusion, NamedItems
from models.fused_rank import rank_fused
from models.fusion import Fusion
from models.history import Part, PopularList, append_events, distinct, rank_in_last
from models.parts import fresh_parts
from models.repeats import LastItems
from models.serving import ServingModel, gap_feature
from models.staging import ItemRows, Staged, rebuilt
from models.topk import fill_up, top_k
from state.arena import Arena
from state.events import EventBatch
from state.items import ItemIndex
from state.record import RING
from state.store import UserStore

POPULARITY: Final = "popularity"  # model_version of lists made without a model
POPULARITY_AND_TRANSITIONS: Final = "popularity+transitions"  # the same, fused with what counts at once
_BLOCK_SCORES: Final = 1 << 18  # scores computed at once: 1 MiB stays in the L2 cache until top_k reads it
_MAX_SECONDS: Final = 0xFFFFFFFF
_NO_VECTORS: Final = np.zeros((0, 0), np.float32)
_NO_USERS: Final = np.zeros(0, np.int32)
_NO_RANKS: Final = np.zeros(0, np.float32)
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Advanced:
    """What one batch did and what is to be sent."""

    fresh: NDArray[np.int64]  # (E,) positions in the batch of the events that were applied
    listed: NDArray[np.int64]  # (L,) positions in `fresh` of the events that are answered
    items: NDArray[np.int32]  # (L, K) item numbers, 0 ends a list
    scores: NDArray[np.float32]  # (L, K)
    ranks: NDArray[np.int32]  # (E,) place of the event's item in the user's last list: 0 not in it, -1 no list yet
    rank_models: NDArray[np.uint32]  # (E,) fingerprint of the version that made that list
    popularity_ranks: NDArray[np.int32]  # (E,) the same for the most popular items this user could be shown; never -1
    model_version: str
    rehydrated: int
    tested: NDArray[np.float32]  # (E,) fused only: rank of the event's item among the candidates, 0 = not tested


class Recommender:
    """Everything a worker computes with; one thread at a time.

    Args:
        items: numbers of item ids, shared with the users' stores.
        k: recommendations per list.
        exclude: which items of a user's last 50 events are left out.
        latest_only: answer only the last event of each user in a batch.
        half_life_ms: decay of popularity in event time.
        fusion: rank by everything that counts at once together with the model; None ranks by the model alone.
    """

    def __init__(
        self,
        items: ItemIndex,
        k: int,
        exclude: Exclude = "auto",
        latest_only: bool = False,
        half_life_ms: float = 6e8,
        fusion: Fusion | None = None,
    ) -> None:
        self.items, self.k, self.latest_only = items, k, latest_only
        self.exclusion = Exclusion(exclude)
        self.popularity = DecayedPopularity(half_life_ms)
        self.fusion = fusion
        self.test_all = False  # rank every event before it is learnt (benchmarks), not only those learnt from
        self.model: ServingModel | None = None
        self._known = ItemRows([], items)
        self._staged: Staged | None = None
        self._most: NDArray[np.float32] | None = None  # (V,) -inf where an item is blocked; None: none is
        self._named = NamedItems(items)
        self._scratch = np.zeros(0, np.int32)  # zeros, one a slot: see `distinct`

    @property
    def state_size(self) -> int:
        """Width of the hidden vectors to keep; 0 without a model."""
        return self.model.state_size if self.model else 0

    @property
    def model_version(self) -> str:
        """Name of the version that makes the lists."""
        if self.model:
            return self.model.name
        return POPULARITY if self.fusion is None else POPULARITY_AND_TRANSITIONS

    def stage(self, staged: Staged) -> None:
        """Let a version's vectors be made beside the stream until `swap` names that version."""
        self._staged = staged

    def swap(self, model: ServingModel) -> None:
        """Serve another version from the next batch on; users' vectors are rebuilt at their next event, or staged."""
        if self._staged is None or self._staged.model is not model:
            self._staged = Staged(model, self.items)
        known = self._staged.rows
        known.map_some(len(model.vocabulary))
        self._known, self.model = known, model
        self._most = None
        if self.fusion is not None:
            self.fusion.set_model(model.fingerprint, known.numbers)
        self._limit(self.popularity.blocked)

    def settle(self, users: int) -> bool:
        """Give some users the vectors that were staged for them; returns whether there are no more of them."""
        return self._staged is None or self._staged.model is not self.model or self._staged.settle(users)

    def block(self, item_id: str, blocked: bool = True) -> None:
        """Never recommend an item, or recommend it again (the catalogue's `blocked`)."""
        number = self.items.number(item_id)
        self.popularity.block(number, blocked)
        if self.fusion is not None:
            self.fusion.block(np.array([number], np.int32), blocked)
        self._limit(np.array([number], np.int32), blocked)

    def advance(self, store: UserStore, batch: EventBatch) -> Advanced:
        """`advance_all` for a batch of one partition."""
        return self.advance_all([store], batch, [0, len(batch)])

    def advance_all(self, stores: Sequence[UserStore], batch: EventBatch, bounds: Sequence[int]) -> Advanced:
        """Apply one batch to its users and make their lists.

        Args:
            stores: the users of each partition.
            batch: events, partition by partition, in the order to apply them.
            bounds: partition p has the events `bounds[p]:bounds[p + 1]`.
        """
        model = self.model
        fresh, parts = fresh_parts(stores, batch, bounds, model.state_size if model else None)
        kinds, times_ms = _take(batch.kinds, fresh), _take(batch.times_ms, fresh)
        numbers = _take(self.items.numbers(batch.items), fresh)
        listed = _last_of_each_user(parts) if self.latest_only else np.arange(len(fresh))

        rehydrated = self._rehydrate(parts)
        self._make_room(parts)
        policy = self.exclusion.policy
        seconds = np.minimum(np.maximum(times_ms // 1000, 0), _MAX_SECONDS)  # np.clip takes 8 us more
        if self.fusion is not None or model is not None:
            histories, previous = histories_before(parts, numbers, kinds, seconds, self._scratch)
        popular, shares = self.popularity.top(self.k + RING)
        compared = PopularList(self.popularity.place_of, len(popular), self.k)
        done = append_events(parts, numbers, kinds, times_ms, _take(batch.touched_ms, fresh), policy, compared)
        self.exclusion.watch(done.repeats)
        excluded = _take(done.excluded, listed)
        first = hidden = _NO_VECTORS
        user = _NO_USERS
        gaps = gap_feature(done.gaps)
        if model:
            first, hidden, user = self._step(model, parts, numbers, kinds, gaps)
        if self._staged is not None and self._staged.model is not model:
            for part in parts:
                self._staged.follow(part.arena, part.slots, numbers[part.at], kinds[part.at], gaps[part.at])
        tested = _NO_RANKS
        if self.fusion is not None:
            before = _Before(previous, hidden, first, user)
            fused = rank_fused(
                self.fusion, model, self._known, numbers, kinds, seconds, histories, before, hidden, self.k, policy,
                self.test_all,
            )  # fmt: skip
            items, scores = self._named.only(_take(fused.items, listed), _take(fused.scores, listed))
            tested = fused.ranks
            if not items[:, -1].all():
                short = np.flatnonzero(items[:, -1] == 0)
                at, found = listed[short], items[short]
                if model:
                    last = LastItems(histories.items, histories.lengths, at, numbers[at], self._known.row_of)
                    out = np.concatenate([excluded[short], found], axis=1)
                    found = fill_up(found, self._rank(model, hidden[at], last, out)[0])
                out = np.concatenate([excluded[short], found], axis=1)
                found = fill_up(found, self._rank_popular(popular, shares, out)[0])
                scores[short] = np.where(found > items[short], np.float32(0.0), scores[short])
                items[short] = found
        elif model:
            last = LastItems(histories.items, histories.lengths, listed, _take(numbers, listed), self._known.row_of)
            items, scores = self._rank(model, _take(hidden, listed), last, excluded)
        else:
            items, scores = self._rank_popular(popular, shares, excluded)

        ranks, rank_models = rank_in_last(parts, numbers, items, listed, model.fingerprint if model else 0)
        self.popularity.learn(numbers, times_ms)
        return Advanced(
            fresh, listed, items, scores, ranks, rank_models, done.popular_ranks, self.model_version, rehydrated, tested
        )

    def rehydrate(self, arena: Arena, slots: NDArray[np.int32]) -> None:
        """Rebuild the hidden vectors of distinct `slots` from their last 50 events with the serving model."""
        model = self.model
        if model is None or not len(slots):
            return
        arena.hidden[slots] = rebuilt(model, self._known, arena, slots)
        arena.model[slots] = model.fingerprint

    def _rehydrate(self, parts: Sequence[Part]) -> int:
        if self.model is None:
            return 0
        rebuilt_users = 0
        for part in parts:
            other = part.arena.model[part.slots] != self.model.fingerprint
            if other.any():
                rebuilt_users += self._rehydrate_some(self.model, part.arena, np.unique(part.slots[other]))
        return rebuilt_users

    def _rehydrate_some(self, model: ServingModel, arena: Arena, stale: NDArray[np.int32]) -> int:
        known = stale[arena.count[stale] > 0]
        new = stale[arena.count[stale] == 0]
        arena.hidden[new] = 0
        arena.model[new] = model.fingerprint
        staged = self._staged
        self.rehydrate(arena, staged.take(arena, known) if staged and staged.model is model else known)
        return len(known)

    def _make_room(self, parts: Sequence[Part]) -> None:
        largest = max((part.arena.capacity for part in parts), default=0)
        if len(self._scratch) < largest:
            self._scratch = np.zeros(largest, np.int32)

    def _step(
        self,
        model: ServingModel,
        parts: Sequence[Part],
        numbers: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        gaps: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """Users' hidden vectors before the batch (U, H), those after each event (E, H), and each event's user (E,)."""
        user = np.empty(len(numbers), np.int32)
        users, states, u = [], [], 0
        for part in parts:
            of_part, user_of_part = distinct(part.slots, self._scratch)
            np.add(user_of_part, u, out=user[part.at])
            users.append(of_part)
            states.append(part.arena.hidden[of_part])
            u += len(of_part)
        if not parts:
            states.append(np.zeros((0, model.state_size), np.float16))
        state = (states[0] if len(states) == 1 else np.concatenate(states)).astype(np.float32)  # (U, S)
        first = state[:, : model.hidden].copy()
        after = model.steps(state, user, self._rows(numbers), kinds, gaps)
        u = 0
        for part, of_part in zip(parts, users, strict=True):
            part.arena.hidden[of_part] = state[u : u + len(of_part)]
            u += len(of_part)
        return first, after, user

    def _rank(
        self, model: ServingModel, hidden: NDArray[np.float32], last: LastItems, excluded: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        n, rows_per_block = len(hidden), max(2, _BLOCK_SCORES // len(model.vocabulary))
        excluded_rows = self._rows(excluded)
        rows, values = np.zeros((n, self.k), np.int32), np.zeros((n, self.k), np.float32)
        for start in range(0, n, rows_per_block):
            block = slice(start, start + rows_per_block)
            scores = model.scores(hidden[block], last.of(block))
            if self._most is not None:
                np.minimum(scores, self._most, out=scores)  # as long for one blocked item as for all
            rows[block], values[block] = top_k(scores, excluded_rows[block], self.k)
        return self._known.numbers[rows], values

    def _rank_popular(
        self, popular: NDArray[np.int32], shares: NDArray[np.float32], excluded: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The most popular items a user may be shown; column 0 stands for "no item", as row 0 does in a vocabulary."""
        numbers = np.concatenate([np.zeros(1, np.int32), popular])
        scores = np.concatenate([np.zeros(1, np.float32), shares])
        places = self.popularity.places(excluded)
        columns = np.where(places < len(popular), places + 1, 0).astype(np.int32)
        rows, values = top_k(np.repeat(scores[None, :], len(excluded), axis=0), columns, self.k)
        return numbers[rows], values

    def _limit(self, numbers: NDArray[np.int32], blocked: bool = True) -> None:
        """What no score of the model may exceed in lists made by it alone: -inf for blocked items."""
        if self.model is None or not len(numbers):
            return
        if self._most is None:  # up to here none was blocked
            self._most = np.full(len(self.model.vocabulary), np.inf, np.float32)
        self._most[self._rows(numbers)] = -np.inf if blocked else np.inf

    def _rows(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        return self._known.rows(numbers)


def _take(array: NDArray[_Scalar], at: NDArray[np.int64]) -> NDArray[_Scalar]:
    """`array[at]` for ascending positions; no copy when they are all of them, which they nearly always are."""
    return array if len(at) == len(array) else array[at]


@dataclass(frozen=True, slots=True)
class _Before:
    """Hidden vectors before events: after the user's event before it in the batch, or from before the batch."""

    previous: NDArray[np.int32]  # (E,) -1 for none
    hidden: NDArray[np.float32]  # (E, H) after each event
    first: NDArray[np.float32]  # (U, H)
    user: NDArray[np.int32]  # (E,)

    def __getitem__(self, events: NDArray[np.int64], /) -> NDArray[np.float32]:
        previous = self.previous[events]
        return np.where(previous[:, None] >= 0, self.hidden[previous], self.first[self.user[events]])


def _last_of_each_user(parts: Sequence[Part]) -> NDArray[np.int64]:
    """Positions of each user's last event, ascending."""
    last = [np.zeros(0, np.int64)]
    for part in parts:
        _, from_end = np.unique(part.slots[::-1], return_index=True)
        last.append(part.at.stop - 1 - np.sort(from_end)[::-1])
    return np.concatenate(last)
