"""Results as a table, a JSON file, a plot, and one JSON line for scripts."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.harness.processes import ROOT

DEFAULT_OUT: Final = ROOT / "docs" / "benchmarks"
# Standard output is for --json; a table in a log file needs more than the 80 columns rich assumes there.
console: Final = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 110)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others figures."""
    printed = Table(title=title, title_justify="left")
    for position, name in enumerate(columns):
        printed.add_column(name, justify="left" if position == 0 else "right")
    for row in rows:
        printed.add_row(*row)
    console.print(printed)


def save(name: str, result: dict[str, Any], out: Path, draw: Callable[[Any], None]) -> None:
    """Write NAME.json and NAME.png; `draw` gets a matplotlib Axes."""
    from matplotlib.figure import Figure  # the object API needs no display and no global state

    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(8, 4.5))
    draw(figure.add_subplot())
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    machine = result.get("machine", {})
    note = "; ".join(filter(None, (f"{machine.get('cpu')}, {machine.get('cores')} cores", machine.get("broker"))))
    figure.text(0.995, 0.004, note, ha="right", va="bottom", fontsize=7, color="0.4")
    figure.savefig(out / f"{name}.png", dpi=120)
    console.print(f"[dim]{name}.json and {name}.png are in {out}")
