"""CURRENT, the pointer of a model registry: one small file, replaced atomically.

v0009-0badcafe     the version to serve
v0007-1a2b3c4d     served before it
turn 12            so often was it written
"""

from collections.abc import Sequence
from typing import Final

from models.storage import Storage
from models.version import VersionRefused, is_version_name

_FILE: Final = "CURRENT"
_REMEMBERED: Final = 50  # versions: the file stays under 1 kB
_TURN: Final = "turn "  # begins its last line


class PointerDamaged(VersionRefused):
    """The pointer was read and does not name versions."""


def read_pointer(storage: Storage) -> tuple[list[str], int]:
    """The version to serve and those that served before it, newest first, and the turn; none and 0 without a pointer.

    Raises:
        PointerDamaged: It does not name versions.
        VersionRefused: Storage refuses.
    """
    with storage.guard("has an unreadable pointer"):
        try:
            text = storage.read(_FILE).decode(errors="replace")
        except FileNotFoundError:
            return [], 0
    *names, last = text.split("\n")
    turn = last.removeprefix(_TURN)
    if not (last.startswith(_TURN) and turn.isdecimal()):  # written by a release without turns, or by hand
        names, turn = [*names, last], "0"
    if not all(map(is_version_name, names)):
        what = f"The pointer {_FILE} of the model registry {storage.url} is damaged"
        raise PointerDamaged(what, f"it reads {text[:80]!r}", "Promote a version again")
    return names, int(turn)


def write_pointer(storage: Storage, names: Sequence[str], turn: int) -> None:
    """Point at the first of the names.

    Raises:
        VersionRefused: Storage refuses.
    """
    with storage.guard("cannot be written"):
        storage.replace(_FILE, "\n".join([*names[:_REMEMBERED], f"{_TURN}{turn}"]).encode())
