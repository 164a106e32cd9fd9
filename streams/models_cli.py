"""The commands `recstream models`: what is in the registry, which version serves, and changing that."""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from state.errors import RecstreamError
from streams import options
from streams.console import harmless, print_json, say, screen
from streams.settings import Settings, load_settings

if TYPE_CHECKING:  # models.registry imports torch, which `recstream --help` does without
    from models.registry import Registry

_ANNOUNCE_SECONDS: Final = 10.0  # workers poll the registry anyway
_SHOWN_ITEMS: Final = 8

Named = Annotated[str, typer.Argument(metavar="VERSION", help="name or number of a version", show_default=False)]

app = typer.Typer(no_args_is_help=True, help="List, compare and promote the model versions of the registry.")


@app.command("list")
def list_versions(json: options.Json = False, registry: options.Registry = None) -> None:
    """List every version with its figures, oldest first, and say which one serves.

    Example: `recstream models list`
    """
    store = _open(load_settings(registry=registry))
    entries = _entries(store)
    table = Table(Column("version", no_wrap=True), "created", "origin", "parent", "items", "NDCG@10", "state", box=None)
    for entry in entries:
        ndcg = entry.get("ndcg@10")
        table.add_row(
            entry["version"],
            _moment(entry.get("created_ms")),
            " ".join(filter(None, (entry.get("origin"), entry.get("trigger")))) or "-",
            entry.get("parent") or "-",
            f"{entry['items']:,}" if "items" in entry else "-",
            f"{ndcg:.4f}" if isinstance(ndcg, int | float) else "-",
            entry["state"],
        )
    _show([table], json)
    for entry in entries:
        if "damaged" in entry:
            say(f"{entry['version']} cannot be served: {entry['damaged']}", style="red")
    if not entries:
        say(f"{store.url} holds no version; `recstream fit` makes a first one")
    if json:
        serving = next((entry["version"] for entry in entries if entry["serving"]), None)
        print_json({"serving": serving, "versions": entries})


@app.command()
def show(version: Named, json: options.Json = False, registry: options.Registry = None) -> None:
    """Show a version's configuration, figures and lineage: parent, events trained on, seed, code version.

    Example: `recstream models show 7`
    """
    from models.compare import flat

    store = _open(load_settings(registry=registry))
    summary = store.describe(_resolve(store, version))
    promoted = _promoted(store)
    body: dict[str, Any] = {
        "version": summary.name,
        "serving": promoted[:1] == [summary.name],
        "state": _state(summary.name, summary.metrics, promoted),
        "config": summary.config.to_dict(),
        "metrics": summary.metrics,
        "lineage": summary.lineage,
    }
    table = Table(summary.name, body["state"], box=None)
    for part in ("config", "metrics", "lineage"):
        table.add_section()
        for name, value in flat(body[part]).items():
            table.add_row(f"{part}.{name}" if part == "config" else name, Text(_text(name, value)))
    _show([table], json)
    if json:
        print_json(body)


@app.command()
def promote(
    version: Named,
    json: options.Json = False,
    registry: options.Registry = None,
    brokers: options.Brokers = None,
) -> None:
    """Let a version serve, newer or older than the one that does; running workers take it up by themselves.

    It is read and checked first: a damaged one is refused. The topic model-versions hears of it where the broker can
    be reached.

    Example: `recstream models promote v0007-1a2b3c4d`
    """
    settings = load_settings(registry=registry, brokers=brokers)
    store = _open(settings)
    before = _current(store)
    chosen = store.load(_resolve(store, version)).name
    store.promote(chosen)
    _changed(settings, store, before, chosen, json)


@app.command()
def rollback(json: options.Json = False, registry: options.Registry = None, brokers: options.Brokers = None) -> None:
    """Let the version serve again that was promoted before the present one; repeat it to go back further.

    For example `recstream models rollback`, after `recstream models list` showed a version that does worse
    """
    settings = load_settings(registry=registry, brokers=brokers)
    store = _open(settings)
    before = _current(store)
    _changed(settings, store, before, store.rollback(), json)


@app.command()
def diff(
    old: Named,
    new: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="the other one; the serving one when left out")
    ] = None,
    json: options.Json = False,
    registry: options.Registry = None,
) -> None:
    """Compare two versions: settings, figures, items that came and left, and how far each weight moved.

    Example: `recstream models diff 6 7`
    """
    from models.compare import compare
    from models.version import VersionRefused

    store = _open(load_settings(registry=registry))
    serving = _current(store)
    names = _resolve(store, old), serving if new is None else _resolve(store, new)
    if names[1] is None:
        what, why = f"There is nothing to compare {names[0]} with", "no version serves"
        raise VersionRefused(what, why, "Name a second version; `recstream models list` lists them")
    found = compare(store.load(names[0]), store.load(names[1]))
    pairs = Table("", found.old, found.new, box=None)
    for name, (one, other) in {**found.config, **found.metrics}.items():
        if one != other:
            pairs.add_row(name, Text(_text(name, one)), Text(_text(name, other)))
    pairs.add_section()
    # Ids are whatever somebody sent: what is in brackets there is no markup.
    pairs.add_row("items only here", Text(_some(found.removed)), Text(_some(found.added)))
    moved = Table("weights", "moved by", box=None)
    for name, distance in found.moved.items():
        moved.add_row(name, "other shape" if distance is None else f"{distance:.2%}")
    _show([pairs, moved], json)
    say(f"{found.kept:,} items are in both")
    if json:
        print_json(found.to_dict())


