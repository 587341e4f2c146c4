"""What DVC knows of a stage: its place in the graph, whether it is fresh, and the digests it recorded.

The only module that touches DVC's Python interface, which is internal and may change in DVC 4. It asks in
process, because a process a question would cost half a second, and keeps DVC's view of a project for as long
as the files it was read from are the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flows.errors import Busy, FlowError
from paser.artifacts import fingerprint

T = TypeVar("T")
POLL_SECONDS = 0.5
# What DVC reads when it opens a project; digests of data are taken anew with each question.
_READ_ONCE = (
    "dvc.yaml",
    "dvc.lock",
    "params.yaml",
    "paser.yaml",
    ".dvcignore",
    ".dvc/config",
    ".dvc/config.local",
)
_ONE_THREAD = threading.Lock()
_OPEN: dict[Path, tuple[tuple[tuple[int, int] | None, ...], Any]] = {}


@dataclass(frozen=True)
class Node:
    """A stage of `dvc.yaml`.

    `upstream`: stages whose outputs it reads. `inputs`: those of its dependencies that other stages write.
    `gpu`, `retries` and `hours` (time limit) come from the stage's `meta`.
    """

    name: str
    upstream: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gpu: bool = False
    retries: int = 0
    hours: float = 24.0


@dataclass(frozen=True)
class Freshness:
    """Whether DVC would run the stage now, and why (`score.batch_tokens changed`).

    Of a fresh stage: `digests` of its outputs as `dvc.lock` has them, and a `key` made of command, parameters
    and the digests of dependencies and outputs.
    """

    stage: str
    reasons: tuple[str, ...]
    digests: Mapping[str, str]
    key: str | None

    @property
    def fresh(self) -> bool:
        return not self.reasons


def read_graph(project: Path) -> tuple[Node, ...]:
    """All stages, each after those it depends on, otherwise in the order of `dvc.yaml`."""
    import networkx as nx

    with _repository(project, wait=60.0) as repo:
        graph = repo.index.graph
        stages = {stage.name: stage for stage in repo.index.stages if getattr(stage, "name", None)}
        upstream = {
            name: tuple(other for other in stages if graph.has_edge(stage, stages[other]))
            for name, stage in stages.items()
        }
        written = {name: [_path(repo, out) for out in stage.outs] for name, stage in stages.items()}
        read = {name: [_path(repo, dep) for dep in stage.deps] for name, stage in stages.items()}
        meta = {name: dict(stage.meta or {}) for name, stage in stages.items()}
    position = {name: index for index, name in enumerate(stages)}
    arrows: nx.DiGraph = nx.DiGraph()
    arrows.add_nodes_from(stages)
    arrows.add_edges_from((other, name) for name, others in upstream.items() for other in others)
    order = nx.lexicographical_topological_sort(arrows, key=position.__getitem__)
    return tuple(
        Node(
            name,
            upstream=upstream[name],
            inputs=tuple(path for path in read[name] if any(path in written[u] for u in upstream[name])),
            outputs=tuple(written[name]),
            gpu=bool(meta[name].get("gpu", False)),
            retries=int(meta[name].get("retries", 0)),
            hours=float(meta[name].get("hours", 24.0)),
        )
        for name in order
    )


def with_upstream(nodes: tuple[Node, ...], targets: list[str]) -> tuple[Node, ...]:
    """The targets and all they depend on, in the order of `nodes`; without targets, all."""
    by_name = {node.name: node for node in nodes}
    if unknown := [name for name in targets if name not in by_name]:
        raise FlowError(f"dvc.yaml has no stage {unknown[0]!r}", remedy=f"one of {', '.join(by_name)}")
    wanted: set[str] = set()
    waiting = list(targets or by_name)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].upstream
    return tuple(node for node in nodes if node.name in wanted)


def look(project: Path, stage: str, wait: float = 60.0) -> Freshness:
    """Asks DVC whether `stage` is fresh; waits up to `wait` seconds for whoever holds DVC's lock.

    Raises `Busy` when the lock is held for longer.
    """
    return _patiently(lambda: _look(project, stage, wait), wait)


def _look(project: Path, stage: str, wait: float) -> Freshness:
    with _repository(project, wait) as repo:
        known = {found.name: found for found in repo.index.stages if getattr(found, "name", None)}
        found = known[stage].status()
        reasons = tuple(_reasons([part for parts in found.values() for part in parts]))
        entry = lock_entries(project, [stage]).get(stage, {})
    digests = {item["path"]: _digest(item) for item in entry.get("outs", [])}
    return Freshness(stage, reasons, digests, None if reasons else fingerprint(entry))


def lock_entries(project: Path, stages: list[str]) -> dict[str, Any]:
    """The entries of these stages in `dvc.lock`, as far as there are any."""
    import yaml

    try:
        text = (project / "dvc.lock").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    entries: dict[str, Any] = content.get("stages", {})
    return {name: entries[name] for name in stages if name in entries}


def cache_directory(project: Path) -> Path:
    """Where the project's DVC cache lies."""
    with _repository(project, wait=60.0) as repo:
        return Path(repo.cache.local.path).parent.parent


