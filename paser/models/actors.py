"""Rows computed by an actor pool of Ray Data: several GPUs, several machines, the bytes of one process.

Rows do not depend on the rows beside them (see `packing`), so the pool may be cut and shared out in any way.
Ray schedules, holds work back and restarts actors that died; what comes out goes to the row cache like
everything else, so neither a killed actor nor a killed driver costs more than some seconds of work.
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paser import errors
from paser.artifacts import sha256_path
from paser.errors import ModelError, PaserError, SettingsError
from paser.lineage.record import code_digest, package_versions
from paser.models.shards import Arrays
from paser.progress import warn
from paser.settings import RuntimeSettings

if TYPE_CHECKING:
    import pyarrow as pa

# Portions that an actor has in hand or before it; further ones wait in the driver.
IN_FLIGHT = 2
# A Ray that is starting has deadlines of its own, which a busy machine misses now and then.
_ATTEMPTS = 3
_ANSWER_SECONDS = 15.0
_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # an actor is the stage's own work, not background
    "RAY_prestart_worker_first_driver": "0",
}
_POSITION, _PORTION, _FAILURE = "position", "portion", "failure"


class Worker(Protocol):
    """What an actor holds: models, and what they give for a table of rows (arrays in the table's order)."""

    def __call__(self, table: pa.Table) -> Arrays: ...


@dataclass(frozen=True)
class Job:
    """One kind of work for a pool of actors.

    `worker(**arguments)` is made once in each actor; both must be importable or picklable. `files` are
    folders that the worker reads, with their digests: another node must have them at the same path. `code`
    are files and folders of this package that decide the values (see `code_digest`).
    """

    worker: type[Any]
    arguments: Mapping[str, Any]
    files: Mapping[Path, str]
    code: tuple[str, ...]
    runtime: RuntimeSettings
    threads: int

    @property
    def cpus(self) -> int:
        """Cores that Ray sets aside for one actor: its threads, or one beside a GPU."""
        return 1 if self.runtime.gpus_per_actor else self.threads

    def run(self, portions: Sequence[tuple[Sequence[int], pa.Table]]) -> Iterator[tuple[list[int], Arrays]]:
        """Positions and arrays of each portion, a pair of positions and their table, as they finish.

        Raises the worker's own PaserError, SettingsError where no actor has room, and ModelError where a
        node has other packages, code or files.
        """
        connect(self.runtime)
        import pyarrow as pa
        import ray.data
        from ray.exceptions import RayError

        actors = min(self._actors(), len(portions))
        tables = [
            table.append_column(_POSITION, pa.array(positions, pa.int64())) for positions, table in portions
        ]
        work = ray.data.from_arrow(tables).map_batches(
            _Actor,
            fn_constructor_args=(self, _Here.now(self.code)),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=IN_FLIGHT),
            num_cpus=self.cpus,
            num_gpus=self.runtime.gpus_per_actor or None,
        )
        try:
            for batch in work.iter_batches(batch_size=None, batch_format="pyarrow"):
                for content, failure in zip(
                    *(batch[c].to_pylist() for c in (_PORTION, _FAILURE)), strict=True
                ):
                    if failure:
                        raise _told(failure)
                    arrays = _unpacked(content)
                    yield arrays.pop(_POSITION).tolist(), arrays
        except RayError as error:
            raise ModelError(
                f"Ray could not finish: {_first_line(error)}",
                remedy="run the stage again, it goes on where it stopped; Ray's logs are in /tmp/ray",
            ) from error

    def _actors(self) -> int:
        """How many actors to start; SettingsError where they do not fit."""
        import ray

        gpus = self.runtime.gpus_per_actor
        room = sum(fitting(node["Resources"], self.cpus, gpus) for node in ray.nodes() if node["Alive"])
        wanted = self.runtime.actors or max(room, 1)
        if wanted > room:
            raise SettingsError(
                f"runtime.actors is {self.runtime.actors}, but Ray has room for {room} actors of "
                f"{self.cpus} cores and {gpus:g} GPUs",
                remedy="lower runtime.actors, runtime.threads or runtime.gpus_per_actor, or add nodes",
            )
        return wanted


