"""Local snapshots, and what else of disk work follows a flush, beside the stream: no event and no flush waits for it.

    due            the flush about to begin captures some partitions, as many as have 250,000 users together
    captured       as of that flush's changelog records; copied piece by piece between rounds (`state.capture`)
    acknowledged   the records are in the changelog, nobody else's among them: the file will say it ends behind them
    written        to a file of another name, in a thread of its own, one partition at a time
    published      renamed, if the partition is still this worker's, and never while partitions are handed over
    purged         who was erased has left the cold store's files too: now the erasure is durable

A file tells of the changelog up to an offset and holds exactly that, whenever it is written: a kill at any point leaves
the one before, and a restart reads more of the changelog. So snapshots may fail, be late, or be given up.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from state.snapshot import SnapshotMeta, prepare, publish, settle
from streams.consumer import Membership
from streams.metrics import Metrics
from streams.partition import Flushed, Partition, snapshot_path
from streams.settings import Settings

_USERS_AT_ONCE: Final = 250_000  # captured together, 0.2 GB, or one partition where that has more
_ROWS: Final = 8192  # copied between two rounds: 2 to 5 ms
_POLL_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 5.0  # for the thread to notice that it is to stop

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Saving:
    """One partition's flush on its way to the disk."""

    flushed: Flushed
    meta: SnapshotMeta | None = None  # None until its records are acknowledged
    wanted: bool = True

    @property
    def copied(self) -> bool:
        return self.flushed.snapshot is None or self.flushed.snapshot.complete

    @property
    def number(self) -> int:
        return self.flushed.partition.number


