"""What is published in the tests of versions and their registry."""

import torch

from models.network import Cell, Network, NetworkConfig

WORDS = ["", "tea", "té", "茶", 'c"h\\a']
METRICS = {"ndcg@10": 0.0661, "events": 12}
LINEAGE = {"data": "unit test", "seed": 7, "parent": None}


def build(seed: int = 1, cell: Cell = "gru", items: int = len(WORDS)) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkConfig(items=items, cell=cell, hidden=6, embedding=4))
