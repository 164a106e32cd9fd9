"""One partition number's erasures, from the request to the moment a receipt may be sent.

    read       the user's state goes, and from now on nothing that stands in the input topics is applied to the user
    ends       how far the input topics reach is looked up: later events are a new user's
    durable    no file and no newer changelog record holds the user
    passed     the group has committed everything before those ends: nothing older will ever be read again

Only then is the receipt sent, and only when that is acknowledged may the request's offset be committed. Before that a
crash or a rebalance delivers the request again and everything is done again, with ends looked up anew: an erasure may
take more of the user than it had to, never less. Offsets decide and not clocks: what the sender of a request had sent
before, and Kafka had acknowledged, stands below the ends.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from threading import Lock
from typing import Any, Final

import numpy as np
from aiokafka.structs import TopicPartition
from numpy.typing import NDArray

from state.events import KIND_OF_TOPIC, TOPICS
from state.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from streams.decode import Rejected
from streams.fetch import RecordBatch
from streams.forget_requests import Request, read_requests
from streams.read_topic import end_offsets, reader
from streams.settings import Settings

_UNKNOWN: Final = np.iinfo(np.int64).max
_SNAPSHOT_SECONDS: Final = 10.0  # at most so often is a partition's snapshot written only because of erasures

Ends = tuple[int, int, int]
"""How far each input topic reached, in the order of `TOPICS`."""


@dataclass(eq=False, slots=True)
class Erased:
    """A request under way.

    Attributes:
        request: it.
        events: events of the user that were held, None when the user was not known.
        ends: where the input topics ended once it was read, None until that is looked up.
        captured: whether a snapshot without the user was captured.
        durable: whether nothing on disk and no newer record in the changelog holds the user.
        after_pass: the training pass that may hold the user's events, 0 for none, None when not looked at yet.
    """

    request: Request
    events: int | None
    ends: Ends | None = None
    captured: bool = False
    durable: bool = False
    after_pass: int | None = None


@dataclass(frozen=True, slots=True)
class _Bars:
    """Users of whom events before an offset are not applied; replaced as a whole, for another thread reads it."""

    number_of: dict[str, int] = field(default_factory=dict)
    ends: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, len(TOPICS)), np.int64))


@dataclass(slots=True)
class _Batch:
    """Requests that were delivered together, and what is acknowledged when all are answered."""

    token: Any
    open: list[Erased]


class Erasures:
    """The requests of one partition number that are not answered yet; several threads may use it.

    >>> erasures = Erasures()
    >>> batch = RecordBatch("forget-users", 0, [7], [0], [b"ann"], [b""], 8)
    >>> bad = erasures.take(batch, token="event", erase=lambda users: {"ann": 3})
    >>> erasures.kept(["ann", "bob"], np.zeros(2, np.uint8), np.array([5, 6])).tolist(), erasures.untold()
    ([False, True], ['ann'])
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._batches: list[_Batch] = []
        self._untold: list[str] = []
        self._bars = _Bars()
        self._snapshot_at = float("-inf")

    def __len__(self) -> int:
        return len(self.open())

    @property
    def barring(self) -> bool:
        """Whether there is anybody of whom older events are left out."""
        return bool(self._bars.number_of)

    def take(
        self,
        batch: RecordBatch,
        token: Any,
        erase: Callable[[Sequence[str]], Mapping[str, int]],
        pseudonyms: Pseudonyms = NO_PSEUDONYMS,
    ) -> list[Rejected]:
        """Erase the users of a batch of requests.

        Args:
            batch: as it was fetched.
            token: returned by `answered` once all its requests are answered; never where there is none.
            erase: removes users by name; returns the known ones with the number of their events.
            pseudonyms: the names users' state is kept under.

        Returns:
            The requests that name nobody.
        """
        requests, rejected = read_requests(batch, pseudonyms)
        under_way = {one.request.offset for one in self.open()}  # delivered twice: positions were set anew
        new = [request for request in requests if request.offset not in under_way]
        if requests:
            names = list(dict.fromkeys(request.name for request in new))
            known = erase(names)
            with self._lock:
                self._batches.append(_Batch(token, [Erased(request, known.get(request.name)) for request in new]))
                self._untold += names
                self._bar()
        return rejected

    def kept(self, users: Sequence[str], kinds: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events (E,) of users, as they stand in events, are not older than an erasure of their user."""
        bars = self._bars
        if not bars.number_of:
            return np.ones(len(users), np.bool_)
        numbers = np.fromiter(map(bars.number_of.get, users, repeat(-1)), np.int64, len(users))
        kept: NDArray[np.bool_] = (numbers < 0) | (offsets >= bars.ends[numbers, kinds])
        return kept

    def untold(self) -> list[str]:
        """Names of users whose tombstone is not on its way yet; from now on it is."""
        with self._lock:
            names, self._untold = self._untold, []
        return list(dict.fromkeys(names))

    def snapshot_due(self, now: float) -> bool:
        """Whether a snapshot is to be written so that the users leave the disk."""
        return now >= self._snapshot_at + _SNAPSHOT_SECONDS and any(not one.captured for one in self.open())

    def capture(self, now: float) -> list[Erased]:
        """A snapshot is captured: returns the erasures it is the first one without."""
        captured = [one for one in self.open() if not one.captured]
        for one in captured:
            one.captured = True
        if captured:
            self._snapshot_at = now
        return captured

    def open(self) -> list[Erased]:
        """Erasures that are not answered yet, oldest first."""
        with self._lock:
            return self._open()

    def found_ends(self, erased: Iterable[Erased], ends: Ends) -> None:
        """The input topics reach so far; `erased` were read before that was asked."""
        with self._lock:
            for one in erased:
                one.ends = ends
            self._bar()

    def ready(self, passed: Callable[[str, int], int], partition: int) -> list[Erased]:
        """Erasures that may be answered: durable, and `passed(topic, partition)` is not below where the topic ended."""
        reached = [passed(topic, partition) for topic in TOPICS]
        waiting = [(one, one.ends) for one in self.open() if one.durable]
        return [one for one, ends in waiting if ends and all(at >= end for at, end in zip(reached, ends, strict=True))]

    def answered(self, erased: Iterable[Erased]) -> list[Any]:
        """Receipts were acknowledged: returns the tokens of batches that are answered as a whole, oldest first.

        A batch waits for those before it: the offset of a request is not passed before the request is answered.
        """
        gone = {id(one) for one in erased}
        with self._lock:
            for batch in self._batches:
                batch.open = [one for one in batch.open if id(one) not in gone]
            whole = next((i for i, batch in enumerate(self._batches) if batch.open), len(self._batches))
            tokens = [batch.token for batch in self._batches[:whole]]
            del self._batches[:whole]
            self._bar()
        return tokens

    def _open(self) -> list[Erased]:
        return [one for batch in self._batches for one in batch.open]

    def _bar(self) -> None:
        number_of: dict[str, int] = {}
        ends: list[list[int]] = []
        for one in self._open():
            until = list(one.ends) if one.ends is not None else [_UNKNOWN] * len(TOPICS)
            number = number_of.setdefault(one.request.user, len(ends))
            if number == len(ends):
                ends.append(until)
            else:
                ends[number] = [max(pair) for pair in zip(ends[number], until, strict=True)]
        self._bars = _Bars(number_of, np.array(ends, np.int64).reshape(-1, len(TOPICS)))


async def input_ends(settings: Settings, partitions: Iterable[int]) -> dict[int, Ends]:
    """Where the input topics end now, for each partition number; 0 for one that holds nothing.

    Raises:
        BrokerError: when the broker does not answer in time.
        aiokafka.errors.KafkaError: when it cannot be reached or refuses.
    """
    wanted = [TopicPartition(topic, number) for number in partitions for topic in TOPICS]
    if not wanted:
        return {}
    found: dict[int, list[int]] = {tp.partition: [0] * len(TOPICS) for tp in wanted}
    async with reader(settings, wanted) as consumer:
        oldest = await consumer.beginning_offsets(wanted)
        for tp, end in (await end_offsets(consumer, wanted)).items():
            found[tp.partition][KIND_OF_TOPIC[tp.topic]] = end if end > oldest[tp] else 0
    return {number: (ends[0], ends[1], ends[2]) for number, ends in found.items()}
