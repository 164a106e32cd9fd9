"""What is lost when a new model version is fed the vectors that its predecessor made?

A user's vector belongs to the version that made it. After a swap the product rebuilds it from the user's last 50 events
at their next event. Here a log runs through the stream's own code under a first version; at many points of its second
half the state of that moment is copied and a second version is swapped in, in four ways:

    rebuilt     as the product does
    stale       the predecessor's vectors are fed to it
    zero        users begin again
    unbroken    its own vectors over the whole past: what rebuilding from 50 events could reach at best

The log is a table, or by default a seeded one of users with tastes: most of their events are of one group of items, and
only a past of several events tells which. Thousands of users take turns, as in a shop: most of the 1,000 events after a
swap are a user's first or second since. Where a few users click on and on, as in MovieLens, a swap hardly shows.

Each is asked for the next 1,000 events by its scores alone, ranked against every item seen so far, right before it
learns of each. The second version is made in both ways the trainer has: fine-tuned from the first, whose vectors it may
still half understand, and fitted anew.
"""

import copy
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from benchmarks.harness.machine import computer
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from benchmarks.quality.log import Log
from benchmarks.quality.neural import NeuralTest
from models.finetune import FineTuneSettings, fine_tune
from models.recommend import Recommender
from models.registry import Registry, Version
from models.serving import ServingModel
from models.tables import Events
from state.arena import Arena
from state.items import ItemIndex
from state.replay_buffer import ReplayBuffer
from state.store import UserStore
from streams import options
from streams.datasets import read_source
from streams.settings import load_settings

AFTER: Final = 1_000  # events judged after each swap
BATCH: Final = 50  # events of a micro-batch
FIRST_SHARE, SECOND_SHARE = 0.4, 0.5  # of the log, which the two versions are fitted on
TASTES: Final = "tastes"
USERS, GROUPS, GROUP_ITEMS = 2_000, 25, 20
TRUE_TO_TASTE: Final = 0.6  # share of a user's events that are of their group
WAYS: Final = ("rebuilt", "stale", "zero", "unbroken")
MADE: Final = ("fine-tuned", "fitted anew")
COLOURS: Final = dict(zip(WAYS, ("C0", "C3", "0.6", "C2"), strict=True))


def main(
    source: options.Source = TASTES,
    swaps: Annotated[int, typer.Option(min=1, help="points of the second half at which a swap is tried")] = 30,
    columns: options.Columns = None,
    types: options.Types = None,
    seed: Annotated[int, typer.Option(help="randomness of training")] = 0,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Measure the hit rate in the 1,000 events after a swap, with and without rebuilding users' vectors."""
    torch.set_num_threads(1)  # the products are too short to share
    if source == TASTES:
        log = Log.of(tastes(80_000, seed))
    else:
        log = Log.of(read_source(source, load_settings(), columns, types, None, 100.0).events.time_ordered())
    points = np.linspace(SECOND_SHARE * len(log), len(log) - AFTER, swaps).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="recstream-rehydration-") as folder:
        first, seconds = _versions(log, Path(folder), seed)
    found = {made: _judge(log, first, second, points) for made, second in zip(MADE, seconds, strict=True)}
    result = {
        "hit_rate_at_10": {made: ways["hit_rate"] for made, ways in found.items()},
        "first_event_hit_rate_at_10": {made: ways["first_event"] for made, ways in found.items()},
        "loss_of_stale_vectors": {
            made: round(1 - ways["hit_rate"]["stale"] / ways["hit_rate"]["rebuilt"], 4) for made, ways in found.items()
        },
        "intervals_of_the_difference": {made: ways["interval"] for made, ways in found.items()},
        "swaps": swaps,
        "events_after_each": AFTER,
        "events_judged": {made: ways["judged"] for made, ways in found.items()},
        "source": source,
        "machine": computer(),
    }
    rows = [
        (
            f"{way}, {made}",
            f"{found[made]['hit_rate'][way]:.4f}",
            f"{found[made]['first_event'][way]:.4f}",
        )
        for made in MADE
        for way in WAYS
    ]
    title = f"HR@10 of the model alone in the {AFTER:,} events after {swaps} swaps, users with a past, {source}"
    table(title, ("vectors", "all events", "a user's first"), rows)
    for made in MADE:
        low, high = result["intervals_of_the_difference"][made]
        console.print(
            f"{made}: stale vectors lose {100 * result['loss_of_stale_vectors'][made]:.1f}% of the hits "
            f"(HR@10 {low:+.4f} to {high:+.4f}, 95% over swaps)"
        )
    save("rehydration", result, out, lambda axes: _draw(axes, found))
    conclude(result, json)


