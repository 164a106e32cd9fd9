"""What does a GPU bring to training? The same updates on this machine's cores and on its GPU, side by side.

Three networks on an invented log: the one that streams begin with (GRU of 128, 20,000 items, every item scored), a
large one that scores every item too (GRU of 512), and one of 1,000,000 items of which 4,096 are sampled. Rates are of
`models.training.Trainer`, layout and transfers included, after a warm-up that ends compilation. On CUDA three ways:
32-bit floats, bfloat16, and bfloat16 with the scores and their loss compiled where they are not sampled.
"""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from benchmarks.harness.machine import computer
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from models.device import chosen_device
from models.network import Network, NetworkConfig
from models.sequences import Histories
from models.training import Trainer
from models.training_settings import TrainingSettings

_LENGTH: Final = 100  # events of a user
_WARM: Final = 3  # batches
_CUDA: Final = {
    "CUDA, 32 bit": {"bfloat16": False, "compiler": ""},
    "CUDA, bfloat16": {"bfloat16": True, "compiler": ""},
    "CUDA, bfloat16, compiled": {"bfloat16": True, "compiler": "inductor"},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the size of its batches."""

    items: int
    hidden: int
    embedding: int
    batch_steps: int

    def __str__(self) -> str:
        return f"GRU {self.hidden}, {self.items:,} items"


CASES: Final = (Case(20_000, 128, 64, 1600), Case(20_000, 512, 256, 20_000), Case(1_000_000, 512, 256, 20_000))


def main(
    seconds: Annotated[float, typer.Option(min=0.5, help="of each measurement")] = 10.0,
    seed: Annotated[int, typer.Option(help="randomness of the log")] = 0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Events learnt per second on all cores and on the GPU, three ways; needs CUDA."""
    chosen_device("cuda")
    machine = computer() | {"gpu": torch.cuda.get_device_name()}
    cases = []
    for case in CASES:
        source = invented(case, seed)
        ways = {"CPU": _rate(case, source, "cpu", {}, seconds)}
        for way, settings in _CUDA.items():
            with console.status(f"{case}: {way}"):
                ways[way] = _rate(case, source, "cuda", settings, seconds)
            console.print(f"[dim]{case}: {way}: {ways[way]:,.0f} events/s")
        cases.append({"case": str(case), **vars_of(case), "events_per_second": ways})
    result: dict[str, Any] = {
        "cases": cases,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "machine": machine | {"torch": str(torch.__version__)},
    }
    _report(result, out)
    conclude(result, json)


def vars_of(case: Case) -> dict[str, int]:
    """The case's numbers by name."""
    return {name: getattr(case, name) for name in case.__slots__}


def invented(case: Case, seed: int) -> Histories:
    """Histories of about 40 batches over items of Zipf's popularity."""
    rng = np.random.default_rng(seed)
    users = max(2, 40 * case.batch_steps // _LENGTH)
    size = users * _LENGTH
    items = 1 + (rng.zipf(1.2, size) - 1) % (case.items - 1)
    gaps = rng.integers(1, 5_000, size)
    gaps[::_LENGTH] = 0
    times = 1_000 * np.cumsum(gaps)
    kinds = rng.integers(0, 3, size).astype(np.uint8)
    return Histories(items.astype(np.int32), kinds, gaps, times, np.arange(0, size + 1, _LENGTH))


def _rate(case: Case, source: Histories, device: str, changes: dict[str, Any], seconds: float) -> float:
    torch.manual_seed(0)
    network = Network(NetworkConfig(case.items, "gru", case.hidden, case.embedding, 0.2)).to(device)
    settings = replace(TrainingSettings(batch_steps=case.batch_steps), **changes)
    trainer = Trainer(network, source.counts(case.items), 1_000, 0, settings)
    learnt, batches, started = 0.0, 0, 0.0
    total = int((np.diff(source.starts) - 1).sum())
    while True:
        before = 0.0

        def report(share: float, loss: float) -> bool:
            nonlocal learnt, batches, started, before
            batches += 1
            if batches == _WARM:
                started = perf_counter()
            elif batches > _WARM:
                learnt += (share - before) * total
            before = share
            return batches > _WARM and perf_counter() - started >= seconds

        trainer.epoch(source, report)  # each update ends in a read of its loss, so nothing is still under way
        if batches > _WARM and perf_counter() - started >= seconds:
            return learnt / (perf_counter() - started)


def _report(result: dict[str, Any], out: Any) -> None:
    ways = list(result["cases"][0]["events_per_second"])
    rows = []
    for case in result["cases"]:
        rates = case["events_per_second"]
        rows.append((case["case"], *(f"{rates[way]:,.0f} ({rates[way] / rates['CPU']:.1f}x)" for way in ways)))
    table(f"Events learnt per second, {result['machine']['gpu']}", ("", *ways), rows)
    save("devices", result, out, lambda axes: _draw(axes, result, ways))


def _draw(axes: Any, result: dict[str, Any], ways: list[str]) -> None:
    width = 0.8 / len(ways)
    for number, way in enumerate(ways):
        rates = [case["events_per_second"][way] for case in result["cases"]]
        axes.bar(np.arange(len(rates)) + number * width, rates, width, label=way)
    axes.set_xticks(np.arange(len(result["cases"])) + 0.4 - width / 2, [case["case"] for case in result["cases"]])
    axes.set(yscale="log", ylabel="events learnt per second")
    axes.set_ylim(top=4 * axes.get_ylim()[1])  # room for the legend
    axes.set_title(f"Training: {result['threads']} threads of the CPU against {result['machine']['gpu']}")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper center", ncols=len(ways))


if __name__ == "__main__":
    run(main)
