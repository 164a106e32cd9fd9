"""Attention blocks shared by the causal Transformer and the masked autoencoder.

Where an event stands is told by a learnt bias per head and distance, never by an absolute position: a window can then
slide along a history, and keys and values computed once stay right for ever: the causal model's cache is exact.

Letters: B users or windows, T steps, L reach (distances 0 to L - 1), D width, A heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDER = 4  # of the feed-forward layer
_STD = 0.02  # of what is added to the inputs: at first a block changes little, and the newest item speaks for itself
_NEAREST, _FARTHEST = (
    0.5,
    0.02,
)  # a head's first liking for near events, per event of distance: from one head to the last


class Block(nn.Module):
    """One pre-norm block: attention, then a feed-forward layer, each added to its input.

    References:
        Vaswani et al., "Attention is all you need", NeurIPS 2017; Xiong et al., "On layer normalization in the
        Transformer architecture", ICML 2020 (pre-norm); Raffel et al., "Exploring the limits of transfer learning",
        JMLR 2020 (relative position bias).

    Args:
        width: D.
        heads: A, a divisor of D.
        dropout: Of attention weights and of what is added, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.before = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.widen = nn.Linear(width, _WIDER * width)
        self.narrow = nn.Linear(_WIDER * width, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.project, self.merge, self.widen, self.narrow):
            nn.init.normal_(layer.weight, std=_STD if layer in (self.merge, self.narrow) else width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Outputs (B, T, D) of inputs (B, T, D); ``bias`` (B or 1, A, T, T) is minus infinity where nothing is seen."""
        query, key, value = self.parts(self.before(x))
        return self.add(x, self.attend(query, key, value, bias))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, T, D) of normalised inputs (B, T, D)."""
        query, key, value = self.project(x).chunk(3, dim=-1)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attention of queries (B, T, D) to keys and values (B, S, D) with a bias (B or 1, A, T, S): (B, T, D)."""
        shape = (self.heads, query.shape[-1] // self.heads)
        query, key, value = (torch.unflatten(part, -1, shape).transpose(1, 2) for part in (query, key, value))
        rate = self.rate if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        return seen.transpose(1, 2).flatten(2)

    def add(self, x: Tensor, seen: Tensor) -> Tensor:
        """The rest of the block, given what was attended to (B, T, D)."""
        x = x + self.dropout(self.merge(seen))
        fed: Tensor = self.narrow(functional.gelu(self.widen(self.between(x))))
        return x + self.dropout(fed)


class CausalStack(nn.Module):
    """Blocks in which an event sees itself and the L - 1 events before it; through layers it reaches further back.

    Args:
        width: D.
        layers: Number of blocks.
        heads: A.
        reach: L.
        dropout: In training.
    """

    def __init__(self, width: int, layers: int, heads: int, reach: int, dropout: float) -> None:
        super().__init__()
        self.width, self.reach = width, reach
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.distance = nn.Parameter(near_first(heads, torch.arange(reach)).repeat(layers, 1, 1))
        self.inward, self.after = nn.LayerNorm(width), nn.LayerNorm(width)

    @property
    def context(self) -> int:
        """Events that can matter to an output."""
        return len(self.blocks) * (self.reach - 1) + 1

    @property
    def state_size(self) -> int:
        """Numbers of a cache: the newest output, keys and values of L events in every layer, how many there are."""
        return self.width + len(self.blocks) * 2 * self.reach * self.width + 1

    def sequence(self, x: Tensor) -> Tensor:
        """Outputs (B, T, D) of inputs (B, T, D), from an empty cache."""
        x = self.inward(x)
        steps = torch.arange(x.shape[1], device=x.device)
        apart = steps[:, None] - steps[None, :]  # (T, T) how far back
        seen = (apart >= 0) & (apart < self.reach)
        for number, block in enumerate(self.blocks):
            bias = self.distance[number][:, apart.clamp(0, self.reach - 1)]  # (A, T, T)
            x = block(x, bias.masked_fill(~seen, -torch.inf)[None])
        out: Tensor = self.after(x)
        return out

    def step(self, state: Tensor, x: Tensor) -> Tensor:
        """Caches (B, S) after one more input (B, D)."""
        count = (state[:, -1:] + 1).clamp(max=self.reach)  # (B, 1)
        shape = (len(self.blocks), 2, self.reach, self.width)
        cache = torch.unflatten(state[:, self.width : -1], 1, shape)  # (B, layers, 2, L, D), newest first
        unseen = torch.arange(self.reach, device=x.device)[None] >= count  # (B, L)
        kept, out = [], self.inward(x)[:, None]  # (B, 1, D)
        for number, block in enumerate(self.blocks):
            query, key, value = block.parts(block.before(out))  # type: ignore[operator]
            newest = torch.stack((key, value), dim=1)  # (B, 2, 1, D)
            both = torch.cat((newest, cache[:, number, :, :-1]), dim=2)  # (B, 2, L, D)
            bias = self.distance[number][None, :, None, :]  # (1, A, 1, L)
            bias = bias.expand(len(x), -1, -1, -1).masked_fill(unseen[:, None, None, :], -torch.inf)
            out = block.add(out, block.attend(query, both[:, 0], both[:, 1], bias))  # type: ignore[operator]
            kept.append(both)
        newest_out: Tensor = self.after(out)[:, 0]
        return torch.cat((newest_out, torch.stack(kept, dim=1).flatten(1), count), dim=1)

    def query(self, state: Tensor) -> Tensor:
        """The newest outputs (B, D) of caches (B, S), zeros of empty ones."""
        return state[:, : self.width]


class Recurrence(nn.Module):
    """A GRU layer with the interface of `CausalStack`: the state is its hidden vector.

    Args:
        width: D.
        hidden: H.
        dropout: Of outputs, in training.
    """

    context = 200

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.GRU(width, hidden, batch_first=True)
        self.project = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    @property
    def state_size(self) -> int:
        """H."""
        return self.layer.hidden_size

    def sequence(self, x: Tensor) -> Tensor:
        """Outputs (B, T, D) of inputs (B, T, D), from zeros."""
        out: Tensor = self.project(self.dropout(self.layer(x)[0]))
        return out

    def step(self, state: Tensor, x: Tensor) -> Tensor:
        """States (B, H) after one more input (B, D)."""
        after: Tensor = self.layer(x[:, None], state[None].contiguous())[1][0]
        return after

    def query(self, state: Tensor) -> Tensor:
        """Outputs (B, D) of states (B, H)."""
        out: Tensor = self.project(state)
        return out


def near_first(heads: int, distances: Tensor) -> Tensor:
    """The bias (A, K) that distances (K,) start from: each head likes near events, the last one hardly.

    References:
        Press et al., "Train short, test long: attention with linear biases", ICLR 2022; here the bias is learnt on.
    """
    slopes = torch.logspace(math.log10(_NEAREST), math.log10(_FARTHEST), heads)
    return -slopes[:, None] * distances


def bidirectional_bias(distance: Tensor, steps: Tensor, length: int) -> Tensor:
    """Bias (B, A, T, T) of windows whose first ``steps`` (B,) of ``length`` T events are real.

    Args:
        distance: Learnt bias per head and signed distance (A, 2L - 1), L >= T.
        steps: Real events of each window (B,).
        length: T.
    """
    place = torch.arange(length, device=distance.device)
    apart = place[:, None] - place[None, :] + (distance.shape[1] - 1) // 2
    unreal = place[None, :] >= steps[:, None]  # (B, T)
    return distance[:, apart][None].masked_fill(unreal[:, None, None, :], -torch.inf)
