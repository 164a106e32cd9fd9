import resource
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.cold import ColdStore
from state.errors import StateError
from state.record import empty_rows, encode

USERS = st.lists(st.sampled_from(["a", "b", "ç", "\0", "", "long" * 60, "z"]), unique=True, max_size=7)
STEP = st.tuples(st.sampled_from(["put", "take", "delete", "drop"]), st.integers(0, 1), USERS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColdStore]:
    store = ColdStore(tmp_path_factory.mktemp("cold"))
    yield store
    store.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=20))
def test_the_store_agrees_with_dicts(shared: ColdStore, steps: list[tuple[str, int, list[str]]]) -> None:
    model: list[dict[str, bytes]] = [{}, {}]
    for partition in (0, 1):
        shared.drop(partition)
    for number, (name, partition, users) in enumerate(steps):
        cold, expected = shared.partition(partition), model[partition]
        if name == "put":
            records = [f"{user}{number}".encode() for user in users]
            cold.put_many(users, records)
            expected.update(zip(users, records, strict=True))
        elif name == "take":
            assert cold.take_many(users) == [expected.pop(user, None) for user in users]
        elif name == "delete":
            assert cold.delete(users) == [user for user in users if expected.pop(user, None) is not None]
        else:
            shared.drop(partition)
            expected.clear()
        assert [len(shared.partition(0)), len(shared.partition(1))] == [len(model[0]), len(model[1])]
        assert len(shared) == len(model[0]) + len(model[1])
    for partition in (0, 1):
        content = {}
        for users, records in shared.partition(partition).blocks():
            content.update(zip(users, records, strict=True))
        assert content == model[partition]


def test_expire_goes_through_all_users_piece_by_piece(tmp_path: Path) -> None:
    store = ColdStore(tmp_path / "cold")
    cold = store.partition(0)
    rows = empty_rows(100, 4)
    rows["touched_ms"] = [(37 * n) % 100 for n in range(100)]
    cold.put_many([f"u{n:02}" for n in range(100)], encode(rows))
    gone, cursor, pieces = [], None, 0
    while True:
        users, cursor = cold.expire(30, cursor, limit=9)
        gone += users
        pieces += 1
        if cursor is None:
            break
    assert pieces == 12
    assert sorted(gone) == [f"u{n:02}" for n in range(100) if (37 * n) % 100 < 30]
    assert len(cold) == 70
    assert cold.expire(30) == ([], None)
    store.close()


def test_blocks_show_the_moment_they_were_asked_for(tmp_path: Path) -> None:
    store = ColdStore(tmp_path / "cold")
    cold = store.partition(5)
    users = [f"u{n:05}" for n in range(20_000)]
    cold.put_many(users, [user.encode() * 10 for user in users])
    blocks = cold.blocks()
    cold.delete(users[:15_000])
    cold.put_many(["newcomer"], [b"x"])
    seen: list[str] = []

    def read() -> None:
        for names, records in blocks:
            assert records[0] == names[0].encode() * 10
            seen.extend(names)

    thread = Thread(target=read)
    thread.start()
    thread.join()
    assert seen == users
    assert len(cold) == 5_001
    store.close()


def test_opening_empties_it(tmp_path: Path) -> None:
    for _ in range(2):
        store = ColdStore(tmp_path / "cold")
        assert store.partition(0).take_many(["a"]) == [None]
        store.partition(0).put_many(["a"], [b"record"])
        store.close()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    store = ColdStore(tmp_path / "cold")
    with pytest.raises(StateError, match="RECSTREAM_STATE_DIR"):
        ColdStore(tmp_path / "cold")
    store.close()


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    store = ColdStore(tmp_path / "cold")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))  # writes fail as on a full disk
    try:
        with pytest.raises(StateError, match=r"cannot write to the cold store .*cold.*free some space"):
            store.partition(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_purge_leaves_no_byte_of_removed_users_in_any_file(tmp_path: Path) -> None:
    """Names within a file share their beginnings, so records are looked for; those at its edges are in the manifest."""
    store = ColdStore(tmp_path / "cold", write_buffer_bytes=1 << 16)
    cold = store.partition(0)
    records = {f"user-{n:04}": blake2b(b"%d" % n).digest() * 4 for n in range(900)}
    users = list(records)
    for start in range(0, 900, 100):
        cold.put_many(users[start : start + 100], [records[user] for user in users[start : start + 100]])
    edges, erased = ["user-0000", "user-0899"], ["user-0000", "user-0450", "user-0899"]
    cold._family.flush()
    assert all(_files_with(tmp_path, records[user]) for user in erased)
    assert all(_files_with(tmp_path, user.encode()) for user in edges)
    assert cold.delete(erased) == erased
    cold.purge([*erased, "nobody"])
    assert not any(_files_with(tmp_path, sought) for user in erased for sought in (user.encode(), records[user]))
    assert (len(cold), cold.take_many(["user-0001"])) == (897, [records["user-0001"]])
    store.close()


def _files_with(folder: Path, sought: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and sought in path.read_bytes()]
