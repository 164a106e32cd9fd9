"""The cold store: sealed records of users beyond `max_resident_users`, on local disk (RocksDB).

It is volatile: opening empties it. What survives a restart is the changelog, and the snapshot, which carries the cold
users too. So RocksDB runs without its write-ahead log and keeps little in memory: one small block cache for all
partitions, a Bloom filter so that asking for a user it never saw costs about 1 us, and small write buffers. One
database per worker process, a column family per partition, so that giving a partition up is one cheap call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from state.errors import StateError

_BLOCK: Final = 8192  # users per block of `blocks`
_TOUCHED_MS: Final = slice(40, 48)  # of a record, see state.record


def _key(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")


def _user(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


@contextmanager
def _disk_errors(action: str, path: Path) -> Iterator[None]:
    """Say what rocksdict's bare `Exception` is about."""
    try:
        yield
    except Exception as exc:
        what = f"cannot {action} the cold store {path}"
        fix = "free some space there, or give every worker a RECSTREAM_STATE_DIR of its own that it may write to"
        raise StateError(what, str(exc), fix) from exc


class ColdStore:
    """The cold users of a worker's partitions.

    Args:
        path: Directory of the database; what is in it is deleted.
        cache_bytes: Block cache for all partitions together.
        write_buffer_bytes: Memory a partition collects records in before they go to disk.

    Raises:
        StateError: The directory cannot be used, for example because another process has it open.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     store = ColdStore(Path(folder))
    ...     store.partition(3).put_many(["ann", "bob"], [b"her record", b"his record"])
    ...     taken, left = store.partition(3).take_many(["bob", "cid"]), len(store)
    ...     store.close()
    >>> taken, left
    ([b'his record', None], 1)
    """

    def __init__(self, path: Path, cache_bytes: int = 32 << 20, write_buffer_bytes: int = 8 << 20) -> None:
        self.path = path
        self._cache, self._write_buffer_bytes = Cache(cache_bytes), write_buffer_bytes
        with _disk_errors("open", path):
            path.mkdir(parents=True, exist_ok=True)
            Rdict.destroy(str(path))
            self._database = Rdict(str(path), self._options())
        self._partitions: dict[int, ColdPartition] = {}

    def partition(self, number: int) -> "ColdPartition":
        """The partition's cold users; empty when it was not open."""
        if number not in self._partitions:
            with _disk_errors("write to", self.path):
                family = self._database.create_column_family(f"partition-{number}", self._options())
            self._partitions[number] = ColdPartition(self._database, family, f"partition-{number}")
        return self._partitions[number]

    def drop(self, number: int) -> None:
        """Delete a partition's users; its `ColdPartition` must not be used afterwards."""
        partition = self._partitions.pop(number, None)
        if partition is not None:
            partition._close()
            self._database.drop_column_family(f"partition-{number}")

    def __len__(self) -> int:
        return sum(map(len, self._partitions.values()))

    def close(self) -> None:
        """Close and delete the database."""
        for number in list(self._partitions):
            self.drop(number)
        self._database.close()
        del self._database

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.set_write_buffer_size(self._write_buffer_bytes)
        options.set_max_write_buffer_number(2)
        options.set_compression_type(DBCompressionType.none())  # fp16 vectors and hashes do not compress
        options.set_max_open_files(256)
        options.set_max_log_file_size(1 << 20)
        options.set_keep_log_file_num(2)
        options.set_max_manifest_file_size(
            1
        )  # each change begins a new one: names of erased users do not stay, see `purge`
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_bloom_filter(10, False)  # 10 bits a user: 1% false positives
        blocks.set_cache_index_and_filter_blocks(True)
        options.set_block_based_table_factory(blocks)
        return options


