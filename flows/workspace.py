"""Isolated copies of a project for runs with other settings: own files, the project's DVC cache.

A workspace has everything of the project that git would list, and no results of its own at first. Whatever
the project or another workspace has computed from the same inputs, DVC restores from the shared run-cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import dvc_stage
from flows.errors import FlowError
from paser.artifacts import fingerprint, write_json
from paser.cache import Cache
from paser.settings import Group, Settings, parse_settings, read_yaml

SOURCES = ".paser/workspace.json"
# Results of the project are not copied: DVC restores what fits.
NOT_COPIED = ("dvc.lock", "params.yaml")


def override(text: str, changes: Mapping[str, Any], origin: str = "params.yaml") -> str:
    """The settings in `text` with other values for dotted keys (`{"recover.distill.weight": 0.5}`), checked.

    Of a group (`{"recover": {"distill": {"weight": 0.5}}}`) the keys that are given change and no others. Any
    other value is replaced as a whole, a mapping such as `prune.options` too; `prune.options.alpha` sets one
    of its keys. Raises `SettingsError` for an unknown key or a value out of range.
    """
    import yaml

    content = read_yaml(text) or {}
    for key, value in changes.items():
        content = _changed(content, key.split("."), value, Settings)
    parse_settings(content, f"{origin} with overrides")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _changed(content: Any, path: Sequence[str], value: Any, kind: Any) -> Any:
    """`content`, a value of type `kind`, with another value at `path` inside."""
    group = kind if isinstance(kind, type) and issubclass(kind, Group) else None
    if not path and not (group and isinstance(value, Mapping)):
        return value
    found = dict(content) if isinstance(content, Mapping) else {}
    for key, inner in [(path, value)] if path else [(str(k).split("."), v) for k, v in value.items()]:
        field = group.model_fields.get(key[0]) if group else None
        found[key[0]] = _changed(found.get(key[0]), key[1:], inner, field.annotation if field else None)
    return found


def workspace_of(project: Path, changes: Mapping[str, Any]) -> Path:
    """Where the workspace of `project` for these overrides lies; named by them. They are checked, and nothing
    is written."""
    _settings(project, changes)
    return _folder(project, changes)


def open_workspace(project: Path, changes: Mapping[str, Any]) -> Path:
    """Makes the workspace for these overrides, or brings it up to date; for the flow that holds its lock."""
    folder, settings = _folder(project, changes), _settings(project, changes)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_sources(project, folder)
    (folder / "params.yaml").write_text(settings, encoding="utf-8")
    if (project / "dvc.lock").exists() and not (folder / "dvc.lock").exists():
        shutil.copyfile(project / "dvc.lock", folder / "dvc.lock")
    share_cache(project, folder)
    return folder


def _folder(project: Path, changes: Mapping[str, Any]) -> Path:
    return project / ".paser" / "workspaces" / fingerprint(dict(changes))[:12]


def _settings(project: Path, changes: Mapping[str, Any]) -> str:
    return override((project / "params.yaml").read_text(encoding="utf-8"), changes)


def share_cache(project: Path, folder: Path) -> None:
    """Lets `folder` use the DVC cache and the remotes of `project`; DVC there leaves git alone."""
    local = project / ".dvc" / "config.local"
    target = folder / ".dvc" / "config.local"
    target.parent.mkdir(exist_ok=True)
    target.write_text(local.read_text(encoding="utf-8") if local.exists() else "", encoding="utf-8")
    cache = dvc_stage.cache_directory(project)
    dvc_stage.configure(folder, {"cache": {"dir": str(cache)}, "core": {"no_scm": True}})


def surroundings(project: Path, folder: Path) -> dict[str, str]:
    """Environment of a stage in a workspace: its copy of the code, the project's shards and checkpoints."""
    return {"PYTHONPATH": str(folder), "PASER_CACHE_DIR": str(Cache.of(project).root)}


def _copy_sources(project: Path, folder: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise FlowError(
            f"{project} is no git repository: {listed.stderr.strip()}",
            remedy="runs with overrides copy what git lists; `git init` is enough",
        )
    names = sorted({name for name in listed.stdout.split("\0") if name} - set(NOT_COPIED))
    names = [name for name in names if (project / name).is_file()]
    for gone in set(_copied(folder)) - set(names):
        (folder / gone).unlink(missing_ok=True)
    for name in names:
        source, target = project / name, folder / name
        if not _same(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    write_json(folder / SOURCES, names)


def _copied(folder: Path) -> list[str]:
    try:
        names: list[str] = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return names


def _same(source: Path, target: Path) -> bool:
    if not target.is_file():
        return False
    a, b = source.stat(), target.stat()
    return (a.st_mtime_ns, a.st_size) == (b.st_mtime_ns, b.st_size)