def _open(settings: Settings) -> "Registry":
    from models.registry import Registry

    return Registry(settings.registry)


def _promoted(store: "Registry") -> list[str]:
    """The serving version and those that served before; none where the pointer is damaged, which promoting mends."""
    from models.version import VersionRefused

    try:
        return store.promoted()
    except VersionRefused as error:
        say(f"{error.what}: {error.why}; fix: {error.fix}", style="yellow")
        return []


def _current(store: "Registry") -> str | None:
    return next(iter(_promoted(store)), None)


def _resolve(store: "Registry", text: str) -> str:
    """The name of the version that a name or a number means.

    Raises:
        VersionRefused: there is none.
    """
    from models.version import VersionRefused, parse_name

    names = store.versions()
    if text in names:
        return text
    number = text.removeprefix("v")
    if number.isdecimal():
        for name in names:
            if parse_name(name)[0] == int(number):
                return name
    why = f"it holds {names[0]} to {names[-1]}" if names else "it holds none"
    what = f"Version {text!r} is not in the registry {store.url}"
    raise VersionRefused(what, why, "Choose one of `recstream models list`, by name or number")


def _entries(store: "Registry") -> list[dict[str, Any]]:
    from models.version import VersionRefused, parse_name

    promoted = _promoted(store)
    current = next(iter(promoted), None)
    entries: list[dict[str, Any]] = []
    for name in store.versions():
        entry: dict[str, Any] = {"version": name, "number": parse_name(name)[0], "serving": name == current}
        try:
            summary = store.describe(name)
        except VersionRefused as error:
            entry |= {"state": f"damaged{', serving' if name == current else ''}", "damaged": error.why or error.what}
            entry["promoted"] = name in promoted
        else:
            gate = summary.metrics.get("gate")
            lineage = {key: summary.lineage.get(key) for key in ("created_ms", "origin", "trigger", "parent")}
            entry |= {
                "state": _state(name, summary.metrics, promoted),
                "promoted": name in promoted or bool(isinstance(gate, Mapping) and gate.get("promoted")),
                "items": summary.config.items - 1,
                "ndcg@10": summary.metrics.get("ndcg@10"),
                **lineage,
            }
        entries.append(entry)
    return entries


def _state(name: str, metrics: Mapping[str, Any], promoted: Sequence[str]) -> str:
    if name in promoted:
        return "serving" if name == promoted[0] else "served before"
    gate = metrics.get("gate")
    verdict = gate.get("promoted") if isinstance(gate, Mapping) else None
    return "rejected" if verdict is False else "not serving"


def _changed(settings: Settings, store: "Registry", before: str | None, serving: str, json: bool) -> None:
    """Tell everybody that another version serves."""
    say(f"{serving} serves" + (f" instead of {before}" if before not in (None, serving) else ""))
    announced = asyncio.run(_announce(settings, store, serving))
    if json:
        print_json({"serving": serving, "before": before, "announced": announced})


async def _announce(settings: Settings, store: "Registry", name: str) -> bool:
    import logging

    from streams.announce import Announcement, announce
    from streams.topics import MODEL_VERSIONS

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it would say is said below
    summary = store.describe(name)
    created_ms = int(time.time() * 1000)
    announcement = Announcement(name, summary.lineage.get("parent"), summary.metrics, created_ms)
    try:
        async with asyncio.timeout(_ANNOUNCE_SECONDS):
            await announce(settings, announcement)
    except (RecstreamError, TimeoutError) as error:
        why = str(error) or f"no answer within {_ANNOUNCE_SECONDS:.0f} s"
        say(
            f"not announced on {MODEL_VERSIONS}: {why}\n"
            f"workers find it in the registry all the same, within {settings.model_poll_seconds:g} s",
            style="yellow",
        )
        return False
    return True


def _show(tables: Sequence[Table], json: bool) -> None:
    """Tables are the output, but with --json that is one line and the tables are for people."""
    for table in tables:
        if json:
            screen().print(table)
        else:
            # What reads a pipe wants whole names; rich assumes 80 columns there.
            Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _moment(created_ms: Any) -> str:
    if not isinstance(created_ms, int):
        return "-"
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_ms") and isinstance(value, int):
        return f"{_moment(value)} UTC"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        numbers = all(isinstance(part, int | float) for part in value)
        return (" " if numbers else "\n").join(_text("", part) for part in value)
    return str(value)


def _some(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN_ITEMS
    return (", ".join(map(harmless, items[:_SHOWN_ITEMS])) + (f" and {more:,} more" if more > 0 else "")) or "-"
