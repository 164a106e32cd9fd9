import numpy as np

from benchmarks.drift import WINDOW, _moving, _recovery, walks


def test_recovery_counts_from_the_change_and_looks_at_later_events_only() -> None:
    hits = np.zeros(4_000, np.bool_)
    hits[:1_000] = True  # before the change
    hits[2_000:] = True
    assert _recovery(hits, 1_000, 0.9) == 1_000 + 0.9 * WINDOW
    assert _recovery(hits[:2_000], 1_000, 0.5) is None
    moving = _moving(hits)
    assert len(moving) == 4_000 - WINDOW + 1
    assert (moving[0], moving[-1]) == (1.0, 1.0)


def test_transitions_change_at_the_half_and_are_the_same_for_the_same_seed() -> None:
    log = walks(40_000, 30, seed=3)
    assert log.items.equals(walks(40_000, 30, seed=3).items)
    users, items = log.users.to_list(), log.items.to_list()
    last: dict[str, str] = {}
    followers: list[dict[str, dict[str, int]]] = [{}, {}]
    for number, (user, item) in enumerate(zip(users, items, strict=True)):
        if user in last:
            after = followers[number >= 20_000].setdefault(last[user], {})
            after[item] = after.get(item, 0) + 1
        last[user] = item
    likely = [{item: max(after, key=after.__getitem__) for item, after in half.items()} for half in followers]
    shares = [np.mean([max(after.values()) / sum(after.values()) for after in half.values()]) for half in followers]
    assert all(0.35 < share < 0.5 for share in shares)  # the likeliest successor has 0.4
    assert sum(likely[0][item] == likely[1].get(item) for item in likely[0]) < 8  # 30 items, drawn anew
