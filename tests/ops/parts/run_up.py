"""`up` with stubs for its parts: `run_up.py DATA_DIR PORT JOURNAL API BOARD`, the last two naming behaviours."""

from __future__ import annotations

import sys
from pathlib import Path

from ops.up.errors import UpError
from ops.up.service import Commands, Plan, run
from ops.up.settings import UpSettings
from tasks import logs
from tasks.settings import TaskSettings

data_dir, port, journal, api, board = sys.argv[1:]
stub = Path(__file__).parent / "stub_part.py"


def command(behaviour: str) -> tuple[str, ...]:
    return (sys.executable, str(stub), behaviour, journal)


logs.configure()
plan = Plan(
    TaskSettings(data_dir=Path(data_dir)),
    UpSettings(stop_timeout=20),
    "127.0.0.1",
    int(port),
    commands=Commands(command(api), command(board)),
)
try:
    sys.exit(run(plan))
except UpError as error:
    print(f"up: {error}", file=sys.stderr)
    sys.exit(2 if getattr(error, "usage", False) else 1)
