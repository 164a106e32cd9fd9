"""The manifests: built by kustomize, valid by Kubernetes' schemas, and true of the program they run."""

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from streams.settings import load_settings
from streams.topics import topic_specs
from tests.deploy.commands import parsed, unknown_settings
from tests.deploy.exported import DEPLOY
from tests.deploy.test_images import FILES, environment

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("dev", "production", "gpu")
EACH = pytest.mark.parametrize("overlay", OVERLAYS)
# What is no part of Kubernetes itself has no schema here.
CUSTOM = ("keda.sh/", "monitoring.coreos.com/", "kafka.strimzi.io/")
Resource = dict[str, Any]


@cache
def _kustomize() -> list[str]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]) is None:
            continue
        if subprocess.run([*command, "--help"], capture_output=True, check=False).returncode == 0:
            return command
    return []


@cache
def built(folder: str) -> list[Resource]:
    """Every resource of an overlay."""
    if not _kustomize():
        pytest.skip("neither kubectl nor kustomize is installed: the overlays cannot be built")
    done = subprocess.run([*_kustomize(), str(KUBERNETES / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def of_kind(overlay: str, kind: str) -> dict[str, Resource]:
    return {one["metadata"]["name"]: one for one in built(f"overlays/{overlay}") if one["kind"] == kind}


def pods(overlay: str) -> dict[str, Resource]:
    """Pod specifications by the name of what makes them."""
    kinds = ("StatefulSet", "Deployment", "Job")
    return {name: one["spec"]["template"]["spec"] for kind in kinds for name, one in of_kind(overlay, kind).items()}


@EACH
def test_resources_are_valid(overlay):
    validate = pytest.importorskip("kubernetes_validate")
    checked = 0
    for resource in built(f"overlays/{overlay}"):
        if not resource["apiVersion"].startswith(CUSTOM):
            validate.validate(resource, desired_version="1.33", strict=True)
            checked += 1
    assert checked >= 9


@EACH
def test_commands_and_settings_are_of_recstream(overlay):
    (config,) = (one["data"] for name, one in of_kind(overlay, "ConfigMap").items() if "dashboards" not in name)
    assert unknown_settings(list(config)) == []
    load_settings(**{name[10:].lower(): value for name, value in config.items()})
    for name, pod in pods(overlay).items():
        (container,) = pod["containers"]
        assert parsed(container["args"]).split()[0] == container["name"] == name.removeprefix("recstream-")
        assert unknown_settings([variable["name"] for variable in container.get("env", [])]) == []
        (source,) = container["envFrom"]
        assert source["configMapRef"]["name"] in of_kind(overlay, "ConfigMap")


@EACH
def test_pods_meet_the_restricted_standard_and_have_limits(overlay):
    for pod in pods(overlay).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert container["image"].rpartition(":")[2].startswith("0.1.0-")


@EACH
def test_probes_ask_for_paths_and_ports_that_are_served(overlay):
    ports = {"worker": load_settings().http_port, "trainer": load_settings().trainer_http_port}
    for pod in pods(overlay).values():
        (container,) = pod["containers"]
        if container["name"] == "topics":
            continue
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
            "http": ports[container["name"]]
        }
        paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert {kind: get["path"] for kind, get in paths.items()} == {
            "startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready",
        }  # fmt: skip
        assert {get["port"] for get in paths.values()} == {"http"}


@EACH
def test_volumes_cover_everything_that_is_written(overlay):
    image = environment(FILES["worker"])
    for name, pod in pods(overlay).items():
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounts
        if name == "recstream-topics":
            continue
        assert any(image["RECSTREAM_STATE_DIR"].startswith(path) for path in mounts)
        assert any(image["NUMBA_CACHE_DIR"].startswith(path) for path in mounts)
        assert mounts[image["RECSTREAM_REGISTRY"]].get("readOnly", False) is (name == "recstream-worker")


@EACH
def test_a_drain_takes_one_worker_at_a_time(overlay):
    budget = of_kind(overlay, "PodDisruptionBudget")["recstream-worker"]["spec"]
    assert budget["maxUnavailable"] == 1
    labels = of_kind(overlay, "StatefulSet")["recstream-worker"]["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_the_gpu_overlay_changes_the_trainer_only():
    trainer = of_kind("gpu", "Deployment")["recstream-trainer"]["spec"]["template"]["spec"]["containers"][0]
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert trainer["args"] == ["trainer", "--device", "cuda"]
    assert trainer["image"].endswith("-cuda")
    for kind in ("StatefulSet", "NetworkPolicy", "ConfigMap"):
        assert of_kind("gpu", kind) == of_kind("production", kind)


def test_production_connects_with_tls_and_a_password_from_a_secret():
    for name in ("recstream-worker", "recstream-trainer"):
        (container,) = pods("production")[name]["containers"]
        env = {variable["name"]: variable for variable in container["env"]}
        assert env["RECSTREAM_SASL_PASSWORD"]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "password"}
        assert "value" not in env["RECSTREAM_SASL_PASSWORD"]
        (config,) = (one["data"] for key, one in of_kind("production", "ConfigMap").items() if "dashboards" not in key)
        assert config["RECSTREAM_SECURITY_PROTOCOL"] == "SASL_SSL"
        folders = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert any(config["RECSTREAM_SSL_CA_FILE"].startswith(folder + "/") for folder in folders)


def test_the_scaler_reads_the_workers_group_and_never_asks_for_more_workers_than_partitions():
    scaled = of_kind("production", "ScaledObject")["recstream-worker"]["spec"]
    (config,) = (one["data"] for key, one in of_kind("production", "ConfigMap").items() if "dashboards" not in key)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["consumerGroup"] == load_settings().app_id
    assert trigger["metadata"]["bootstrapServers"] == config["RECSTREAM_BROKERS"]
    assert scaled["maxReplicaCount"] <= int(config["RECSTREAM_PARTITIONS"])
    assert "replicas" not in of_kind("production", "StatefulSet")["recstream-worker"]["spec"]


def test_strimzis_topics_are_those_of_the_program():
    (config,) = (one["data"] for key, one in of_kind("production", "ConfigMap").items() if "dashboards" not in key)
    settings = load_settings(
        partitions=int(config["RECSTREAM_PARTITIONS"]), replication=int(config["RECSTREAM_REPLICATION"])
    )
    expected = {spec.name: (spec.partitions, spec.replication, spec.config) for spec in topic_specs(settings)}
    resources = yaml.safe_load_all((KUBERNETES / "examples" / "strimzi" / "topics.yaml").read_text())
    found = {
        one["metadata"]["name"]: (
            one["spec"]["partitions"],
            one["spec"]["replicas"],
            {key: str(value) for key, value in one["spec"]["config"].items()},
        )
        for one in resources
    }
    assert found == expected


def test_strimzis_users_may_use_the_groups_and_topics_of_their_role():
    resources = yaml.safe_load_all((KUBERNETES / "examples" / "strimzi" / "users.yaml").read_text())
    users = {one["metadata"]["name"]: one["spec"]["authorization"]["acls"] for one in resources}
    topics = {spec.name for spec in topic_specs(load_settings())}
    granted = {
        user: {acl["resource"]["name"] for acl in acls if acl["resource"]["type"] == "topic"}
        for user, acls in users.items()
    }
    assert granted["recstream-worker"] == topics
    assert all(names <= topics | {"*"} for names in granted.values())
    groups = {acl["resource"]["name"] for acls in users.values() for acl in acls if acl["resource"]["type"] == "group"}
    assert groups == {"recstream", "recstream-trainer"}
    assert built("examples/strimzi")
