"""The model every contender runs: GRU(128) over 1,682 items with seeded random weights, published in a registry."""

from pathlib import Path

import torch
from torch import nn

from benchmarks.harness.events import vocabulary
from models.network import Network, NetworkConfig
from models.registry import Registry

HIDDEN = 128


def publish(registry: Path, seed: int = 0) -> Path:
    """Publish the network and return its version's directory.

    The weights are random: speed does not depend on them. Embeddings are drawn wide, so that users get different lists.
    """
    torch.manual_seed(seed)
    words = vocabulary()
    network = Network(NetworkConfig(items=len(words), hidden=HIDDEN))
    nn.init.normal_(network.item_embedding.weight, std=0.5)
    nn.init.normal_(network.gap_weight, std=0.5)
    nn.init.normal_(network.item_bias, std=0.1)
    version = Registry(registry).publish(network, words, {}, {"seed": seed, "purpose": "benchmark"})
    return registry / version
