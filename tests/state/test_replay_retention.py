from pathlib import Path

import numpy as np
import pytest

from state.replay_buffer import ReplayBuffer, ReplaySettings
from tests.state.replay_events import SMALL, a_log, feed


def test_the_buffer_is_bounded_and_keeps_the_newest_and_their_past(tmp_path: Path) -> None:
    log = a_log(20_000, users=300)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        assert len(buffer) <= SMALL.capacity
        assert buffer.nbytes < 60 * SMALL.capacity
        sample = buffer.sample(SMALL.capacity, 0, 0)
        assert sample.seen == 20_000
        assert len(set(sample.times_ms.tolist())) == len(sample)
        newest = int(0.4 * SMALL.capacity)  # since then as many more came as made it full again, or fewer
        assert sample.times_ms[-newest:].tolist() == [entry[5] for entry in log[-newest:]]


def test_the_past_of_users_in_the_window_is_kept_nearest_first(tmp_path: Path) -> None:
    log = a_log(SMALL.capacity, users=20)  # exactly full: the window is the newest 40%
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        held = set(buffer.sample(SMALL.capacity, 0, 0).times_ms.tolist())
    newest = int(0.4 * SMALL.capacity)
    depths = []
    for user in {entry[2] for entry in log[-newest:]}:
        past = [entry[5] in held for entry in reversed(log[:-newest]) if entry[2] == user]
        depths.append(past.index(False) if False in past else len(past))
    assert min(depths) > 0 and max(depths) >= 5
    assert len(held) < SMALL.capacity


def test_the_reservoir_holds_whole_histories_of_a_fair_sample_of_users(tmp_path: Path) -> None:
    users, each = 400, 30
    picked = np.zeros(users)
    rounds = 20
    for seed in range(rounds):
        bounds = ReplaySettings(capacity=2_000, context=0, most_per_user=100, seed=seed)
        with ReplayBuffer(tmp_path / str(seed), bounds) as buffer:
            for user in range(users):  # user after user: early ones are as likely to stay as late ones
                names, items = [f"u{user}"] * each, [f"i{number}" for number in range(each)]
                places = np.arange(user * each, (user + 1) * each)
                buffer.append("clicks", 0, names, items, np.zeros(each, np.uint8), places, places)
            sample = buffer.sample(0, 2_000, 0)
        owners = np.unique(sample.times_ms // each, return_counts=True)
        whole = owners[0][owners[1] == each]
        assert len(whole) >= len(owners[0]) - 1  # at most the one at the edge of the window is cut
        picked[whole.astype(int)] += 1
    early, late = picked[: users // 4].mean(), picked[users // 2 : users // 2 + users // 4].mean()
    assert 0.2 < early < 3.0  # about 400 reservoir events of 30 each, among 400 users, 20 rounds: 0.7 to 1.5
    assert early == pytest.approx(late, rel=0.6)


def test_a_smaller_capacity_takes_effect_at_once(tmp_path: Path) -> None:
    with ReplayBuffer(tmp_path, ReplaySettings(capacity=5_000)) as buffer:
        feed(buffer, a_log(3_000))
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        assert len(buffer) <= SMALL.capacity
        assert buffer.seen == 3_000


def test_item_counts_are_of_all_events_ever(tmp_path: Path) -> None:
    log = a_log(4_000)
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        feed(buffer, log)
        buffer.commit()
    with ReplayBuffer(tmp_path, SMALL) as buffer:
        sample = buffer.sample(10, 0, 0)
    items = [entry[3] for entry in log]
    for name, count, last in zip(sample.item_ids, sample.item_counts, sample.item_last_ms, strict=True):
        assert count == items.count(name)
        assert last == max(entry[5] for entry in log if entry[3] == name)


def test_items_idle_longest_are_forgotten(tmp_path: Path) -> None:
    bounds = ReplaySettings(capacity=200, max_items=150)
    with ReplayBuffer(tmp_path, bounds) as buffer:
        places = np.arange(1_000)
        names = [f"i{number}" for number in places]
        buffer.append("clicks", 0, ["u"] * 1_000, names, np.zeros(1_000, np.uint8), places, places)
        assert buffer.items < 150 + 200
        assert buffer.sample(50, 0, 0).item_ids[-1] == "i999"
