"""Every pruning scheme at its published setting on the default model: time, memory, what is really gone, and
the perplexity of WikiText-2 before and after. Results also make the table of docs/pruning.md.

Each cell is kept under benchmarks/results/pruning/ by what determines it, so a run goes on where it stopped.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT, as_sample, bench_file, original_model, real_rows
from benchmarks.measure import measured
from paser.artifacts import fingerprint, read_json, sha256_path, staged, write_json
from paser.cache import Cache
from paser.errors import PaserError
from paser.lineage.record import code_digest, package_versions
from paser.progress import say, warn
from paser.pruning.protocol import schemes
from paser.settings import PruneSettings

RESULTS = ROOT / "benchmarks/results/pruning"
PAGE = ROOT / "docs/pruning.md"
MEASURED = "measured.json"
# Packages whose files are part of a scheme; the rest of paser is the same for all.
ROOMS = ("paser.pruning", "paser.models.shapes", "paser.models.sliced")
BEGIN, END = "<!-- written by `python -m benchmarks pruning` -->", "<!-- end -->"
TEXT = "eval-wikitext2-test.txt.gz"
CALIBRATION_ROWS, CALIBRATION_TOKENS = 64, 256
# Windows of the test text that count: the whole of it takes an hour and more for all schemes.
CONTEXT, WINDOWS = 2048, 20
SEED = 17
# On a machine that others use, OMP_NUM_THREADS=1 gets more done than two threads that wait for each other.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "0"))
TARGET_SECONDS, TARGET_GB = 300.0, 4.0


@dataclass(frozen=True)
class Case:
    """One line of the table. `scheme` None is the model before pruning."""

    label: str
    scheme: str | None
    sparsity: float = 0.5
    pattern: str = "unstructured"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_variant(self) -> bool:
        """Whether its scheme has a case with plainer settings."""
        return self.pattern != "unstructured" or bool(self.options)

    @property
    def settings(self) -> PruneSettings:
        given = {"scheme": self.scheme, "sparsity": self.sparsity, "pattern": self.pattern}
        return PruneSettings.model_validate(
            {**given, "options": self.options, "max_tokens": CALIBRATION_TOKENS}
        )


CASES = (
    Case("dense", None),
    Case("SparseGPT 50 %", "sparsegpt"),
    Case("SparseGPT 2:4", "sparsegpt", pattern="2:4"),
    Case("Wanda 50 %", "wanda"),
    Case("Wanda 4:8", "wanda", pattern="4:8"),
    Case("Wanda 2:4", "wanda", pattern="2:4"),
    Case("GBLM-Pruner 50 %", "gblm"),
    Case("magnitude 50 %", "magnitude"),
    Case("global magnitude 50 %", "global-magnitude"),
    Case("random, layer-wise 50 %", "random", options={"ratios": "layerwise"}),
    Case("random 50 %", "random"),
    Case("LLM-Pruner 25 %", "llm-pruner", sparsity=0.25),
    Case("SliceGPT 25 %", "slicegpt", sparsity=0.25),
    Case("FLAP 20 %", "flap", sparsity=0.2),
    Case("CFSP 20 %", "cfsp", sparsity=0.2),
    Case("depth 25 %", "depth", sparsity=0.25),
)
# Literature, where each comes from and what it does; the order of docs/pruning.md.
ABOUT = {
    "wanda": (
        "Sun et al. 2023, arXiv 2306.11695",
        "zeros where weight x input norm is smallest, output by output; by llm-compressor",
    ),
    "sparsegpt": (
        "Frantar & Alistarh 2023, arXiv 2301.00774",
        "zeros of least output error, made up for by the weights that stay; by llm-compressor",
    ),
    "magnitude": (
        "Han et al. 2015, arXiv 1506.02626",
        "zeros for the smallest weights of each layer; by torch",
    ),
    "global-magnitude": (
        "Han et al. 2015, arXiv 1506.02626",
        "zeros for the smallest weights of the whole model; each layer keeps a minimum",
    ),
    "random": (
        "Liu et al. 2022, arXiv 2202.02643",
        "zeros at random, evenly or by layer-wise ratios after Erdős and Rényi",
    ),
    "gblm": (
        "Das et al. 2023, arXiv 2311.04902",
        "Wanda's score plus alpha x weight x gradient norm; on llm-compressor's layer-wise run",
    ),
    "llm-pruner": (
        "Ma et al. 2023, arXiv 2305.11627",
        "drops coupled channels and key-value groups of least first-order importance",
    ),
    "slicegpt": (
        "Ashkboos et al. 2024, arXiv 2401.15024",
        "rotates the residual stream to its principal components and slices it",
    ),
    "flap": (
        "An et al. 2023, arXiv 2312.11983",
        "drops the channels and heads that fluctuate least; biases make up for them",
    ),
    "cfsp": (
        "Wang et al. 2024, arXiv 2409.13199",
        "drops feed-forward channels, first shared out over blocks, then chosen by activations",
    ),
    "depth": (
        "Gromov et al. 2024, arXiv 2403.17887",
        "drops the consecutive blocks that change the residual stream least",
    ),
}
# What orders schemes in the literature at 50 %: each pair better, worse.
ORDER = (
    ("SparseGPT 50 %", "Wanda 50 %"),
    ("Wanda 50 %", "magnitude 50 %"),
    ("magnitude 50 %", "random 50 %"),
)


def run() -> dict[str, Any]:
    asked = {label for pair in ORDER for label in pair} | {"dense"}
    found: dict[str, dict[str, Any]] = {}
    # What a run that is stopped should have: the order of schemes first, then each scheme, then its variants.
    first = sorted(
        CASES, key=lambda c: (c.label not in asked, c.pattern != "unstructured" or bool(c.options))
    )
    for case in first:
        try:
            found[case.label] = cell(case)
        except PaserError as error:
            warn(f"{case.label}: {error}")
            found[case.label] = {"label": case.label, "failed": str(error.problem)}
        write_page([found[case.label] for case in CASES if case.label in found])
    return {"cells": [found[case.label] for case in CASES]}


def finished() -> list[dict[str, Any]]:
    """The cells that were measured with this code and these settings, in the table's order."""
    return [read_json(path_of(case)) for case in CASES if path_of(case).exists()]


