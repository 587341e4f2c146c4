"""A model card and a data-set card for the Hugging Face Hub, with the metadata of its own data classes."""

from __future__ import annotations

from typing import Any

from paser.lineage.chain import artefacts, flat
from paser.lineage.documents.facts import LIMITS, ORIGINAL, PRUNED, RECOVERED, SELECTED, Facts, results

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def model_card(facts: Facts) -> str:
    """`README.md` for a model folder."""
    from huggingface_hub import ModelCardData

    prune, select = facts.settings["prune"]["prune"], facts.settings["select"]["select"]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["paser", "pruned", f"sparsity-{prune['sparsity']}", prune["scheme"]],
    )
    recovery = facts.facts["recover"]
    settings = [
        [stage, ", ".join(f"{k}={v}" for k, v in flat(params).items())]
        for stage, params in facts.settings.items()
        if params
    ]
    measured = [
        [r["capability"], r["metric"], _number(r["value"]), _interval(r)]
        for r in results(facts)
        if r["model"] == "recovered"
    ]
    parts = [
        f"# {facts.name}",
        f"A language model pruned with `{prune['scheme']}` to {prune['sparsity']:.0%} zeros "
        f"({prune['pattern']}) and recovered on {facts.rows:,} rows ({facts.tokens:,} tokens) that PASER "
        f"selected with a budget of {select['budget']}." + _recovery(recovery),
        f"Base: {_base(facts)}. As saved, {_sparsity(recovery)}.",
        "## Provenance",
        _table(
            ["what", "SHA-256"],
            [
                ["Merkle root of the training rows", facts.merkle_root],
                ["audit entry", facts.entry_sha256],
                ["original model", facts.digests[ORIGINAL]],
                ["pruned model", facts.digests[PRUNED]],
                ["selected rows", facts.digests[SELECTED]],
                ["this model", facts.digests[RECOVERED]],
            ],
        ),
        "`paser audit verify` checks them; `provenance.json` in the model's folder lists the rows.",
        "## Training data",
        _shares("source", facts.by_source),
        _shares("licence", facts.by_license),
        _benchmarks(facts),
        "## Results",
        "Held-out loss and JSD in nats; shares of the gap to the original model that were closed, 1 is all. "
        + facts.metrics["interval"]
        + ".",
        _table(["capability", "metric", "value", "interval"], measured),
        "## Settings",
        _table(["stage", "settings"], settings),
        "## Limits",
        *(f"- {limit}" for limit in LIMITS),
    ]
    return _card(data, parts)


def dataset_card(facts: Facts) -> str:
    """`README.md` for the selected rows as a data set."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=facts.licenses[0].lower() if len(facts.licenses) == 1 else "other",
        task_categories=["text-generation"],
        size_categories=[next((name for most, name in SIZES if facts.rows < most), "n>1M")],
        pretty_name=f"Rows selected by PASER ({facts.merkle_root[:12]})",
        tags=["paser", "instruction"],
        configs=[{"config_name": "default", "data_files": "selected.jsonl"}],
    )
    parts = [
        f"# Rows selected by PASER ({facts.merkle_root[:12]})",
        f"{facts.rows:,} instruction rows, {facts.tokens:,} tokens, in training order: those a pruned model "
        "was recovered on.",
        _table(
            ["what", "SHA-256"],
            [["selected.jsonl", facts.digests[SELECTED]], ["Merkle root of the rows", facts.merkle_root]],
        ),
        "## Sources and licences",
        _shares("source", facts.by_source),
        _shares("licence", facts.by_license),
        _shares("label", facts.by_label),
        "Each row keeps the licence of its source in the column `license`.",
        _benchmarks(facts),
    ]
    return _card(data, parts)


def _card(data: Any, parts: list[str]) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _base(facts: Facts) -> str:
    """The source of the original model, by its name in `sources.yaml`, and the digest of what was pruned."""
    read = artefacts(facts.records["fetch"], "outputs") if "fetch" in facts.records else []
    files = next((a.files or {} for a in read if a.path == "data/sources/original"), {})
    names = sorted({name.split("/")[0] for name in files if "/" in name})
    return "".join(f"`{name}`, " for name in names) + f"SHA-256 `{facts.digests[ORIGINAL]}` as converted"


def _recovery(recovery: dict[str, Any]) -> str:
    """What early stopping did, where it was on."""
    stopping = recovery.get("early_stopping")
    if not stopping:
        return ""
    return (
        f" {stopping['held_out_rows']} more selected rows were held out of training to stop it; the weights "
        f"are those of step {stopping['best_step']}."
    )


def _sparsity(recovery: dict[str, Any]) -> str:
    sparsity = recovery.get("sparsity", {})
    if "overall" not in sparsity:
        return "its zeros were not counted"
    return f"{sparsity['overall']:.1%} of the weights of its linear layers are zero"


def _benchmarks(facts: Facts) -> str:
    if not facts.benchmarks:
        return "No training row is an item of a public benchmark, as far as its source declares."
    return f"Items of these public benchmarks are among the rows: {', '.join(facts.benchmarks)}."


def _shares(title: str, rows: list[dict[str, Any]]) -> str:
    return _table(
        [title, "rows", "tokens"], [[r["name"], f"{r['rows']:,}", f"{r['tokens']:,}"] for r in rows]
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *(line(row) for row in rows)])


def _number(value: float) -> str:
    return f"{value:.4f}"


def _interval(result: dict[str, Any]) -> str:
    return "" if result["low"] is None else f"{result['low']:.4f} to {result['high']:.4f}"
