"""Experts that learn from every event, fused by weights learnt online from which of them ranked the next event well.

For each event in order: its item is ranked among the candidates (`models.candidates`) under the weights as they stand,
the weights take one step (`models.mixing`), the memories learn the event, and the best candidates after it are listed.
The weights of the neural scores belong to a model version: a new version starts from its predecessor's weights and
learns fast again.

Letters: E events, S tested events, C items the arrays have room for, F features, K recommendations, X length of a
history, V rows of a model, T neural candidates.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.batches import Batch, Events, Fused, Histories, NeuralScores
from models.candidates import Workspace, gather, release, workspace
from models.features import F_NEURAL, F_NO_ROW
from models.kernels import grown, jit
from models.mixing import Weights, adapt, probabilities, rank, score, take_top
from models.popularity import Popularity, PopularityArrays, note
from models.transition_rows import TransitionArrays, expect_event, learn_event
from models.transitions import Deltas, Transitions
from state.errors import StateError

FORMAT: Final = 2  # of what `Fusion.to_arrays` gives
_LEARN_ALL: Final = 1 << 16  # events whose every outcome moves the weights; later one in `_LEARN_ONE_IN` does
_LEARN_ONE_IN: Final = 64  # 8 to 64 rank alike, and a tested event costs twice what others do
_AFTER_SWAP: Final = 0.25  # of the squared gradients is kept at a new model version: its weights move twice as fast
_VERSIONS_KEPT: Final = 8  # whose neural weights are remembered, for a rollback
EXCLUDE: Final = {"none": 0, "seen": 1, "purchased": 2}
_PURCHASE: Final = 2
_NEURAL: Final = (F_NEURAL, F_NO_ROW)
_NO_SCORES: Final = np.zeros((0, 0), np.float32)
_NO_TOP: Final = np.zeros((0, 0), np.int32)


@jit  # type: ignore[untyped-decorator]
def _process(
    w: Workspace,
    t: TransitionArrays,
    p: PopularityArrays,
    weights: Weights,
    events: Events,
    start: int,
    stop: int,  # events `start` to `stop` are processed
    tested: NDArray[np.bool_],  # (E,)
    adapted: NDArray[np.bool_],  # (E,)
    before: NDArray[np.float32],  # (S, V) of the tested ones among them, or (0, 0)
    before_top: NDArray[np.int32],
    after: NDArray[np.float32],  # (stop - start, V) or (0, 0)
    after_top: NDArray[np.int32],
    row_of: NDArray[np.int32],
    number_of: NDArray[np.int32],
    exclude: int,
    blocked: NDArray[np.uint8],  # (C,)
    recommended: NDArray[np.int32],  # (E, K) out
    recommended_scores: NDArray[np.float32],  # (E, K) out
    ranks: NDArray[np.float32],  # (E,) out
    history: NDArray[np.int32],  # (1, X) free memory
) -> None:
    width = events.histories.shape[1]
    test = 0
    for e in range(start, stop):
        if e + 1 < events.items.shape[0]:
            expect_event(t, events.histories, e + 1, int(events.lengths[e + 1]), events.items[e + 1])
        item, length = events.items[e], int(events.lengths[e])  # one type: each would be compiled anew
        if tested[e]:
            n = gather(
                w, t, p, events.histories, e, length,
                events.history_seconds[e, 0] - events.history_seconds[e, 1] if length > 1 else 0,
                int(events.history_kinds[e, 0]) if length > 0 else 0, before, before_top, test, row_of, number_of,
            )  # fmt: skip
            test += 1
            target = w.place[item] if item > 0 else -1
            ranks[e] = np.inf
            if target >= 0:
                score(
                    w.scores, w.units, w.features, weights.values, weights.inputs, weights.outputs, w.chosen, w.mixed, n
                )
                ranks[e] = rank(w.scores, n, target)
                if adapted[e]:
                    adapt(w.scores, w.units, w.features, weights, w.chosen, w.gradient, n, target)
            release(w.place, w.items, w.sums, n)
        if item > 0:
            learn_event(t, events.histories, e, length, item)
            note(p, item, 1.0)
        length = min(length + 1, width)
        history[0, 0] = item
        for d in range(1, length):
            history[0, d] = events.histories[e, d - 1]
        n = gather(
            w, t, p, history, 0, length, events.seconds[e] - events.history_seconds[e, 0] if length > 1 else 0,
            int(events.kinds[e]), after, after_top, e - start, row_of, number_of,
        )  # fmt: skip
        score(w.scores, w.units, w.features, weights.values, weights.inputs, weights.outputs, w.chosen, w.mixed, n)
        probabilities(w.scores, n)
        if exclude:
            for d in range(length):
                kind = events.kinds[e] if d == 0 else events.history_kinds[e, d - 1]
                k = w.place[history[0, d]]
                if k >= 0 and (exclude == 1 or kind == _PURCHASE):
                    w.scores[k] = 0
        take_top(w.items, w.scores, n, blocked, recommended, recommended_scores, e)
        release(w.place, w.items, w.sums, n)


class Fusion:
    """The transition memory, popularity, the user's own items and a neural model, as one recommender.

    Args:
        transitions: memory of transitions, shared with whoever exports and merges it.
        popularity: decayed popularity.

    Example:
        >>> fusion = Fusion()
        >>> item = np.array([7], np.int32)
        >>> empty = Histories(np.zeros((1, 50), np.int32), np.zeros((1, 50), np.uint8),
        ...                   np.zeros((1, 50), np.int64), np.zeros(1, np.int32))
        >>> fused = fusion.process(item, np.array([1], np.uint8), np.array([1_700_000_000]), empty, top_k=2)
        >>> fused.items.tolist()
        [[7, 0]]
    """

    def __init__(self, transitions: Transitions | None = None, popularity: Popularity | None = None) -> None:
        self.transitions = Transitions() if transitions is None else transitions
        self.popularity = Popularity() if popularity is None else popularity
        self.weights = Weights.fresh()
        self.model = 0
        self.events = 0
        self._neural_of: dict[int, list[NDArray[np.float32]]] = {}
        self._row_of = np.zeros(1, np.int32)
        self._number_of = np.zeros(1, np.int32)
        self._workspace = workspace(1)
        self._blocked = np.zeros(1, np.uint8)

    def set_model(self, fingerprint: int, number_of_row: NDArray[np.int32]) -> None:
        """Use another model version's scores from now on.

        Args:
            fingerprint: of the version, not 0.
            number_of_row: (V,) item number of each of its rows; entry 0 is ignored.
        """
        if fingerprint != self.model:
            if self.model:
                self._neural_of[self.model] = [self.weights.column(feature) for feature in _NEURAL]
                if len(self._neural_of) > _VERSIONS_KEPT:
                    del self._neural_of[next(iter(self._neural_of))]
            for feature, known in zip(_NEURAL, self._neural_of.get(fingerprint, ()), strict=False):
                self.weights.set_column(feature, known)
            for feature in _NEURAL:
                self.weights.hasten(feature, _AFTER_SWAP)
        self.model = fingerprint
        self._number_of = np.ascontiguousarray(number_of_row, np.int32).copy()
        self._number_of[0] = 0
        self.reserve(int(self._number_of.max()) + 1)
        self._row_of = np.zeros(self.capacity, np.int32)
        self._row_of[self._number_of] = np.arange(len(self._number_of), dtype=np.int32)
        self._row_of[0] = 0

    @property
    def capacity(self) -> int:
        """C: item numbers below it can be learnt and recommended."""
        return self.transitions.capacity

    def reserve(self, items: int) -> None:
        """Make room for item numbers below ``items``."""
        if items > self.capacity:
            self.transitions.reserve(1 << (items - 1).bit_length())
        capacity = self.capacity
        self.popularity.reserve(capacity)
        if len(self._workspace.place) < capacity:
            self._workspace = workspace(capacity)
            self._blocked = grown(self._blocked, capacity)
        if len(self._row_of) < capacity:
            self._row_of = grown(self._row_of, capacity)

    def block(self, items: NDArray[np.int32], blocked: bool = True) -> None:
        """Never recommend these items (or allow them again)."""
        if len(items):
            self.reserve(int(items.max()) + 1)
            self._blocked[items] = blocked

    def merge(self, deltas: Deltas) -> None:
        """Add what another process learnt: transitions, and the popularity of the items they lead to.

        Every event counts as one adjacent transition of its item, from the item before it or from the start.
        """
        if not len(deltas.after):
            return
        self.reserve(int(max(deltas.before.max(), deltas.after.max())) + 1)
        self.transitions.merge(deltas)
        times = np.bincount(deltas.after, deltas.weights[:, 1]).astype(np.float32)  # (largest item + 1,)
        times[0] = 0
        items = np.flatnonzero(times).astype(np.int32)
        self.popularity.learn(items, times[items])

    def tests(self, events: int) -> NDArray[np.bool_]:
        """Which of the next ``events`` events the weights will learn from (E,)."""
        chosen = np.zeros(events, np.bool_)
        chosen[: max(_LEARN_ALL - self.events, 0)] = True
        chosen[-self.events % _LEARN_ONE_IN :: _LEARN_ONE_IN] = True
        return chosen

    def begin(
        self,
        items: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        seconds: NDArray[np.int64],
        histories: Histories,
        *,
        top_k: int = 10,
        exclude: str = "none",
        test_all: bool = False,
    ) -> Batch:
        """Take in a batch, for `advance` to process.

        Args:
            items: (E,) item numbers; 0 is not learnt.
            kinds: (E,) event kinds.
            seconds: (E,) event times.
            histories: what the users did before each event, events of this batch included.
            top_k: K.
            exclude: never recommend again what the user has ``seen`` or ``purchased`` (as far as the history
                tells), or ``none``.
            test_all: rank every event, not only those the weights learn from.
        """
        n, adapted = len(items), self.tests(len(items))
        self.reserve(int(max(items.max(initial=0), histories.items.max(initial=0))) + 1)
        return Batch(
            events=Events(
                items, kinds, seconds, histories.items, histories.kinds, histories.seconds, histories.lengths
            ),
            tested=np.ones(n, np.bool_) if test_all else adapted,
            adapted=adapted,
            exclude=EXCLUDE[exclude],
            fused=Fused(np.zeros((n, top_k), np.int32), np.zeros((n, top_k), np.float32), np.zeros(n, np.float32)),
        )

    def advance(self, batch: Batch, stop: int, neural: NeuralScores | None = None) -> None:
        """For each event up to ``stop`` in order: rank it, adapt the weights, learn it, recommend what may come next.

        Args:
            batch: from `begin`; nothing else may be processed until it is done.
            stop: position in the batch.
            neural: scores of the version named by `set_model` for these events, None before there is one.
        """
        scores = NeuralScores(_NO_SCORES, _NO_TOP, _NO_SCORES, _NO_TOP) if neural is None else neural
        fused = batch.fused
        _process(
            self._workspace, self.transitions.arrays, self.popularity.arrays, self.weights, batch.events, batch.done,
            stop, batch.tested, batch.adapted, scores.before, scores.before_top, scores.after, scores.after_top,
            self._row_of, self._number_of, batch.exclude, self._blocked, fused.items, fused.scores, fused.ranks,
            np.zeros((1, batch.events.histories.shape[1]), np.int32),
        )  # fmt: skip
        self.events += stop - batch.done
        batch.done = stop

    def process(
        self,
        items: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        seconds: NDArray[np.int64],
        histories: Histories,
        *,
        top_k: int = 10,
        neural: NeuralScores | None = None,
        exclude: str = "none",
        test_all: bool = False,
    ) -> Fused:
        """`begin` a batch and `advance` through all of it."""
        batch = self.begin(items, kinds, seconds, histories, top_k=top_k, exclude=exclude, test_all=test_all)
        self.advance(batch, len(items), neural)
        return batch.fused

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learnt, as arrays to store."""
        state: dict[str, NDArray[Any]] = {
            "format": np.array([FORMAT], np.int64),
            "counters": np.array([self.model, self.events], np.int64),
        }
        state |= {f"weights.{name}": value for name, value in self.weights.copied().items()}
        state |= {f"transitions.{name}": value for name, value in self.transitions.to_arrays().items()}
        state |= {f"popularity.{name}": value for name, value in self.popularity.to_arrays().items()}
        return state

    def load_arrays(self, stored: dict[str, NDArray[Any]]) -> None:
        """Continue from what `to_arrays` gave; `set_model` must follow where a model is in use.

        Raises:
            StateError: another release gave it, in another format, or it holds values that are no numbers.
        """
        version = int(stored["format"][0]) if "format" in stored else 1
        if version != FORMAT:
            what = "what was learnt before cannot be continued"
            why = f"it is in format {version}, this release reads format {FORMAT}"
            raise StateError(what, why, "nothing to do: it is learnt again from the events to come")
        wrong = [name for name, value in stored.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
        if wrong:  # a release that counted too much at once left such
            what, why = "what was learnt before cannot be continued", f"{', '.join(wrong)}: values that are not finite"
            raise StateError(what, why, "nothing to do: it is learnt again from the events to come")
        parts: dict[str, dict[str, NDArray[Any]]] = {"weights": {}, "transitions": {}, "popularity": {}}
        for name, value in stored.items():
            part, dot, field = name.partition(".")
            if dot:
                parts[part][field] = value
        self.weights = Weights(**{name: parts["weights"][name].copy() for name in Weights._fields})
        self.model, self.events = (int(value) for value in stored["counters"])
        self.transitions.load_arrays(parts["transitions"])
        self.popularity.load_arrays(parts["popularity"])
