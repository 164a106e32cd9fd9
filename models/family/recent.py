"""States that are a user's latest events: a window that shifts by one with every event.

Letters: B users, T steps, W width of the window, C columns kept of an event.
"""

import torch
from torch import Tensor


def shifted(window: Tensor, newest: Tensor) -> Tensor:
    """Windows (B, W, C), newest event first, after one more event (B, C)."""
    return torch.cat((newest[:, None], window[:, :-1]), dim=1)


def unfolded(columns: Tensor, width: int) -> Tensor:
    """The window after every step, newest event first: (B, T, C) -> (B, T, W, C); zeros before the first event."""
    padded = torch.cat((columns.new_zeros(len(columns), width - 1, columns.shape[2]), columns), dim=1)
    return padded.unfold(1, width, 1).flip(3).transpose(2, 3)


def ends(columns: Tensor, steps: Tensor, width: int) -> Tensor:
    """The window after the first ``steps`` (B,) events of (B, T, C): (B, W, C), newest event first."""
    place = steps[:, None] - 1 - torch.arange(width)  # (B, W)
    taken = columns.gather(1, place.clamp(min=0)[:, :, None].expand(-1, -1, columns.shape[2]))
    return taken * (place >= 0)[:, :, None]
