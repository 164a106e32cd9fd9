import torch

from models.ranks import Ranks


def test_alone_everything_is_its_own_and_no_group_is_needed() -> None:
    ranks = Ranks.present()
    assert (ranks.rank, ranks.ranks, ranks.first) == (0, 1, True)
    values = torch.ones(3)
    assert ranks.summed(values) is values
    assert ranks.gathered("mine") == ["mine"]
    assert ranks.from_first({"a": values})["a"] is values
    assert ranks.any(True) and not ranks.any(False)


def test_only_one_rank_is_first() -> None:
    assert [Ranks(rank, 4).first for rank in range(4)] == [True, False, False, False]
