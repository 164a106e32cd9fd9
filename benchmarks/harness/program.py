"""What every benchmark program does around its own work: options, errors, and the JSON line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.report import DEFAULT_OUT
from streams.console import exit_status, print_json

Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON object on the last line")]
Out = Annotated[Path, typer.Option(help="directory of the JSON file and the plot")]
OUT: Final = DEFAULT_OUT


def conclude(result: dict[str, Any], json: bool) -> None:
    """Print the result for scripts when asked to."""
    if json:
        print_json(result)


def run(main: Callable[..., None]) -> None:
    """Run a program: 0 done, 1 failed with a reason, 2 usage, 130 interrupted."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it retries while new topics get their leaders
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(main)
    with exit_status():
        app(standalone_mode=True)
