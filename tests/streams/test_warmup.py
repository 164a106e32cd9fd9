import subprocess
import sys

import torch

from models import history, step, topk
from streams import encode, record_batch
from streams.warmup import warm_up


def test_every_kernel_of_the_online_path_is_compiled_afterwards():
    warm_up()
    kernels = [
        step.gru_steps, step.lstm_steps, topk._top_k, history._append, history._rank, history._take_fresh,
        history._distinct, encode._encode, encode._listed_bytes, record_batch._frame,
    ]  # fmt: skip
    assert all(kernel.signatures for kernel in kernels)


def test_a_round_compiles_nothing_new_after_the_warm_up():
    """In a process of its own: a signature the warm-up misses would hold the event loop for seconds under load."""
    program = """
import numba, numpy as np
from numba.core import event
from streams.warmup import warm_up
warm_up()
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(str(event.data["dispatcher"]))
    def on_end(self, event): pass
event.register("numba:compile", Listener())
warm_up()
import orjson
from models.fusion import Fusion
from models.recommend import Recommender
from models.serving import ServingModel
from state.arena import Arena
from state.items import ItemIndex
from state.store import UserStore
from streams.compute import Compute
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition
from streams.warmup import _version
for fused in (False, True):
    for exclude in ("auto", "none", "purchased", "seen"):
        for latest in (False, True):
            items = ItemIndex()
            recommender = Recommender(items, 7, exclude, latest, fusion=Fusion() if fused else None)
            partition, other = (Partition(n, UserStore(Arena(recommender.state_size, 7), items)) for n in (1, 2))
            compute = Compute(recommender, Metrics(), 65_536)
            offset = 0
            for swap in (False, True):
                for n, users in ((1, 1), (3, 1), (40, 9)):
                    for topic in ("clicks", "purchases"):
                        values = [
                            orjson.dumps({"user_id": f"u{i % users}", "item_id": f"i{i % 30}", "timestamp": i})
                            for i in range(n)
                        ] + [b"bad"]
                        offsets = list(range(offset, offset + n + 1))
                        offset += n
                        batch = RecordBatch(topic, 1, offsets, offsets, [None] * (n + 1), values, offset)
                        compute.round([(partition, [batch, batch]), (other, [batch])])
                if not swap:
                    recommender.block("i3")
                    recommender.swap(ServingModel.from_version(_version("gru")))
            flush_partition(partition, 0, 10**15, False)
print(compiled)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_seed_of_the_process_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    warm_up()
    assert torch.equal(torch.rand(3), expected)