def pruned_folder(case: Case) -> Path:
    """The default model pruned as a case says, made once, with what making it took."""
    folder = Cache.of(ROOT).entry("bench", f"pruned-{path_of(case).stem}")
    if not (folder / MEASURED).exists():
        number = CASES.index(case)
        with staged(folder) as target:
            found = measured("benchmarks.pruning:pruned", number=number, folder=str(target))
            write_json(target / MEASURED, found)
    return folder


def cell(case: Case) -> dict[str, Any]:
    """Prunes and measures one case, each in a process of its own, or reads what was kept."""
    path = path_of(case)
    if not path.exists():
        say(f"pruning benchmark: {case.label}")
        found: dict[str, Any] = {"label": case.label, "scheme": case.scheme}
        folder = original_model()
        if case.scheme is not None:
            folder = pruned_folder(case)
            pruned = read_json(folder / MEASURED)
            found |= {"seconds": pruned["seconds"], "peak_gb": pruned["peak_gb"], **pruned["result"]}
        judged = measured("benchmarks.pruning:judged", folder=str(folder))
        found |= judged["result"] | {"perplexity_seconds": judged["seconds"]}
        write_json(path, found)
        if case.scheme is not None:
            shutil.rmtree(folder)
    content: dict[str, Any] = read_json(path)
    return content


