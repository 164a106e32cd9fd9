"""Heads beside the next item: type and rating of the next event, the next item of each type, items further ahead.

One mechanism for every neural model. A head reads the query a model would rank with, so the encoder is shared, heads
are trained together with it, and nothing of a model's step, state or serving changes:

    type       softmax over click, view, purchase                          MLP(q)
    click ...  the item of the next event of that type, however far        scores(q + MLP(q)) + a bias per item
    ahead-2 ...  the item of the next event but one, ...                   scores(q + MLP(q)) + a bias per item
    rating     of the next event, given its item i                         mean + sd (a_i + w q + <A q, v_i> + c)

where scores are the model's own and v_i its item vectors.

Letters: N queries, D width, V item rows, P learnt events, M at most 512 steps a head learns from in a batch.

References:
    Caruana, "Multitask learning", Machine Learning 1997 (shared encoder); Koren et al., "Matrix factorization
    techniques for recommender systems", Computer 2009 (ratings as biases and a product).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.family.interface import SequenceModel, Tasks
from models.network import INITIAL_STD, UNKNOWN_ROW
from models.sequences import Histories
from state.errors import RecstreamError
from state.events import KINDS

HEADS: Final = ("type", *KINDS, "rating")
FARTHEST: Final = 20
_SCORED: Final = 512  # each item head costs another softmax over the items
_WEIGHTS: Final = {"type": 0.2, "rating": 0.3}
_ITEM_WEIGHT: Final = 0.3
# Queries (N, D), item rows (N,), biases (V,) to add, latest items (N, R) -> mean.
ItemLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Vectors = Callable[[Tensor], Tensor]


def parse_tasks(text: str | None, horizon: int = 1) -> Tasks:
    """Tasks from ``next,type,purchase`` and how far to look ahead; ``next`` is always there, ``all`` is every head.

    Raises:
        RecstreamError: A head is unknown, or the horizon is out of range.

    Example:
        >>> parse_tasks("next,type,rating", 3)
        Tasks(heads=('type', 'rating'), horizon=3)
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    unknown = [name for name in names if name not in (*HEADS, "next", "all")]
    if unknown:
        what = f"There is no head {unknown[0]!r}"
        raise RecstreamError(what, f"the heads are next, {', '.join(HEADS)}", "Choose among them: --heads next,type")
    if not 1 <= horizon <= FARTHEST:
        what = f"A horizon of {horizon} events was asked for"
        raise RecstreamError(what, "every step ahead is a head of its own", f"Give 1 to {FARTHEST}: --horizon 3")
    return Tasks(HEADS if "all" in names else tuple(head for head in HEADS if head in names), horizon)


