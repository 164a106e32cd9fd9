"""The published GRU as plain torch: one step for B users, exact top-10. The equations are those of `models.network`."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

TOP_K = 10


@dataclass(frozen=True)
class Gru:
    """Weights laid out for inference. B users, D = 64, H = 128, V = 1,683 rows with the unknown one."""

    items: Tensor  # (V, D)
    kinds: Tensor  # (3, D)
    gap: Tensor  # (D,)
    w_input: Tensor  # (3H, D)
    w_hidden: Tensor  # (3H, H)
    b_input: Tensor  # (3H,)
    b_hidden: Tensor  # (3H,)
    projection: Tensor  # (D, H)
    projection_bias: Tensor  # (D,)
    bias: Tensor  # (V,) minus infinity at row 0
    vocabulary: list[str]

    @property
    def hidden(self) -> int:
        """H."""
        return self.w_hidden.shape[1]

    @property
    def rows(self) -> dict[str, int]:
        """Model row of each item id."""
        return {item: row for row, item in enumerate(self.vocabulary)}

    def step(self, state: Tensor, items: Tensor, kinds: Tensor, gaps_seconds: Tensor) -> Tensor:
        """State (B, H) after one event each: rows, kinds and gaps (B,)."""
        gap = torch.log1p(gaps_seconds) / 16  # (B,)
        x = self.items[items] + self.kinds[kinds] + gap.unsqueeze(1) * self.gap  # (B, D)
        return torch.gru_cell(x, state, self.w_input, self.w_hidden, self.b_input, self.b_hidden)

    def top(self, state: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Best rows (B, 10) and their scores (B, 10) of states (B, H)."""
        query = torch.addmm(self.projection_bias, state, self.projection.T)  # (B, D)
        scores, rows = torch.topk(torch.addmm(self.bias, query, self.items.T), TOP_K)  # of (B, V)
        return rows.numpy(), scores.numpy()


def load(version: Path) -> Gru:
    """Read a version directory."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    weights = load_file(version / "weights.safetensors")
    bias = weights["item_bias"].clone()
    bias[0] = -torch.inf
    return Gru(
        items=weights["item_embedding.weight"],
        kinds=weights["kind_embedding.weight"],
        gap=weights["gap_weight"],
        w_input=weights["cell.weight_ih_l0"],
        w_hidden=weights["cell.weight_hh_l0"],
        b_input=weights["cell.bias_ih_l0"],
        b_hidden=weights["cell.bias_hh_l0"],
        projection=weights["projection.weight"],
        projection_bias=weights["projection.bias"],
        bias=bias,
        vocabulary=json.loads((version / "vocabulary.json").read_text(encoding="utf-8")),
    )
