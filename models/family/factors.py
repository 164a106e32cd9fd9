"""Matrix factorisation learnt from pairs (BPR), with users folded in event by event.

Letters: B users, T steps, D factors, U users, V item rows, N events.

Factors of items and users are learnt together; for serving a user is a vector of D numbers that takes one gradient step
of the same objective with every event, so that new users, and new events of known users, need no training.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.asking import queries_before, target_ranks
from models.family.course import held_out_sample
from models.family.interface import EventBatch, Lesson, SequenceModel
from models.network import UNKNOWN_ROW

_EPOCHS: Final = 40
_RATE: Final = 0.05
_DECAY: Final = 0.002
_STD: Final = 0.1
_STEPS: Final = 4e7  # most updates of a fit, about a minute
_FOLD_RATES: Final = (0.03, 0.1, 0.3, 1.0)  # of a user's step per event; the best on held-out events is kept
_FADE: Final = 0.02  # share of a user's vector that an event takes away: old events weigh less
_jit = nb.njit(cache=True, nogil=True)


@_jit  # type: ignore[untyped-decorator]
def _epoch(
    user: NDArray[np.int64],  # (N,)
    item: NDArray[np.int64],  # (N,)
    negative: NDArray[np.int64],  # (N,)
    users: NDArray[np.float32],  # (U, D)
    items: NDArray[np.float32],  # (V, D)
    bias: NDArray[np.float32],  # (V,)
    rate: float,
) -> None:
    """One stochastic gradient step of ln sigmoid(x_ui - x_uj) per event."""
    step, decay = np.float32(rate), np.float32(_DECAY)
    for number in range(len(user)):
        u, i, j = user[number], item[number], negative[number]
        if i == j:
            continue
        p, q, r = users[u], items[i], items[j]
        apart = bias[i] - bias[j]
        for k in range(p.shape[0]):
            apart += p[k] * (q[k] - r[k])
        pull = np.float32(1.0) / (np.float32(1.0) + np.exp(apart))
        bias[i] += step * (pull - decay * bias[i])
        bias[j] += step * (-pull - decay * bias[j])
        for k in range(p.shape[0]):
            old = p[k]
            p[k] += step * (pull * (q[k] - r[k]) - decay * old)
            q[k] += step * (pull * old - decay * q[k])
            r[k] += step * (-pull * old - decay * r[k])


class Bpr(SequenceModel):
    """Bayesian personalised ranking by matrix factorisation; the state is the user's vector.

    Args:
        items: V.
        width: D.
        fold_rate: Step of a user's vector per event, found by `fit`.

    References:
        Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009; Rendle and Schmidt-Thieme,
        "Online-updating regularized kernel matrix factorization models", RecSys 2008 (folding in).
    """

    name: ClassVar[str] = "bpr"
    context = 200

    def __init__(self, items: int, width: int = 64, fold_rate: float = 0.1) -> None:
        self.items, self.width, self.fold_rate = items, width, fold_rate
        self._take(torch.zeros(items, width), torch.zeros(items), torch.zeros(width), torch.zeros(items))

    @property
    def state_size(self) -> int:
        return self.width

    def fit(self, lesson: Lesson) -> None:
        past = lesson.past
        rng = np.random.default_rng(lesson.seed)
        user = np.repeat(np.arange(past.users), np.diff(past.starts))
        item = past.items.astype(np.int64)
        known = np.flatnonzero(item != UNKNOWN_ROW)
        users = rng.normal(0, _STD, (past.users, self.width)).astype(np.float32)
        items = rng.normal(0, _STD, (self.items, self.width)).astype(np.float32)
        bias = np.zeros(self.items, np.float32)
        epochs = int(np.clip(lesson.effort * _STEPS / max(len(known), 1), 3, _EPOCHS))
        for number in range(epochs):
            order = rng.permutation(known)
            negative = rng.integers(1, self.items, len(order))
            _epoch(user[order], item[order], negative, users, items, bias, _RATE * (1 - number / epochs))
            if lesson.report(0.8 * (number + 1) / epochs, f"epoch {number + 1} of {epochs}"):
                break
        active = np.diff(past.starts) > 0
        start = users[active].mean(0) if active.any() else np.zeros(self.width, np.float32)
        share = np.bincount(item[known], minlength=self.items).astype(np.float32)
        self._take(torch.from_numpy(items), torch.from_numpy(bias), torch.from_numpy(start), torch.from_numpy(share))
        sample = held_out_sample(lesson)
        if sample is not None:
            gains = []
            for rate in _FOLD_RATES:
                self.fold_rate = rate
                asked = queries_before(self, lesson.source, sample)
                ranks = target_ranks(self, asked, lesson.source.items[sample])
                gains.append(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).sum())
            self.fold_rate = _FOLD_RATES[int(np.argmax(gains))]
        lesson.report(1.0, f"fold-in rate {self.fold_rate}")

    def _take(self, factors: Tensor, bias: Tensor, start: Tensor, share: Tensor) -> None:
        """Use item factors, item biases, a new user's vector (the mean user's) and how often each item occurs."""
        self.factors, self.bias, self.start, self._share = factors, bias, start, share
        share = share / share.sum().clamp(min=1)
        self._mean, self._mean_bias = share @ factors, share @ bias

    def initial_state(self, users: int) -> Tensor:
        return self.start.repeat(users, 1)

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        apart = self.factors[events.items] - self._mean  # (B, D) the event's item against the average one
        score = (state * apart).sum(1) + self.bias[events.items] - self._mean_bias
        after = state - _FADE * (state - self.start) + self.fold_rate * torch.sigmoid(-score)[:, None] * apart
        return torch.where((events.items != UNKNOWN_ROW)[:, None], after, state)

    def sequence(self, events: EventBatch) -> Tensor:
        state, states = self.initial_state(len(events.items)), []
        for step in range(events.items.shape[1]):
            state = self.step(state, events.at(step))
            states.append(state)
        return torch.stack(states, dim=1)

    def item_scores(self, queries: Tensor) -> Tensor:
        scores = torch.addmm(self.bias, queries, self.factors.T)
        scores[:, UNKNOWN_ROW] = -torch.inf
        return scores

    def settings(self) -> dict[str, Any]:
        return {"items": self.items, "width": self.width, "fold_rate": self.fold_rate}

    def tensors(self) -> dict[str, Tensor]:
        return {"factors": self.factors, "bias": self.bias, "start": self.start, "share": self._share}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._take(tensors["factors"], tensors["bias"], tensors["start"], tensors["share"])
