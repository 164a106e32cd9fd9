"""The recommendations topic scored from outside: was each event's item in the list its user had been given before it?

Two readings of "before", by the log and by the clock:

    next      the list made for the user's event before this one: what the system foretold, however soon the next event
    in hand   the newest list that had reached a consumer when this event was sent: a user who acts again within the
              few milliseconds that a list takes has only an older one

Letters: N events of the log, L lists, K recommendations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.quality.log import Log
from state.events import KIND_OF_TOPIC
from streams.replay import partition_of

NO_LIST: Final = np.nan  # the user had been given none: a first event, or nothing had come yet


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists by event; of one that came twice the first counts.

    Attributes:
        items: (N, K) item numbers, -1 beyond the list's end and where the event has no list.
        arrived: (N,) epoch seconds at which the list was in a consumer's hands, `inf` where the event has none.
        versions: (N) the version that made it, empty where the event has none.
    """

    items: NDArray[np.int32]
    arrived: NDArray[np.float64]
    versions: list[str]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which events have a list (N,)."""
        return np.isfinite(self.arrived)


def places(log: Log, partitions: int) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Events (positions in the log) by kind and partition; the one at offset n stands at place n."""
    by_user = {user: partition_of(user, partitions) for user in set(log.user_ids)}
    partition = np.array([by_user[user] for user in log.user_ids], np.int64)
    target = log.kinds.astype(np.int64) * partitions + partition
    order = np.argsort(target, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(target[order])) + 1)
    return {divmod(int(target[group[0]]), partitions): group for group in groups if len(group)}


def collect(
    log: Log,
    where: dict[tuple[int, int], NDArray[np.int64]],
    values: Sequence[bytes],
    arrived: NDArray[np.float64],
    k: int,
) -> Lists:
    """Messages of the recommendations topic, by the event that each one names.

    Args:
        log: What was sent.
        where: From `places`.
        values: Messages (L) in order of arrival.
        arrived: (L,) epoch seconds.
        k: K.
    """
    number_of: dict[str, int] = {}
    for item_id, number in zip(log.item_ids, log.items.tolist(), strict=True):
        number_of.setdefault(item_id, number)
    items = np.full((len(log), k), -1, np.int32)
    when = np.full(len(log), np.inf)
    versions = [""] * len(log)
    for value, moment in zip(values, arrived.tolist(), strict=True):
        message = orjson.loads(value)
        source = message["event"]
        event = int(where[KIND_OF_TOPIC[source["topic"]], source["partition"]][source["offset"]])
        if versions[event]:
            continue
        listed = [number_of[entry["item_id"]] for entry in message["items"]][:k]
        items[event, : len(listed)] = listed
        when[event], versions[event] = moment, message["model_version"]
    return Lists(items, when, versions)


def next_ranks(log: Log, lists: Lists) -> NDArray[np.float64]:
    """Place (N,) of each item in the list made for its user's event before: `inf` for a miss, NaN for no list."""
    previous = _previous(log.users)
    has = previous >= 0
    has[has] = lists.answered[previous[has]]
    return _ranks(log, lists, np.where(has, previous, -1))


def in_hand_ranks(log: Log, lists: Lists, sent: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for the newest list that had arrived when the event was sent.

    Args:
        log: What was sent.
        lists: What came back.
        sent: (N,) epoch seconds at which each event was sent.
    """
    previous = _previous(log.users)
    newest = np.full(len(log), -1)
    for event, before in enumerate(previous.tolist()):
        # Lists of a user come in order, so the newest one in hand is found by going back.
        while before >= 0 and not lists.arrived[before] <= sent[event]:
            before = previous[before]  # noqa: PLW2901
        newest[event] = before
    return _ranks(log, lists, newest)


def _previous(users: NDArray[np.int32]) -> NDArray[np.int64]:
    """Each event's user's event before it (N,), -1 for none."""
    order = np.argsort(users, kind="stable")
    previous = np.full(len(users), -1, np.int64)
    same = users[order][1:] == users[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _ranks(log: Log, lists: Lists, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    hit = lists.items[chosen] == log.items[:, None]  # (N, K)
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, np.inf)
    ranks[chosen < 0] = NO_LIST
    return ranks