def item_heads(tasks: Tasks) -> dict[str, int]:
    """Names of the heads that rank items, with the kind or minus the distance they look at."""
    kinds = {name: number for number, name in enumerate(KINDS) if name in tasks.heads}
    return {**kinds, **{f"ahead-{distance}": -distance for distance in range(2, tasks.horizon + 1)}}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the heads should say just before each of P events.

    Attributes:
        kinds: (P,) int64 type of the event, -1 where it is not known.
        rows: Item rows (P,) by head, 0 where there is no such event.
        places: Where those events stand (P,) by head, -1 where there is none.
        items: (P,) the event's own item.
        ratings: (P,) NaN where there is none.
    """

    kinds: NDArray[np.int64]
    rows: dict[str, NDArray[np.int64]]
    places: dict[str, NDArray[np.int64]]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]

    @classmethod
    def of(cls, source: Histories, tasks: Tasks, ratings: NDArray[np.float32] | None = None) -> Self:
        """The right answers before every event of histories.

        Args:
            source: The histories, kinds as types (not codes).
            tasks: What is asked.
            ratings: (P,) of the events.
        """
        size = len(source)
        here = np.arange(size)
        end = np.repeat(source.starts[1:], np.diff(source.starts))  # (P,) where the user's history ends
        places: dict[str, NDArray[np.int64]] = {}
        for name, which in item_heads(tasks).items():
            if which < 0:
                found = here - which - 1
            else:
                found = np.where(source.kinds == which, here, size)
                found = np.minimum.accumulate(found[::-1])[::-1] if size else found
            places[name] = np.where(found < end, found, -1)
        items = source.items.astype(np.int64)
        rows = {name: np.where(at >= 0, items[at], UNKNOWN_ROW) for name, at in places.items()}
        kinds = np.where(source.kinds < len(KINDS), source.kinds.astype(np.int64), -1)
        return cls(kinds, rows, places, items, np.full(size, np.nan, np.float32) if ratings is None else ratings)


class TaskHeads(nn.Module):
    """The heads of a model.

    Args:
        items: V.
        width: D.
        tasks: What they foretell.
    """

    scale: Tensor

    def __init__(self, items: int, width: int, tasks: Tasks) -> None:
        super().__init__()
        self.width = width
        self.tasks = tasks
        names = item_heads(tasks)
        self.adapters = nn.ModuleDict({name: _mlp(width, width) for name in names})
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(items)) for name in names})
        self.kind: nn.Sequential | None = _mlp(width, len(KINDS)) if "type" in tasks.heads else None
        self.rating = _Rating(items, width) if "rating" in tasks.heads else None

    def prepare(self, answers: Answers) -> None:
        """Start from what the answers say by themselves: shares of types and of items in each type, mean rating."""
        everything = np.bincount(answers.items, minlength=self.items) + 1.0
        with torch.no_grad():
            for name in (name for name in self.biases if name in KINDS):
                of_kind = answers.items[answers.kinds == KINDS.index(name)]
                share = (np.bincount(of_kind, minlength=self.items) + 1.0) / everything
                self.biases[name].copy_(torch.from_numpy(np.log(share / share.mean())))
            if self.kind is not None:
                known = np.bincount(answers.kinds[answers.kinds >= 0], minlength=len(KINDS)) + 1.0
                odds = torch.from_numpy(np.log(known / known.sum()))
                self.kind[-1].bias.copy_(odds)  # type: ignore[operator]
            rated = answers.ratings[np.isfinite(answers.ratings)]
            if self.rating is not None and len(rated):
                self.rating.scale.copy_(torch.tensor([float(rated.mean()), float(rated.std()) or 1.0]))

    @property
    def items(self) -> int:
        """V."""
        return next((len(bias) for bias in self.biases.values()), self.rating.items if self.rating else 1)

    def query(self, name: str, query: Tensor) -> Tensor:
        """The query (N, D) of a head that ranks items, from the model's (N, D)."""
        asked: Tensor = query + self.adapters[name](query)
        return asked

    def loss(
        self,
        query: Tensor,
        recent: Tensor,
        events: NDArray[np.int64],
        answers: Answers,
        item_loss: ItemLoss,
        vectors: Vectors,
    ) -> Tensor:
        """Weighted sum of the heads' losses, on at most 512 of the steps each.

        Args:
            query: (N, D), asked just before the events.
            recent: Item rows of the users' latest events then (N, R).
            events: (N,) places of the events in what the answers were made of.
            answers: The right answers.
            item_loss: Cross entropy over the model's items.
            vectors: Item vectors by row.
        """
        total = query.new_zeros(())
        for name in self.adapters:
            rows = torch.from_numpy(answers.rows[name][events]).to(query.device)
            some = _some(rows != UNKNOWN_ROW)
            if len(some):
                loss = item_loss(self.query(name, query[some]), rows[some], self.biases[name], recent[some])
                total = total + _ITEM_WEIGHT * loss
        if self.kind is not None:
            kinds = torch.from_numpy(answers.kinds[events]).to(query.device)
            some = _some(kinds >= 0)
            if len(some):
                total = total + _WEIGHTS["type"] * functional.cross_entropy(self.kind(query[some]), kinds[some])
        if self.rating is not None:
            ratings = torch.from_numpy(answers.ratings[events]).to(query.device)
            rows = torch.from_numpy(answers.items[events]).to(query.device)
            some = _some(ratings.isfinite() & (rows != UNKNOWN_ROW))
            if len(some):
                read = self.rating(query[some], rows[some], vectors(rows[some]))
                error = (read - ratings[some]) / self.rating.scale[1]
                total = total + _WEIGHTS["rating"] * (error**2).mean()
        return total


