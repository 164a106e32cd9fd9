"""The epochs of one pass: progress, checkpoints, and going on from one after a kill."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.sequences import Histories
from models.training import Trainer
from state.errors import StateError


@dataclass(frozen=True, slots=True)
class Step:
    """Where a pass stands.

    Attributes:
        done: Share of the work done, 0 to 1.
        epoch: Current epoch, from 1.
        epochs: Epochs there will be.
        loss: Mean loss of the current epoch so far.
        learnt: Targets trained on since this process began or resumed the pass.
    """

    done: float
    epoch: int
    epochs: int
    loss: float
    learnt: int


class Course:
    """The epochs of one pass, with checkpoints.

    Args:
        trainer: Trains the network; with several ranks each has its own, and rank 0 writes the checkpoint.
        epochs: How many.
        checkpoint: A file to resume from and to keep up to date, None for none.
        identity: What the checkpoint must say that it belongs to.
        progress: Called after each batch; True stops.
    """

    def __init__(
        self,
        trainer: Trainer,
        epochs: int,
        checkpoint: Path | None,
        identity: str,
        progress: Callable[[Step], bool | None] | None,
    ) -> None:
        self._trainer, self._epochs, self._path, self._identity = trainer, epochs, checkpoint, identity
        self._progress = progress
        self._losses: list[float] = []
        self._learnt = 0

    def run(self, source: Histories, learn: Sequence[NDArray[np.bool_]], every: int) -> list[float] | None:
        """Train to the end, a checkpoint after every so many batches and after each epoch.

        Args:
            source: The histories.
            learn: Which events each epoch learns, (N,) each.
            every: Batches between two checkpoints.

        Returns:
            Mean loss of each epoch, None when `progress` stopped it.

        Raises:
            StateError: The disk refuses the checkpoint.
        """
        self._resume()
        stopped = False
        targets, batches = [int(part.sum()) for part in learn], 0

        def report(share: float, loss: float) -> bool:
            nonlocal stopped, batches
            batches += 1
            if self._progress is not None:
                epoch = self._trainer.finished + 1
                done = (epoch - 1 + share) / self._epochs
                step = Step(done, epoch, self._epochs, loss, self._learnt + int(share * targets[epoch - 1]))
                stopped = self._trainer.ranks.any(bool(self._progress(step)))
            if stopped or batches % every == 0:
                self._save()
            return stopped

        while self._trainer.finished < self._epochs:
            epoch = self._trainer.finished
            loss = self._trainer.epoch(source, report, learn[epoch])
            if stopped:
                return None
            self._losses.append(loss)
            self._learnt += targets[epoch]
            self._save()
            if not math.isfinite(loss):
                break
        return self._losses

    def _save(self) -> None:
        if self._path is None:
            return
        state = self._trainer.state()  # every rank takes part
        if not self._trainer.ranks.first:
            return
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                torch.save({"identity": self._identity, "losses": self._losses, "trainer": state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except (OSError, RuntimeError) as exc:  # torch says that a disk is full by the latter
            what = f"cannot write the checkpoint {self._path}"
            raise StateError(what, str(exc), "check the disk and the directory's permissions") from exc

    def _resume(self) -> None:
        if self._path is None:
            return
        saved = self._trainer.ranks.from_first(self._read(self._path) if self._trainer.ranks.first else None)
        if saved is not None:
            self._trainer.restore(saved["trainer"])
            self._losses = list(saved["losses"])

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The checkpoint, None when there is none of this pass."""
        if not path.exists():
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            OSError,
            EOFError,
            ValueError,
            KeyError,
            UnpicklingError,
        ):  # damaged: begin the pass again
            return None
        return saved if isinstance(saved, dict) and saved.get("identity") == self._identity else None
