"""What training minimises: cross entropy of the next item, full or sampled, as one module that DDP can wrap.

Letters: W windows, T steps, D embedding width, N targets, S state width, V item rows.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.network import UNKNOWN_ROW, Network
from models.softmax import Sampler, full_softmax, sampled_softmax


class NextItemLoss(nn.Module):
    """Sum of the cross entropies of a batch's targets, over a given number of targets.

    On CUDA the forward pass runs in bfloat16 where that is safe (torch autocast); weights and loss stay float32.

    Args:
        network: The network to train.
        sampler: Draws the negatives of a sampled softmax, None for the full one.
        item_dropout: Share of input items replaced by the unknown item.
    """

    def __init__(self, network: Network, sampler: Sampler | None, item_dropout: float) -> None:
        super().__init__()
        self.network, self.sampler, self.item_dropout = network, sampler, item_dropout

    def forward(
        self, items: Tensor, kinds: Tensor, gaps_seconds: Tensor, targets: Tensor, state: Tensor | None, count: float
    ) -> Tensor:
        """The loss: a scalar.

        Args:
            items: Item rows (W, T).
            kinds: Event kinds (W, T).
            gaps_seconds: Seconds since the event before (W, T).
            targets: Rows of the next items (W, T), 0 where nothing is learnt.
            state: State each window starts from (W, S), zeros when None.
            count: What the sum is divided by: targets of the whole batch, over all ranks.
        """
        forgotten = torch.rand(items.shape, device=items.device) < self.item_dropout
        known = targets != UNKNOWN_ROW
        wanted = targets[known]  # (N,)
        with self._precision(items.device):
            outputs, _ = self.network.sequence(items.masked_fill(forgotten, UNKNOWN_ROW), kinds, gaps_seconds, state)
            if not len(wanted):  # a rank without a target still takes part in averaging the gradients
                return 0.0 * sum((part.sum() for part in self.parameters()), outputs.sum())
            query = self.network.query(outputs[known])  # (N, D)
            return self._mean(query, wanted) * (len(wanted) / count)

    def _mean(self, query: Tensor, wanted: Tensor) -> Tensor:
        table, bias = self.network.item_embedding.weight, self.network.item_bias
        if self.sampler is not None:
            return sampled_softmax(query.float(), table, bias, wanted, self.sampler)
        if query.device.type == "cpu":
            return full_softmax(query, table, bias, wanted)
        scores = functional.linear(query, table, bias.to(query.dtype))  # (N, V)
        unknown = torch.zeros(len(table), dtype=torch.bool, device=scores.device)
        unknown[UNKNOWN_ROW] = True
        return functional.cross_entropy(scores.float().masked_fill(unknown, -torch.inf), wanted)

    @staticmethod
    def _precision(device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
