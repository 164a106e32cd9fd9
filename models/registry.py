"""Model versions on disk or in an object store: immutable directories, checksums, one pointer to the serving version.

    <registry>/
      CURRENT                    the version to serve, below it those that served before, and how often it was written;
                                 replaced atomically
      .claims/0007               taken with an exclusive create: two publishers never get one number
      v0007-1a2b3c4d/            number and fingerprint, the first 4 bytes of the weights file's sha256
        weights.safetensors  vocabulary.json  config.json  metrics.json  lineage.json
        manifest.json            size and sha256 of the five above; written last, so it marks a complete version

On a local disk a version is written to a temporary directory and renamed; object stores have no rename, so there the
manifest, uploaded last, is what makes a version exist. Nothing published is ever written again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.network import Network
from models.version import (
    FILES,
    HEADS,
    MANIFEST,
    StorageRefused,
    Summary,
    Version,
    VersionRefused,
    is_version_name,
    pack,
    parse_name,
    refusal,
    summarize,
    unpack,
    verify,
    version_name,
)

__all__ = ["Registry", "StorageRefused", "Summary", "Version", "VersionRefused"]

POINTER: Final = "CURRENT"
CLAIMS: Final = ".claims"
_UNFINISHED: Final = ".tmp-"
_REMEMBERED: Final = 50  # lines of CURRENT: the file stays under 1 kB
_TURN: Final = "turn "  # begins its last line


class Registry:
    """Publishes, lists and loads model versions under one directory or fsspec URL.

    Safe for several publishers and any number of readers at once.

    Args:
        url: A path or any fsspec URL (``/var/models``, ``s3://bucket/models``, ``memory://models``).

    Raises:
        VersionRefused: The URL's protocol is unknown or its package is not installed.

    Example:
        >>> from models.network import NetworkConfig
        >>> registry, network = Registry("memory://docs"), Network(NetworkConfig(items=2, hidden=4, embedding=2))
        >>> name = registry.publish(network, ["", "tea"], metrics={"ndcg@10": 0.1}, lineage={"seed": 1})
        >>> registry.current() == name, registry.load(name).vocabulary
        (True, ['', 'tea'])
    """

    def __init__(self, url: str | Path) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(str(url))
        except (ValueError, ImportError) as exc:
            what, fix = f"No model registry can be opened at {str(url)!r}", "Use a path or an installed fsspec protocol"
            raise VersionRefused(what, str(exc), fix) from exc
        self._local = isinstance(self._fs, LocalFileSystem)
        self.url = str(url)

    def publish(
        self,
        network: Network,
        vocabulary: Sequence[str],
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any],
        *,
        promote: bool = True,
    ) -> str:
        """Write a new version and, unless told otherwise, point CURRENT at it.

        Args:
            network: The network to publish.
            vocabulary: Item id of every row, ``""`` in row 0.
            metrics: Validation figures, plain JSON values.
            lineage: Where the version came from, plain JSON values.
            promote: False keeps CURRENT where it is, for a candidate that a gate has yet to judge.

        Returns:
            The name of the version.

        Raises:
            VersionRefused: The network and vocabulary do not fit, a weight is not finite, or storage refuses.
        """
        files = pack(network, vocabulary, metrics, lineage)
        with self._storage("cannot be written"):
            number = self._claim()
            version = version_name(number, files)
            self._write(version, number, files)
        if promote:
            self.promote(version)
        return version

    def promote(self, version: str) -> None:
        """Point CURRENT at a published version, newer or older (a rollback is promoting an older one).

        Raises:
            VersionRefused: There is no such version, or storage refuses.
        """
        parse_name(version)
        if version not in self.versions():
            raise refusal(version, "it is not in the registry")
        try:
            before, turn = self.pointer()
        except VersionRefused:  # a damaged pointer is mended by promoting; what it remembered is lost
            before, turn = [], 0
        self._point([version, *(name for name in before if name != version)], turn + 1)

    def rollback(self) -> str:
        """Point CURRENT back at the version promoted before the one it points at; a second call goes one further.

        Versions that were deleted since, or were damaged so that they cannot be loaded, are passed over.

        Returns:
            The name of the version that serves now.

        Raises:
            VersionRefused: No version that is left served before, or storage refuses.
        """
        (names, turn), damage = self.pointer(), ""
        published = set(self.versions())
        for place, name in enumerate(names[1:], 1):
            if name not in published:
                continue
            try:
                self.load(name)
            except VersionRefused as exc:
                damage = f"; {name}: {exc.why}"
                continue
            self._point(names[place:], turn + 1)
            return name
        what = "There is no version to roll back to"
        why = f"no other one served before {names[0]}" if names else "none was promoted yet"
        fix = "Choose one with `recstream models list` and promote it with `recstream models promote`"
        raise VersionRefused(what, why + damage, fix)

    def retention(self, keep: int) -> list[str]:
        """Delete all but the newest ``keep`` versions, never the current one, and what dead publishers left behind.

        Returns:
            The names of the versions deleted, oldest first.

        Raises:
            VersionRefused: ``keep`` is below 1, or storage refuses.
        """
        if keep < 1:
            what = f"Keeping {keep} model versions was asked for"
            raise VersionRefused(what, "at least the newest must stay", "Keep 1 version or more")
        names, current = self.versions(), self.current()
        doomed = [name for name in names[:-keep] if name != current]
        with self._storage("cannot be tidied"):
            for name in doomed:
                # The manifest goes first, so that no reader takes half a version for a whole one.
                self._fs.rm_file(f"{self._root}/{name}/{MANIFEST}")
                self._fs.rm(f"{self._root}/{name}", recursive=True)
            if names:
                # Numbers only grow: whoever claimed one below the oldest kept version is long gone.
                self._sweep(below=parse_name(names[-keep:][0])[0])
        return doomed

    def current(self) -> str | None:
        """The version CURRENT points at, None when nothing was promoted yet.

        Raises:
            VersionRefused: The pointer cannot be read or does not name a version.
        """
        return next(iter(self.promoted()), None)

    def promoted(self) -> list[str]:
        """The version CURRENT points at and those that served before it, newest first, each once.

        What was rolled back is not among them; some may have been deleted since. Two promotions at the same moment may
        forget one of these names, never the one that serves.

        Raises:
            VersionRefused: The pointer cannot be read or does not name versions.
        """
        return self.pointer()[0]

    def pointer(self) -> tuple[list[str], int]:
        """What `promoted` returns, and the pointer's turn: it grows with every promotion and rollback.

        A storage that returns an outdated pointer shows by its turn; an older version with a newer turn is a rollback.

        Raises:
            VersionRefused: The pointer cannot be read or does not name versions.
        """
        with self._storage("has an unreadable pointer"):
            try:
                text = bytes(self._fs.cat_file(f"{self._root}/{POINTER}")).decode(errors="replace")
            except FileNotFoundError:
                return [], 0
        *names, last = text.split("\n")
        turn = last.removeprefix(_TURN)
        if not (last.startswith(_TURN) and turn.isdecimal()):  # written by a release without turns, or by hand
            names, turn = [*names, last], "0"
        if not names or not all(map(is_version_name, names)):
            what = f"The pointer {POINTER} of the model registry {self.url} is damaged"
            raise VersionRefused(what, f"it reads {text[:80]!r}", "Promote a version again")
        return names, int(turn)

    def versions(self) -> list[str]:
        """Names of the complete versions, oldest first.

        Raises:
            VersionRefused: Storage refuses.
        """
        with self._storage("cannot be listed"):
            names = [name for name in self._entries() if is_version_name(name)]
            return sorted((n for n in names if self._fs.exists(f"{self._root}/{n}/{MANIFEST}")), key=parse_name)

    def describe(self, version: str) -> Summary:
        """Configuration, metrics and lineage of a version, without reading its weights.

        Raises:
            VersionRefused: The version is missing or these files are damaged.
        """
        parse_name(version)
        return summarize(version, self._read(version, HEADS))

    def load(self, version: str) -> Version:
        """Read and verify a version: checksums, shapes, finite weights, vocabulary.

        Raises:
            VersionRefused: Anything at all is wrong with it; the message says what, why and what to do.
        """
        parse_name(version)
        return unpack(version, self._read(version, FILES))

    @contextmanager
    def _storage(self, trouble: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            what = f"The model registry {self.url} {trouble}"
            fix = "Check that the path exists, its permissions and the space left"
            raise StorageRefused(what, str(exc) or type(exc).__name__, fix) from exc

    def _entries(self, folder: str = "") -> list[str]:
        path = f"{self._root}/{folder}".rstrip("/")
        self._fs.invalidate_cache(path)  # object stores cache listings; another process may have published
        try:
            return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []

    def _point(self, names: Sequence[str], turn: int) -> None:
        pointer, text = f"{self._root}/{POINTER}", "\n".join([*names[:_REMEMBERED], f"{_TURN}{turn}"]).encode()
        with self._storage("cannot be written"):
            if self._local:
                temporary = f"{pointer}.{os.getpid()}-{os.urandom(4).hex()}"
                _write_durably(Path(temporary), text)
                os.replace(temporary, pointer)
            else:
                self._fs.pipe_file(pointer, text)

    def _claim(self) -> int:
        self._fs.makedirs(f"{self._root}/{CLAIMS}", exist_ok=True)
        taken = [int(claim) for claim in self._entries(CLAIMS) if claim.isdecimal()]
        taken += [parse_name(name)[0] for name in self._entries() if is_version_name(name)]
        number = max(taken, default=0)
        while True:
            number += 1
            claim = f"{self._root}/{CLAIMS}/{number:04d}"
            try:
                if self._local:  # fsspec looks first and then opens: two processes could both find the number free
                    Path(claim).touch(exist_ok=False)
                else:
                    self._fs.pipe_file(claim, b"", mode="create")
                return number
            except FileExistsError:
                continue

    def _write(self, version: str, number: int, files: Mapping[str, bytes]) -> None:
        if not self._local:
            for name, data in files.items():  # the manifest is the last of them
                self._fs.pipe_file(f"{self._root}/{version}/{name}", data)
            return
        folder = Path(self._root, f"{_UNFINISHED}{number:04d}")
        folder.mkdir()
        for name, data in files.items():
            _write_durably(folder / name, data)
        folder.rename(Path(self._root, version))

    def _read(self, version: str, names: Sequence[str]) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        for name in (MANIFEST, *names):
            try:
                contents[name] = bytes(self._fs.cat_file(f"{self._root}/{version}/{name}"))
            except FileNotFoundError as exc:
                raise refusal(version, f"the file {name} is missing") from exc
            except OSError as exc:
                told = refusal(version, f"the file {name} cannot be read: {exc}")
                raise StorageRefused(told.what, told.why, told.fix) from exc
        manifest = contents.pop(MANIFEST)
        verify(version, manifest, contents)
        return contents

    def _sweep(self, below: int) -> None:
        for entry in self._entries():
            path, number = f"{self._root}/{entry}", entry.removeprefix(_UNFINISHED)
            if is_version_name(entry):
                unfinished = parse_name(entry)[0] < below and not self._fs.exists(f"{path}/{MANIFEST}")
            else:
                unfinished = entry.startswith(_UNFINISHED) and number.isdecimal() and int(number) < below
            if unfinished:
                self._fs.rm(path, recursive=True)
        for claim in self._entries(CLAIMS):
            if claim.isdecimal() and int(claim) < below:
                self._fs.rm_file(f"{self._root}/{CLAIMS}/{claim}")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a crash after the rename must not leave an empty file behind the new name
