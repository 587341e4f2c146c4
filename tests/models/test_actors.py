"""Embedding and scoring by the actors of a Ray cluster: the bytes of one process, whatever dies on the way.

One Ray of two cores serves the file; each actor has one thread.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from paser.cache import Cache
from paser.errors import ModelError, SettingsError
from paser.models import actors
from paser.models.actors import Job, fitting
from paser.models.encoder import PromptEmbedder
from paser.models.workload import ActorModels, ModelSet, open_models, score_rows
from paser.settings import Settings, parse_settings
from tests.models.test_shards import DIGESTS, table


def settings(**runtime: Any) -> Settings:
    return parse_settings({"model": {"precision": "float32"}, "runtime": {"threads": 1, **runtime}}, "test")


def score(changes: dict[str, Any]) -> dict[str, Any]:
    """An update of settings, as `model_copy` takes it."""
    return {"score": parse_settings(changes, "test").score}


ROOT = Path(__file__).parent.parent.parent
LOCAL = settings()
RAY = settings(engine="ray", actors=2)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        ({"CPU": 8.0}, 2, 0.0, 4),
        ({"CPU": 8.0}, 3, 0.0, 2),
        ({}, 1, 0.0, 0),
        ({"CPU": 8.0, "GPU": 4.0}, 1, 1.0, 4),
        ({"CPU": 3.0, "GPU": 4.0}, 1, 1.0, 3),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.4, 4),
        ({"CPU": 8.0}, 1, 0.5, 0),
    ],
)
def test_actors_that_fit_a_node(resources: dict[str, float], cpus: int, gpus: float, room: int) -> None:
    assert fitting(resources, cpus, gpus) == room


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"engine": "ray", "device_map": "auto"}, "engine 'ray' gives each actor one"),
        ({"engine": "ray", "device": "cuda"}, "does not go with gpus_per_actor 0"),
        ({"engine": "ray", "device": "cpu", "gpus_per_actor": 0.5}, "does not go with gpus_per_actor 0.5"),
        ({"engine": "spark"}, r"runtime\.engine is 'spark'"),
    ],
)
def test_contradictions_are_named(runtime: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(**runtime)


def test_without_ray_the_error_says_what_to_install(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without_ray(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return plain(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(SettingsError, match=r"Ray is not installed[\s\S]*paser\[ray\][\s\S]*local"):
        open_models({"original": llama}, {"original": "a"}, RAY, Cache(tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379", "nowhere", "127.0.0.1:port"])
def test_an_address_where_nothing_answers_is_an_error_at_once(address: str) -> None:
    with pytest.raises(SettingsError, match=rf"no Ray answers at '{address}'.*\n  remedy: `ray start"):
        actors.connect(settings(engine="ray", ray_address=address).runtime)


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    """Ray on this machine, as the stages start it; its parent process is this one."""
    assert "ray" not in sys.modules, "Ray reads its token when it is imported"
    actors.connect(RAY.runtime)
    yield os.getpid()
    sys.modules["ray"].shutdown()


@pytest.mark.slow
def test_scores_and_embeddings_are_those_of_one_process(
    llama: Path,
    sparse_llama: Path,
    encoder: Path,
    tmp_path: Path,
    cluster: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths, rows = {"original": llama, "pruned": sparse_llama}, table(300)
    here, there = Cache(tmp_path / "here"), Cache(tmp_path / "there")
    expected = score_rows(rows, ModelSet.load(paths, LOCAL, here), DIGESTS, LOCAL.score, here)
    capfd.readouterr()
    models = open_models(paths, DIGESTS, RAY, there)
    assert isinstance(models, ActorModels)
    found = score_rows(rows, models, DIGESTS, RAY.score, there)
    out, err = capfd.readouterr()
    assert found == expected
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("  score: ")] == []
    vectors, _ = PromptEmbedder.load(encoder, "digest", LOCAL, here)(rows)
    spread, _ = PromptEmbedder.load(encoder, "digest", RAY, there)(rows)
    np.testing.assert_array_equal(spread, vectors)
    # What one engine has computed the other one finds.
    for room in ("score", "embed"):
        names = [{p.name.split("-")[0] for p in (tmp_path / w / room).iterdir()} for w in ("here", "there")]
        assert names[0] == names[1]


@pytest.mark.slow
def test_models_with_a_short_context_cut_alike(
    tmp_path: Path, cluster: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import tiny

    short = tiny.make_llama(tmp_path / "short", context=48)
    paths, rows = {"original": short, "pruned": short}, table(12)
    results = []
    for name, wanted in (("here", LOCAL), ("there", RAY)):
        cache = Cache(tmp_path / name)
        results.append(
            score_rows(rows, open_models(paths, DIGESTS, wanted, cache), DIGESTS, wanted.score, cache)
        )
        assert "context of 48 tokens" in capsys.readouterr().err
    assert results[0] == results[1]
    assert "cut" in {row["status"] for row in results[0]}


class Slow:
    """Gives each row's number back after a while, and notes each portion that it began."""

    def __init__(self, notes: Path, seconds: float) -> None:
        self._notes, self._seconds = notes, seconds

    def __call__(self, portion: pa.Table) -> dict[str, np.ndarray]:
        numbers = portion["number"].to_numpy()
        (self._notes / f"{numbers[0]}-{os.getpid()}-{time.time_ns()}").touch()
        time.sleep(self._seconds)
        return {
            "x": numbers * 1.5,
            "nan": np.full(len(numbers), np.nan),
            "s": np.array(["ok"] * len(numbers)),
        }


