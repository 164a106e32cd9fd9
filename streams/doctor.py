"""Is everything there that a worker needs? One check per thing, each with its cure."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, Literal

from rich.console import Console
from rich.text import Text

from state.errors import RecstreamError
from streams.console import print_json
from streams.endpoints import port_problem
from streams.kafka import REACH_HINT, admin
from streams.settings import Settings, misspelt
from streams.topics import describe_topics

PACKAGES: Final = (
    "recstream",
    "faust-streaming",
    "aiokafka",
    "kafka-python",
    "torch",
    "numpy",
    "numba",
    "river",
    "orjson",
)
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do when it is not well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def examine(settings: Settings) -> list[Check]:
    """Run every check; none of them changes anything but a temporary file in the state directory."""
    checks = [*_versions(), *_spelling()]
    brokers = [*_guarded(_broker, settings)]
    reachable = all(check.fix != REACH_HINT for check in brokers)
    checks += brokers
    for check in (*([_topics] if reachable else []), _model, _state_directory, _port):
        checks.extend(_guarded(check, settings))
    return checks


def report(checks: list[Check], json: bool) -> None:
    """Print the checks: for people, or with one JSON object as the last line of standard output."""
    console = Console(highlight=False, stderr=json)
    for check in checks:
        console.print(
            Text.assemble((f"{check.status:>4} ", _STYLES[check.status]), (f"{check.name}: ", "bold"), check.detail),
            soft_wrap=True,
        )
        if check.fix:
            console.print(Text.assemble(("     fix: ", "bold"), check.fix), soft_wrap=True)
    if json:
        worst = next((status for status in ("fail", "warn") if any(c.status == status for c in checks)), "ok")
        print_json({"status": worst, "checks": [asdict(check) for check in checks]})


def _guarded(check: Callable[[Settings], Iterator[Check]], settings: Settings) -> Iterator[Check]:
    try:
        yield from check(settings)
    except RecstreamError as error:
        name = check.__name__.strip("_").replace("_", " ")
        yield Check(name, "fail", ": ".join(part for part in (error.what, error.why) if part), error.fix)


def _versions() -> Iterator[Check]:
    supported = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Check(
        "python",
        "ok" if supported else "warn",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if supported else "use Python 3.11 or 3.12: others are not tested",
    )
    found: list[str] = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "fail" if name != "recstream" else "warn", "not installed", "make install")
    yield Check("packages", "ok", ", ".join(found))


def _spelling() -> Iterator[Check]:
    for name, meant in misspelt().items():
        yield Check(f"setting {name}", "warn", "there is no such setting: it does nothing", f"did you mean {meant}?")


def _broker(settings: Settings) -> Iterator[Check]:
    with admin(settings, timeout_seconds=3) as client:
        brokers = client.describe_cluster()["brokers"]
    names = ", ".join(f"{broker['host']}:{broker['port']}" for broker in brokers)
    few = len(brokers) < settings.replication
    yield Check(
        "broker",
        "fail" if few else "ok",
        f"{len(brokers)} reachable ({names}), {settings.security_protocol}"
        + (f", but replication is set to {settings.replication}" if few else ""),
        "set RECSTREAM_REPLICATION to at most the number of brokers" if few else "",
    )


def _topics(settings: Settings) -> Iterator[Check]:
    for state in describe_topics(settings):
        name = f"topic {state.spec.name}"
        if state.problem:
            yield Check(name, "fail", state.problem, state.fix)
        elif state.replication < settings.replication:
            yield Check(
                name,
                "warn",
                f"has {state.replication} replicas, settings say {settings.replication}",
                "kafka-reassign-partitions adds replicas",
            )
        else:
            kept = f", {state.cleanup}" if state.cleanup else ""
            yield Check(name, "ok", f"{state.partitions} partitions, {state.replication} replicas{kept}")


def _model(settings: Settings) -> Iterator[Check]:
    from models.registry import Registry

    registry = Registry(settings.registry)
    current = registry.current()
    if current is None:
        yield Check(
            "model",
            "warn",
            f"none in {settings.registry}: workers recommend by transitions and popularity",
            "recstream fit FILE publishes a first one",
        )
        return
    version = registry.load(current)
    config = version.config
    yield Check(
        "model",
        "ok",
        f"{current} of {len(registry.versions())} in {settings.registry}: {config.cell}, hidden {config.hidden}, "
        f"{config.items - 1:,} items",
    )


def _state_directory(settings: Settings) -> Iterator[Check]:
    folder = settings.state_dir
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    free = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize
    detail = f"{folder}, {free / 2**30:,.1f} GiB free"
    if not writable:
        yield Check("state directory", "fail", f"{existing} cannot be written", "set RECSTREAM_STATE_DIR")
    elif free < 2**30:
        yield Check("state directory", "warn", detail, "free some space: snapshots and the cold store live there")
    else:
        yield Check("state directory", "ok", detail)


def _port(settings: Settings) -> Iterator[Check]:
    address = f"{settings.http_host}:{settings.http_port}"
    if problem := port_problem(settings.http_host, settings.http_port):
        fix = "a worker runs already, or set RECSTREAM_HTTP_PORT"
        yield Check("http port", "warn", f"{address}: {problem}", fix)
    else:
        yield Check("http port", "ok", f"{address} is free")
