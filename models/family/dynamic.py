"""Recurrent layers that compute in 8 bits: weights are rounded once, inputs and states anew at every step.

A scale for each output of a weight matrix, and one for each row that is multiplied with it: rows do not share one as
they do in torch's own dynamic quantisation, so a user's state does not depend on who else is in the batch. Products are
sums of whole numbers, exact in 32 bits. Gates and states stay floats.

Letters: B users, T steps, N rows, D inputs, H hidden width, G gates x H.

References:
    Wu et al., "Integer quantization for deep learning inference: principles and empirical evaluation", 2020.
"""

from typing import Final

import torch
from torch import Tensor, nn

LEVELS: Final = 127
_LEAST: Final = 1e-12  # of a scale: a row of zeros has one too


class Int8Linear(nn.Module):
    """``x W' + b`` with 8-bit weights and inputs.

    Args:
        weight: W (G, D).
        bias: b (G,).

    Example:
        >>> weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        >>> x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        >>> ((Int8Linear(weight, torch.zeros(6))(x) - x @ weight.T).abs().max() < 0.05).item()
        True
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        scale = _scale(weight)
        self.register_buffer("weight", _rounded(weight, scale).T.contiguous())  # (D, G) int8
        self.register_buffer("scale", scale[:, 0].clone())  # (G,)
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., G)."""
        rows = x.flatten(0, -2)  # (N, D)
        scale = _scale(rows)
        # Private, but what torch's own quantisation calls; on the CPU it takes any shape.
        product = torch._int_mm(_rounded(rows, scale), self.weight)  # (N, G) int32
        return (product.to(x.dtype) * scale * self.scale + self.bias).view(*x.shape[:-1], -1)


class Int8Cell(nn.Module):
    """A layer of one direction with `Int8Linear` for its products; called as the layer it was made from.

    Args:
        layer: An `nn.GRU`, `nn.LSTM` or `nn.RNN` with batches first.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode = layer.mode
        weight, recurrent, bias, recurrent_bias = (parameter.detach() for parameter in layer.parameters())
        self.inputs, self.recurrent = Int8Linear(weight, bias), Int8Linear(recurrent, recurrent_bias)

    def forward(
        self, inputs: Tensor, state: Tensor | tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Inputs (B, T, D) and state (1, B, H), an LSTM's two of them; outputs (B, T, H) and the state at the end."""
        hidden, memory = (state[0][0], state[1][0]) if isinstance(state, tuple) else (state[0], state[0])
        gates = self.inputs(inputs)  # (B, T, G)
        outputs = []
        for step in range(inputs.shape[1]):
            hidden, memory = self._step(gates[:, step], self.recurrent(hidden), hidden, memory)
            outputs.append(hidden)
        end = hidden[None]
        return torch.stack(outputs, dim=1), (end, memory[None]) if isinstance(state, tuple) else end

    def _step(self, x: Tensor, h: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Equations of torch's layers, in torch's order of gates."""
        if self.mode == "GRU":
            width = hidden.shape[1]
            reset, update = torch.sigmoid(x[:, : 2 * width] + h[:, : 2 * width]).chunk(2, dim=1)
            new = torch.tanh(x[:, 2 * width :] + reset * h[:, 2 * width :])
            return new + update * (hidden - new), memory
        if self.mode == "LSTM":
            i, f, g, o = (x + h).chunk(4, dim=1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(memory), memory
        return torch.tanh(x + h), memory


def _scale(rows: Tensor) -> Tensor:
    """Of each row (N, 1): its largest value is `LEVELS` of it."""
    return rows.abs().amax(-1, keepdim=True).clamp(min=_LEAST) / LEVELS


def _rounded(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows / scale).round_().to(torch.int8)