class ColdPartition:
    """One partition's cold users: user -> sealed record."""

    def __init__(self, database: Rdict, family: Rdict, name: str) -> None:
        self._database, self._family = database, family
        self._handle = database.get_column_family_handle(name)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put_many(self, users: Sequence[str], records: Sequence[bytes]) -> None:
        """Store records of distinct users, replacing what it holds of them (1 us a user, and 4 us to look for it)."""
        keys = [_key(user) for user in users]
        present = self._count_present(keys)
        batch = WriteBatch(raw_mode=True)
        for key, record in zip(keys, records, strict=True):
            batch.put(key, record, self._handle)
        self._write(batch)
        self._count += len(keys) - present

    def take_many(self, users: Sequence[str]) -> list[bytes | None]:
        """Remove distinct users and return their records, None for users it does not hold.

        About 4 us for a user it holds, 1 us for another.
        """
        if not self._count or not users:
            return [None] * len(users)
        keys = [_key(user) for user in users]
        records: list[bytes | None] = self._family.get(keys)
        self._remove([key for key, record in zip(keys, records, strict=True) if record is not None])
        return records

    def read(self, user: str) -> bytes | None:
        """A user's record, which stays where it is; None for a user it does not hold."""
        record: bytes | None = self._family.get(_key(user)) if self._count else None
        return record

    def read_many(self, users: Sequence[str]) -> list[bytes | None]:
        """Records of distinct users, which stay where they are; None for users it does not hold."""
        if not self._count or not users:
            return [None] * len(users)
        records: list[bytes | None] = self._family.get([_key(user) for user in users])
        return records

    def delete(self, users: Sequence[str]) -> list[str]:
        """Remove distinct users; returns those it held."""
        return [user for user, record in zip(users, self.take_many(users), strict=True) if record is not None]

    def purge(self, users: Sequence[str], wanted: Callable[[], bool] = lambda: True) -> bool:
        """Remove what the files still hold of users that were removed: about 30 ms each; another thread may do it.

        RocksDB only marks a removal; the bytes go when their files are rewritten. The names of users at the edge of a
        file stand in the manifest too: the two small changes behind the compactions begin new ones and delete the old.

        Returns:
            Whether that was done to the end: it stops before the next user when `wanted` says no.
        """
        whole = CompactOptions()
        whole.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        self._family.flush()
        for key in sorted({_key(user) for user in users}):
            if not wanted():
                return False
            self._family.compact_range(key, key, whole)
        for _ in range(2):
            batch = WriteBatch(raw_mode=True)
            batch.delete(b"", self._handle)
            self._database.write(batch, self._unlogged)
            self._family.flush()
        return True

    def expire(self, before_ms: int, after: str | None = None, limit: int = 50_000) -> tuple[list[str], str | None]:
        """Look at up to `limit` users for ones last touched before `before_ms` and remove them.

        Args:
            before_ms: Kafka time.
            after: The cursor a previous call returned, None to begin.
            limit: Users looked at: 1.3 us each.

        Returns:
            The users removed, and the cursor to go on from, None at the end.
        """
        expired: list[bytes] = []
        cursor = None if after is None else _key(after)
        seen = 0
        for key, record in self._family.items(from_key=cursor):
            if seen == limit:
                self._remove(expired)
                return [_user(key) for key in expired], _user(key)
            if int.from_bytes(record[_TOUCHED_MS], "little", signed=True) < before_ms:
                expired.append(key)
            seen += 1
        self._remove(expired)
        return [_user(key) for key in expired], None

    def blocks(self) -> Iterator[tuple[list[str], list[bytes]]]:
        """All users and records as of this call, in blocks.

        Another thread may read them while the store changes, but must be done before the partition is dropped.
        """
        # A RocksDB iterator sees the moment it was made; rocksdict's own Snapshot.items() does not (0.3.29).
        return _in_blocks(self._family.items())

    def _count_present(self, keys: list[bytes]) -> int:
        if not self._count or not keys:
            return 0
        return sum(record is not None for record in self._family.get(keys))

    def _remove(self, keys: list[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key in keys:
            batch.delete(key, self._handle)
        if keys:
            self._write(batch)
            self._count -= len(keys)

    def _write(self, batch: WriteBatch) -> None:
        with _disk_errors("write to", Path(self._database.path())):
            self._database.write(batch, self._unlogged)

    def _close(self) -> None:
        self._family.close()
        self._count = 0
        del self._family, self._handle, self._database


def _in_blocks(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[list[str], list[bytes]]]:
    users: list[str] = []
    records: list[bytes] = []
    for key, record in items:
        users.append(_user(key))
        records.append(record)
        if len(users) == _BLOCK:
            yield users, records
            users, records = [], []
    if users:
        yield users, records
