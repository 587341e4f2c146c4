"""`paser damage` on every pruning scheme at its published setting: which abilities each of them breaks.

The paper's four schemes make the figure, all of them the table of docs/pruning.md's damage profile.
"""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.data import ROOT, original_model
from benchmarks.pruning import CASES, pruned_model
from paser.cache import Cache
from paser.damage_profile import profile_damage
from paser.progress import say

FIGURE = ROOT / "docs/images/damage"
PAPER = ("Wanda 50 %", "SparseGPT 50 %", "LLM-Pruner 25 %", "SliceGPT 25 %")


def run() -> dict[str, Any]:
    cases = [case for case in CASES if case.scheme and not case.is_variant]
    models = {}
    for case in sorted(cases, key=lambda case: case.label not in PAPER):
        say(f"damage benchmark: {case.label}")
        models[case.label] = pruned_model(case)
    four = profile({name: models[name] for name in PAPER}, figure=True)
    every = profile(models)
    for folder in models.values():
        shutil.rmtree(folder)
    return {"paper": list(PAPER), "order": [c["name"] for c in four["capabilities"]], "profile": every}


def profile(models: dict[str, Any], *, figure: bool = False) -> dict[str, Any]:
    """What `paser damage` finds on the held-out rows of the default sources."""
    out = Cache.of(ROOT).entry("bench", "damage")
    found = profile_damage(
        str(original_model()), [f"{name}={folder}" for name, folder in models.items()], None, out
    )
    if figure:
        for kind in ("svg", "png"):
            shutil.copyfile(out / f"damage.{kind}", FIGURE.with_suffix(f".{kind}"))
    shutil.rmtree(out)
    # Where the models lay is of this machine.
    return {key: value for key, value in found.items() if key != "models"}


def render(result: dict[str, Any]) -> str:
    profile, order = result["profile"], result["order"]
    lines = [
        "## Damage by scheme and capability",
        "",
        f"`paser damage` on {profile['rows']} held-out rows of the default sources, SmolLM2-135M-Instruct: "
        "mean Jensen-Shannon divergence to the original with its 95 % interval, and the rank of the "
        "capability in that scheme (1 is damaged most).",
        "",
        f"| scheme | {' | '.join(order)} | mean | worst / least |",
        f"|---|{'--:|' * (len(order) + 2)}",
    ]
    by_name = {entry["name"]: entry["schemes"] for entry in profile["capabilities"]}
    for scheme in profile["schemes"]:
        cells = [by_name[name][scheme] for name in order]
        values = [cell["jsd"]["value"] for cell in cells]
        lines.append(
            f"| {scheme} | {' | '.join(shown(cell['jsd'], cell['rank']) for cell in cells)} "
            f"| {profile['overall'][scheme]['jsd']['value']:.3f} | {max(values) / min(values):.2f} |"
        )
    lines += ["", "The same rows, increase in loss (nats a token):", ""]
    lines += [f"| scheme | {' | '.join(order)} | mean |", f"|---|{'--:|' * (len(order) + 1)}"]
    for scheme in profile["schemes"]:
        cells = [by_name[name][scheme]["loss_increase"] for name in order]
        lines.append(
            f"| {scheme} | {' | '.join(shown(cell) for cell in cells)} "
            f"| {profile['overall'][scheme]['loss_increase']['value']:.3f} |"
        )
    figure = "[pruning.md](pruning.md#the-damage-profile)"
    return "\n".join([*lines, "", f"The paper's four schemes as a figure: {figure}."])


def shown(found: dict[str, float], rank: int | None = None) -> str:
    text = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return text if rank is None else f"{text} #{rank}"
