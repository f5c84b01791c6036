"""The unit that `rockchipllama service install` writes, and what it asks of systemd."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ops.cli import service
from ops.cli.service import sentence
from ops.systemd import installation
from ops.systemd.installation import ServiceRefused, install, make_folder, state, uninstall, user_for
from ops.systemd.unit import PARTS, Unit

AWKWARD = "a board 100% $HOME"


def unit_in(folder: Path, part: str = "up", name: str = AWKWARD) -> Unit:
    """A unit of an application in `folder`, in which there is all that it names."""
    home = folder / name
    for inside in ("data", "models"):
        (home / inside).mkdir(parents=True)
    command = home / "rockchipllama"
    command.symlink_to(sys.executable)
    return Unit(
        part, (str(command), part), home, getpass.getuser(), installation.npu_groups(), (home / "data", home / "models")
    )


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A `systemctl` that only notes what it is asked; the words of each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
case $2 in
    show) printf 'ActiveState=active\\nSubState=running\\nStatusText=Listening at a=b\\n' ;;
    restart) [ ! -e {tmp_path}/fails ] || {{ echo 'Job failed.' >&2; exit 1; }} ;;
esac
""")
    (folder / "systemctl").chmod(0o755)
    (tmp_path / "units").mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return lambda: (tmp_path / "asked").read_text().splitlines()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("part", PARTS)
def test_systemd_understands_the_unit(part: str, tmp_path: Path) -> None:
    """Every line of it, wherever the application lies."""
    unit = unit_in(tmp_path, part)
    (tmp_path / unit.name).write_text(unit.text())
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    told = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert (done.returncode, told) == (0, [])


def test_a_path_is_written_so_that_systemd_reads_it_as_it_is() -> None:
    """Its specifiers and variables mean nothing."""
    text = Unit("up", ("/a $b/%c", "x $y"), Path("/a %b"), "user", (), (Path("/d e"), Path("/f"))).text().splitlines()
    assert 'ExecStart="/a $b/%%c" "x $$y"' in text
    assert "WorkingDirectory=/a %%b" in text
    assert 'ReadWritePaths="/d e" "/f"' in text
    assert not [line for line in text if line.startswith("SupplementaryGroups")]


@pytest.mark.parametrize("folder", ["/a\nExecStartPre=/bin/b", '/a "b"'], ids=["a line", "quotes"])
def test_a_folder_that_no_unit_can_name_is_refused(
    folder: str, tmp_path: Path, systemctl: Callable[[], list[str]]
) -> None:
    """A line of its name would be a line of the unit."""
    unit = replace(unit_in(tmp_path, name="home"), folder=Path(folder))
    with pytest.raises(ServiceRefused, match="such a folder"):
        install(unit, tmp_path / "units", booted=tmp_path)
    assert list((tmp_path / "units").iterdir()) == []


def test_it_is_installed_and_taken_away(tmp_path: Path, systemctl: Callable[[], list[str]]) -> None:
    """Enabled, so that it survives a reboot; and nothing of it stays."""
    unit = unit_in(tmp_path)
    units = tmp_path / "units"
    install(unit, units, booted=tmp_path)
    assert (units / "rockchipllama.service").read_text() == unit.text()
    assert (units / "rockchipllama.service").stat().st_mode & 0o777 == 0o644
    assert uninstall("up", units, booted=tmp_path)
    assert not uninstall("up", units, booted=tmp_path)
    assert list(units.iterdir()) == []
    name = "--no-pager"
    assert systemctl() == [
        f"{name} daemon-reload",
        f"{name} enable rockchipllama.service",
        f"{name} restart rockchipllama.service",
        f"{name} disable --now rockchipllama.service",
        f"{name} daemon-reload",
    ]


