"""RecBole's GRU4Rec, SASRec and BERT4Rec in the quality table: the same split, ranks by the same rule.

Letters: K judged events, L longest history that RecBole sees.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.processes import ROOT, BenchmarkError
from benchmarks.harness.quality_cells import SIDES, Cell, store
from benchmarks.harness.recbole import FOLDERS, NAME, recbole_python
from models.evaluation.dataset import Dataset
from models.evaluation.metrics import accuracy
from models.evaluation.splits import Protocol, split_by

PREFIX: Final = "RecBole "
RECBOLE_MODELS: Final = tuple(PREFIX + name for name in ("GRU4Rec", "SASRec", "BERT4Rec"))
_LONGEST: Final = 50  # RecBole's default
_WHOLE: Final = 0.95  # of the users' histories fit; padding the rest of them out only costs RecBole time


def fill_recbole(
    cells: Path,
    data: Dataset,
    protocol: Protocol,
    model: str,
    epochs: int,
    seconds: float,
    device: str,
    say: Callable[[str], Any],
) -> None:
    """Train one of RecBole's models for more epochs and store its figures; it goes on from what is kept.

    Args:
        cells: Where cells are kept; what RecBole needs to go on is beside them.
        data: The events.
        protocol: How they are split.
        model: One of `RECBOLE_MODELS`.
        epochs: Most epochs, those of earlier calls included.
        seconds: No epoch begins after so long.
        device: Where it trains.
        say: Told what happens.

    Raises:
        BenchmarkError: RecBole cannot be installed, or it fails.
    """
    cell = Cell(data.name, protocol, model, 0)
    path = cell.path(cells)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("finished"):
        return
    folder = cells / "recbole" / f"{data.name}.{protocol}.{model.removeprefix(PREFIX)}"
    split, _ = split_by(data, protocol)
    judged = np.flatnonzero(split.judged & (data.source.items > 0))
    if not (folder / "ask.npz").is_file():
        longest = longest_history(data)
        write_samples(data, split.learnt, folder, longest)
        asked = {"valid": np.flatnonzero(split.validation), "test": judged}
        arrays = [histories_before(data, events, part, longest) for part, events in asked.items()]
        np.savez_compressed(folder / "ask.npz", items=data.items, longest=longest, **arrays[0], **arrays[1])
    longest = int(np.load(folder / "ask.npz")["longest"])
    argv = [recbole_python(device), "-m", "benchmarks.baselines.recbole_sequential", "--data", folder, "--name", NAME]
    argv += ["--model", model.removeprefix(PREFIX), f"--epochs={epochs}", f"--seconds={seconds}", f"--device={device}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, argv)], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        what = f"RecBole's {model} failed with status {done.returncode}"
        raise BenchmarkError(
            what, done.stderr.strip()[-800:], f"Remove {FOLDERS[device].name} to have it installed anew"
        )
    told = json.loads(done.stdout.strip().splitlines()[-1])
    ranks = np.load(folder / "found.npz")
    epoch = float(np.median(told["epoch_seconds"]))
    number, best = len(told["epoch_seconds"]), int(np.argmax(told["valid_ndcg_at_10"])) + 1
    figures: dict[str, Any] = {side: accuracy(ranks[side], data.items - 1) for side in SIDES}
    figures["seconds"] = round(sum(told["epoch_seconds"]), 1)
    state = "stopped early" if told["stopped_early"] and told["finished"] else "not converged"
    where = "" if told["devices"] == ["cpu"] else f" ({' and '.join(told['devices'])})"
    figures["note"] = f"{number} epochs of {epoch:.0f} s{where}, best {best}; last {longest} items; {state}"
    users = np.searchsorted(data.source.starts, judged, side="right") - 1
    body = {"data": {"name": data.name}, "figures": figures, "finished": told["finished"], "recbole": told}
    store(cells, cell, body, users, [ranks[side] for side in SIDES])
    say(f"{data.name}, {protocol}, {model}: {figures['note']}; NDCG@10 {figures['unmasked']['ndcg@10']:.4f}")


def longest_history(data: Dataset) -> int:
    """L: 95% of the users' histories fit, but RecBole's default of 50 at most."""
    return min(_LONGEST, int(np.ceil(np.quantile(np.diff(data.source.starts), _WHOLE))))


def write_samples(data: Dataset, learnt: NDArray[np.bool_], folder: Path, longest: int) -> None:
    """Every learnt event with the up to L learnt before it by its user, as RecBole's augmentation makes them."""
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    source, lines = data.source, list[str]()
    for user in range(source.users):
        places = np.arange(source.starts[user], source.starts[user + 1])
        items = source.items[places[learnt[places]]].tolist()
        for at in range(1, len(items)):
            before = " ".join(map(str, items[max(0, at - longest) : at]))
            lines.append(f"{user}\t{before}\t{items[at]}\n")
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    # RecBole wants all three; the histories to rank after are given apart, so a few lines do for two of them.
    for part, written in (("train", lines), ("valid", lines[:10]), ("test", lines[:10])):
        (folder / NAME / f"{NAME}.{part}.inter").write_text(header + "".join(written), encoding="utf-8")


def histories_before(data: Dataset, events: NDArray[np.int64], part: str, longest: int) -> dict[str, NDArray[Any]]:
    """What is known before events (K,): their users' last items (K, L), and all items had, as pairs."""
    source = data.source
    start = source.starts[np.searchsorted(source.starts, events, side="right") - 1]
    lists, lengths = np.zeros((len(events), longest), np.int64), np.maximum(np.minimum(events - start, longest), 1)
    for row, (first, event) in enumerate(zip(start, events, strict=True)):
        had = source.items[max(first, event - longest) : event]
        lists[row, : len(had)] = had
    number = events - start
    rows = np.repeat(np.arange(len(events)), number)
    place = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + np.repeat(start, number)
    return {
        f"{part}_lists": lists,
        f"{part}_lengths": lengths,
        f"{part}_targets": source.items[events].astype(np.int64),
        f"{part}_had_rows": rows,
        f"{part}_had_items": source.items[place].astype(np.int64),
    }