def tastes(count: int, seed: int) -> Events:
    """Users taking turns, each mostly with items of one group; some items of a group are more popular than others."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, USERS, count)
    group = np.where(rng.random(count) < TRUE_TO_TASTE, users % GROUPS, rng.integers(0, GROUPS, count))
    popularity = 1 / np.arange(2, GROUP_ITEMS + 2)
    items = GROUP_ITEMS * group + rng.choice(GROUP_ITEMS, count, p=popularity / popularity.sum())
    times = 1_700_000_000_000 + 1_000 * np.arange(count)
    names = pl.Series([f"u{user}" for user in users.tolist()]), pl.Series([f"i{item}" for item in items.tolist()])
    return Events(*names, np.zeros(count, np.uint8), times)


def _versions(log: Log, folder: Path, seed: int) -> tuple[ServingModel, list[ServingModel]]:
    """The first version, and the two made of it: fine-tuned and fitted anew."""
    settings, registry = FineTuneSettings(hidden=64, embedding=32), Registry(folder / "registry")

    def made(buffer: ReplayBuffer, parent: Version | None, recent: int, *, anew: bool = False) -> Version:
        with console.status("fitting" if parent is None or anew else "fine-tuning"):
            sample = buffer.sample(recent, 0 if recent == len(buffer) else recent, seed)
            candidate = fine_tune(parent, sample, settings, seed, anew=anew)
        if candidate is None:
            what = "no version was made"
            raise BenchmarkError(what, "training was interrupted")
        return registry.load(registry.publish(candidate.network, candidate.vocabulary, {}, candidate.lineage))

    with ReplayBuffer(folder / "buffer") as buffer:
        cut = int(FIRST_SHARE * len(log))
        _append(buffer, log, 0, cut)
        first = made(buffer, None, cut)
        _append(buffer, log, cut, int(SECOND_SHARE * len(log)))
        later = [
            made(buffer, first, min(20_000, len(buffer) // 2)),
            made(buffer, first, len(buffer), anew=True),
        ]
    return ServingModel.from_version(first), [ServingModel.from_version(version) for version in later]


def _append(buffer: ReplayBuffer, log: Log, start: int, stop: int) -> None:
    at = slice(start, stop)
    places = np.arange(start, stop)
    buffer.append("log", 0, log.user_ids[at], log.item_ids[at], log.kinds[at], log.times_ms[at], places)


class _Users:
    """A recommender without fusion, and its users."""

    def __init__(self, model: ServingModel) -> None:
        self.recommender = Recommender(ItemIndex(), 10, exclude="none")
        self.recommender.swap(model)
        self.store = UserStore(Arena(self.recommender.state_size, 10), self.recommender.items)

    def copy(self) -> "_Users":
        """The same users, apart from these; the model is shared."""
        return copy.deepcopy(self, {id(self.recommender.model): self.recommender.model})

    def advance(self, log: Log, start: int, stop: int) -> None:
        """Apply events `start` to `stop`."""
        for at in range(start, stop, BATCH):
            self.recommender.advance(self.store, log.batch(at, min(at + BATCH, stop)))

    def ranks(self, log: Log, start: int, stop: int) -> NDArray[np.float64]:
        """Ranks of events `start` to `stop`, each right before it is applied."""
        test, parts = NeuralTest(self.recommender, self.store), []
        for at in range(start, stop, BATCH):
            events = log.batch(at, min(at + BATCH, stop))
            seen = log.seen[at : at + len(events)]
            parts.append(test.ranks(events, seen, log.items[at : at + len(events)] == seen))
            self.recommender.advance(self.store, events)
        return np.concatenate(parts)


def _swapped(users: _Users, model: ServingModel, way: str) -> _Users:
    """A copy of the users of a predecessor after the swap to `model`, in one of the ways."""
    swapped = users.copy()
    arena = swapped.store.arena
    swapped.recommender.swap(model)
    if way != "rebuilt":
        arena.model[:] = model.fingerprint  # so they are not rebuilt
    if way == "zero":
        arena.hidden[:] = 0
    return swapped


def _judge(log: Log, first: ServingModel, second: ServingModel, points: list[int]) -> dict[str, Any]:
    """HR@10 after each swap, of events whose user had a past."""
    users, unbroken = _Users(first), _Users(second)
    hits: dict[str, list[NDArray[np.bool_]]] = {way: [] for way in WAYS}
    opens: list[NDArray[np.bool_]] = []
    position = 0
    with console.status("swapping"):
        for point in points:
            for running in (users, unbroken):
                running.advance(log, position, point)
            position = point
            judged = np.isin(log.users[point : point + AFTER], log.users[:point])
            first_of = np.zeros(AFTER, np.bool_)
            first_of[np.unique(log.users[point : point + AFTER], return_index=True)[1]] = True
            opens.append(first_of[judged])
            for way in WAYS:
                after = unbroken.copy() if way == "unbroken" else _swapped(users, second, way)
                hits[way].append(after.ranks(log, point, point + AFTER)[judged] <= 10)
    opening = np.concatenate(opens)
    everything = {way: np.concatenate(parts) for way, parts in hits.items()}
    lost = np.array([stale.sum() - kept.sum() for stale, kept in zip(hits["stale"], hits["rebuilt"], strict=True)])
    return {
        "hit_rate": {way: round(float(found.mean()), 4) for way, found in everything.items()},
        "first_event": {way: round(float(found[opening].mean()), 4) for way, found in everything.items()},
        "interval": _interval(lost, np.array([len(part) for part in opens])),
        "judged": len(opening),
        "by_place": {way: _by_place(parts) for way, parts in hits.items()},
    }


def _interval(differences: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[float, float]:
    """95% bootstrap interval of the difference in HR@10, over swaps."""
    drawn = np.random.default_rng(0).integers(0, len(sizes), (2_000, len(sizes)))
    means = differences[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def _by_place(parts: list[NDArray[np.bool_]], groups: int = 10) -> list[float]:
    """HR@10 by tenths of what follows a swap."""
    pieces = [np.array_split(part, groups) for part in parts]
    return [float(np.concatenate([piece[group] for piece in pieces]).mean()) for group in range(groups)]


def _draw(axes: Any, found: dict[str, Any]) -> None:
    width = AFTER // 10
    for made, style in zip(MADE, ("-", "--"), strict=True):
        for way in WAYS:
            label = f"{way}, {made}" if way != "zero" else None if made == MADE[1] else "zero"
            values = found[made]["by_place"][way]
            axes.plot(width * (0.5 + np.arange(len(values))), values, style, color=COLOURS[way], label=label)
    axes.set(xlabel="events after the swap", ylabel="HR@10 of the model alone", ylim=(0, None))
    axes.set_title("A new version on users' vectors: rebuilt, stale, zero")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


if __name__ == "__main__":
    run(main)