class _Rating(nn.Module):
    """Ratings (N,) of items for queries (N, D): biases and a product, like a factorisation with q for the user."""

    scale: Tensor

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.items = items
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))  # mean and standard deviation of what was learnt
        self.item = nn.Embedding(items, 1)
        self.user = _mlp(width, 1)
        self.both = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.item.weight)
        nn.init.normal_(self.both.weight, std=INITIAL_STD)

    def forward(self, query: Tensor, rows: Tensor, vectors: Tensor) -> Tensor:
        apart = self.item(rows)[:, 0] + self.user(query)[:, 0] + (self.both(query) * vectors).sum(1)  # (N,)
        rating: Tensor = self.scale[0] + self.scale[1] * apart
        return rating


@torch.no_grad()
def head_scores(model: SequenceModel, name: str, queries: Tensor) -> Tensor:
    """Scores (N, V) of every item by a head that ranks items, for a model's queries (N, Q)."""
    heads = _heads(model)
    vectors, latest = queries[:, : heads.width], queries[:, heads.width :]
    return model.item_scores(torch.cat((heads.query(name, vectors), latest), dim=1)) + heads.biases[name]


@torch.no_grad()
def type_odds(model: SequenceModel, queries: Tensor) -> Tensor:
    """Log-probabilities (N, 3) of the next event's type for a model's queries (N, Q)."""
    heads = _heads(model)
    assert heads.kind is not None
    return torch.log_softmax(heads.kind(queries[:, : heads.width]), dim=1)


@torch.no_grad()
def ratings_of(model: SequenceModel, queries: Tensor, rows: Tensor) -> Tensor:
    """Foretold ratings (N,) of items (N,) for a model's queries (N, Q)."""
    heads = _heads(model)
    assert heads.rating is not None
    read: Tensor = heads.rating(queries[:, : heads.width], rows, model.item_vectors(rows))
    return read


def heads_of(settings: Mapping[str, Any] | None, items: int, width: int) -> TaskHeads | None:
    """Heads anew from `plain_tasks`, None where there are none."""
    if not settings:
        return None
    return TaskHeads(items, width, Tasks(tuple(settings["heads"]), settings["horizon"]))


def plain_tasks(heads: TaskHeads | None) -> dict[str, Any] | None:
    """What heads foretell, as plain values for a model's settings."""
    return None if heads is None else {"heads": list(heads.tasks.heads), "horizon": heads.tasks.horizon}


def _heads(model: SequenceModel) -> TaskHeads:
    heads = model.task_heads
    if heads is None:
        what = f"The model {model.name} has no heads beside the next item"
        raise RecstreamError(what, "its fit was not asked for any", "Fit a neural model with Lesson.tasks")
    return heads


def _mlp(width: int, out: int) -> nn.Sequential:
    """A hidden layer as wide as the query; its answers start near 0, so that a head starts as the model itself."""
    last = nn.Linear(width, out)
    nn.init.normal_(last.weight, std=INITIAL_STD)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), last)


def _some(known: Tensor) -> Tensor:
    """Numbers of at most 512 of the known ones, drawn by torch's generator."""
    where = known.nonzero()[:, 0]
    return where if len(where) <= _SCORED else where[torch.randperm(len(where), device=where.device)[:_SCORED]]
