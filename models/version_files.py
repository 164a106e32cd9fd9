"""The files of model versions in a registry: numbers taken, directories written, checked when they are read, swept.

`models.registry` says how they lie; which version serves is not known here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from models.storage import Storage, write_durably
from models.version import MANIFEST, StorageRefused, is_version_name, parse_name, refusal, verify

_CLAIMS: Final = ".claims"
_UNFINISHED: Final = ".tmp-"


class VersionFiles:
    """Reads and writes the directories of versions.

    Args:
        storage: Where they are.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._fs, self._root = storage, storage.fs, storage.root

    def complete(self, version: str) -> bool:
        """Whether there is such a version, all of it."""
        return self._storage.holds(f"{version}/{MANIFEST}")

    def claim(self) -> int:
        """A number that no other version has or will have."""
        self._fs.makedirs(f"{self._root}/{_CLAIMS}", exist_ok=True)
        taken = [int(claim) for claim in self._storage.entries(_CLAIMS) if claim.isdecimal()]
        taken += [parse_name(name)[0] for name in self._storage.entries() if is_version_name(name)]
        number = max(taken, default=0)
        while True:
            number += 1
            claim = f"{self._root}/{_CLAIMS}/{number:04d}"
            try:
                if self._storage.local:  # fsspec looks first, then opens: two processes could find the number free
                    Path(claim).touch(exist_ok=False)
                else:
                    self._fs.pipe_file(claim, b"", mode="create")
                return number
            except FileExistsError:
                continue

    def write(self, version: str, number: int, files: Mapping[str, bytes]) -> None:
        """Write a version under the number claimed for it; readers find all of it or nothing."""
        if not self._storage.local:
            self._fs.makedirs(f"{self._root}/{version}", exist_ok=True)  # SFTP has folders, where S3 has prefixes
            for name, data in files.items():  # the manifest is the last of them
                self._fs.pipe_file(f"{self._root}/{version}/{name}", data)
            return
        folder = Path(self._root, f"{_UNFINISHED}{number:04d}")
        folder.mkdir()
        for name, data in files.items():
            write_durably(folder / name, data)
        folder.rename(Path(self._root, version))

    def read(self, version: str, names: Sequence[str]) -> dict[str, bytes]:
        """The content of these files, checked against the manifest.

        Raises:
            VersionRefused: One is missing or not what was published.
        """
        contents: dict[str, bytes] = {}
        for name in (MANIFEST, *names):
            try:
                contents[name] = self._storage.read(f"{version}/{name}")
            except FileNotFoundError as exc:
                raise refusal(version, f"the file {name} is missing") from exc
            except Exception as exc:  # as in `Storage.guard`
                told = refusal(version, f"the file {name} cannot be read: {str(exc) or type(exc).__name__}")
                raise StorageRefused(told.what, told.why, told.fix) from exc
        manifest = contents.pop(MANIFEST)
        verify(version, manifest, contents)
        return contents

    def sweep(self, below: int) -> None:
        """Remove what dead publishers left of versions with smaller numbers."""
        for entry in self._storage.entries():
            path, number = f"{self._root}/{entry}", entry.removeprefix(_UNFINISHED)
            if is_version_name(entry):
                unfinished = parse_name(entry)[0] < below and not self.complete(entry)
            else:
                unfinished = entry.startswith(_UNFINISHED) and number.isdecimal() and int(number) < below
            if unfinished:
                self._fs.rm(path, recursive=True)
        for claim in self._storage.entries(_CLAIMS):
            if claim.isdecimal() and int(claim) < below:
                self._fs.rm_file(f"{self._root}/{_CLAIMS}/{claim}")
