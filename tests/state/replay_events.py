"""Event logs fed to a replay buffer, and what it then holds."""

import numpy as np

from state.replay_buffer import ReplayBuffer, ReplaySettings

SMALL = ReplaySettings(capacity=500, context=20, most_per_user=60, seed=3)
TOPICS = ("clicks", "views", "purchases")
Log = list[tuple[str, int, str, str, int, int, int]]  # topic, partition, user, item, kind, time, offset


def a_log(events: int, users: int = 40, items: int = 25, seed: int = 0) -> Log:
    rng = np.random.default_rng(seed)
    following: dict[tuple[str, int], int] = {}
    log: Log = []
    for number in range(events):
        user, kind = int(rng.zipf(1.5)) % users, int(rng.integers(3))
        partition = user % 2
        place = following.get((TOPICS[kind], partition), 0)
        following[TOPICS[kind], partition] = place + 1
        log.append((TOPICS[kind], partition, f"u{user}", f"i{rng.integers(items)}", kind, 1000 * number, place))
    return log


def feed(buffer: ReplayBuffer, log: Log, cuts: list[int] | None = None) -> int:
    """Append in order, each run of one topic-partition at once, runs also cut at `cuts`."""
    start, taken = 0, 0
    for stop in range(1, len(log) + 1):
        if stop < len(log) and log[stop][:2] == log[start][:2] and stop not in (cuts or ()):
            continue
        topic, partition = log[start][:2]
        _, _, users, items, kinds, times, places = zip(*log[start:stop], strict=True)
        taken += buffer.append(topic, partition, users, items, np.array(kinds, np.uint8), times, places)
        start = stop
    return taken


def contents(buffer: ReplayBuffer) -> tuple[object, ...]:
    sample = buffer.sample(200, 100, seed=1)
    arrays = (sample.users, sample.items, sample.kinds, sample.times_ms, sample.learn, sample.recent)
    tables = (sample.item_counts, sample.item_last_ms)
    return (
        *(array.tolist() for array in (*arrays, *tables)),
        sample.item_ids,
        dict(sample.offsets),
        sample.seen,
        len(buffer),
    )
