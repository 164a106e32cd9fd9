"""docker-compose.yml: valid by the compose specification, hardened, and every command and setting in it exists."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.settings import load_settings
from tests.deploy.commands import parsed, unknown_settings
from tests.deploy.exported import ROOT
from tests.deploy.test_images import FILES, environment, recstream

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("recstream:")}
EACH = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def filled(value: str) -> str:
    """With the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_the_file_is_valid_by_the_compose_specification():
    pytest.importorskip("check_jsonschema")
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_services_are_there():
    assert set(SERVICES) == {
        "kafka", "topics", "worker", "trainer", "trainer-gpu", "demo", "prometheus", "grafana",
    }  # fmt: skip
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "trainer-gpu": ["gpu"],
        "demo": ["demo"],
    }


@EACH
def test_a_service_is_hardened_limited_and_pinned(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].split(":")[0] not in ("", "0", "root")
    tag = service["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+", tag), f"{service['image']} is not pinned"
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert "healthcheck" in service or service["image"] == "recstream:0.1.0-cpu"  # which has one of its own


@EACH
def test_ports_are_reachable_from_this_host_only(service):
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@EACH
def test_mounted_files_exist_and_named_volumes_are_declared(service):
    for volume in service.get("volumes", []):
        source = volume.get("source") if isinstance(volume, dict) else volume.split(":")[0]
        if source is None:
            continue
        assert (ROOT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_of_recstream(name):
    command = [filled(str(part)) for part in OURS[name]["command"]]
    commands = {"topics": "topics create", "demo": "replay", "trainer-gpu": "trainer"}
    assert parsed(command) == commands.get(name, name)


@pytest.mark.parametrize(
    "command", sorted({parsed(list(map(filled, service["command"]))) for service in OURS.values()})
)
def test_a_command_starts_on_this_machine(command):
    assert recstream(*command.split(), "--help").returncode == 0


@pytest.mark.parametrize("name", OURS)
def test_settings_exist_and_are_valid(name):
    values = {key: filled(str(value)) for key, value in OURS[name]["environment"].items()}
    assert unknown_settings(list(values)) == []
    settings = load_settings(**{key[10:].lower(): value for key, value in values.items()})
    assert settings.brokers == "kafka:19092"


def test_workers_can_be_scaled():
    """Nothing of which there can be only one: no fixed name, no port of the host, no shared directory to write to."""
    worker = SERVICES["worker"]
    assert not {"container_name", "ports"} & worker.keys()
    shared = [volume for volume in worker["volumes"] if "source" in volume]
    assert all(volume["read_only"] for volume in shared)
    own = next(volume["target"] for volume in worker["volumes"] if "source" not in volume)
    image = environment(FILES["worker"])
    assert image["RECSTREAM_STATE_DIR"].startswith(own)
    assert image["NUMBA_CACHE_DIR"].startswith(own)


def test_what_workers_read_is_what_the_trainer_writes():
    registry = environment(FILES["worker"])["RECSTREAM_REGISTRY"]
    assert {"type": "volume", "source": "registry", "target": registry, "read_only": True} in SERVICES["worker"][
        "volumes"
    ]
    for trainer in ("trainer", "trainer-gpu"):
        assert f"registry:{registry}" in SERVICES[trainer]["volumes"]


def test_the_gpu_profile_reserves_a_gpu():
    (device,) = SERVICES["trainer-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert SERVICES["trainer-gpu"]["build"]["dockerfile"] == "deploy/docker/cuda.Dockerfile"


def test_images_are_built_from_files_that_exist_under_their_own_tags():
    builds = {s["image"]: s["build"]["dockerfile"] for s in OURS.values() if "build" in s}
    assert set(builds) == {service["image"] for service in OURS.values()}
    for image, file in builds.items():
        assert Path(file).stem == image.rpartition("-")[2]
        assert f"-t {image} ." in (ROOT / file).read_text()


def test_prometheus_scrapes_the_services_ports():
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {name: sd["port"] for job in scraped for sd in job.get("dns_sd_configs", []) for name in sd["names"]}
    defaults = load_settings()
    assert targets == {
        "worker": defaults.http_port, "trainer": defaults.trainer_http_port, "trainer-gpu": defaults.trainer_http_port,
    }  # fmt: skip
    assert targets.keys() <= SERVICES.keys()
