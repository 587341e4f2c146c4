"""Selection from 2.58 million scored rows (LaMini's size) at a budget of 4 %, from files to files.

The rows are real texts: halves of two rows of `pool-large` joined, so that they are distinct and as long,
as wordy and as repetitive as real ones; a row's embedding is the sum of those of the two. The last rows of
`pool-large` are held out, and in no pair. Clusters and scores are drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ROOT, as_sample, pool_large_embeddings, real_rows
from benchmarks.measure import measured
from paser.artifacts import read_columns, read_json, remove, staged, write_batches, write_json
from paser.cache import Cache
from paser.progress import progress, say
from paser.records import row_id
from paser.selectors.coverage import BY_THE_TOKEN
from paser.settings import SelectSettings, load_settings
from paser.sources.catalog import TASK_ROLE

if TYPE_CHECKING:
    import numpy as np

ROWS = 2_580_000
CLUSTERS = 16
HELD_OUT = 160
BUDGET, LARGE_BUDGET = "4%", "20%"
RUNS = (("recoverable-coverage", BUDGET), ("paser", BUDGET), ("paser", LARGE_BUDGET))
SEED = 17
TARGET_SECONDS, TARGET_GB = 300.0, 8.0
BATCH = 1 << 17
VERSION = 4


def run(rows: int = ROWS) -> dict[str, Any]:
    project = Cache.of(ROOT).entry("bench", f"scored-{VERSION}-{rows}")
    if not project.exists():
        say(f"writing {rows:,} scored rows")
        measured("benchmarks.selection:write_project", folder=str(project), rows=rows)
    found = []
    for selector, budget in RUNS:
        given = {"selector": selector, "budget": budget}
        found.append({**given, **measured("benchmarks.selection:select_rows", folder=str(project), **given)})
    texts = read_json(project / "texts.json")
    return {"rows": rows, "covering": BY_THE_TOKEN.model_dump(), "runs": found, **texts}


def select_rows(folder: str, selector: str, budget: str) -> dict[str, Any]:
    """The stage itself, on the files of a project, without hashing its inputs."""
    from paser.stages import select
    from paser.stages.graph import stage
    from paser.stages.run import Context

    project = Path(folder)
    settings = load_settings(ROOT / "params.yaml")
    chosen = SelectSettings.model_validate({"selector": selector, "budget": budget})
    settings = settings.model_copy(update={"select": chosen})
    context = Context(project, stage("select"), settings, Cache.of(project))
    start = time.perf_counter()
    select.run(context)
    seconds = time.perf_counter() - start
    report = _facts(context)
    for name in context.stage.outputs:
        remove(context.out(name))
    return {"seconds": seconds, **report}


def _facts(context: Any) -> dict[str, Any]:
    report = read_json(context.out("data/budget.json"))
    decided = read_columns(context.out("data/decisions.parquet"), ["decision"])
    kept = ("rows", "tokens", "unspent", "cause", "conflicts", "rejected_share", "relaxed", "concepts_known")
    return {
        **{name: report[name] for name in kept},
        "decisions": len(decided),
        "control": report["control"],
        "visited": len(decided) - report["rejected"].get("budget", 0),
        "written_gb": sum(_gigabytes(context.out(name)) for name in context.stage.outputs),
    }


def write_project(folder: str, rows: int) -> None:
    """The tables and embeddings that the stage reads, and what else it asks for."""
    import numpy as np

    draw = np.random.default_rng(SEED)
    sizes = np.arange(CLUSTERS, 0, -1.0)
    clusters = draw.choice(CLUSTERS, size=rows, p=sizes / sizes.sum())
    damage = draw.gamma(4.0, 0.02, size=rows) * draw.uniform(0.5, 2.0, size=CLUSTERS)[clusters]
    ids: list[str] = []
    lengths: list[tuple[int, int]] = []
    pairs: list[tuple[int, int]] = []
    with staged(Path(folder)) as partial:
        data = partial / "data"
        write_batches(data / "pool.parquet", "pool", _texts(rows, ids, lengths, pairs))
        write_batches(data / "holdout.parquet", "pool", [_pool_batch(_held_out(), HELD_OUT)])
        _embeddings(data / "embeddings.npy", np.array(pairs))
        write_batches(data / "clusters.parquet", "clusters", _clusters(ids, clusters))
        write_batches(data / "scores.parquet", "scores", _scores(ids, lengths, damage, draw))
        names = [{"cluster": k, "name": f"cluster {k}"} for k in range(CLUSTERS)]
        write_json(data / "clusters.json", {"clusters": names})
        for role in ("evaluation", TASK_ROLE):
            write_json(data / f"sources/{role}/index.json", {"role": role, "sources": []})
        characters = 4 * sum(x + y for x, y in lengths)
        write_json(partial / "texts.json", {"text_gb": characters / 1e9})


def _texts(
    rows: int, ids: list[str], lengths: list[tuple[int, int]], pairs: list[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Batches of the pool; notes each row's id, its tokens (four characters each) and the two rows that it is
    made of on the way."""
    made: set[str] = set()
    batch: list[tuple[str, str, str]] = []
    with progress("write", rows) as advance:
        for pair, prompt, answer in _pairs():
            name = row_id(prompt, "", answer)
            if name in made:
                continue
            made.add(name)
            ids.append(name)
            pairs.append(pair)
            lengths.append((12 + len(prompt) // 4, 1 + len(answer) // 4))
            batch.append((name, prompt, answer))
            if len(batch) == BATCH or len(ids) == rows:
                yield _pool_batch(batch, len(ids))
                advance(len(batch))
                batch.clear()
            if len(ids) == rows:
                return


def _pairs() -> Iterator[tuple[tuple[int, int], str, str]]:
    """Positions of two rows, and their prompts and answers joined at the middles; the second comes ever
    further on."""
    real = _exchanges()[:-HELD_OUT]
    heads = [(_half(x, True), _half(y, True)) for x, y in real]
    tails = [(_half(x, False), _half(y, False)) for x, y in real]
    for step in range(1, len(real)):
        for i, (prompt, answer) in enumerate(heads):
            j = (i + step * 613) % len(real)
            more, rest = tails[j]
            yield (i, j), f"{prompt} {more}".strip(), f"{answer} {rest}".strip()


def _held_out() -> list[tuple[str, str, str]]:
    return [(row_id(prompt, "", answer), prompt, answer) for prompt, answer in _exchanges()[-HELD_OUT:]]


def _exchanges() -> list[tuple[str, str]]:
    samples = (as_sample(number, row) for number, row in enumerate(real_rows()))
    return [(sample.prompt, sample.output) for sample in samples]


def _half(text: str, first: bool) -> str:
    middle = text.rfind(" ", 0, len(text) // 2 + 1) + 1
    return text[:middle].strip() if first else text[middle:].strip()


def _embeddings(path: Path, pairs: np.ndarray) -> None:
    """L2-normalised sums of the embeddings of the two rows of each pair, float32, never held at once."""
    import numpy as np

    from paser.method.manifold import unit_rows

    real = pool_large_embeddings()
    shape = (len(pairs), real.shape[1])
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for begin in range(0, len(pairs), BATCH):
        heads, tails = pairs[begin : begin + BATCH].T
        array[begin : begin + BATCH] = unit_rows(real[heads] + real[tails])
    array.flush()


def _pool_batch(batch: list[tuple[str, str, str]], end: int) -> dict[str, Any]:
    size = len(batch)
    numbers = range(end - size, end)
    return {
        "row_id": [name for name, _, _ in batch],
        "source": ["joined"] * size,
        "source_row": [str(number) for number in numbers],
        "license": ["mixed"] * size,
        "instruction": [prompt for _, prompt, _ in batch],
        "input": [""] * size,
        "output": [answer for _, _, answer in batch],
        "label": [None] * size,
        "benchmark": [None] * size,
        "tokens": [(len(prompt) + len(answer)) // 4 for _, prompt, answer in batch],
        "occurrences": [
            [{"source": "joined", "source_row": str(number), "license": "mixed"}] for number in numbers
        ],
    }


def _clusters(ids: list[str], clusters: Any) -> Iterator[dict[str, Any]]:
    for begin in range(0, len(ids), BATCH):
        part = ids[begin : begin + BATCH]
        yield {
            "row_id": part, "split": ["pool"] * len(part), "cluster": clusters[begin : begin + BATCH]
        }  # fmt: skip


def _scores(
    ids: list[str], lengths: list[tuple[int, int]], damage: Any, draw: Any
) -> Iterator[dict[str, Any]]:
    from paser.records import schema

    for begin in range(0, len(ids), BATCH):
        part = ids[begin : begin + BATCH]
        jsd = damage[begin : begin + BATCH].clip(max=0.69)
        noise = draw.uniform(0.8, 1.2, size=(3, len(part)))
        values = {
            "row_id": part,
            "jsd": jsd,
            "kl": 5 * jsd * noise[0],
            "reverse_kl": 4 * jsd * noise[1],
            "loss_original": 1.5 * noise[2],
            "loss_pruned": 1.5 * noise[2] + 3 * jsd * noise[1] - 0.1,
            "recoverability": jsd * (noise[0] - 0.5),
            "prompt_tokens": [x for x, _ in lengths[begin : begin + BATCH]],
            "response_tokens": [y for _, y in lengths[begin : begin + BATCH]],
            "status": ["ok"] * len(part),
        }
        yield {name: values[name] for name in schema("scores").names}


def _gigabytes(path: Path) -> float:
    return path.stat().st_size / 1e9


def render(result: dict[str, Any]) -> str:
    now = result.get("covering") == BY_THE_TOKEN.model_dump()
    earlier = (
        "" if now else "\nThe default rule was measured with other options of coverage than it has now.\n"
    )
    lines = []
    for found in result["runs"]:
        facts, budget = found["result"], found["budget"]
        refused = f"{facts['rejected_share']:.0%}"
        fits = found["seconds"] <= TARGET_SECONDS and found["peak_gb"] <= TARGET_GB
        target = ("met" if fits else "missed") if budget == BUDGET else ""
        relaxed = ", ".join(f"{count:,} at {step}" for step, count in facts["relaxed"].items()) or "none"
        lines.append(
            f"| `{found['selector']}` | {budget} | {found['seconds']:.0f} s | {found['peak_gb']:.1f} GB | "
            f"{target} | {facts['rows']:,} | {facts['visited']:,} | {refused} | {relaxed} | "
            f"{facts['unspent']:,} |"
        )
    return f"""## Selection

{result["rows"]:,} scored rows ({result["text_gb"]:.1f} GB of texts, {CLUSTERS} clusters of uneven size), one process, the
default rule and the paper's (`select.selector`): reading the tables, coverage inside the clusters or the concepts of the rows that
are visited and their graph, the random control, and writing `decisions.parquet` with a row for every row of the pool, `selected.jsonl`,
`control.jsonl` and `budget.json`. Target: a budget of {BUDGET} in at most {TARGET_SECONDS / 60:.0f} minutes and {TARGET_GB:.0f} GB. At {LARGE_BUDGET}
the rows of some clusters run out.

| `select.selector` | budget | time | peak memory | target | rows selected | rows visited | of them refused at first | taken by relaxing strictness | rows of the budget unspent |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
{earlier}"""  # noqa: E501
