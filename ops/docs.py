"""The pages that are written by the code they describe: docs/settings.md, docs/cli.md, docs/metrics.md, .env.example, a table
of docs/models.md, and the schema of a benchmark's report, docs/bench-model.schema.json.

`python -m ops.docs` writes them; with `--check` it only says which are stale, and fails.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from pydantic_core import PydanticUndefined

from ops.configuration import Setting, declared
from tasks.settings import ROOT

_NOTE = "Written by `python -m ops.docs`; edit the code it describes instead."


def main(words: list[str]) -> int:
    """Write the pages, or with `--check` compare them; the exit code."""
    stale = [name for name, text in pages() if not _is(ROOT / name, text)]
    if "--check" in words:
        for name in stale:
            print(f"{name} is stale: run `.venv/bin/python -m ops.docs`", file=sys.stderr)
        return 1 if stale else 0
    for name, text in pages():
        if name in stale:
            (ROOT / name).write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 0


def pages() -> Iterator[tuple[str, str]]:
    """Each generated page: where it goes, and its text."""
    makers: dict[str, Callable[[], Iterator[str]]] = {
        "docs/settings.md": _settings,
        "docs/cli.md": _cli,
        "docs/metrics.md": _metrics,
        "docs/models.md": _models,
        ".env.example": _env,
        "docs/bench-model.schema.json": _bench_schema,
    }
    for name, maker in makers.items():
        yield name, "\n".join(maker()) + "\n"


def _settings() -> Iterator[str]:
    yield f"<!-- {_NOTE} -->\n"
    yield "# Settings\n"
    yield "A setting comes, in growing strength, from its default, the TOML file, the environment and the command line."
    yield "The file is the one `ROCKCHIPLLAMA_CONFIG` or `--config` names, else `rockchipllama.toml` in the current"
    yield "folder, else beside the application. Its keys are the names below; the variables are the same in capitals"
    yield "behind `ROCKCHIPLLAMA_`. `rockchipllama settings` shows each value in force and where it came from."
    yield "Settings with † can be changed while the service runs ([operations](operations.md#changing-settings)).\n"
    yield "```toml\n# rockchipllama.toml"
    yield 'port = 8080\ndefault_model = "smollm2-135m-instruct"\n\n[aliases]\nassistant = "smollm2-135m-instruct"\n```'
    owner = None
    for setting in declared():
        if setting.owner is not owner:
            owner = setting.owner
            yield f"\n## {owner.title or owner.__name__}\n"
            yield "| setting | environment | default | what it does |\n|---|---|---|---|"
        meaning = " ".join((setting.field.description or "").split()).replace("|", "\\|")
        meaning += " †" if setting.live else ""
        default = _default(setting)
        yield f"| `{setting.name}` | `{setting.variable}` | {f'`{default}`' if default else ''} | {meaning} |"


def _env() -> Iterator[str]:
    yield f"# {_NOTE}"
    yield "# Every setting of the service with its default. Remove the # in front of what you change. docker compose"
    yield "# reads a copy of this file named .env, a shell does with `set -a; . ./.env`, systemd with EnvironmentFile=."
    owner = None
    for setting in declared():
        if setting.owner is not owner:
            owner = setting.owner
            yield f"\n# == {owner.title or owner.__name__} =="
        yield f"\n# {' '.join((setting.field.description or '').split())}"
        yield f"#{setting.variable}={_default(setting)}"


def _default(setting: Setting) -> str:
    if setting.field.default_factory is not None:
        return ""  # empty, or different on each machine: then its description says what it is
    value: Any = setting.field.default
    if value is None or value is PydanticUndefined or value in ((), {}, []):
        return ""
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cli() -> Iterator[str]:
    from typer.main import get_command

    from ops.cli.main import app

    yield f"<!-- {_NOTE} -->\n"
    yield "# The command line\n"
    yield "`ops/run` installs everything into `.venv` and runs `rockchipllama up`; its arguments are those of `up`."
    yield "Options stand for settings of the same name and win over environment and file (see [settings](settings.md))."
    yield (
        "Exit codes: 0 as asked, 1 it failed, 2 it was asked wrongly, 130 Ctrl-C; 3 of `bench`, when its figures do not count "
        "or are worse.\n"
    )
    root = get_command(app)
    yield from _command("rockchipllama", root)
    for path, command in _commands("rockchipllama", root):
        yield from _command(path, command)


def _metrics() -> Iterator[str]:
    import yaml  # type: ignore[import-untyped]

    from api.metrics import METRICS, OTHER, PREFIX, REDIS, REQUESTS

    kinds = {CounterMetricFamily: "counter", GaugeMetricFamily: "gauge", HistogramMetricFamily: "histogram"}
    yield f"<!-- {_NOTE} -->\n"
    yield "# Metrics\n"
    yield "`GET /metrics` answers in the text format of Prometheus, to whoever may use the API ([who](security.md))."
    yield "With API keys, Prometheus has to show one; a key without any scope but `inference` will do.\n"
    yield "```yaml\nscrape_configs:\n  - job_name: rockchipllama\n    authorization: {credentials: YOUR-KEY}"
    yield '    static_configs: [{targets: ["127.0.0.1:8080"]}]\n```\n'
    yield "`ops/monitoring/` has this file for Docker, alert rules and a dashboard for Grafana;"
    yield "`docker compose --profile monitoring up --build --wait` starts both beside the service."
    yield "A Grafana and a Prometheus of your own take `grafana/dashboards/rockchipllama.json` and `alerts.yml` there;"
    yield "both look for a job called `rockchipllama`, as above."
    yield "Alerts are shown, there and on the dashboard; to have them sent, Prometheus has to be told of an Alertmanager.\n"
    yield "![The dashboard: what there is now, alerts, queues and boards, then graphs](images/dashboard.png)\n"
    yield "The picture is its upper part, drawn by Grafana's panels (`@grafana/ui` 12.1.0) on a page made for it, not in Grafana,"
    yield "from a Prometheus that scraped a service under load, with two simulated boards;"
    yield "load, clock, temperature and memory of these were files that a script wrote.\n"
    yield "Jobs are counted in Redis where they end, each once, whichever processes had to do with it."
    yield "So one API process tells of the whole service; where several are scraped, take `max`, not `sum`, of all but"
    yield f"`{PREFIX}{REQUESTS.name}_total` and `{PREFIX}{REDIS.name}`, which each has of its own."
    yield "These counters outlive a stop of the embedded Redis in order; after any other end they begin anew: SD cards wear.\n"
    yield f"A model that no board has any more is counted as `{OTHER}`, and so is a path that nothing answers."
    yield "What has not happened yet to a model that has a worker is counted as 0, so that Prometheus sees the first failure.\n"
    yield "| metric | kind | labels | meaning |\n|---|---|---|---|"
    for metric in METRICS:
        name = PREFIX + metric.name + ("_total" if metric.kind is CounterMetricFamily else "")
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{name}` | {kinds[metric.kind]} | {labels} | {metric.meaning} |"
    yield "\n## Alerts\n"
    yield "Those of `ops/monitoring/alerts.yml`, once it was so for that long; all have the label `service: rockchipllama`.\n"
    yield "| alert | severity | after | what it says, and what to do |\n|---|---|---|---|"
    text = (ROOT / "ops/monitoring/alerts.yml").read_text(encoding="utf-8")
    for rule in yaml.safe_load(text)["groups"][0]["rules"]:
        said = " ".join(rule["annotations"][part] for part in ("summary", "description"))
        said = re.sub(r"\{\{ \$(?:labels\.)?(\w+)[^}]*\}\}", lambda place: place[1].upper(), said)
        yield f"| {rule['alert']} | {rule['labels']['severity']} | {rule.get('for', 'at once')} | {said} |"


def _models() -> Iterator[str]:
    from ops.index_contexts import context_table
    from tasks.board.pull.index import read_index
    from tasks.settings import TaskSettings

    page = (ROOT / "docs/models.md").read_text(encoding="utf-8").rstrip("\n")
    before, begin, rest = page.partition("<!-- contexts: written by `python -m ops.docs` -->\n")
    _, end, after = rest.partition("<!-- end of contexts -->")
    defaults = TaskSettings.model_construct()  # not those of the machine that writes the page
    yield f"{before}{begin}" + "\n".join(context_table(read_index(), defaults)) + f"\n{end}{after}"


def _bench_schema() -> Iterator[str]:
    import json

    from ops.bench.model.report import schema

    yield json.dumps(schema(), indent=1, ensure_ascii=False)


def _commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield f"{path} {name}", command
        yield from _commands(f"{path} {name}", command)


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    names = [_metavar(param) if param.required else f"[{_metavar(param)}]" for param in arguments]
    words = [path, *(f"{name}..." if param.nargs != 1 else name for name, param in zip(names, arguments, strict=True))]
    words += ["[OPTIONS]"] if options else []
    yield f"## {path}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"    {' '.join(word for word in words if word)}\n"
    for param in arguments:
        yield f"- `{_metavar(param)}`: {param.help}"
    for param in options:
        value = "" if param.is_flag else f" {param.metavar or 'VALUE'}"
        yield f"- `{', '.join((*param.opts, *param.secondary_opts))}{value}`: {param.help}"
    if arguments or options:
        yield ""


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
