"""Fine-tuning: from the serving version and a sample of the replay buffer to a candidate; from nothing at a cold start.

The newest slice of the sample, by time, is left out of training: the gate judges the candidate on it, and it is learnt
by the next candidate, whose sample reaches further. A pass survives a kill at any point: what a checkpoint
does not hold is trained again from the checkpoint's weights, so every event counts exactly once per epoch.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.average import Carried
from models.course import Course, Step
from models.fit import popularity_bias
from models.gate import GateSettings, Verdict, followers, judge, ranks_of
from models.network import Cell, Network, NetworkConfig
from models.pass_events import held_out, histories_of, shares, training_part
from models.private import PrivacySettings, PrivateTrainer, account, without_events
from models.ranking import popularity_ranks
from models.registry import Version
from models.sequences import Histories
from models.training import Trainer
from models.training_settings import ONE_PASS, SMALL_BATCHES, TrainingSettings
from models.vocabulary import Growth, VocabularySettings, grow, transplant
from state.errors import RecstreamError
from state.replay_sample import Sample

__all__ = ["FEWEST_EVENTS", "Candidate", "FineTuneSettings", "Step", "fine_tune", "fingerprint", "gate"]

FEWEST_EVENTS: Final = 10  # to train on at all


@dataclass(frozen=True, slots=True)
class FineTuneSettings:
    """How candidates are made.

    Attributes:
        epochs: Passes of a fine-tuning over its sample.
        training: How fine-tuning trains.
        first_epochs: Passes of a fit from nothing.
        first: How a fit from nothing trains.
        cell: Recurrent cell of a network made from nothing; fine-tuning keeps its parent's shape.
        hidden: H of such a network.
        embedding: D of such a network.
        dropout: Dropout of such a network.
        held_out: Share of the recent window the gate judges on.
        held_out_most: Most events it judges on.
        vocabulary: Which items come in and leave.
        gate: When a candidate is promoted.
        checkpoint_batches: Batches between two checkpoints.
        privacy: Differential privacy of the training, None without.
    """

    epochs: int = 3
    training: TrainingSettings = ONE_PASS
    first_epochs: int = 9
    first: TrainingSettings = SMALL_BATCHES
    cell: Cell = "gru"
    hidden: int = 128
    embedding: int = 64
    dropout: float = 0.35
    held_out: float = 0.1
    held_out_most: int = 500
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    gate: GateSettings = field(default_factory=GateSettings)
    checkpoint_batches: int = 100
    privacy: PrivacySettings | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that may become a version.

    Attributes:
        network: In evaluation mode, on the CPU.
        vocabulary: Item id of every row.
        loss: Mean training loss of each epoch.
        targets: Events learnt in the pass, older ones not in each epoch.
        added: Items new against the parent.
        expired: Items that left.
        lineage: Where it came from: parent, sample, seed, settings.
        privacy: ``epsilon`` and ``delta`` spent along the line of versions; empty without differential privacy.
        carried: Where training stood, for the pass after it; None where passes do not go on from one another.
    """

    network: Network
    vocabulary: list[str]
    loss: list[float]
    targets: int
    added: int
    expired: int
    lineage: dict[str, Any]
    privacy: dict[str, float] = field(default_factory=dict)
    carried: Carried | None = None

    @property
    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(part).all()) for part in self.network.state_dict().values())


def fine_tune(
    parent: Version | None,
    sample: Sample,
    settings: FineTuneSettings | None = None,
    seed: int = 0,
    progress: Callable[[Step], bool | None] | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    *,
    anew: bool = False,
    carried: Carried | None = None,
) -> Candidate | None:
    """Train a candidate on a sample.

    Args:
        parent: The serving version; None fits from nothing.
        sample: From the replay buffer.
        settings: How to train.
        seed: Randomness; the same parent, sample, settings and seed give the same candidate on one machine.
        progress: Called after each batch; True stops, and what is done stays in the checkpoint.
        device: Where to train.
        checkpoint: A file to resume from and to keep up to date; one of another pass is ignored.
        anew: Fit from nothing although there is a parent; it is still the one the candidate will be judged against.
        carried: Where the training of `parent` stood; used where the settings have an average.

    Returns:
        The candidate, None when `progress` stopped it.

    Raises:
        RecstreamError: The sample has too few events to train on.
    """
    settings = settings or FineTuneSettings()
    rival, parent = parent, None if anew else parent
    growth = grow(parent.vocabulary if parent else [""], sample, settings.vocabulary)
    held = held_out(sample, rival, settings.held_out, settings.held_out_most)
    source, learn, recent = training_part(sample, growth, held)
    targets = int((learn & (source.items > 0)).sum())
    if targets < FEWEST_EVENTS:
        what = f"The sample has {targets} events to learn, at least {FEWEST_EVENTS} are needed"
        raise RecstreamError(what, "most users have a single event yet", "Wait for more events")
    trainer, network = _trainer(parent, growth, sample, source, settings, seed, device, carried)
    epochs = int(trainer.epochs)  # a pass never ends within an epoch
    course = Course(trainer, epochs, checkpoint, fingerprint(rival, anew, sample, settings, seed, carried), progress)
    losses = course.run(source, shares(learn, recent, epochs), settings.checkpoint_batches)
    if losses is None:
        return None
    left = trainer.conclude()
    lineage: dict[str, Any] = {
        "origin": "fine-tuned" if parent else "fitted anew" if rival else "first fit",
        "parent": rival.name if rival else None,
        "events": targets,
        "recent_events": int((sample.recent & sample.learn).sum()),
        "users": source.users,
        "offsets": dict(sample.offsets),
        "log": sample.log_id,
        "seen": sample.seen,
        "newest_ms": int(source.times_ms.max()),
        "seed": seed,
        "sample_seed": sample.seed,
        "goes_on_from_update": carried.steps if carried and parent and left else None,
        "settings": asdict(settings),
        "torch": str(torch.__version__),
    }
    privacy: dict[str, float] = {}
    if isinstance(trainer, PrivateTrainer):
        spent = account(trainer, rival.name if rival else None, rival.lineage if rival else {})
        lineage["privacy"] = spent
        privacy = {name: float(spent[name]) for name in ("epsilon", "delta")}
    network = network.cpu().eval()
    return Candidate(network, growth.vocabulary, losses, targets, growth.added, growth.expired, lineage, privacy, left)


