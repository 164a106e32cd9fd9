"""Models that tell repeats apart: states and queries carry the user's latest items, scores add learnt weights to them.

An output table that is also the input table makes a user's latest items score high, for a state resembles what led to
it. Whether people come back to them differs from one log to another: one weight by how many events ago an item was last
seen learns it.

Letters: B users or windows, T steps, R latest items, S state width, Q query width, V item rows, N targets.

References:
    Ren et al., "RepeatNet: a repeat aware neural recommendation machine", AAAI 2019 (scores of repeats apart).
"""

from abc import abstractmethod

import torch
from torch import Tensor

from models.family.interface import EventBatch, SequenceModel
from models.family.recent import ends, shifted, unfolded
from models.network import RECENT, UNKNOWN_ROW


class RepeatAware(SequenceModel):
    """Adds to a model's states (B, S) and queries (.., Q) the rows of the R latest items, newest first, as float32."""

    @property
    @abstractmethod
    def repeats(self) -> Tensor:
        """What is added to the score of the item of the d-th last event (R,)."""

    @property
    @abstractmethod
    def bare_size(self) -> int:
        """S, without the latest items."""

    @abstractmethod
    def bare_step(self, state: Tensor, events: EventBatch) -> Tensor:
        """As `step`, without them."""

    @abstractmethod
    def bare_query(self, state: Tensor) -> Tensor:
        """As `query`, without them."""

    @abstractmethod
    def bare_sequence(self, events: EventBatch) -> Tensor:
        """As `sequence`, without them."""

    @abstractmethod
    def bare_scores(self, queries: Tensor) -> Tensor:
        """As `item_scores`, without them."""

    def bare_last(self, events: EventBatch, steps: Tensor) -> Tensor:
        """As `last`, without them."""
        return self.bare_sequence(events)[torch.arange(len(steps)), steps - 1]

    @property
    def state_size(self) -> int:
        return self.bare_size + RECENT

    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        latest = shifted(state[:, -RECENT:, None], _items(events))[..., 0]
        return torch.cat((self.bare_step(state[:, :-RECENT], events), latest), dim=1)

    def query(self, state: Tensor) -> Tensor:
        return torch.cat((self.bare_query(state[:, :-RECENT]), state[:, -RECENT:]), dim=1)

    def sequence(self, events: EventBatch) -> Tensor:
        return torch.cat((self.bare_sequence(events), unfolded(_items(events), RECENT)[..., 0]), dim=2)

    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        return torch.cat((self.bare_last(events, steps), ends(_items(events), steps, RECENT)[..., 0]), dim=1)

    @torch.no_grad()
    def item_scores(self, queries: Tensor) -> Tensor:
        scores = self.bare_scores(queries[:, :-RECENT])
        scores.scatter_add_(1, queries[:, -RECENT:].long(), self.repeats.expand(len(queries), -1))
        scores[:, UNKNOWN_ROW] = -torch.inf
        return scores


def _items(events: EventBatch) -> Tensor:
    """Item rows (..., 1) of events (...), as states keep them: exact below 2^24."""
    return events.items[..., None].float()