def fitting(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Actors of `cpus` cores and `gpus` GPUs that fit one node."""
    by_cores = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return by_cores
    there = int(resources.get("GPU", 0))
    return min(by_cores, there * int(1 / gpus) if gpus < 1 else int(there // gpus))


def connect(runtime: RuntimeSettings) -> None:
    """Connects to Ray, or starts it on this machine until the process ends; a connection that stands is used.

    A Ray of our own has no dashboard and takes only those who know this run's token (which Ray reads when it
    is imported: a program that imported it before decides by itself).
    """
    if runtime.ray_address not in ("local", "auto"):
        _check_answers(runtime.ray_address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    own = runtime.ray_address == "local"
    if own and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            f"runtime.engine is 'ray', but Ray is not installed ({error})",
            remedy="pip install -c constraints.txt 'paser[ray]', or set runtime.engine: local",
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.execution_no_progress_timeout_s = -1
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if own:
        quiet |= {"include_dashboard": False, "dashboard_host": "127.0.0.1"}
    for attempt in range(_ATTEMPTS if own else 1):
        try:
            ray.init(address=runtime.ray_address, **quiet)
            return
        except Exception as error:  # Ray raises this very class where its start takes too long
            ray.shutdown()
            if own and attempt < _ATTEMPTS - 1:
                warn(f"Ray did not start ({_first_line(error)}); once more")
                continue
            raise _unanswered(runtime.ray_address, error) from error


def _check_answers(address: str) -> None:
    """Raises SettingsError unless something listens at `host:port`: Ray itself asks for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unanswered(address, error) from error


def _unanswered(address: str, error: Exception) -> SettingsError:
    return SettingsError(
        f"runtime.ray_address: no Ray answers at {address!r}: {_first_line(error)}",
        remedy="`ray start --head` starts one; `local` starts one for this run",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class _Here:
    """What decides a row's values on a node, besides its files: every node must have the driver's."""

    node: str
    versions: Mapping[str, str]
    code: str

    @classmethod
    def now(cls, code: tuple[str, ...]) -> _Here:
        import ray

        return cls(ray.get_runtime_context().get_node_id(), package_versions(), code_digest(code))


class _Actor:
    """Runs a `Worker` in an actor. The models are loaded by the first portion, not by the constructor: Ray
    gives up on a constructor that fails, and repeats a portion whose actor died."""

    def __init__(self, job: Job, driver: _Here) -> None:
        self._job, self._driver = job, driver
        self._worker: Worker | None = None

    def __call__(self, table: pa.Table) -> dict[str, list[Any]]:
        try:
            if self._worker is None:
                _check(self._job, self._driver)
                self._worker = self._job.worker(**self._job.arguments)
            arrays = self._worker(table)
        except PaserError as error:
            told = json.dumps([type(error).__name__, error.problem, error.remedy])
            return {_PORTION: [b""], _FAILURE: [told]}
        positions = table[_POSITION].to_numpy()
        return {_PORTION: [_packed({_POSITION: positions, **arrays})], _FAILURE: [""]}


def _check(job: Job, driver: _Here) -> None:
    here, host = _Here.now(job.code), socket.gethostname()
    if here.code != driver.code:
        raise ModelError(
            f"node {host} has another version of paser than the driver",
            remedy="check out the same commit on every node",
        )
    names = sorted({*here.versions.items()} ^ {*driver.versions.items()})
    if names:
        name = names[0][0]
        raise ModelError(
            f"node {host} has {name} {here.versions.get(name)}, the driver {driver.versions.get(name)}",
            remedy="install with the same constraints on every node",
        )
    if here.node == driver.node:
        return
    for path, digest in job.files.items():
        if not path.exists():
            raise ModelError(
                f"node {host} has no {path}",
                remedy="put the project on a shared file system, or copy data/ to the same path there",
            )
        if sha256_path(path) != digest:
            raise ModelError(
                f"{path} on node {host} is not the driver's", remedy="copy it there again (`dvc pull`)"
            )


def _packed(arrays: Arrays) -> bytes:
    """Arrays as bytes, so that types and the bits of every number come back as they were."""
    import numpy as np

    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _unpacked(content: bytes) -> Arrays:
    import numpy as np

    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _told(failure: str) -> PaserError:
    """The error that an actor met; Ray itself would only hand on its text."""
    kind, problem, remedy = json.loads(failure)
    found: PaserError = getattr(errors, kind)(problem, remedy=remedy)
    return found