def test_what_systemd_refuses_is_told(tmp_path: Path, systemctl: Callable[[], list[str]]) -> None:
    """In its own words."""
    (tmp_path / "fails").touch()
    with pytest.raises(
        ServiceRefused,
        match=r"restart rockchipllama-api\.service` failed: Job failed\.\n.*journalctl -u rockchipllama-api",
    ):
        install(unit_in(tmp_path, "api"), tmp_path / "units", booted=tmp_path)


def test_without_systemd_it_is_refused(tmp_path: Path, systemctl: Callable[[], list[str]]) -> None:
    """Before anything is written."""
    nowhere = tmp_path / "nowhere"
    for ask in (
        lambda: install(unit_in(tmp_path), tmp_path / "units", booted=nowhere),
        lambda: uninstall("up", tmp_path / "units", booted=nowhere),
        lambda: state("up", booted=nowhere),
    ):
        with pytest.raises(ServiceRefused, match="systemd does not run this machine"):
            ask()
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.skipif(installation.BOOTED.is_dir(), reason="systemd runs this machine, and would be asked to install")
def test_nothing_is_made_where_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folders of the service either, which root would leave behind."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(ServiceRefused, match="systemd does not run this machine"):
        service.install(user="daemon")
    assert list(tmp_path.iterdir()) == []


def test_how_it_does_is_told(tmp_path: Path, systemctl: Callable[[], list[str]]) -> None:
    """By what systemd says of it."""
    found = state("up", booted=tmp_path)
    assert found == {"ActiveState": "active", "SubState": "running", "StatusText": "Listening at a=b"}
    told = sentence(
        "rockchipllama.service",
        {**found, "UnitFileState": "enabled", "StateChangeTimestamp": "Mon", "NRestarts": "2", "Result": "watchdog"},
    )
    assert told.splitlines() == [
        "rockchipllama.service: active (running) since Mon",
        "  Listening at a=b",
        "  it ended: watchdog; journalctl -u rockchipllama.service has its last words",
        "  started again 2 times",
    ]
    assert "not installed" in sentence("rockchipllama.service", {"LoadState": "not-found"})


def test_root_does_not_run_it(tmp_path: Path) -> None:
    """It runs what others wrote; nor does somebody who is not there."""
    with pytest.raises(ServiceRefused, match="no rights of root"):
        user_for("root", tmp_path)
    with pytest.raises(ServiceRefused, match="no user 'nobody-of-that-name'"):
        user_for("nobody-of-that-name", tmp_path)
    assert user_for("daemon", tmp_path) == "daemon"


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """The service could not write into it; models may be another's."""
    mine = tmp_path / "mine"
    make_folder(mine, getpass.getuser())
    assert mine.stat().st_uid == os.getuid()
    other = next(account for account in pwd.getpwall() if account.pw_uid != os.getuid())
    with pytest.raises(ServiceRefused, match="sudo chown -R"):
        make_folder(mine, other.pw_name)
    make_folder(mine, other.pw_name, read_only=True)


def test_the_unit_can_be_looked_at(tmp_path: Path) -> None:
    """With the folders and the file that it was asked for, in full; what the service will not have is told."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f'data_dir = "{tmp_path}/kept"\nfiles_url = "file://{tmp_path}/a%20share"\n')
    words = [
        "service",
        "install",
        "--print",
        "--user",
        "daemon",
        "--config",
        str(settings),
    ]
    variables = {"ROCKCHIPLLAMA_MODELS_DIR": str(tmp_path), "ROCKCHIPLLAMA_PORT": "81"}
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")} | variables,
    )
    assert "will not have ROCKCHIPLLAMA_PORT of this environment" in done.stderr
    program = Path(sys.executable).with_name("rockchipllama")
    assert f'ExecStart="{program}" "up" "--config" "{settings}" "--models-dir" "{tmp_path}"' in done.stdout
    assert f'ReadWritePaths="{tmp_path}/kept" "{tmp_path}" "{tmp_path}/a share"' in done.stdout
    assert not (tmp_path / "kept").exists()
