"""`paser doctor`: is this machine, and the project in a folder, fit for a run, and what is to be done if not.

Nothing is fetched and no model loaded. Each check stands alone: one that fails never hides another.
"""

from __future__ import annotations

import configparser
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from paser.errors import PaserError

State = Literal["ok", "warning", "broken"]
GB = 1e9
# Below these a run of the default model does not end well; larger models need more (`paser plan`).
LEAST_DISK, LITTLE_DISK, LITTLE_MEMORY = 1 * GB, 5 * GB, 4 * GB
EXTRAS = {
    "flows": "schedules and flows with Prefect",
    "ray": "runtime.engine: ray",
    "audit": "paser audit export and sign",
    "tasks": "evaluate.tasks",
    "track": "recover.report_to: tensorboard",
}
_SECONDS = 3.0


@dataclass(frozen=True)
class Check:
    """What was looked at and found; `remedy` says what to do where the state is not `ok`."""

    name: str
    state: State
    found: str
    remedy: str | None = None


def examine(project: Path) -> list[Check]:
    """All checks of this machine, and of the project where there is one."""
    checks: list[Check] = []
    looks: list[tuple[str, Callable[[Path], Iterator[Check]]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("extras", _extras),
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("settings", _settings),
        ("sources", _sources),
        ("DVC", _dvc),
        ("stages", _stages),
        ("Prefect", _prefect),
    ]
    for name, look in looks:
        try:
            checks += look(project)
        except PaserError as error:
            checks.append(Check(name, "broken", error.problem, error.remedy))
        except Exception as error:  # a check that cannot be made must not hide the others
            said = f"cannot be checked: {type(error).__name__}: {error}"
            checks.append(Check(name, "broken", said, "mend this first"))
    return checks


def healthy(checks: Sequence[Check]) -> bool:
    return all(check.state != "broken" for check in checks)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def render(checks: Sequence[Check]) -> None:
    """A line a check, and below it what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.state:<8} {check.name:<{width}}  {check.found}")
        if check.remedy and check.state != "ok":
            print(f"{'':<8} {'':<{width}}  -> {check.remedy}")
    states = [check.state for check in checks]
    warnings = states.count("warning")
    plural = "" if warnings == 1 else "s"
    print(f"{states.count('broken')} broken, {warnings} warning{plural}, {states.count('ok')} ok")


def _python(project: Path) -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    found, wanted = platform.python_version(), metadata("paser")["Requires-Python"]
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Check("Python", "ok", f"{found}, {sys.executable}")
    else:
        yield Check("Python", "broken", f"{found}, {sys.executable}", f"PASER needs Python {wanted}")


def _packages(project: Path) -> Iterator[Check]:
    from packaging.requirements import Requirement

    wrong = []
    needed = [Requirement(text) for text in requires("paser") or ()]
    for need in (need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})):
        have = _version(need.name)
        if have is None or not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} {have or 'is missing'} (wanted {need.specifier})")
    if wrong:
        yield Check("packages", "broken", "; ".join(wrong), "pip install -c constraints.txt paser")
    else:
        yield Check("packages", "ok", f"paser {_version('paser')}, all it requires is installed")
    pins = project / "constraints.txt"
    if pins.exists():
        yield _pinned(pins)


def _pinned(pins: Path) -> Check:
    """Installed packages against the versions with which this project was tested."""
    lines = re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([^\s;]+)", pins.read_text(encoding="utf-8"))
    other = [
        f"{name} {have} (pinned {pin})"
        for name, pin in lines
        if (have := _version(name)) is not None and have.partition("+")[0] != pin.partition("+")[0]
    ]
    if not other:
        return Check("pinned versions", "ok", f"as in {pins.name}, {len(lines)} packages")
    shown = "; ".join(other[:5]) + (f"; {len(other) - 5} more" if len(other) > 5 else "")
    return Check("pinned versions", "warning", shown, f"pip install -c {pins.name} -e . in this environment")


def _extras(project: Path) -> Iterator[Check]:
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in requires("paser") or ()]
    there: list[str] = []
    lacking: list[str] = []
    for name in metadata("paser").get_all("Provides-Extra") or ():
        if name not in EXTRAS:
            continue
        own = [n for n in needed if n.marker and n.marker.evaluate({"extra": name})]
        own = [n for n in own if not n.marker.evaluate({"extra": ""})]  # type: ignore[union-attr]
        complete = all((have := _version(n.name)) and n.specifier.contains(have) for n in own)
        (there if complete else lacking).append(name)
    found = f"{', '.join(there) or 'none'} installed"
    if lacking:
        found += "; not installed: " + ", ".join(f"{name} ({EXTRAS[name]})" for name in lacking)
    yield Check("extras", "ok", found)


def _device(project: Path) -> Iterator[Check]:
    import torch

    from paser.cache import Cache
    from paser.models.precision import NATIVE_SPEEDUP, bfloat16_speedup, choose_device

    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    device = choose_device("auto")
    speedup = bfloat16_speedup(device, Cache.of(project))
    word = "bfloat16" if speedup >= NATIVE_SPEEDUP else "float32"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    found = f"{device} ({name}); fast number type {word} (bfloat16 is {speedup:.1f} x as fast as float32)"
    if device == "cpu" and word == "float32":
        remedy = "everything works, slower; keep model.precision: auto, or use a GPU"
        yield Check("device", "warning", found, remedy)
    else:
        yield Check("device", "ok", found)
    if device == "cpu" and shutil.which("nvidia-smi"):
        found = "an NVIDIA driver is installed, but this torch sees no GPU"
        yield Check("GPU", "warning", found, "install a CUDA build of torch (docs/gpus.md)")


def _memory(project: Path) -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    if memory.available < LITTLE_MEMORY:
        yield Check("memory", "warning", found, "close other programs; `paser plan` says what a run needs")
    else:
        yield Check("memory", "ok", found)


def _disk(project: Path) -> Iterator[Check]:
    folder = next(path for path in (project, *project.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free at {folder}"
    remedy = "free some room: `paser cache prune`, `dvc gc -w`; `paser plan` says what a run needs"
    state: State = "broken" if free < LEAST_DISK else "warning" if free < LITTLE_DISK else "ok"
    yield Check("disk", state, found, remedy if state != "ok" else None)


def _settings(project: Path) -> Iterator[Check]:
    from paser.settings import load_settings

    if not (project / "params.yaml").exists():
        found = f"{project} is no project of PASER: it has no params.yaml"
        yield Check("project", "ok", f"{found}; `paser init FOLDER` makes one, `paser select` needs none")
        return
    settings = load_settings(project / "params.yaml")
    yield Check("settings", "ok", f"params.yaml is valid; budget {settings.select.budget}")


def _sources(project: Path) -> Iterator[Check]:
    from paser.pool.policy import policy_of
    from paser.settings import load_settings
    from paser.sources.catalog import load_sources
    from paser.sources.uri import FileUri, parse_uri

    path = project / "data" / "sources.yaml"
    if not _is_project(project) and not path.exists():
        return
    sources = load_sources(path)
    settings = load_settings(project / "params.yaml")
    raw = path.parent / "raw"
    named = {source.name: source.uri for source in sources}
    if settings.prune.external:
        named["prune.external"] = settings.prune.external
    missing = [
        f"{name}: {raw / uri.path}"
        for name, text in named.items()
        for part in re.split(r"\+(?=(?:pypi|file|hf):)", text)
        if isinstance(uri := parse_uri(part), FileUri) and not (raw / uri.path).exists()
    ]
    if missing:
        remedy = "put it there, or correct its `uri` in data/sources.yaml"
        yield Check("sources", "broken", f"not there: {'; '.join(missing)}", remedy)
    else:
        yield Check("sources", "ok", f"{len(sources)} sources, all local files are there")
    policy = policy_of(settings.policy)
    rows = [source for source in sources if not source.is_model]
    refused = [f"{s.name} ({s.license})" for s in rows if policy.against_license(s.license)]
    unknown = [source.name for source in sources if source.license == "unknown"]
    if refused:
        found = f"refused by `policy`: {', '.join(refused)}"
        remedy = "their rows go to quarantine: remove the source, or change `policy`"
        yield Check("licences", "warning", found, remedy)
    elif unknown:
        found = f"unknown for {', '.join(unknown)}"
        yield Check("licences", "warning", found, "write `license:` in data/sources.yaml; the audit shows it")
    else:
        yield Check("licences", "ok", ", ".join(sorted({source.license for source in sources})))


def _dvc(project: Path) -> Iterator[Check]:
    have = _version("dvc")
    if have is None:
        yield Check("DVC", "broken", "not installed", "pip install dvc")
        return
    if not _is_project(project):
        yield Check("DVC", "ok", have)
        return
    if shutil.which("git") is None:
        yield Check("git", "broken", "not installed", "install git: DVC and the records need it")
        return
    inside = subprocess.run(
        ["git", "-C", str(project), "rev-parse", "--show-toplevel"], capture_output=True, check=False
    )
    if inside.returncode:
        yield Check("DVC", "broken", f"{project} is in no git repository", "git init && dvc init")
        return
    if not (project / ".dvc").is_dir():
        yield Check("DVC", "broken", f"{project} has no .dvc folder", "dvc init")
        return
    config = _dvc_config(project)
    kind = config.get("cache.type", "reflink,copy")
    yield Check("DVC", "ok", f"{have}, cache by {kind}")
    default = config.get("core.remote")
    remotes = sorted(key.split(".")[1] for key in config if re.fullmatch(r"remote\..+\.url", key))
    if not remotes:
        found = "none: models and rows are on this machine alone"
        yield Check("DVC remote", "warning", found, "dvc remote add -d NAME URL; workers need one")
    elif default not in remotes:
        why = "but no default" if default is None else f"but the default is {default}"
        found = f"{', '.join(remotes)}, {why}"
        yield Check("DVC remote", "warning", found, f"dvc remote default {remotes[0]}")
    else:
        yield Check("DVC remote", "ok", f"{default}: {config[f'remote.{default}.url']}")


def _dvc_config(project: Path) -> dict[str, str]:
    """`section.name.key` of the project's own files; what a machine sets for all projects is left out."""
    found: dict[str, str] = {}
    for name in ("config", "config.local"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(project / ".dvc" / name, encoding="utf-8")
        for section in parser.sections():
            prefix = re.sub(r"^'?(\w+) \"(.+?)\"'?$", r"\1.\2", section)
            found |= {f"{prefix}.{key}": value.strip('"') for key, value in parser[section].items()}
    return found


def _stages(project: Path) -> Iterator[Check]:
    from paser.starter import project as starting

    if not _is_project(project):
        return
    if problems := starting.misfitting(project):
        remedy = "`paser init NEW` writes a dvc.yaml that fits: take it over"
        yield Check("stages", "broken", f"dvc.yaml and the installed PASER differ: {problems[0]}", remedy)
        return
    if (project / starting.CODE).exists() and (old := starting.outdated(project)):
        found = f"PASER was upgraded since paser.yaml was written; changed: {', '.join(old)}"
        yield Check("stages", "warning", found, f"paser init {project} --refresh, then dvc repro")
        return
    yield Check("stages", "ok", "dvc.yaml fits the installed PASER")


def _prefect(project: Path) -> Iterator[Check]:
    have, url = _version("prefect"), os.environ.get("PREFECT_API_URL")
    if not url:
        state = f"{have}, " if have else "not installed (extra `flows`), "
        yield Check("Prefect", "ok", f"{state}PREFECT_API_URL is not set; `dvc repro` needs no server")
        return
    if have is None:
        yield Check("Prefect", "broken", f"PREFECT_API_URL is {url}, and Prefect is missing", _extra("flows"))
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_SECONDS) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        remedy = "start it (`make serve`), or unset PREFECT_API_URL"
        yield Check("Prefect", "broken", f"{have}, but {url} does not answer: {reason}", remedy)
        return
    yield Check("Prefect", "ok", f"{have}, server at {url} answers")


def _extra(name: str) -> str:
    return f"pip install 'paser[{name}]'"


def _is_project(project: Path) -> bool:
    return (project / "params.yaml").exists() and (project / "dvc.yaml").exists()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