def configure(project: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets values in the project's `.dvc/config.local`."""
    from dvc.config import Config

    config = Config(str(project / ".dvc"), local_dvc_dir=str(project / ".dvc"), validate=False)
    with config.edit("local") as content:
        for section, values in changes.items():
            content[section] = {**content.get(section, {}), **values}


def has_remote(project: Path) -> bool:
    """Whether the project has a default remote."""
    with _repository(project, wait=60.0) as repo:
        return bool(repo.config["core"].get("remote"))


def remote_result(project: Path, stage: str) -> bool:
    """Gets the remote's run-cache; says whether it has a result of the stage's inputs as they lie here."""
    with _repository(project, wait=60.0) as repo:
        repo.stage_cache.pull(None)
        known = {found.name: found for found in repo.index.stages if getattr(found, "name", None)}
        known[stage].save_deps()
        _OPEN.pop(project)[1].close()
        return repo.stage_cache._load(known[stage]) is not None


@contextmanager
def _repository(project: Path, wait: float) -> Iterator[Any]:
    """DVC's view of the project as it is now, under DVC's own lock."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    with _ONE_THREAD:
        lock = _open(project).lock
        try:
            _patiently(lock.lock, wait)
            try:
                yield _open(project, lock)
            finally:
                lock.unlock()
        except LockError:
            raise
        except DvcException as error:
            raise FlowError(f"{project}: DVC says: {error}") from error


def _open(project: Path, lock: Any = None) -> Any:
    """The open project; opened again when one of the files it was read from changed (under `lock`)."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    state = tuple(_stamp(project / name) for name in _READ_ONCE)
    if project in _OPEN:
        before, repo = _OPEN[project]
        if before == state:
            return repo
        repo.close()
    try:
        repo = Repo(str(project))
    except DvcException as error:
        raise FlowError(f"{project} is no DVC repository: {error}") from error
    if lock is not None:
        repo.lock = lock
    _OPEN[project] = (state, repo)
    return repo


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_mtime_ns, found.st_size)


def _patiently(call: Callable[[], T], wait: float) -> T:
    """Calls until nobody else holds a lock of DVC that is needed; holds none while it waits."""
    from dvc.lock import LockError

    deadline = time.monotonic() + wait
    while True:
        try:
            return call()
        except LockError as error:
            if time.monotonic() > deadline:
                raise Busy(
                    f"another DVC command has worked on this project for over {wait:.0f} s: {error}",
                    remedy="wait for it to end, or end it; then run the flow again",
                ) from error
            time.sleep(POLL_SECONDS)


def _path(repo: Any, item: Any) -> str:
    return str(repo.fs.relpath(item.fs_path, repo.root_dir)).replace("\\", "/")


def _digest(item: Mapping[str, Any]) -> str:
    return str(item.get(item.get("hash", "md5"), ""))


def _reasons(status: list[Any]) -> Iterator[str]:
    for part in status:
        if isinstance(part, str):
            yield part
            continue
        for changes in part.values():
            for path, how in changes.items():
                if isinstance(how, dict):
                    yield from (f"{key} {word}" for key, word in how.items())
                else:
                    yield f"{path} {how}"
