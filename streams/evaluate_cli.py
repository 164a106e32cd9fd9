"""The command `evaluate`: models side by side on one log, ranked in full, with intervals."""

import os
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from state.errors import RecstreamError
from streams import options
from streams.console import EXIT_INTERRUPTED, Bar, ended_as_by_ctrl_c, print_json, progress_bar, say
from streams.evaluate_tables import more_tables
from streams.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from models.evaluation.dataset import Dataset

_FAST: Final = "popularity,markov,skip-markov,gru"
_NARROWEST: Final = 128  # columns of the table; a narrower terminal wraps its lines rather than its figures


def evaluate(
    data: options.Source,
    models: Annotated[
        str,
        typer.Option(
            help="names by comma, or `all`: popularity, context-popularity, markov, skip-markov, session-knn, bpr, "
            "rnn, lstm, gru, time-lstm, transformer, bert, fusion, ensemble"
        ),
    ] = _FAST,
    protocol: Annotated[
        Literal["leave-one-out", "time-split", "prequential", "cold-items"],
        typer.Option(
            help="each user's last event; the newest tenth; test-then-learn over the newer half; items never learnt"
        ),
    ] = "leave-one-out",
    seeds: Annotated[int, typer.Option(min=1, max=50, help="fits per model; figures are means over them")] = 1,
    effort: Annotated[float, typer.Option(min=0.01, max=100, help="factor on training budgets")] = 1.0,
    judged: Annotated[
        int, typer.Option(min=1, help="most judged events; users are drawn at random where there are more")
    ] = 25_000,
    columns: options.Columns = None,
    types: options.Types = None,
    items: options.Items = None,
    limit: options.Limit = None,
    settings: Annotated[
        list[Path] | None, typer.Option(help="settings of models, as `recstream tune --out` writes them; repeatable")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="what neural models foretell besides, by comma: next, type, click, view, purchase, rating, all"
        ),
    ] = None,
    horizon: Annotated[
        int, typer.Option(min=1, max=20, help="neural models foretell the item of every event up to N ahead")
    ] = 1,
    session_gap: Annotated[
        str | None, typer.Option(help="a break that parts sessions: 30m, 2h, ..., or auto, found from the log")
    ] = None,
    session_reset: Annotated[
        bool, typer.Option("--session-reset", help="every model starts anew with each session, not session-knn alone")
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(help="vary neural models' training histories: crop, mask, reorder, insert, prefix, all"),
    ] = None,
    together: Annotated[
        Path | None, typer.Option("--with", help="another log of the same users: what do its events bring for DATA?")
    ] = None,
    device: options.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="folder for report.html, the plots and result.json")] = None,
    json: options.Json = False,
) -> None:
    """Compare models on an event log: every item is ranked for every judged event, with and without what the user had.

    Unmasked, a model may recommend what the user already has; masked, it may not, and a repeat is a miss. Intervals are
    95%, from a bootstrap over users. Columns, event types, ratings and missing times are understood as far as they are
    usual, and what was guessed is said.

    For example `recstream evaluate ml-100k --models markov,gru,transformer --seeds 3`

    or `recstream evaluate log.csv.gz --models all --protocol time-split --json --out report`

    or `recstream evaluate log.csv.gz --models gru --heads type,rating --horizon 3 --session-gap auto`
    """
    one_thread()
    from models.device import chosen_device
    from models.evaluation.domains import evaluate_together
    from models.evaluation.fitting import Teaching
    from models.evaluation.run import Settings, evaluate, require_known
    from models.family.augmentation import parse_augmentation
    from models.family.heads import parse_tasks
    from models.family.registry import MODELS
    from models.family.sessions import parse_gap, usual_gap

    names = list(MODELS) if models.strip() == "all" else [name.strip() for name in models.split(",") if name.strip()]
    try:
        require_known(names)
        tasks, variations = parse_tasks(heads, horizon), parse_augmentation(augment)
        gap: float | None = parse_gap(session_gap) if session_gap else 0.0
    except RecstreamError as error:
        raise SettingsError(what=error.what, why=error.why, fix=error.fix) from error
    place = chosen_device(device)
    if out is not None:
        _require_plots(out)
    given = _model_settings(settings or [], list(MODELS))
    log = read_log(data, columns, types, items, limit)
    if gap is None:
        gap, why = usual_gap(log.source)
        log.notes.append(f"sessions part after {gap / 60:,.0f} minutes: {why}")
        say(f"  {log.notes[-1]}")
    teaching = Teaching(tasks, gap, session_reset, variations)
    how = Settings(protocol, perf_counter, seeds, effort, judged, model_settings=given, teaching=teaching, device=place)
    other = read_log(str(together), columns, types, None, None) if together else None
    bars = _Bars(list(dict.fromkeys([*(f"{name} alone" for name in names if other), *names])))
    with bars.stack, ended_as_by_ctrl_c():
        body = evaluate_together(log, other, names, how, bars.show) if other else evaluate(log, names, how, bars.show)
    for note in body["data"]["notes"][len(log.notes) :]:
        say(f"  {note}")
    console = Console(stderr=json)
    console.width = max(console.width, _NARROWEST)
    console.print(_table(body))
    for more in more_tables(body):
        console.print(more)
    if out is not None:
        from models.evaluation.report import write

        say(f"report: {write(body, out)}")
    if json:
        print_json(body)
    if "interrupted" in body:
        say(f"interrupted at {body['interrupted']}: the figures are of the models before it")
        raise typer.Exit(EXIT_INTERRUPTED)


