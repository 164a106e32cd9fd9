"""Training as a program of its own, on one device or many: `torchrun --nproc-per-node 4 -m models.train EVENTS`.

The same code as the trainer's passes: fine-tunes the serving version (or begins anew) on a table of events or on a
sample the trainer took, keeps a checkpoint, judges the candidate on the newest events, and publishes it. Under torchrun
every rank reads the events and trains on its share of each batch's windows; gradients are averaged (DDP, NCCL between
GPUs, gloo between CPUs). Rank 0 shows progress, judges and publishes.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from models.device import chosen_device
from models.finetune import Candidate, FineTuneSettings, Step, fine_tune, fingerprint, gate
from models.learner import figures_of, published_by
from models.pass_events import LOG_FIELDS
from models.private import PrivacySettings
from models.ranks import Ranks
from models.registry import Registry, Version
from models.table_sample import detached, sample_of
from models.tables import parse_columns, parse_types, read_table
from models.train_options import NOTHING, SERVING, parse
from models.training_settings import TrainingSettings
from state.errors import RecstreamError
from state.replay_sample import Sample

SAMPLE_SUFFIX: Final = ".replay"
_JUDGED: Final = 5_000  # most events of the gate: a table is not in a hurry
_EPOCH: Final = ("epochs", "learning_rate", "window", "batch_steps", "item_dropout", "bfloat16", "compiler")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, publish. Returns 0 when it is done, 1 with what, why and the fix on standard error."""
    args = parse(argv)
    try:
        with group(args.device, args.threads) as (ranks, device):
            result = run(args, ranks, device, int(time.time() * 1000))
    except RecstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if ranks.first:
        print(json.dumps(result) if args.json else f"{result['version']}: {'; '.join(result['reasons'])}", flush=True)
    return 0


@contextmanager
def group(device: str, threads: int) -> Iterator[tuple[Ranks, str]]:
    """Join the ranks torchrun started, if it did, and choose this one's device.

    Raises:
        RecstreamError: CUDA was asked for and is not there.
    """
    kind = chosen_device(device)
    torch.set_num_threads(threads)
    if not dist.is_torchelastic_launched():
        yield Ranks(), kind
        return
    cuda = kind == "cuda"
    place = f"cuda:{dist.get_node_local_rank()}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(place)
    # gloo carries what is not a tensor on a GPU: checkpoints' parts, names.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Ranks.present(), place
        # A rank that takes its connections down while another still uses them makes that one's process abort.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(args: Namespace, ranks: Ranks, device: str, now_ms: int) -> dict[str, Any]:
    """Everything between the arguments and the result; every rank calls it.

    Returns:
        On rank 0 ``version``, ``promoted``, ``reasons``, ``metrics``, ``loss`` by epoch, ``samples_per_second``,
        ``seconds``, ``ranks``; empty on the others.

    Raises:
        RecstreamError: The events, the registry or a setting cannot be used.
    """
    registry = Registry(args.registry)
    serving = ranks.from_first(registry.current() if ranks.first else None)
    sample, table = read(args)
    settings = settings_of(args)
    wanted = serving if args.parent in (SERVING, NOTHING) else str(args.parent)
    parent = registry.load(wanted) if wanted is not None else None
    if table:
        parent = detached(parent)
    anew = args.parent == NOTHING
    identity = fingerprint(parent, anew, sample, settings, args.seed)
    checkpoint = Path(args.checkpoint)
    if ranks.first:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _progress(ranks) as (progress, learnt):
        candidate = fine_tune(parent, sample, settings, args.seed, progress, device, checkpoint, anew=anew)
    seconds = time.perf_counter() - started
    if candidate is None or not ranks.first:
        return {}
    result = _publish(registry, candidate, parent, sample, settings, args, identity, now_ms, table)
    checkpoint.unlink(missing_ok=True)
    rate = learnt() / seconds  # of this process since it began or resumed, start-up of the pass included
    return result | {"samples_per_second": round(rate, 1), "seconds": round(seconds, 2), "ranks": ranks.ranks}


