"""Input topics that end before what the group has committed, or before the last event users' states say was applied.

They were deleted and made anew, or lost their end (an unclean leader election, a disk restored from a copy). A state
takes what stands at or below its last applied offset for a repeat, so events written since to those places would be
passed over in silence.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from aiokafka.structs import TopicPartition
from faust.types import TP

from state.events import KIND_OF_TOPIC, TOPICS
from streams.partition import Partition
from streams.read_topic import end_offsets, reader
from streams.settings import Settings
from streams.topics import FORGET_USERS

_NOTHING: Final = -1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shortened:
    """A topic-partition that is shorter than it was.

    Attributes:
        applied: highest offset of it that a state may name; None: none names too much.
        resume: where to read on.
    """

    applied: int | None
    resume: int


async def shortened(
    partitions: Iterable[Partition],
    assigned: Iterable[TP],
    settings: Settings,
    near_ends: Callable[[Collection[TP]], Awaitable[Mapping[TP, int]]],
    committed: Callable[[], Awaitable[Mapping[TP, int | None]]],
) -> dict[TP, Shortened]:
    """Which topic-partitions are shorter than they were, and how to go on.

    What the group has committed goes with a topic that is deleted, and stays with one that lost its end. In the latter
    all that is there was applied; in the former nothing.

    Args:
        partitions: their users.
        assigned: what exists.
        settings: where the broker is.
        near_ends: the ends of partitions, or less; cheap.
        committed: what the group has committed.

    Raises:
        BrokerError: the broker does not answer in time.
    """
    read = [TP(*tp) for tp in assigned if tp.topic in (*TOPICS, FORGET_USERS)]
    if not read:
        return {}
    reached = {
        TP(topic, partition.number): int(partition.store.reached()[kind])
        for partition in partitions
        for topic, kind in KIND_OF_TOPIC.items()
    }
    known = {TP(*tp): offset for tp, offset in (await committed()).items()}
    least = {tp: max(reached.get(tp, _NOTHING) + 1, known.get(tp) or 0) for tp in read}
    near = {TP(*tp): end for tp, end in (await near_ends(read)).items()}
    doubtful = [TopicPartition(*tp) for tp in read if near[tp] < least[tp]]
    if not doubtful:
        return {}
    async with reader(settings, doubtful) as consumer:
        first = await consumer.beginning_offsets(doubtful)
        ends = await end_offsets(consumer, doubtful)
    found = {}
    for partition, end in ends.items():
        tp = TP(*partition)
        if end >= least[tp]:
            continue
        ahead, lost_its_end = reached.get(tp, _NOTHING) >= end, known.get(tp) is not None
        found[tp] = Shortened(
            applied=None if not ahead else end - 1 if lost_its_end else _NOTHING,
            resume=end if ahead and lost_its_end else first[partition],
        )
        log.warning(
            "%s/%d ends at %d, not at %d or behind it: the topic was made anew or lost its end. Users keep their "
            "state; events are taken from %d on",
            tp.topic, tp.partition, end, least[tp], found[tp].resume,
        )  # fmt: skip
    return found


def count_anew(partitions: Mapping[int, Partition], found: Mapping[TP, Shortened]) -> None:
    """Let no user's state name more of a topic than it may. Runs between two rounds."""
    for tp, shorter in found.items():
        if shorter.applied is not None and tp.partition in partitions:
            partition = partitions[tp.partition]
            partition.anew.update(partition.store.lower(KIND_OF_TOPIC[tp.topic], shorter.applied))