def pruned(number: int, folder: str) -> dict[str, Any]:
    """Prunes the default model as case `number` says, saves it to `folder`, measures the saved files."""
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer, save_causal_lm
    from paser.models.precision import set_threads
    from paser.models.tokens import SampleEncoder
    from paser.pruning.protocol import prune

    threads = set_threads(THREADS)
    case, source = CASES[number], original_model()
    tokenizer = load_tokenizer(source)
    encoder = SampleEncoder(tokenizer)
    samples = sorted((as_sample(i, row) for i, row in enumerate(real_rows())), key=lambda s: s.row_id)
    calibration = [encoder.encode(s, CALIBRATION_TOKENS) for s in samples[-CALIBRATION_ROWS:]]
    start, work = time.perf_counter(), time.process_time()
    model = load_causal_lm(source, dtype=torch.bfloat16)
    result = prune(model, calibration, case.settings, SEED)
    smaller: Any = result.model
    save_causal_lm(smaller.to(torch.bfloat16), tokenizer, Path(folder))
    seconds, processor = time.perf_counter() - start, time.process_time() - work
    report = result.report
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "threads": threads,
        "samples": report.samples,
        "tokens": report.tokens,
        **gone(case, source, Path(folder), report.facts.get("blocks")),
    }


def gone(case: Case, original: Path, folder: Path, blocks: Any) -> dict[str, Any]:
    """What the saved files lack: zeros for unstructured schemes, parameters for the others."""
    from paser.models.sparsity import measure
    from paser.pruning.achieved import check_removed, check_width, check_zeros, removed

    kind = schemes()[str(case.scheme)].kind
    counts = removed(original, folder, blocks)
    found: dict[str, Any] = {"kind": kind, **counts.as_json()}
    if kind == "unstructured":
        sparsity = measure(folder)
        check_zeros(sparsity, case.settings)
        found["sparsity"] = sparsity.as_json()
    elif kind == "sliced":
        before, after = check_width(original, folder, case.settings)
        found["width"] = [before, after]
    else:
        check_removed(counts, kind, case.settings)
    return found


def judged(folder: str) -> dict[str, Any]:
    """Perplexity of the test text."""
    import torch

    from paser.evaluation.perplexity import corpus_text, perplexity
    from paser.models.loading import load_causal_lm, load_tokenizer
    from paser.models.precision import set_threads

    set_threads(THREADS)
    model = load_causal_lm(Path(folder), dtype=torch.bfloat16)
    found = perplexity(
        model, load_tokenizer(Path(folder)), corpus_text(bench_file(TEXT)), context=CONTEXT, windows=WINDOWS
    )
    return {"perplexity": found.value, "loss": found.loss, "protocol": found.protocol}


def path_of(case: Case) -> Path:
    """The file of a cell: by model, scheme, settings, data, protocol, code and versions."""
    determines = [
        sha256_path(original_model()),
        case.settings.model_dump(mode="json") if case.scheme else None,
        CALIBRATION_ROWS,
        sha256_path(bench_file("pool-large.jsonl.gz")),
        sha256_path(bench_file(TEXT)),
        [CONTEXT, WINDOWS, SEED],
        code_digest(("paser/evaluation/perplexity.py", *(scheme_code(case.scheme) if case.scheme else ()))),
        package_versions(),
    ]
    name = re.sub(r"[^a-z0-9]+", "-", case.label.lower()).strip("-")
    return RESULTS / f"{name}-{fingerprint(determines)[:12]}.json"


def scheme_code(name: str) -> tuple[str, ...]:
    """The files of `ROOMS` that a scheme's own file needs, itself first; not the list of schemes."""
    start = schemes()[name].prune.__module__.replace(".", "/") + ".py"  # type: ignore[attr-defined]
    seen: list[str] = []
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.append(path)
            waiting += [found for found in imported(path) if not found.endswith("/protocol.py")]
    return tuple(sorted(seen))


def imported(path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOMS):
            for module in (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)):
                file = module.replace(".", "/") + ".py"
                if (ROOT / file).exists():
                    yield file


def render(result: dict[str, Any]) -> str:
    return f"## Pruning\n\n{table(result['cells'])}\n\nSources of the schemes: [pruning.md](pruning.md)."


