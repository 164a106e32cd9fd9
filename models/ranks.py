"""The processes that train one network together (`torch.distributed`), or the one that trains alone."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which process this is, and what all of them agree on. Every call but `first` is a collective: all ranks make it.

    Attributes:
        rank: Number of this process, from 0.
        ranks: How many there are.

    Example:
        >>> Ranks().gathered("mine"), Ranks().first
        (['mine'], True)
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def present(cls) -> "Ranks":
        """The group this process is in; itself alone where none was set up."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and publishes."""
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """The sum of every rank's tensor, which is changed in place."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        found = [value] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(found, value)
        return found

    def from_first(self, value: Any) -> Any:
        """Rank 0's value; what the others give is ignored."""
        held = [value]
        if self.ranks > 1:
            dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag if self.ranks == 1 else bool(self.summed(torch.tensor(int(flag))).item())
