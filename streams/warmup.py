"""Compile the numeric kernels before a worker joins its group: compiling holds the interpreter for seconds.

`python -m streams.warmup` fills the cache beside the modules once (part of `make install`); with a full cache a worker
spends about 0.3 s here.
"""

import numpy as np
import orjson
import torch

from models.fusion import Fusion
from models.network import Network, NetworkConfig
from models.recommend import Recommender
from models.serving import ServingModel
from models.staging import Staged
from models.version import Version
from state.arena import Arena
from state.events import TOPICS
from state.items import ItemIndex
from state.store import UserStore
from streams.compute import Compute
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition

_ITEMS = 20


def _version(cell: str) -> Version:
    config = NetworkConfig(items=_ITEMS + 1, cell="lstm" if cell == "lstm" else "gru", hidden=8, embedding=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = Network(config).state_dict()
    vocabulary = ["", *(f"i{n}" for n in range(_ITEMS))]
    return Version(
        name="v0000-00000001", number=0, fingerprint=1, config=config, vocabulary=vocabulary, weights=weights,
        metrics={}, lineage={},
    )  # fmt: skip


def warm_up() -> None:
    """Push a few events through the whole compute path, without a model and with each kind of cell."""
    values: list[bytes | None] = [
        orjson.dumps({"user_id": f"u{n % 3}", "item_id": f"i{n % 5}", "timestamp": n}) for n in range(6)
    ]
    for cell in (None, "gru", "lstm"):
        for fused in (False, True):
            items = ItemIndex()
            recommender = Recommender(items, k=5, exclude="seen", fusion=Fusion() if fused else None)
            if cell is not None:
                recommender.swap(ServingModel.from_version(_version(cell)))
            partition = Partition(0, UserStore(Arena(recommender.state_size, 5), items))
            compute = Compute(recommender, Metrics(), 65_536)
            for topic in TOPICS[:2]:
                offsets = list(range(len(values)))
                batch = RecordBatch(topic, 0, offsets, offsets, [None] * 6, values, len(values))
                compute.round([(partition, [batch])])
            recommender.rehydrate(partition.store.arena, np.array([0], np.int32))
            if cell is not None:
                staged = Staged(ServingModel.from_version(_version(cell)), items)
                while not staged.prepare([partition.store.arena], 2):
                    pass
            flush_partition(partition, 0, None, False)


if __name__ == "__main__":
    warm_up()
