"""Fit a first model under a progress bar and publish it."""

import time
from typing import Any, Final, Literal

import numpy as np
import torch

from models.fit import Progress, fit_first_model
from models.registry import Registry
from models.tables import Events
from streams.console import Bar, progress_bar
from streams.settings import Settings

# The products of a small network are too short to share: on a busy 2-core machine two threads took 147 CPU-seconds for
# a fit that one does in 25.
_THREADS: Final = 1


def oldest(events: Events, fraction: float) -> Events:
    """The oldest share of time-ordered events, at least one."""
    return events.take(np.arange(max(1, round(len(events) * fraction)))) if fraction < 1 and len(events) else events


def fit_and_publish(
    settings: Settings,
    events: Events,
    *,
    cell: Literal["gru", "lstm"] = "gru",
    hidden: int = 128,
    embedding: int = 64,
    epochs: int = 12,
    seed: int = 0,
    until: float = 1.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Fit on the oldest events, publish to the registry, and point it at the new version.

    Args:
        settings: Where the registry is.
        events: The log, in time order.
        cell: Recurrent cell.
        hidden: Width of a user's state.
        embedding: Width of an item's vector.
        epochs: Most passes over the data.
        seed: The same seed and data give the same model on one machine.
        until: Share of the events to fit on.
        device: Where to train.

    Returns:
        `model_version`, `registry`, what it was fitted on, how long it took, and the held-out figures under `metrics`.

    Raises:
        RecstreamError: there is nothing to fit, or the registry refuses.
    """
    registry = Registry(settings.registry)
    registry.require_writable()  # said before the work, not after it
    chosen = oldest(events, until)
    torch.set_num_threads(_THREADS)
    started = time.monotonic()
    with progress_bar(f"fit {cell}", total=1.0) as bar:
        network, vocabulary, metrics, lineage = fit_first_model(
            chosen,
            cell,
            hidden,
            embedding,
            seed,
            epochs,
            progress=lambda progress: _show(bar, progress),
            device=device,
        )
    seconds = time.monotonic() - started
    lineage["created_ms"] = int(time.time() * 1000)
    version = registry.publish(network, vocabulary, metrics, lineage)
    return {
        "model_version": version,
        "registry": settings.registry,
        "model": cell,
        "events": len(chosen),
        "users": lineage["users"],
        "items": lineage["items"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(seconds, 2),
        "metrics": metrics,
    }


def _show(bar: Bar, progress: Progress) -> None:
    quality = progress.quality.get("ndcg@10")
    held_out = f", held-out NDCG@10 {quality:.4f}" if quality is not None else ""
    bar.to(
        progress.done, note=f"epoch {progress.epoch} of at most {progress.epochs}, loss {progress.loss:.3f}{held_out}"
    )
