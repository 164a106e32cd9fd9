"""How often a pass was begun without getting on.

A pass on disk is gone on with at the next start. One that kills its process every time, say for want of memory, would
be gone on with for ever. One that is killed by something else gets on in between, and that may happen any number of
times.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

MOST: Final = 3  # times that a pass is begun at the same place

_FILE: Final = "tries.json"


def count(directory: Path, checkpoint: Path) -> None:
    """Note that a process begins or goes on with the pass; where that cannot be written, it is not counted."""
    tries = json.dumps({"begun": at_this_place(directory, checkpoint) + 1, "place": _place(checkpoint)})
    with suppress(OSError):
        (directory / "tries.new").write_text(tries)
        os.replace(directory / "tries.new", directory / _FILE)


def at_this_place(directory: Path, checkpoint: Path) -> int:
    """How often the pass was begun since its checkpoint was last written."""
    try:
        tries = json.loads((directory / _FILE).read_text())
        return int(tries["begun"]) if tries["place"] == _place(checkpoint) else 0
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def _place(checkpoint: Path) -> int:
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