def gate(
    candidate: Candidate,
    parent: Version | None,
    sample: Sample,
    settings: FineTuneSettings,
    seed: int = 0,
    *,
    strict: bool = False,
) -> Verdict:
    """Judge a candidate against its parent on the slice neither was trained on; without a parent against popularity."""
    if not candidate.finite:
        empty = judge(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), settings.gate, seed)
        return replace(empty, promoted=False, reasons=("training diverged: a weight is not finite",))
    held = held_out(sample, parent, settings.held_out, settings.held_out_most)
    mine, wanted = _judged(sample, candidate.vocabulary, held)
    events = followers(mine, wanted)
    users = np.searchsorted(mine.starts, events, side="right") - 1
    ranks = ranks_of(candidate.network, mine, wanted)
    if parent is not None:
        theirs, _ = _judged(sample, parent.vocabulary, held)
        return judge(
            ranks, ranks_of(parent.network(), theirs, wanted), users, settings.gate, seed, parent.name, strict=strict
        )
    growth = grow([""], sample, settings.vocabulary)
    source, _, _ = training_part(sample, growth, held)
    found = np.full(len(mine), np.inf)
    judged = followers(mine, wanted & (mine.items > 0))
    found[judged] = popularity_ranks(source.counts(len(candidate.vocabulary)), mine, wanted)
    return judge(ranks, found[events], users, settings.gate, seed)


def fingerprint(
    parent: Version | None,
    anew: bool,
    sample: Sample,
    settings: FineTuneSettings,
    seed: int,
    carried: Carried | None = None,
) -> str:
    """What a checkpoint belongs to: everything that decides the result of a pass."""
    head = {
        "parent": parent.name if parent else None,
        "anew": anew,
        "seen": sample.seen,
        "offsets": dict(sample.offsets),
        "seeds": [seed, sample.seed],
        "settings": asdict(settings),
        "torch": str(torch.__version__),
        "goes_on_from_update": carried.steps if carried else None,
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for column in (sample.users, sample.items, sample.kinds, sample.times_ms, sample.learn):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _judged(sample: Sample, vocabulary: list[str], held: NDArray[np.bool_]) -> tuple[Histories, NDArray[np.bool_]]:
    row_of = {item_id: row for row, item_id in enumerate(vocabulary)}
    rows = np.array([row_of.get(item_id, 0) for item_id in sample.item_ids], np.int32)
    source, order = histories_of(sample, rows, np.ones(len(sample), np.bool_))
    return source, held[order]


def _trainer(
    parent: Version | None,
    growth: Growth,
    sample: Sample,
    source: Histories,
    settings: FineTuneSettings,
    seed: int,
    device: str,
    carried: Carried | None,
) -> tuple[Trainer, Network]:
    counts = source.counts(len(growth.vocabulary))
    epochs, training = (settings.epochs, settings.training) if parent else (settings.first_epochs, settings.first)
    if settings.privacy is None:
        network = _start(parent, growth, sample, counts, settings, seed)
        carried = carried.grown(growth, network) if carried and parent else None
        return Trainer(network.to(device), counts, epochs, seed, training, carried=carried), network
    network = _start(parent, growth, without_events(sample), np.zeros_like(counts), settings, seed).to(device)
    return PrivateTrainer(network, epochs, seed, training, settings.privacy), network


def _start(
    parent: Version | None,
    growth: Growth,
    sample: Sample,
    counts: NDArray[np.int64],
    settings: FineTuneSettings,
    seed: int,
) -> Network:
    if parent is not None:
        return transplant(parent.network(), growth, sample, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = NetworkConfig(
            len(growth.vocabulary), settings.cell, settings.hidden, settings.embedding, settings.dropout
        )
        network = Network(config)
    with torch.no_grad():
        network.item_bias.copy_(popularity_bias(counts))
    return network