def read(args: Namespace) -> tuple[Sample, bool]:
    """The events to train on, and whether they came from a table rather than from a trainer's sample.

    Raises:
        RecstreamError: They cannot be read.
    """
    if Path(args.events).suffix == SAMPLE_SUFFIX:
        return Sample.load(Path(args.events)), False
    columns = parse_columns(args.columns) if args.columns else None
    types = parse_types(args.types) if args.types else None
    return sample_of(read_table(args.events, columns, types)), True


def settings_of(args: Namespace) -> FineTuneSettings:
    """The trainer's settings with what the arguments change."""
    settings = FineTuneSettings(held_out_most=_JUDGED, checkpoint_batches=args.checkpoint_batches)
    given = {name: getattr(args, name) for name in _EPOCH if getattr(args, name) is not None}
    epochs = given.pop("epochs", None)

    def changed(training: TrainingSettings) -> TrainingSettings:
        return replace(training, **given)

    shape = {name: getattr(args, name) for name in ("cell", "hidden", "embedding", "dropout")}
    return replace(
        settings,
        training=changed(settings.training),
        first=changed(settings.first),
        epochs=epochs or settings.epochs,
        first_epochs=epochs or settings.first_epochs,
        privacy=PrivacySettings(args.dp_noise, args.dp_clip, args.dp_users) if args.dp else None,
        **{name: value for name, value in shape.items() if value is not None},
    )


def _publish(
    registry: Registry,
    candidate: Candidate,
    parent: Version | None,
    sample: Sample,
    settings: FineTuneSettings,
    args: Namespace,
    identity: str,
    now_ms: int,
    table: bool,
) -> dict[str, Any]:
    name = published_by(registry, identity)  # by this program, killed before it could promote
    if name is None:
        verdict = gate(candidate, parent, sample, settings, args.seed)
        if not candidate.finite:
            return {"version": None, "promoted": False, "reasons": list(verdict.reasons), "metrics": {}, "loss": []}
        lineage = {key: value for key, value in candidate.lineage.items() if not table or key not in LOG_FIELDS}
        lineage |= {"created_ms": now_ms, "pass": identity, "trigger": "train", "data": Path(args.events).name}
        metrics = figures_of(candidate, verdict)
        name = registry.publish(candidate.network, candidate.vocabulary, metrics, lineage, promote=False)
    metrics = registry.describe(name).metrics
    promoted, reasons = bool(metrics["gate"]["promoted"]), list(metrics["gate"]["reasons"])
    if promoted and args.no_promote:
        promoted = False
        reasons.append("it may serve, but --no-promote was given")
    elif promoted and not registry.succeed(name, parent.name if parent else None):
        promoted = False
        reasons.append(f"{registry.current()} was promoted meanwhile: judge this version against it")
    return {"version": name, "promoted": promoted, "reasons": reasons, "metrics": metrics, "loss": candidate.loss}


@contextmanager
def _progress(ranks: Ranks) -> Iterator[tuple[Callable[[Step], None], Callable[[], int]]]:
    """A bar on rank 0's terminal, a line per epoch where standard error is none; and how many events were learnt."""
    console, newest = Console(stderr=True, highlight=False), [0]
    bar = Progress(
        TextColumn("train"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (ranks.first and console.is_terminal),
    )
    task = bar.add_task("", total=1.0)
    shown = [0]

    def show(step: Step) -> None:
        newest[0] = step.learnt
        text = f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.4f}"
        bar.update(task, completed=step.done, description=text)
        over = int(step.done * step.epochs + 1e-9)
        if ranks.first and not console.is_terminal and over > shown[0]:
            shown[0] = over
            console.print(text)

    with bar:
        yield show, lambda: newest[0]


if __name__ == "__main__":
    raise SystemExit(main())
