"""Several models as one: the log-probabilities they give the next item, added with weights learnt on held-out events.

Letters: B users, T steps, M members, V item rows, N held-out events.

What a network and a count know differs: a network generalises, a count remembers rare transitions exactly. Their
weights are the M numbers that make the held-out items likeliest; a temperature is in them, for they need not sum to 1.
One more weight, of either sign, is for the items that a user had before: it learns whether people come back to them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family.asking import queries_before
from models.family.counting import Popularity, SkipMarkov
from models.family.course import held_out_sample
from models.family.interface import EventBatch, Lesson, SequenceModel
from models.family.neighbours import SessionKnn
from models.family.recent import ends, shifted, unfolded
from models.family.recurrent import Gru
from models.network import UNKNOWN_ROW
from state.errors import RecstreamError

_MEMBERS: Final[dict[str, type[SequenceModel]]] = {
    model.name: model for model in (Gru, SkipMarkov, SessionKnn, Popularity)
}
_SHARES: Final = {"gru": 0.94, "skip-markov": 0.02, "session-knn": 0.02, "popularity": 0.02}  # of the time of a fit
_COUNTED: Final = ("skip-markov", "session-knn", "popularity")  # scores are counts: their logarithms are added
_FLOOR: Final = 1e-4  # probability that a count spreads over all items, so that its logarithm stays finite
_CANDIDATES: Final = 100  # best items of each member among which the weights are learnt: lists are short
_CELLS: Final = 2**24  # held-out log-probabilities made at once, 64 MB
_STEPS: Final = 200  # of the fit of the weights
_WEIGHTS_RATE: Final = 0.05
_OWN: Final = 500  # latest items of a user that count as had before: who rates films has seen all of theirs
_OWN_SCALE: Final = 5.0  # so that the steps can forbid them altogether: 200 of 0.05 are 50 nats


class Ensemble(SequenceModel):
    """A GRU, a skip-Markov chain, session kNN and popularity together.

    Args:
        items: V.
        members: Names among gru, skip-markov, session-knn, popularity.
        member_settings: How each is built, by name.

    References:
        Genest and Zidek, "Combining probability distributions", Statistical Science 1986 (logarithmic pool).
    """

    name: ClassVar[str] = "ensemble"

    def __init__(
        self,
        items: int,
        members: tuple[str, ...] = tuple(_MEMBERS),
        member_settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        unknown = [name for name in members if name not in _MEMBERS]
        if unknown or not members:
            what = f"An ensemble cannot have the members {', '.join(unknown) or '(none)'}"
            raise RecstreamError(what, f"they may be {', '.join(_MEMBERS)}", "Name some of these")
        self.items = items
        given = member_settings or {}
        self.members = [_MEMBERS[name](**{"items": items, **given.get(name, {})}) for name in members]
        self.weights = torch.full((len(members),), 1.0 / len(members))
        self._adopted: set[str] = set()
        self.own = torch.zeros(())  # what having had an item adds to its log-probability, over `_OWN_SCALE`
        self.context = max(_OWN, *(member.context for member in self.members))

    @staticmethod
    def known() -> list[str]:
        """Names of models that can be members."""
        return list(_MEMBERS)

    @property
    def state_size(self) -> int:
        return sum(member.state_size for member in self.members) + _OWN

    def adopt(self, fitted: Mapping[str, SequenceModel]) -> None:
        """Take members that were fitted to the lesson that `fit` will be given; it fits only the others."""
        self._adopted = {name for name in fitted if any(member.name == name for member in self.members)}
        self.members = [fitted.get(member.name, member) for member in self.members]
        self.context = max(_OWN, *(member.context for member in self.members))

    def fit(self, lesson: Lesson) -> None:
        begun = 0.0
        for member in self.members:
            share = _SHARES[member.name]

            def report(done: float, note: str, begun: float = begun, share: float = share) -> bool | None:
                return lesson.report(begun + share * done, note)

            if member.name not in self._adopted:
                member.fit(replace(lesson, report=report))
            begun += share
        self._adopted = set()
        sample = held_out_sample(lesson)
        self.weights, self.own = torch.full((len(self.members),), 1.0 / len(self.members)), torch.zeros(())
        if sample is not None:
            weights = self._likeliest(lesson, sample)
            self.weights, self.own = weights[:-1].clone(), weights[-1].clone()

    def _likeliest(self, lesson: Lesson, sample: NDArray[np.int64]) -> Tensor:
        """Weights (M + 1,) that make held-out items (N,) likeliest among those that some member puts high."""
        asked = queries_before(self, lesson.source, sample)
        targets = torch.from_numpy(lesson.source.items[sample].astype(np.int64))
        rows = max(1, _CELLS // (self.items * (len(self.members) + 1)))
        parts = [
            self._candidates(asked[begin : begin + rows], targets[begin : begin + rows])
            for begin in range(0, len(targets), rows)
        ]
        right, others = torch.cat([one for one, _ in parts], dim=1), torch.cat([other for _, other in parts], dim=1)
        return _likeliest(right, others)

    @torch.inference_mode()
    def _candidates(self, asked: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What is said of targets (M + 1, n), and of the other items that some member puts high (M + 1, n, C).

        Targets that none puts high are left out: no weights bring them into a list. Of candidates that stand there
        several times only one counts; the others are minus infinity.
        """
        opinions = torch.stack([*self._opinions(asked), self._had(asked)], dim=0)  # (M + 1, n, V)
        known = opinions[:-1].clone()
        known[:, :, UNKNOWN_ROW] = -torch.inf
        best = known.topk(min(_CANDIDATES, self.items - 1), dim=2).indices  # (M, n, C)
        rows = best.transpose(0, 1).flatten(1).sort(dim=1).values  # (n, M C)
        hopeful = (rows == targets[:, None]).any(1)
        rows, targets, opinions = rows[hopeful], targets[hopeful], opinions[:, hopeful]
        again = rows == targets[:, None]
        again[:, 1:] |= rows[:, 1:] == rows[:, :-1]
        others = opinions.gather(2, rows.expand(len(opinions), -1, -1)).masked_fill(again, -torch.inf)
        return opinions.gather(2, targets.expand(len(opinions), -1)[:, :, None])[:, :, 0], others

    def _parts(self, columns: Tensor, of: str) -> list[Tensor]:
        return list(torch.split(columns, [*(_width(member, of) for member in self.members), _OWN], dim=-1))

    def _opinions(self, queries: Tensor) -> list[Tensor]:
        """Log-probabilities (B, V) of every item by every member."""
        found = []
        for member, part in zip(self.members, self._parts(queries, "query")[:-1], strict=True):
            scores = member.item_scores(part.contiguous())
            if member.name in _COUNTED:
                mass = scores.clamp(min=0)
                mass = mass / mass.sum(1, keepdim=True).clamp(min=1e-9)
                opinion = torch.log(mass * (1 - _FLOOR) + _FLOOR / self.items)
            else:
                opinion = torch.log_softmax(scores, dim=1)
            opinion[:, UNKNOWN_ROW] = 0.0
            found.append(opinion)
        return found

    @staticmethod
    def _newest(events: EventBatch) -> Tensor:
        return events.items[..., None].float()

    def _had(self, queries: Tensor) -> Tensor:
        """A number (B, V) that tells the items a user had from the others."""
        had = torch.zeros(len(queries), self.items)
        return had.scatter_(1, queries[:, -_OWN:].long(), _OWN_SCALE)

    def initial_state(self, users: int) -> Tensor:
        return torch.cat([*(member.initial_state(users) for member in self.members), torch.zeros(users, _OWN)], dim=1)

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        *parts, own = self._parts(state, "state")
        after = [member.step(part, events) for member, part in zip(self.members, parts, strict=True)]
        return torch.cat([*after, shifted(own[:, :, None], self._newest(events))[:, :, 0]], dim=1)

    def query(self, state: Tensor) -> Tensor:
        *parts, own = self._parts(state, "state")
        asked = [member.query(part) for member, part in zip(self.members, parts, strict=True)]
        return torch.cat([*asked, own], dim=1)

    def sequence(self, events: EventBatch) -> Tensor:
        own = unfolded(self._newest(events), _OWN)[..., 0]  # (B, T, 500)
        return torch.cat([*(member.sequence(events) for member in self.members), own], dim=2)

    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        own = ends(self._newest(events), steps, _OWN)[..., 0]  # (B, 500)
        return torch.cat([*(member.last(events, steps) for member in self.members), own], dim=1)

    def item_scores(self, queries: Tensor) -> Tensor:
        opinions = self._opinions(queries)
        scores = opinions[0] * self.weights[0]
        for opinion, weight in zip(opinions[1:], self.weights[1:], strict=True):
            scores += opinion * weight
        scores += self._had(queries) * self.own
        scores[:, UNKNOWN_ROW] = -torch.inf
        return scores

    def settings(self) -> dict[str, Any]:
        names = [member.name for member in self.members]
        return {
            "items": self.items,
            "members": names,
            "member_settings": {member.name: member.settings() for member in self.members},
        }

    def tensors(self) -> dict[str, Tensor]:
        found = {"weights": self.weights, "own": self.own}
        for member in self.members:
            found |= {f"{member.name}/{name}": tensor for name, tensor in member.tensors().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.weights, self.own = tensors["weights"], tensors["own"]
        for member in self.members:
            prefix = f"{member.name}/"
            member.restore(
                {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            )


def _width(member: SequenceModel, of: str) -> int:
    return member.state_size if of == "state" else int(member.query(member.initial_state(1)).shape[1])


def _likeliest(right: Tensor, others: Tensor) -> Tensor:
    """Weights (M + 1,) under which what was right is likeliest, none of the first M negative.

    Args:
        right: (M + 1, N) of the items that came.
        others: (M + 1, N, C) of those that might have come, minus infinity for none.
    """
    if not right.shape[1]:
        return torch.cat((torch.full((len(right) - 1,), 1.0 / (len(right) - 1)), torch.zeros(1)))
    real = others[0] > -torch.inf  # (N, C)
    others = others.masked_fill(~real, 0.0)
    raw = torch.full((len(right),), -1.0)  # softplus(-1) = 0.31
    raw[-1] = 0.0
    raw.requires_grad_()

    def weights() -> Tensor:
        return torch.cat((torch.nn.functional.softplus(raw[:-1]), raw[-1:]))

    with torch.enable_grad():
        optimizer = torch.optim.Adam([raw], lr=_WEIGHTS_RATE)
        for _ in range(_STEPS):
            score = weights() @ right  # (N,)
            scores = torch.tensordot(weights(), others, dims=1).masked_fill(~real, -torch.inf)  # (N, C)
            loss = (torch.logaddexp(scores.logsumexp(1), score) - score).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return weights().detach()
