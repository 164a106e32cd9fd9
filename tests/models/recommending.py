"""A recommender fed by hand, and what its lists and vectors should be by definition."""

import numpy as np

from models.recommend import Recommender
from models.repeats import LastItems
from models.serving import gap_feature
from state.arena import Arena
from state.events import EventBatch
from state.items import ItemIndex
from state.store import UserStore

T0 = 1_700_000_000_000


class Stream:
    """A recommender with one partition, fed (user, item, kind, time_ms) tuples; offsets are counted by kind."""

    def __init__(self, model=None, k=5, **options):
        self.recommender = Recommender(ItemIndex(), k=k, **options)
        if model is not None:
            self.recommender.swap(model)
        self.store = UserStore(Arena(self.recommender.state_size, k, capacity=2), self.recommender.items)
        self.next_offset = [0, 0, 0]

    @property
    def arena(self):
        return self.store.arena

    def send(self, *events):
        users, items, kinds, times = zip(*events, strict=True) if events else ([], [], [], [])
        offsets = []
        for kind in kinds:
            offsets.append(self.next_offset[kind])
            self.next_offset[kind] += 1
        return self.recommender.advance(
            self.store,
            EventBatch(
                list(users), list(items), np.array(kinds, np.uint8), np.array(times, np.int64),
                np.array(offsets, np.int64), np.array(times, np.int64) + 7,
            ),
        )  # fmt: skip

    def lists(self, advanced):
        ids = self.recommender.items.ids
        return [[ids[number] for number in row if number] for row in advanced.items.tolist()]

    def hidden_of(self, user):
        return self.arena.hidden[self.arena.find(user)]


def random_events(rng, n, users=4, items=12, kinds=3):
    times = T0 + rng.integers(0, 10**9, n)
    return [
        (f"u{u}", f"i{i}", int(k), int(t))
        for u, i, k, t in zip(
            rng.integers(0, users, n), rng.integers(0, items, n), rng.integers(0, kinds, n), times, strict=True
        )
    ]


def expected_list(model, hidden, history, left_out, k):
    """The definition of a list: every item's score, the excluded ones out, best first."""
    output = hidden[None, : len(model.projection)].astype(np.float32)  # an LSTM's state is h, then c
    recent = np.zeros((1, len(model.repeats)), np.int32)
    recent[0, : len(history)] = [model.vocabulary.index(item) if item in model.vocabulary else 0 for item in history]
    scores = dict(
        zip(model.vocabulary[1:], model.scores(output, LastItems.of_rows(recent))[0, 1:].tolist(), strict=True)
    )
    kept = sorted((item for item in scores if item not in left_out), key=lambda item: -scores[item])[:k]
    return kept, [scores[item] for item in kept]


def rows_of(stream):
    users = sorted(user for user in stream.arena.users if user)
    slots = stream.arena.slots(users)
    rows = stream.arena.to_rows(slots, stream.recommender.items)
    return {user: row.tobytes() for user, row in zip(users, rows, strict=True)}


def stepped(model, events):
    """The state after (item, kind, time_ms) events from zero, by the model alone."""
    row_of = {item: row for row, item in enumerate(model.vocabulary) if row}
    seconds = np.array([time_ms // 1000 for _, _, time_ms in events])
    gaps = np.diff(seconds, prepend=seconds[0])
    state = np.zeros((1, model.state_size), np.float32)
    model.steps(
        state,
        np.zeros(len(events), np.int32),
        np.array([row_of.get(item, 0) for item, _, _ in events], np.int32),
        np.array([kind for _, kind, _ in events], np.uint8),
        gap_feature(gaps),
    )
    return state[0].astype(np.float16)
