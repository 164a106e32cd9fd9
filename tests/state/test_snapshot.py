import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from state import snapshot
from state.arena import Arena
from state.capture import Capture
from state.errors import StateError
from state.items import ItemIndex
from state.record import decode, encode

META = snapshot.SnapshotMeta(partition=3, changelog_offset=1234, created_ms=1_700_000_000_000, source="cluster/topic")


def records(arena: Arena, index: ItemIndex) -> dict[str, bytes]:
    """Every user's record: what must survive."""
    slots = np.flatnonzero(arena.occupied()).astype(np.int32)
    values = encode(arena.to_rows(slots, index))
    return {arena.users[slot] or "": value for slot, value in zip(slots.tolist(), values, strict=True)}


@pytest.mark.parametrize("freed", [0, 7])
def test_loading_equals_restoring_the_changelog(tmp_path: Path, populate: Any, freed: int) -> None:
    arena, index = populate(60)
    arena.free(np.arange(freed, dtype=np.int32))
    expected = records(arena, index)
    size = snapshot.save(tmp_path / "p3.snapshot", arena, index, META)
    assert size == (tmp_path / "p3.snapshot").stat().st_size

    loaded = snapshot.read(tmp_path / "p3.snapshot")
    assert loaded is not None
    assert loaded.meta == META
    assert (loaded.resident, loaded.cold, loaded.state_size) == (len(arena), 0, 8)
    target, target_index = Arena(8, 3, capacity=1), ItemIndex()
    target_index.numbers(["i5", "another item"])  # the reader numbers items differently
    assert loaded.load(target, target_index) == len(arena)

    restored, restored_index = Arena(8, 3), ItemIndex()
    rows, bad = decode(list(expected.values()), 8)
    assert not bad.any()
    restored.load_rows(list(expected), rows, restored_index)

    assert records(target, target_index) == records(restored, restored_index) == expected
    assert not target.dirty.any()
    assert {target_index.ids[number] for number in target.items.ravel().tolist() if number} <= set(index.ids)


def test_a_capture_does_not_change_with_the_arena(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(20)
    expected = records(arena, index)
    captured = Capture(arena, index)
    slots = arena.slots(["u1", "u2", "newcomer"])
    arena.apply(slots, index.numbers(["new"] * 3), np.zeros(3, np.int64), np.ones(3, np.int64), np.ones(3, np.int64), 1)
    captured.copy()
    snapshot.publish(snapshot.prepare(tmp_path / "s", captured, META), tmp_path / "s")
    target, target_index = Arena(8, 3), ItemIndex()
    snapshot.read(tmp_path / "s").load(target, target_index)  # type: ignore[union-attr]
    assert records(target, target_index) == expected


def test_another_state_size_drops_the_vectors_only(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(20)
    snapshot.save(tmp_path / "s", arena, index, META)
    target, target_index = Arena(6, 3), ItemIndex()
    snapshot.read(tmp_path / "s").load(target, target_index)  # type: ignore[union-attr]
    assert not target.hidden.any()
    assert not target.model.any()
    rows, _ = decode(list(records(arena, index).values()), 6)
    reference, reference_index = Arena(6, 3), ItemIndex()
    reference.load_rows(list(records(arena, index)), rows, reference_index)
    assert records(target, target_index) == records(reference, reference_index)


def test_no_users_and_no_file(tmp_path: Path) -> None:
    assert snapshot.read(tmp_path / "s") is None
    snapshot.save(tmp_path / "deep" / "s", Arena(8, 3), ItemIndex(), META)
    target = Arena(8, 3)
    assert snapshot.read(tmp_path / "deep" / "s").load(target, ItemIndex()) == 0  # type: ignore[union-attr]
    assert len(target) == 0


def test_damage_anywhere_is_found_and_leaves_the_arena_empty(tmp_path: Path, populate: Any) -> None:
    path = tmp_path / "s"
    arena, index = populate(10, 60)
    snapshot.save(path, arena, index, META)
    data = path.read_bytes()
    rng = np.random.default_rng(4)
    damaged = [data[:cut] for cut in rng.integers(0, len(data), 60).tolist()]
    for position in rng.integers(0, len(data), 200).tolist():
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(broken))
    for content in [*damaged, b"something else entirely, but long enough to hold a footer"]:
        path.write_bytes(content)
        target = Arena(8, 3)
        with pytest.raises(StateError):
            snapshot.read(path).load(target, ItemIndex())  # type: ignore[union-attr]
        assert len(target) == 0
        assert not target.count.any()


def test_a_failed_write_leaves_the_old_snapshot(tmp_path: Path, populate: Any) -> None:
    path = tmp_path / "s"
    arena, index = populate(10, 60)
    snapshot.save(path, arena, index, META)
    before = path.read_bytes()

    def failing() -> Any:
        yield ["someone"], [b"record"]
        raise OSError(28, "No space left on device")

    with pytest.raises(StateError, match="No space left"):
        snapshot.save(path, arena, index, META, failing())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_an_arena_with_users_is_not_loaded_into(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(10, 60)
    snapshot.save(tmp_path / "s", arena, index, META)
    expected = records(arena, index)
    with pytest.raises(StateError, match="10 users"):
        snapshot.read(tmp_path / "s").load(arena, index)  # type: ignore[union-attr]
    assert records(arena, index) == expected


def test_a_file_replaced_while_reading_is_refused(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(10, 60)
    snapshot.save(tmp_path / "s", arena, index, META)
    opened = snapshot.read(tmp_path / "s")
    arena.count[0] += 1
    snapshot.save(tmp_path / "s", arena, index, META)
    target = Arena(8, 3)
    with pytest.raises(StateError, match="replaced"):
        opened.load(target, ItemIndex())  # type: ignore[union-attr]
    assert len(target) == 0


def test_cold_users_travel_in_blocks(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(10, 60)
    blocks = [(["c1", "c2"], [b"one", b"three"]), (["c3"], [b""])]
    snapshot.save(tmp_path / "s", arena, index, META, blocks)
    loaded = snapshot.read(tmp_path / "s")
    assert loaded is not None
    assert loaded.cold == 3
    assert list(loaded.cold_blocks()) == blocks


def test_what_a_kill_left_unfinished_goes_with_the_next_file_and_that_of_another_writer_stays(
    tmp_path: Path, populate: Any
) -> None:
    arena, index = populate(10, 60)
    killed, other, elsewhere = (tmp_path / f".{name}.tmp" for name in ("s.77", "s.78", "s2.77"))
    for path in (killed, other, elsewhere):
        path.write_bytes(b"unfinished")
    for path in (killed, elsewhere):
        os.utime(path, (time.time() - 100, time.time() - 100))
    snapshot.save(tmp_path / "s", arena, index, META)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.78.tmp", ".s2.77.tmp", "s"]


def test_a_file_that_nobody_wants_any_more_is_given_up(tmp_path: Path, populate: Any) -> None:
    arena, index = populate(10, 60)
    captured = Capture(arena, index)
    captured.copy()
    wanted = [True] * 5
    with pytest.raises(StateError, match="not wanted"):
        snapshot.prepare(tmp_path / "s", captured, META, "1", lambda: bool(wanted and wanted.pop()))
    assert list(tmp_path.iterdir()) == []