def portions(count: int, size: int = 3) -> list[tuple[list[int], pa.Table]]:
    groups = [list(range(begin, begin + size)) for begin in range(0, count * size, size)]
    return [(group, pa.table({"number": group})) for group in groups]


def job(notes: Path, seconds: float = 0.0, **runtime: Any) -> Job:
    wanted = settings(engine="ray", actors=2, **runtime).runtime
    return Job(Slow, {"notes": notes, "seconds": seconds}, {}, (), wanted, threads=1)


@pytest.mark.slow
def test_an_actor_that_is_killed_loses_nothing(tmp_path: Path, cluster: int) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        pid = int(next(tmp_path.iterdir()).name.split("-")[1])
        os.kill(pid, 9)
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    done = list(job(tmp_path, 0.5).run(portions(12)))
    killer.join()
    assert killed
    found = sorted((p, float(x)) for positions, a in done for p, x in zip(positions, a["x"], strict=True))
    assert found == [(i, 1.5 * i) for i in range(36)]
    workers = {int(note.name.split("-")[1]) for note in tmp_path.iterdir()}
    assert len(workers) == 3, "Ray starts another actor in the place of the dead one"
    assert all(a["s"].dtype.kind == "U" and np.isnan(a["nan"]).all() for _, a in done)


def busy_actors(parent: int) -> list[psutil.Process]:
    """The actors below the process `parent` that compute something."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in process.cmdline()[0] and process.cmdline()[0].endswith(".submit"):
                found.append(process)
    return found


@pytest.mark.slow
def test_scores_are_the_same_when_an_actor_is_killed(
    llama: Path, sparse_llama: Path, tmp_path: Path, cluster: int
) -> None:
    small = {"score": {"max_tokens": 256, "batch_tokens": 256}}
    local, spread = LOCAL.model_copy(update=score(small)), RAY.model_copy(update=score(small))
    paths, rows = {"original": llama, "pruned": sparse_llama}, table(300)
    here, there = Cache(tmp_path / "here"), Cache(tmp_path / "there")
    expected = score_rows(rows, ModelSet.load(paths, local, here), DIGESTS, local.score, here)
    killed: list[int] = []

    def kill() -> None:
        while not (found := busy_actors(cluster)):
            time.sleep(0.02)
        time.sleep(1.0)
        found[0].kill()
        killed.append(found[0].pid)

    killer = threading.Thread(target=kill)
    killer.start()
    found = score_rows(rows, open_models(paths, DIGESTS, spread, there), DIGESTS, spread.score, there)
    killer.join()
    assert killed
    assert found == expected


DRIVER = """
import sys
from pathlib import Path
from paser.cache import Cache
from paser.models import shards
from paser.models.workload import open_models, score_rows
from tests.models.test_actors import DIGESTS, RAY, score, table