def table(cells: list[dict[str, Any]]) -> str:
    """What was measured, as Markdown: the cells, then the order and the targets as met or missed."""
    done = [c for c in cells if "perplexity" in c]
    protocol = done[0]["protocol"] if done else "not measured yet"
    lines = [
        f"SmolLM2-135M-Instruct in bfloat16, calibrated on {CALIBRATION_ROWS} rows of real instructions of "
        f"at most {CALIBRATION_TOKENS} tokens, seed {SEED}. Time and memory are those of a process that "
        "loads, prunes and saves; processor time, unlike seconds, hardly grows when the machine is shared. "
        "What is gone is counted in the saved files.",
        "",
        f"Perplexity of WikiText-2 test ({TEXT}, with `<unk>` as in the file): {protocol}. Schemes calibrate "
        "on instructions and the test is encyclopaedia text, unlike in papers that calibrate on web text.",
        "",
        "| setting | gone | parameters, millions | perplexity | before | s | processor s | threads "
        "| peak GB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    before = next((c["perplexity"] for c in done if c["label"] == "dense"), None)
    for found in cells:
        if "failed" in found:
            lines.append(f"| {found['label']} | failed: {found['failed']} | | | | | | | |")
        elif found["label"] != "dense":
            lines.append(
                f"| {found['label']} | {what_is_gone(found)} | {found['parameters'] / 1e6:.1f} "
                f"| {found['perplexity']:,.1f} | {'-' if before is None else f'{before:,.1f}'} "
                f"| {found['seconds']:.0f} | {found['processor_seconds']:.0f} | {found['threads']} "
                f"| {found['peak_gb']:.1f} |"
            )
    missing = [case.label for case in CASES if case.label not in {c["label"] for c in cells}]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join([*lines, "", *verdicts(done)])


def what_is_gone(found: dict[str, Any]) -> str:
    if "sparsity" in found:
        sparsity = found["sparsity"]
        return f"{sparsity['overall']:.1%} zeros, {sparsity['pattern']}"
    if "width" in found:
        return f"width {found['width'][1]} of {found['width'][0]}"
    return f"{found['share']:.1%} of {found['pruned_blocks']} blocks' parameters"


def verdicts(done: list[dict[str, Any]]) -> list[str]:
    """The literature's order of schemes and the targets, each met or missed."""
    value = {c["label"]: c["perplexity"] for c in done}
    lines = ["| | measured | target | |", "|---|---|---|---|"]
    for better, worse in ORDER:
        if better in value and worse in value:
            both = f"{value[better]:,.1f}, {value[worse]:,.1f}"
            met = verdict(value[better] <= value[worse])
            lines.append(f"| {better} against {worse} | {both} | the first is not higher | {met} |")
    timed = [c for c in done if "seconds" in c]
    if timed:
        slow, large = max(timed, key=lambda c: c["seconds"]), max(timed, key=lambda c: c["peak_gb"])
        seconds, memory = slow["seconds"], large["peak_gb"]
        lines += [
            f"| slowest scheme ({slow['label']}) | {seconds:.0f} s | at most {TARGET_SECONDS:.0f} s "
            f"| {verdict(seconds <= TARGET_SECONDS)} |",
            f"| largest scheme ({large['label']}) | {memory:.1f} GB | at most {TARGET_GB:.0f} GB "
            f"| {verdict(memory <= TARGET_GB)} |",
        ]
    return lines


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def sources() -> str:
    """One line a scheme: name, what it does, where it comes from."""
    lines = ["| `prune.scheme` | what it does | source |", "|---|---|---|"]
    lines += [f"| `{name}` | {ABOUT[name][1]} | {ABOUT[name][0]} |" for name in schemes()]
    return "\n".join(lines)


def write_page(cells: list[dict[str, Any]]) -> None:
    """Puts the two tables into docs/pruning.md, between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    start, stop = text.index(BEGIN), text.index(END)
    body = f"{BEGIN}\n\n{sources()}\n\n### Measured\n\n{table(cells)}\n\n"
    PAGE.write_text(text[:start] + body + text[stop:], encoding="utf-8")
    say(f"{PAGE.relative_to(ROOT)} written")


if __name__ == "__main__":
    write_page(finished())
