"""What the commands print: people read standard error, programs read the last line of standard output."""

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any, Final

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from state.errors import RecstreamError
from streams.errors import SettingsError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
# What moves a terminal's cursor, changes its state or turns its writing round.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def screen() -> Console:
    """The console for people (standard error), so that standard output stays clean for pipes."""
    return Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """Print a line for people as it is, unbroken however narrow the terminal."""
    screen().print(text, soft_wrap=True, markup=False, style=style)


def harmless(text: str) -> str:
    r"""Text that somebody else chose, on one line: control characters by their names instead of their effect.

    >>> print(harmless("Al\x1b[31mien\n"))
    Al\x1b[31mien\n
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def show_error(error: RecstreamError) -> None:
    """Print what happened, why, and the fix."""
    console = screen()
    console.print(Text.assemble(("error: ", "bold red"), error.what), soft_wrap=True)
    if error.why:
        console.print(Text.assemble(("  why: ", "bold"), error.why), soft_wrap=True)
    if error.fix:
        console.print(Text.assemble(("  fix: ", "bold green"), error.fix), soft_wrap=True)


@contextmanager
def exit_status() -> Iterator[None]:
    """End the program with the status of how its work ends: 1 failed with a reason, 2 wrong settings, 130 interrupted.

    Raises:
        SystemExit: the work did not end well.
    """
    try:
        yield
    except RecstreamError as error:
        show_error(error)
        raise SystemExit(EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILURE) from error
    except KeyboardInterrupt:
        screen().print("interrupted", style="yellow")
        raise SystemExit(EXIT_INTERRUPTED) from None


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Within it SIGTERM, which `timeout` and batch systems send, ends the work as Ctrl-C does: what is done is kept."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on standard output, where it is the last line.

    Raises:
        RecstreamError: Standard output takes nothing more, as on a full disk.
    """
    try:
        print(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode(), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        what, why = "The JSON cannot be written to standard output", error.strerror or str(error)
        raise RecstreamError(what, why, "Send it where there is room") from error


def drop_output() -> None:
    """Let standard output go nowhere from now on: what it still holds would fail once more when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bar:
    """A progress bar with a rate; `to` moves it."""

    def __init__(self, progress: Progress, unit: str, total: float | None) -> None:
        self._progress = progress
        self._unit = unit
        self._task = progress.add_task("", total=total, rate="")

    def to(self, done: float, total: float | None = None, note: str = "") -> None:
        """Set how much is done (not how much more), optionally a new total and a short note."""
        task = self._progress.tasks[self._task]
        elapsed = task.elapsed or 0.0
        rate = f"{done / elapsed:,.0f} {self._unit}/s" if elapsed > 0 and self._unit else ""
        self._progress.update(self._task, completed=done, total=task.total if total is None else total)
        self._progress.update(self._task, rate=" ".join(part for part in (rate, note) if part))


@contextmanager
def progress_bar(title: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """A progress bar on the console for people; only its end is printed when that is not a terminal.

    Args:
        title: What is being done.
        total: How much there is to do, None when unknown.
        unit: What is counted, for the rate; empty shows a percentage instead of counts.
    """
    progress = Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn() if unit else TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=screen(),
    )
    with progress:
        yield Bar(progress, unit, total)