shards.SHARD_SECONDS = 0.0
paths = {"original": Path(sys.argv[1]), "pruned": Path(sys.argv[2])}
wanted = RAY.model_copy(update=score({"score": {"max_tokens": 256, "batch_tokens": 256}}))
cache = Cache(Path(sys.argv[3]))
score_rows(table(300), open_models(paths, DIGESTS, wanted, cache), DIGESTS, wanted.score, cache)
"""


@pytest.mark.slow
def test_a_killed_driver_loses_a_portion_at_most_and_leaves_no_process(
    llama: Path, sparse_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", DRIVER, str(llama), str(sparse_llama), str(tmp_path / "cache")]
    driver = subprocess.Popen(command, cwd=ROOT)
    while not list((tmp_path / "cache").glob("score/*.npz")):
        assert driver.poll() is None
        time.sleep(0.05)
    below = psutil.Process(driver.pid).children(recursive=True)
    assert below
    driver.kill()
    driver.wait()
    # Ray's two agents, which hold no model, look for the dead head for a minute.
    agents = [process for process in below if "Agent" in process.name()]
    assert psutil.wait_procs([p for p in below if p not in agents], timeout=30)[1] == []
    assert psutil.wait_procs(agents, timeout=120)[1] == []
    local = LOCAL.model_copy(update=score({"score": {"max_tokens": 256, "batch_tokens": 256}}))
    paths, rows = {"original": llama, "pruned": sparse_llama}, table(300)
    results = []
    for room in ("cache", "fresh"):
        cache = Cache(tmp_path / room)
        results.append(score_rows(rows, ModelSet.load(paths, local, cache), DIGESTS, local.score, cache))
    assert "of 300 rows are kept from an earlier run" in capsys.readouterr().err
    assert results[0] == results[1]


@pytest.mark.slow
def test_work_waits_until_someone_takes_its_results(tmp_path: Path, cluster: int) -> None:
    """What is pending is bounded by the actors, not by the length of the table."""
    run = job(tmp_path, 0.2).run(portions(40))
    next(run)
    begun = len(list(tmp_path.iterdir()))
    assert begun <= 2 * (actors.IN_FLIGHT + 1)
    assert len(list(run)) == 39


class Broken:
    def __call__(self, portion: pa.Table) -> dict[str, np.ndarray]:
        raise ModelError("the weights are odd", remedy="use others")


@pytest.mark.slow
def test_an_error_in_an_actor_is_told_as_if_it_were_here(cluster: int) -> None:
    with pytest.raises(ModelError) as caught:
        list(Job(Broken, {}, {}, (), RAY.runtime, threads=1).run(portions(2)))
    assert str(caught.value) == "the weights are odd\n  remedy: use others"


@pytest.mark.slow
def test_more_actors_than_there_is_room_for_is_an_error(tmp_path: Path, cluster: int) -> None:
    cores = os.cpu_count() or 1
    wanted = settings(engine="ray", actors=cores + 1).runtime
    with pytest.raises(SettingsError, match=f"runtime.actors is {cores + 1}, but Ray has room for {cores}"):
        list(
            Job(Slow, {"notes": tmp_path, "seconds": 0.0}, {}, (), wanted, threads=1).run(portions(cores + 1))
        )


@pytest.mark.slow
def test_nothing_of_a_ray_of_our_own_answers_strangers(cluster: int) -> None:
    """No dashboard, no telemetry, and a token on everything that listens."""
    import ray

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray.is_initialized()
    address = ray.get_runtime_context().gcs_address
    script = f"import ray; ray.init(address={address!r}, logging_level='CRITICAL')"
    strangers = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=strangers,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "auth" in (done.stdout + done.stderr).lower()