def one_thread() -> None:
    """Compute on one thread: products here are small, a second thread costs more than it brings."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read when numpy and torch are imported
    import torch

    torch.set_num_threads(1)


def read_log(data: str, columns: str | None, types: str | None, items: Path | None, limit: int | None) -> "Dataset":
    """The event log that a command was given, with what was guessed about it said.

    Raises:
        RecstreamError: It cannot be read, or the options do not fit.
    """
    from models.evaluation.dataset import load
    from models.tables import TableError, parse_columns, parse_types
    from streams.datasets import ML_100K, ml_100k

    try:
        named, kinds = parse_columns(columns) if columns else None, parse_types(types) if types else None
    except TableError as error:
        raise SettingsError(what=error.what, why=error.why, fix=error.fix) from error
    path = ml_100k(load_settings().cache_dir) / f"{ML_100K}.inter" if data == ML_100K else Path(data)
    log = load(path, named, kinds, items, limit)
    say(f"{log.name}: {len(log.source):,} events, {log.source.users:,} users, {log.items - 1:,} items")
    for note in log.notes:
        say(f"  {note}")
    return log


def _model_settings(files: list[Path], known: list[str]) -> dict[str, dict[str, Any]]:
    """Settings by model from JSON files ``{"gru": {"hidden": 192}}``; later files count."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            body = orjson.loads(file.read_bytes())
            found |= {str(name): dict(given) for name, given in body.items()}
        except (OSError, TypeError, ValueError, AttributeError) as error:
            what = f"{file} holds no settings of models"
            raise SettingsError(what, str(error), "Write it with: recstream tune DATA --out FILE") from error
        unknown = [name for name in found if name not in known]
        if unknown:
            what, why = f"{file} has settings of {unknown[0]!r}, which is no model", f"they are {', '.join(known)}"
            raise SettingsError(what, why, 'Write {"gru": {"hidden": 192}}; smaller copies take those of the whole')
    return found


class _Bars:
    """One progress bar after another, one for each model."""

    def __init__(self, names: list[str]) -> None:
        self.stack = ExitStack()
        self._names = names
        self._name = ""
        self._bar: Bar | None = None

    def show(self, name: str, share: float, note: str) -> None:
        if name != self._name or self._bar is None:
            self.stack.close()
            title = f"{name} ({self._names.index(name) + 1} of {len(self._names)})" if len(self._names) > 1 else name
            self._name, self._bar = name, self.stack.enter_context(progress_bar(title, total=1.0))
        self._bar.to(share, note=note)


def _table(body: dict[str, Any]) -> Table:
    name, judged = escape(body["data"]["name"]), body["data"]["judged_events"]
    table = Table(title=f"{name}, {body['protocol']}, {judged:,} judged events")
    table.add_column("model", no_wrap=True)
    for side in ("unmasked", "masked"):
        table.add_column(f"{side}\nHR@10", justify="right", no_wrap=True)
        table.add_column(f"{side}\nNDCG@10 (95%)", justify="right", no_wrap=True)
    for title in ("coverage\n@10", "seconds", "us an\nevent", "state\nbytes"):
        table.add_column(title, justify="right", no_wrap=True)
    ordered = sorted(body["models"].items(), key=lambda entry: -entry[1]["unmasked"].get("ndcg@10", 0.0))
    for name, figures in ordered:
        cells = [name]
        for side in ("unmasked", "masked"):
            low, high = figures["intervals"][side]["ndcg@10"]
            cells.append(f"{figures[side].get('hr@10', 0):.4f}")
            cells.append(f"{figures[side].get('ndcg@10', 0):.4f} ({low:.4f}-{high:.4f})")
        cost = figures["cost"]
        cells += [f"{figures['unmasked'].get('coverage@10', 0):.3f}", f"{figures['seconds']:.1f}"]
        cells += [f"{cost['step_us'] + cost['score_us']:.0f}", f"{cost['state_bytes']:,}"]
        table.add_row(*cells)
    return table


def _require_plots(out: Path) -> None:
    """Make sure before hours of fitting that there will be a report at the end of them."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        what, why = "--out needs matplotlib for its plots", "it is not installed"
        raise SettingsError(what, why, "pip install 'recstream[bench]', or leave --out away and use --json")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"The folder {out} for the report cannot be made"
        raise SettingsError(what, str(error), "Give --out another folder") from error
