"""Which events a full replay buffer keeps: the recent window, its users' past, a reservoir of users' histories.

Letters: N events in order of arrival, U users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Shares(NamedTuple):
    """Most events kept for each reason."""

    recent: int
    context: int
    reservoir: int


def kept(
    users: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    threshold: int,
    shares: Shares,
    context: int,
    most_per_user: int,
) -> tuple[NDArray[np.bool_], int]:
    """Choose what stays.

    Args:
        users: User numbers (N,).
        hashes: Seeded hash of each user's id (U,).
        threshold: Users with a larger hash are not in the reservoir.
        shares: Most events for each reason; an event may be kept for several.
        context: Most earlier events of one user of the recent window.
        most_per_user: Most events of one user in the reservoir.

    Returns:
        Which events stay (N,), and the new threshold, never above the old one: whom the reservoir let go does not come
        back with a part of the history.
    """
    recent = np.arange(len(users)) >= len(users) - shares.recent
    active = np.zeros(len(hashes), np.bool_)
    active[users[recent]] = True
    older = np.flatnonzero(~recent)
    distance = distance_from_end(users[older])
    near = active[users[older]] & (distance <= context)
    candidates = older[near]
    closest = np.lexsort((-candidates, distance[near]))[: shares.context]
    keep = recent.copy()
    keep[candidates[closest]] = True

    held = older[distance <= most_per_user]
    sizes = np.bincount(users[held], minlength=len(hashes))
    order = np.argsort(hashes, kind="stable")
    order = order[(sizes[order] > 0) & (hashes[order] <= np.uint64(threshold))]
    over = np.flatnonzero(np.cumsum(sizes[order]) > shares.reservoir)
    if len(over):
        threshold = max(int(hashes[order[over[0]]]) - 1, 0)
    keep[held[hashes[users[held]] <= np.uint64(threshold)]] = True
    return keep, threshold


def distance_from_end(users: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each event (N,) in order of arrival: 1 for its user's last one, 2 for the one before, ..."""
    order = np.argsort(users, kind="stable")
    owner = users[order]
    distance = np.empty(len(users), np.int64)
    if len(users):
        closes = np.flatnonzero(np.concatenate((owner[1:] != owner[:-1], [True])))
        runs = np.diff(closes, prepend=-1)
        distance[order] = np.repeat(closes, runs) - np.arange(len(owner)) + 1
    return distance
