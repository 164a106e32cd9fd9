"""Only the acknowledged prefix of each partition is ever committable."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from streams.offsets import OffsetTracker

CLICKS = ("clicks", 0)
VIEWS = ("views", 0)


@dataclass(eq=False)
class Message:
    acked: bool = False
    taken: bool = True


def track(tracker: OffsetTracker, *next_offsets: int) -> list[Message]:
    messages = [Message() for _ in next_offsets]
    for message, next_offset in zip(messages, next_offsets, strict=True):
        tracker.track(CLICKS, message, next_offset)
    return messages


@given(st.data())
def test_committable_is_the_end_of_the_acknowledged_prefix_in_any_order(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 500), min_size=1, max_size=20))
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    order = data.draw(st.permutations(range(len(sizes))))
    tracker = OffsetTracker()
    messages = track(tracker, *ends)
    last = None
    for index in order:
        messages[index].acked = True
        if data.draw(st.booleans()):  # a commit may come at any moment
            prefix = next((number for number, message in enumerate(messages) if not message.acked), len(messages))
            expected = ends[prefix - 1] if prefix else None
            assert tracker.committable(CLICKS) == expected
            assert last is None or (expected is not None and expected >= last)
            last = expected
    assert tracker.committable(CLICKS) == ends[-1]
    assert tracker.in_flight(CLICKS) == 0


def test_an_in_flight_batch_holds_back_the_ones_after_it() -> None:
    """Stock Faust 0.15.3 commits 502 here: 500 in flight, 501 acknowledged."""
    tracker = OffsetTracker()
    (before, in_flight, after) = track(tracker, 500, 501, 502)
    before.acked = after.acked = True
    assert tracker.committable(CLICKS) == 500
    in_flight.acked = True
    assert tracker.committable(CLICKS) == 502


def test_a_fresh_group_commits_nothing_while_its_first_batch_is_in_flight() -> None:
    """Stock Faust 0.15.3 commits 6 here: 0 to 4 in flight, 5 acknowledged."""
    tracker = OffsetTracker()
    *in_flight, last = track(tracker, 1, 2, 3, 4, 5, 6)
    last.acked = True
    assert tracker.committable(CLICKS) is None
    for message in in_flight:
        message.acked = True
    assert tracker.committable(CLICKS) == 6


def test_partitions_do_not_mix() -> None:
    tracker = OffsetTracker()
    first, second = Message(), Message(acked=True)
    tracker.track(CLICKS, first, 10)
    tracker.track(VIEWS, second, 20)
    assert tracker.committable(CLICKS) is None
    assert tracker.committable(VIEWS) == 20
    assert set(tracker.partitions()) == {CLICKS, VIEWS}


def test_asking_twice_gives_the_same_answer() -> None:
    tracker = OffsetTracker()
    (message,) = track(tracker, 10)
    message.acked = True
    assert [tracker.committable(CLICKS), tracker.committable(CLICKS)] == [10, 10]


def test_an_older_delivery_of_the_same_offsets_does_not_count() -> None:
    tracker = OffsetTracker()
    (stale,) = track(tracker, 100)
    tracker.clear()  # a seek back to the committed offset
    (current,) = track(tracker, 100)
    stale.acked = True
    assert tracker.committable(CLICKS) is None
    current.acked = True
    assert tracker.committable(CLICKS) == 100


def test_offsets_without_records_are_committed_with_the_batch_before_them() -> None:
    tracker = OffsetTracker()
    (message,) = track(tracker, 100)
    tracker.skip(CLICKS, 103)
    assert tracker.committable(CLICKS) is None
    message.acked = True
    assert tracker.committable(CLICKS) == 103


def test_offsets_without_records_are_committed_alone_when_nothing_is_in_flight() -> None:
    tracker = OffsetTracker()
    tracker.skip(CLICKS, 7)
    assert tracker.committable(CLICKS) == 7
    (message,) = track(tracker, 9)
    assert tracker.committable(CLICKS) == 7
    message.acked = True
    assert tracker.committable(CLICKS) == 9


def test_sealed_keeps_only_the_messages_somebody_took() -> None:
    tracker = OffsetTracker()
    taken, left, behind = track(tracker, 10, 20, 30)
    left.taken = False
    tracker.seal(lambda message: message.taken)  # type: ignore[attr-defined]
    tracker.track(CLICKS, Message(acked=True), 40)  # a delivery that was already under way
    tracker.skip(CLICKS, 41)
    # A discarded message is acknowledged by the stream that throws it away; one taken later ("behind") changes nothing.
    taken.acked = left.acked = behind.acked = True
    assert tracker.committable(CLICKS) == 10


def test_cleared_it_tracks_again() -> None:
    tracker = OffsetTracker()
    track(tracker, 10)
    tracker.seal(lambda _message: True)
    tracker.clear()
    assert list(tracker.partitions()) == []
    (message,) = track(tracker, 20)
    message.acked = True
    assert tracker.committable(CLICKS) == 20
