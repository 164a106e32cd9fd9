"""Does an event cost more when its user has a long past? Users with 10, 1,000 and 100,000 past events, side by side.

One worker restores the users of all three groups from the changelog and then serves them in short segments, group after
group, in an order that changes each round. A segment has the same events in the same order on the same partitions for
each group; only the users' pasts differ. The worker is suspended while a segment is loaded, so that it meets every
segment in the same batches. Every round brings users nobody has touched before, so that "10 past events" stays true.
The cost is the worker's CPU time from the first event of a segment to the flush behind the last one, less what an idle
worker spends in that time, per event. What else the machine does only adds to it, so the cheapest segment of each group
counts, as with `timeit`; the medians are given beside it.
"""

import time
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.bench import Bench, bench
from benchmarks.harness.contenders import recstream
from benchmarks.harness.counting import Counter, counting
from benchmarks.harness.events import Events, load, make_events, partitions_of
from benchmarks.harness.machine import describe
from benchmarks.harness.measure import watch
from benchmarks.harness.processes import Measured
from benchmarks.harness.program import OUT, Json, Out, conclude, run
from benchmarks.harness.report import console, save, table
from benchmarks.harness.seeding import seed_states

PASTS: Final = (10, 1_000, 100_000)
WARM_UP_ROUNDS: Final = 2
FLUSH_SECONDS: Final = 1.8  # more than a commit interval: the segment's states are in the changelog


def main(
    users: Annotated[int, typer.Option(min=80, help="users of one segment, a multiple of the 8 partitions")] = 8_000,
    events: Annotated[int, typer.Option(min=1, help="events of each user in a segment")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="segments of each group; the cheapest counts")] = 12,
    out: Out = OUT,
    json: Json = False,
) -> None:
    """Compare the cost of an event for users of 10, 1,000 and 100,000 past events.

    Runs on real Kafka where KAFKA_HOME is set, else on the embedded broker.
    """
    costs: dict[int, list[float]] = {past: [] for past in PASTS}
    with bench() as rig:
        machine = describe(rig.broker, rig.cores)
        partitions = rig.place.partitions
        users -= users % partitions
        groups = _alike(users, len(PASTS) * (rounds + WARM_UP_ROUNDS), partitions)  # (groups, users)
        with console.status(f"writing {groups.size:,} states into the changelog"):
            pasts = np.repeat(np.resize(PASTS, len(groups)), users)
            seed_states(rig.broker.address, groups.reshape(-1), pasts, rig.place.fingerprint, partitions)
        worker = recstream(rig.place, "history")
        with rig.resumed(worker) as process, counting(rig.broker, worker.output, partitions) as answers:
            rig.wait_ready(worker, process)
            idle = _idle_share(process)
            for turn in range(rounds + WARM_UP_ROUNDS):
                with console.status(f"round {turn + 1} of {rounds + WARM_UP_ROUNDS}"):
                    for which in np.roll(range(len(PASTS)), turn).tolist():
                        segment = _segment(groups[turn * len(PASTS) + which], events, seed=turn)
                        cost = _cost_us(rig, process, answers, segment, idle)
                        if turn >= WARM_UP_ROUNDS:
                            costs[PASTS[which]].append(cost)
    least = {past: min(several) for past, several in costs.items()}
    middle = {past: median(several) for past, several in costs.items()}
    result = {
        "cost_ratio": round(max(least.values()) / min(least.values()), 4),
        "median_cost_ratio": round(max(middle.values()) / min(middle.values()), 4),
        "cpu_us_per_event": {str(past): round(cost, 3) for past, cost in least.items()},
        "runs": {str(past): [round(cost, 3) for cost in several] for past, several in costs.items()},
        "idle_share_of_core": round(idle, 4),
        "users_per_segment": users,
        "events_per_user": events,
        "machine": machine,
    }
    rows = [
        (f"{past:,} past events", f"{cost:.2f}", f"{cost / least[PASTS[0]]:.3f}", f"{middle[past]:.2f}")
        for past, cost in least.items()
    ]
    columns = ("users with", "CPU us/event", f"of that at {PASTS[0]}", "median us/event")
    table(f"Cost of an event, {machine['broker']}", columns, rows)
    save("history", result, out, lambda axes: _draw(axes, costs))
    conclude(result, json)


def _alike(users: int, groups: int, partitions: int) -> NDArray[np.int64]:
    """User numbers (groups, users): column j of every group is on the same partition."""
    wanted = users * groups // partitions
    numbers = np.arange(2 * users * groups)
    places = partitions_of(numbers, partitions)
    columns = [numbers[places == place][:wanted].reshape(groups, -1) for place in range(partitions)]
    return np.concatenate(columns, axis=1)


def _segment(users: NDArray[np.int64], events_per_user: int, seed: int) -> Events:
    """The round's events, in an order that depends on the round alone."""
    log = make_events(len(users) * events_per_user, len(users), seed=seed)
    order = np.random.default_rng(seed).permutation(np.tile(np.arange(len(users)), events_per_user))
    return Events(users[order], log.items, log.kinds, log.times_ms)


def _cost_us(rig: Bench, process: Measured, answers: Counter, segment: Events, idle: float) -> float:
    before = answers.count()
    started, cpu = time.monotonic(), process.cpu_seconds()
    with process.suspended():
        load(rig.broker.address, segment, rig.place.partitions)
    watch(answers.count, process, before + len(segment))
    time.sleep(FLUSH_SECONDS)
    spent = process.cpu_seconds() - cpu - idle * (time.monotonic() - started)
    return 1e6 * spent / len(segment)


def _idle_share(process: Measured, seconds: float = 5) -> float:
    """CPU seconds per second of a worker that has nothing to do."""
    time.sleep(FLUSH_SECONDS)
    started, cpu = time.monotonic(), process.cpu_seconds()
    time.sleep(seconds)
    return (process.cpu_seconds() - cpu) / (time.monotonic() - started)


def _draw(axes: Any, costs: dict[int, list[float]]) -> None:
    labels = [f"{past:,}" for past in costs]
    axes.boxplot(list(costs.values()), tick_labels=labels, widths=0.4, medianprops={"color": "C0", "linewidth": 2})
    highest = max(max(several) for several in costs.values())
    axes.set(ylim=(0, 1.2 * highest), xlabel="past events of the user", ylabel="CPU microseconds per event")
    axes.set_title("Cost of one event by the length of its user's past")
    axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    run(main)
