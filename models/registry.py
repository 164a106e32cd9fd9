"""Model versions on disk or in an object store: immutable directories, checksums, one pointer to the serving version.

    <registry>/
      CURRENT                    the version to serve, below it those that served before, and how often it was written;
                                 replaced atomically
      .lock                      on a disk, held by whoever reads CURRENT in order to replace it
      .claims/0007               taken with an exclusive create: two publishers never get one number
      v0007-1a2b3c4d/            number and fingerprint, the first 4 bytes of the weights file's sha256
        weights.safetensors  vocabulary.json  config.json  metrics.json  lineage.json
        manifest.json            size and sha256 of the five above; written last, so it marks a complete version

On a local disk a version is written to a temporary directory and renamed; object stores have no rename, so there the
manifest, uploaded last, is what makes a version exist. Nothing published is ever written again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from models.network import Network
from models.pointer import PointerDamaged, read_pointer, write_pointer
from models.storage import Storage
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
    version_name,
)
from models.version_files import VersionFiles

__all__ = ["Registry", "StorageRefused", "Summary", "Version", "VersionRefused"]

_WAY_BACK: Final = 3  # versions that served before the present one and are kept however many came after them


class Registry:
    """Publishes, lists and loads model versions under one directory or fsspec URL.

    Safe for several publishers and any number of readers at once.

    Args:
        url: A path or any fsspec URL (``/var/models``, ``s3://bucket/models``, ``memory://models``).

    Raises:
        VersionRefused: The URL's protocol is unknown, its package is not installed, or it lacks credentials.

    Example:
        >>> from models.network import NetworkConfig
        >>> registry, network = Registry("memory://docs"), Network(NetworkConfig(items=2, hidden=4, embedding=2))
        >>> name = registry.publish(network, ["", "tea"], metrics={"ndcg@10": 0.1}, lineage={"seed": 1})
        >>> registry.current() == name, registry.load(name).vocabulary
        (True, ['', 'tea'])
    """

    def __init__(self, url: str | Path) -> None:
        self._storage = Storage(url)
        self._fs, self._root, self.url = self._storage.fs, self._storage.root, self._storage.url
        self._files = VersionFiles(self._storage)

    def require_writable(self) -> None:
        """Find out before long work that nothing can be published after it.

        Raises:
            StorageRefused: The registry cannot be read, or on a disk not be written.
        """
        self.versions()
        with self._storage.guard("cannot be written"):
            self._storage.try_out()

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
        with self._storage.guard("cannot be written"):
            number = self._files.claim()
            version = version_name(number, files)
            self._files.write(version, number, files)
        if promote:
            self.promote(version)
        return version

    def promote(self, version: str) -> None:
        """Point CURRENT at a published version, newer or older (a rollback is promoting an older one).

        Raises:
            VersionRefused: There is no such version, it was deleted meanwhile, or storage refuses.
        """
        self._check_published(version)
        with self._storage.alone():
            try:
                before, turn = self.pointer()
            except PointerDamaged:  # promoting mends it; what it remembered is lost
                before, turn = [], 0
            self._serve([version, *before], before, turn)

    def succeed(self, version: str, parent: str | None, at_turn: int | None = None) -> bool:
        """Promote a version unless another than the one it was made from serves by now: an operator's choice stays.

        Args:
            version: A published version.
            parent: The version that it was judged against, None for none.
            at_turn: The pointer's turn when that was; at another one somebody has promoted or rolled back meanwhile,
                perhaps this very version and perhaps back to the parent. None takes any.

        Returns:
            Whether it serves.

        Raises:
            VersionRefused: There is no such version, it was deleted meanwhile, the pointer is damaged, or storage
                refuses.
        """
        self._check_published(version)
        with self._storage.alone():
            before, turn = self.pointer()  # nothing slow between this and the write
            serving = next(iter(before), None)
            if serving == parent and at_turn in (turn, None):
                self._serve([version, *before], before, turn)
                return True
        return serving == version

    def rollback(self) -> str:
        """Point CURRENT back at the version promoted before the one it points at; a second call goes one further.

        Versions that were deleted since, or were damaged so that they cannot be loaded, are passed over.

        Returns:
            The name of the version that serves now.

        Raises:
            VersionRefused: No version that is left served before, or storage refuses.
        """
        while True:
            names, turn = self.pointer()
            place = self._way_back(names)
            with self._storage.alone():
                if self.pointer() == (names, turn):  # looking for the way took a while
                    self._serve(names[place:], names, turn)
                    return names[place]

    def retention(self, keep: int) -> list[str]:
        """Delete all but the newest ``keep`` versions, and what dead publishers left behind.

        The current one stays, and so do the three that it can be rolled back to first.

        Returns:
            The names of the versions deleted, oldest first.

        Raises:
            VersionRefused: ``keep`` is below 1, or storage refuses.
        """
        if keep < 1:
            what = f"Keeping {keep} model versions was asked for"
            raise VersionRefused(what, "at least the newest must stay", "Keep 1 version or more")
        names = self.versions()
        with self._storage.guard("cannot be tidied"):
            deleted = [name for name in names[:-keep] if self._delete(name, names)]
            if names:
                # Numbers only grow: whoever claimed one below the oldest kept version is long gone.
                self._files.sweep(below=parse_name(names[-keep:][0])[0])
        return deleted

    def current(self) -> str | None:
        """The version CURRENT points at, None when nothing was promoted yet.

        Raises:
            VersionRefused: The pointer cannot be read or does not name a version.
        """
        return next(iter(self.promoted()), None)

    def promoted(self) -> list[str]:
        """The version CURRENT points at and those that served before it, newest first, each once.

        What was rolled back is not among them; some may have been deleted since. Two promotions at the same moment may
        forget one of these names in an object store (not on a disk), never the one that serves.

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
        return read_pointer(self._storage)

    def versions(self) -> list[str]:
        """Names of the complete versions, oldest first.

        Raises:
            VersionRefused: Storage refuses.
        """
        with self._storage.guard("cannot be listed"):
            names = [name for name in self._storage.entries() if is_version_name(name)]
            return sorted((n for n in names if self._files.complete(n)), key=parse_name)

    def describe(self, version: str) -> Summary:
        """Configuration, metrics and lineage of a version, without reading its weights.

        Raises:
            VersionRefused: The version is missing or these files are damaged.
        """
        parse_name(version)
        return summarize(version, self._files.read(version, HEADS))

    def load(self, version: str) -> Version:
        """Read and verify a version: checksums, shapes, finite weights, vocabulary.

        Raises:
            VersionRefused: Anything at all is wrong with it; the message says what, why and what to do.
        """
        parse_name(version)
        return unpack(version, self._files.read(version, FILES))

    def _serve(self, names: Sequence[str], before: Sequence[str], turn: int) -> None:
        """Point at the first name, each once; back to what was before where that is no version any more.

        `_delete` looks at the pointer after it took the manifest, and this at the manifest after it wrote the pointer:
        whatever comes first, one of the two sees the other.
        """
        write_pointer(self._storage, list(dict.fromkeys(names)), turn + 1)
        try:
            self._check_published(names[0])
        except StorageRefused:  # nobody can tell; a moment ago it was there
            return
        except VersionRefused:
            write_pointer(self._storage, before, turn + 2)
            raise

    def _way_back(self, names: Sequence[str]) -> int:
        """Place of the newest one that served before the first and can be loaded."""
        published, damage = set(self.versions()), ""
        for place, name in enumerate(names[1:], 1):
            if name not in published:
                continue
            try:
                self.load(name)
            except VersionRefused as exc:
                damage = f"{damage}; {name}: {exc.why}"
                continue
            return place
        what = "There is no version to roll back to"
        why = f"no other one served before {names[0]}" if names else "none was promoted yet"
        fix = "Choose one with `recstream models list` and promote it with `recstream models promote`"
        raise VersionRefused(what, why + damage, fix)

    def _delete(self, version: str, published: Sequence[str]) -> bool:
        """Delete a version unless it is spared, by promotions of this very moment too; returns whether it is gone."""
        if version in self._spared(published):
            return False
        # The manifest goes first, so that no reader takes half a version for a whole one.
        manifest = self._storage.read(f"{version}/{MANIFEST}")
        self._fs.rm_file(f"{self._root}/{version}/{MANIFEST}")
        if version in self._spared(published):
            self._storage.replace(f"{version}/{MANIFEST}", manifest)
            return False
        self._fs.rm(f"{self._root}/{version}", recursive=True)
        return True

    def _spared(self, published: Sequence[str]) -> list[str]:
        """The version that serves and the way back from it."""
        return [name for name in self.promoted() if name in published][: 1 + _WAY_BACK]

    def _check_published(self, version: str) -> None:
        parse_name(version)
        with self._storage.guard("cannot be read"):
            if not self._files.complete(version):
                raise refusal(version, "it is not in the registry")
