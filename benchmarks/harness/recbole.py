"""RecBole in a virtual environment of its own: made on first use, given the same events, run as a program."""

import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.processes import ROOT, BenchmarkError
from models.tables import Events

RECBOLE: Final = "recbole==1.2.1"
FOLDERS: Final = {"cpu": ROOT / ".venv-recbole", "cuda": ROOT / ".venv-recbole-cuda"}
# The newest releases that RecBole 1.2.1 still runs with; torch is the one that this project trains with.
PINS: Final = ("numpy==1.26.4", "pandas==2.1.4", "scipy==1.11.4")
# RecBole imports pkg_resources, which newer ones lack. torch asks for a newer one, to compile; we compile nothing.
SETUPTOOLS: Final = "setuptools==69.5.1"
TORCH: Final = {
    "cpu": ("torch==2.13.0+cpu", "torch==2.13.0"),  # the CPU build where the index has one
    "cuda": ("torch==2.13.*,!=2.13.0+cpu",),
}
NAME: Final = "log"
# What GRU4Rec (64/128, CE) reaches on ML-100K once it has converged, seen items not masked.
REFERENCE: Final = {"hr_at_10": 0.1177, "ndcg_at_10": 0.0567}


def recbole_python(device: str) -> Path:
    """The interpreter of RecBole's virtual environment for a device, made on first use and kept.

    Raises:
        BenchmarkError: pip cannot install RecBole.
    """
    folder = FOLDERS[device]
    python = folder / "bin" / "python"
    wanted = (RECBOLE, *PINS, SETUPTOOLS)
    probe = (
        "import importlib.metadata as m, sys; bad = [p for p in sys.argv[1:] if m.version(p.split('==')[0]) != "
        "p.split('==')[1]]; raise SystemExit(bool(bad) or not m.version('torch').startswith('2.13.'))"
    )
    if (
        python.exists()
        and not subprocess.run([python, "-c", probe, *wanted], capture_output=True, check=False).returncode
    ):
        return python
    venv.create(folder, with_pip=True, clear=True)
    install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # torch first and pinned again beside RecBole, whose own requirements would take another one.
    for torch in TORCH[device]:
        if not subprocess.run([*install, torch], capture_output=True, check=False).returncode:
            break
    done = subprocess.run([*install, "torch==2.13.*", RECBOLE, *PINS], capture_output=True, text=True, check=False)
    if not done.returncode:
        done = subprocess.run([*install, "--no-deps", SETUPTOOLS], capture_output=True, text=True, check=False)
    if done.returncode:
        what = f"{RECBOLE} could not be installed"
        raise BenchmarkError(what, done.stderr[-500:], "Measure without it: --recbole-epochs 0")
    return python


def write_interactions(events: Events, folder: Path) -> None:
    """Write the events as RecBole's atomic file, in the order they have.

    RecBole sorts by a 32-bit float, in which seconds since 1970 are 128 s apart: each event's number stands for its
    time, exact up to 2**24, so that both sides see one order.
    """
    (folder / NAME).mkdir(parents=True)
    users, items = events.users.to_list(), events.items.to_list()
    with (folder / NAME / f"{NAME}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"{users[row]}\t{items[row]}\t{row}\n" for row in np.arange(len(events)))


def train_recbole(
    events: Events,
    *,
    epochs: int,
    batch: int,
    hidden: int,
    embedding: int,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train RecBole's GRU4Rec and return what `benchmarks.baselines.recbole_gru4rec` prints.

    Raises:
        BenchmarkError: it cannot be installed, or it fails.
    """
    say("RecBole: virtual environment")
    python = recbole_python(device)
    say(f"RecBole: {epochs} epochs, on a core one to two minutes each")
    options = {"epochs": epochs, "batch": batch, "hidden": hidden, "embedding": embedding, "seed": seed}
    options |= {"name": NAME, "device": device}
    with tempfile.TemporaryDirectory(prefix="recstream-recbole-") as name:
        write_interactions(events, Path(name))
        argv = [python, "-m", "benchmarks.baselines.recbole_gru4rec", "--data", name]
        argv += [f"--{key}={value}" for key, value in options.items()]
        # It leaves log files where it runs; one thread each, as on our side.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(argv, cwd=name, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        what = f"{RECBOLE} failed with status {done.returncode}"
        raise BenchmarkError(
            what, done.stderr.strip()[-800:], f"Remove {FOLDERS[device].name} to have it installed anew"
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