class Snapshots:
    """Chooses what a flush captures, and brings it to disk.

    Attributes:
        held_back: partitions are being handed over.

    Args:
        settings: all settings.
        metrics: where to count.
        changelog_id: which changelog the snapshots belong to.
        membership: whether the group still knows this worker.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        changelog_id: str,
        membership: Callable[[], Membership],
    ) -> None:
        self._settings, self._metrics, self._changelog_id = settings, metrics, changelog_id
        self._membership, self._writer = membership, str(os.getpid())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._under_way: list[_Saving] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()  # held while a file takes its place
        self.held_back = False
        self._purging: int | None = None

    # -- with a flush

    def due(self, partitions: Iterable[Partition], everything: bool = False) -> set[int]:
        """Numbers of the partitions that the flush about to begin is to capture; none while others are under way.

        A partition is due after an interval, and when users wait to leave its snapshot; the longest wait comes first.
        """
        if self._under_way or self.held_back:
            return set()
        now, interval = time.monotonic(), self._settings.snapshot_interval_seconds
        waiting = [
            partition for partition in partitions
            if everything or (interval and now >= partition.captured_at + interval)
            or partition.erasures.snapshot_due(now)
        ]  # fmt: skip
        chosen: set[int] = set()
        users = 0
        for partition in sorted(waiting, key=lambda partition: partition.captured_at):
            users += partition.store.resident
            if chosen and users > _USERS_AT_ONCE:
                break
            chosen.add(partition.number)
        return chosen

    def begin(self, flushed: Iterable[Flushed]) -> None:
        """Captures were made; their flush is not acknowledged yet, and whatever was not when it began never will be."""
        self._drop([one for one in self._under_way if one.meta is None])
        self._under_way += [_Saving(part) for part in flushed if part.snapshot is not None or part.erased]
        if self._under_way and self._task is None:
            self._task = asyncio.create_task(self._save_all())

    def acknowledged(self, flushed: Flushed) -> None:
        """The changelog has a capture's records, and everything before them has been read or written by this worker."""
        for one in self._under_way:
            if one.flushed is flushed:
                number, next_offset = one.number, flushed.partition.changelog_next
                one.meta = SnapshotMeta(number, next_offset, flushed.captured_ms, self._changelog_id)
        self._changed.set()

    def give_up(self, flushed: Iterable[Flushed]) -> None:
        """What these captures hold is not what the changelog does: a later flush captures anew."""
        unwanted = {id(part) for part in flushed}
        self._drop([one for one in self._under_way if id(one.flushed) in unwanted])

    # -- between rounds

    @property
    def copying(self) -> bool:
        """Whether a capture is not complete yet."""
        return any(one.wanted and not one.copied for one in self._under_way)

    async def copy_some(self, in_thread: Callable[..., Awaitable[Any]]) -> None:
        """Copy a few ms' worth of a capture, in the thread that computes."""
        capture = next((one.flushed.snapshot for one in self._under_way if one.wanted and not one.copied), None)
        if capture is not None and await in_thread(capture.copy, _ROWS):
            self._changed.set()

    # -- partitions come and go

    async def hold_back(self) -> None:
        """Partitions are about to be handed over: their files stay as they are, from now on until `go_on`.

        Whoever has a partition next may have erased users when a file of this worker, which holds them, is complete.
        """
        self.held_back = True
        async with self._gate:  # a file that takes its place at this moment does so before
            pass

    def go_on(self) -> None:
        """The partitions of this worker are known again, see `forget` for those that left."""
        self.held_back = False

    def forget(self, numbers: Iterable[int] | None = None) -> None:
        """Partitions (None: all) are others' now: nothing of them is published any more."""
        leaving = None if numbers is None else set(numbers)
        self._drop([one for one in self._under_way if leaving is None or one.number in leaving])

    async def left(self, numbers: Iterable[int]) -> None:
        """Wait until the cold users of forgotten partitions are not touched any more."""
        numbers = set(numbers)
        while self._purging in numbers:
            await asyncio.sleep(_POLL_SECONDS)

    async def finished(self, seconds: float) -> bool:
        """Wait at most so long until nothing is under way; returns whether that is so."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=max(0.0, seconds))
        return self._task is None

    async def stop(self) -> bool:
        """Give up what is under way; returns whether the thread is done with it."""
        self.forget()
        done = await self.finished(_STOP_SECONDS)
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False)
        return done

    # -- to disk

    def _drop(self, savings: list[_Saving]) -> None:
        for one in savings:
            one.wanted = False
            if one.flushed.snapshot is not None:
                one.flushed.snapshot.abandoned = True
            for erased in one.flushed.erased:
                erased.captured = False
        self._changed.set()

    async def _save_all(self) -> None:
        try:
            while self._under_way:
                one = self._under_way[0]
                while one.wanted and (one.meta is None or not one.copied):
                    self._changed.clear()
                    await self._changed.wait()
                captured, result = one.flushed.snapshot is not None, "dropped"
                if one.wanted and one.meta is not None:
                    result = await self._write(one, one.meta)
                if captured:
                    self._metrics.snapshots.labels(result).inc()
                if result != "dropped" and one.flushed.erased:
                    await self._erase(one, result == "written")
                self._under_way.remove(one)
        finally:
            self._task = None

    async def _write(self, one: _Saving, meta: SnapshotMeta) -> str:
        """Bring a capture to its place; returns what came of it.

        The changelog has everything: whatever a disk does to a file or to the cold store, the stream goes on.
        """
        path, partition, capture = self._path(one), one.flushed.partition, one.flushed.snapshot
        if capture is None:  # the file that is there is as new
            return "written"
        started, result = time.monotonic(), "dropped"
        try:
            prepared = await self._run(prepare, path, capture, meta, self._writer, lambda: one.wanted)
            if await self._if_ours(one, publish, prepared, path):
                partition.snapshot_next = meta.changelog_offset
                await self._run(settle, path)
                result = "written"
                self._metrics.snapshot_seconds.set(time.monotonic() - started)
            else:
                await self._run(partial(prepared.unlink, missing_ok=True))
        except Exception as error:
            if one.wanted:
                result = "failed"
                log.warning("The snapshot of partition %d was not written. %s", one.number, error)
        del capture
        one.flushed.snapshot = None  # with it goes an iterator of the cold store, which keeps what is to be purged
        return result

    async def _erase(self, one: _Saving, written: bool) -> None:
        """Whoever is neither in the snapshot nor in the cold store's files has left the disk."""
        path, partition, erased = self._path(one), one.flushed.partition, one.flushed.erased
        durable = False
        try:
            if not written and await self._if_ours(one, partial(path.unlink, missing_ok=True)):
                partition.snapshot_next = -1  # a snapshot less only slows the next start
                await self._run(settle, path)
            self._purging = one.number
            names = [gone.request.name for gone in erased]
            durable = one.wanted and await self._run(partition.store.purge, names, lambda: one.wanted)
        except Exception as error:
            log.error("The disk still holds users of partition %d to be forgotten: %s. Trying again", one.number, error)
        finally:
            self._purging = None
        for gone in erased:
            gone.durable, gone.captured = durable, durable

    async def _if_ours(self, one: _Saving, work: Callable[..., object], *args: Any) -> bool:
        """Do something to a partition's file while the partition is this worker's; False when it is not any more."""
        while one.wanted:
            async with self._gate:
                if one.wanted and not self.held_back and self._membership() == "held":
                    await self._run(work, *args)
                    return True
            await asyncio.sleep(_POLL_SECONDS)
        return False

    def _path(self, one: _Saving) -> Path:
        return snapshot_path(self._settings.state_dir, self._settings.app_id, one.number)

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
