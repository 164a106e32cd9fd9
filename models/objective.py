"""What training minimises: cross entropy of the next item, full or sampled, as one module that DDP can wrap.

Letters: W windows, T steps, D embedding width, N targets, S state width, V item rows, R latest events.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

from models.network import UNKNOWN_ROW, Network
from models.softmax import Repeats, Sampler, full_softmax, sampled_softmax, whole_softmax

# Measured on an H100 (`benchmarks.devices`): with 128 hidden units bfloat16 gained nothing, with 256 14%, with 512 27%.
# Compiling takes 9 s; with 3e7 scores in a batch it lost 4%, with 8e7 it gained 3%, with 4e8 45%.
BFLOAT16_HIDDEN: Final = 256
COMPILED_SCORES: Final = 2**27
Beside = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Something else to minimise: from queries (N, D), where the events they ask for stand (N,), latest items (N, R)."""


class NextItemLoss(nn.Module):
    """Sum of the cross entropies of a batch's targets, over a given number of targets.

    On CUDA the forward pass of a wide network runs in bfloat16 where that is safe (torch autocast); weights and loss
    stay float32. Scores of the full softmax with their loss are compiled where they are many (the recurrent layer is
    one call of cuDNN's already).

    Args:
        network: The network to train.
        sampler: Draws the negatives of a sampled softmax, None for the full one.
        item_dropout: Share of input items replaced by the unknown item.
        bfloat16: Autocast to bfloat16, None: on CUDA with at least `BFLOAT16_HIDDEN` hidden units.
        compiler: Backend of torch.compile, empty for none, None: inductor on CUDA where there is a C compiler, for
            batches of at least `COMPILED_SCORES` scores.
        beside: What is minimised together with it, its parameters in the network.
    """

    def __init__(
        self,
        network: Network,
        sampler: Sampler | None,
        item_dropout: float,
        *,
        bfloat16: bool | None = None,
        compiler: str | None = None,
        beside: Beside | None = None,
    ) -> None:
        super().__init__()
        self.network, self.sampler, self.item_dropout, self.beside = network, sampler, item_dropout, beside
        cuda = network.item_bias.device.type == "cuda"
        self._bfloat16 = cuda and network.config.hidden >= BFLOAT16_HIDDEN if bfloat16 is None else bfloat16
        self._compiled_scores = 0 if compiler else COMPILED_SCORES
        if compiler is None:
            compiler = "inductor" if cuda and shutil.which("cc") else ""
        # Batches have any number of targets; without dynamic shapes each would be compiled anew.
        self._compiled = torch.compile(whole_softmax, backend=compiler, dynamic=True) if compiler else None

    def forward(
        self,
        items: Tensor,
        kinds: Tensor,
        gaps_seconds: Tensor,
        targets: Tensor,
        state: Tensor | None,
        recent: Tensor,
        count: float,
        places: Tensor | None = None,
    ) -> Tensor:
        """The loss: a scalar.

        Args:
            items: Item rows (W, T).
            kinds: Event kinds (W, T).
            gaps_seconds: Seconds since the event before (W, T).
            targets: Rows of the next items (W, T), 0 where nothing is learnt.
            state: State each window starts from (W, S), zeros when None.
            recent: Item rows of the R latest events before each known target (N, R), newest first, 0 for none.
            count: What the sum is divided by: targets of the whole batch, over all ranks.
            places: Where the targets stand in the histories (W, T); needed by ``beside``.
        """
        forgotten = torch.rand(items.shape, device=items.device) < self.item_dropout
        known = targets != UNKNOWN_ROW
        wanted = targets[known]  # (N,)
        with self._precision(items.device.type):
            outputs, _ = self.network.sequence(items.masked_fill(forgotten, UNKNOWN_ROW), kinds, gaps_seconds, state)
            if not len(wanted):  # a rank without a target still takes part in averaging the gradients
                return 0.0 * sum((part.sum() for part in self.parameters()), outputs.sum())
            query = self.network.query(outputs[known])  # (N, D)
            loss = self._mean(query, wanted, Repeats(recent, self.network.repeats))
            if self.beside is not None and places is not None:
                loss = loss + self.beside(query, places[known.cpu()], recent)
            return loss * (len(wanted) / count)

    def cross_entropy(self, query: Tensor, wanted: Tensor, more: Tensor, recent: Tensor) -> Tensor:
        """Mean cross entropy of item rows (N,) for queries (N, D) of users with these latest items (N, R).

        Something (V,) is added to the items' biases.
        """
        bias, repeats = self.network.item_bias + more, Repeats(recent, self.network.repeats)
        if self.sampler is not None:
            return self._sampled(query, bias, wanted, repeats)
        return full_softmax(query.float(), self.network.item_embedding.weight, bias, wanted, repeats)

    def _mean(self, query: Tensor, wanted: Tensor, repeats: Repeats) -> Tensor:
        table, bias = self.network.item_embedding.weight, self.network.item_bias
        if self.sampler is not None:
            return self._sampled(query, bias, wanted, repeats)
        if self._compiled is not None and len(wanted) * len(table) >= self._compiled_scores:
            loss: Tensor = self._compiled(query, table, bias, wanted, *repeats)
            return loss
        if query.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):  # it writes into buffers of its own
                return full_softmax(query.float(), table, bias, wanted, repeats)
        return whole_softmax(query, table, bias, wanted, *repeats)

    def _sampled(self, query: Tensor, bias: Tensor, wanted: Tensor, repeats: Repeats) -> Tensor:
        table = self.network.item_embedding.weight
        assert self.sampler is not None
        return sampled_softmax(
            query.float(), lambda rows: table[rows], lambda rows: bias[rows], wanted, self.sampler, repeats
        )

    def _precision(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self._bfloat16 else nullcontext()
