"""What every scheme promises, whichever it is: each test runs for all of `schemes()`, new ones included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paser.models.tokens import Encoded
from paser.pruning.achieved import check_removed, check_width, check_zeros, removed
from paser.pruning.protocol import PrunedModel, prune, schemes
from paser.settings import PRUNE_OPTIONS, PruneSettings
from tests import tiny

NAMES = list(schemes())
SEED = 17
# Shares that the tiny model's widths and its four blocks can meet.
SPARSITY = {"unstructured": 0.5, "structured": 0.25, "sliced": 0.25, "depth": 0.25}
# Settings beside the defaults under which a scheme works in another way.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("random", {"options": {"ratios": "layerwise"}}),
    *(
        (name, {"pattern": pattern})
        for name in NAMES
        if schemes()[name].patterns
        for pattern in ("2:4", "4:8")
    ),
]


def settings_for(name: str, **more: Any) -> PruneSettings:
    return PruneSettings(**{"scheme": name, "sparsity": SPARSITY[schemes()[name].kind], **more})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks wide enough that every scheme has something to choose from."""
    return tiny.make_llama(
        tmp_path_factory.mktemp("contract") / "dense", hidden=64, inner=128, blocks=4, heads=8
    )


@pytest.fixture(scope="module")
def calibration() -> list[Encoded]:
    def ids(first: int, step: int, count: int) -> tuple[int, ...]:
        return tuple((first + step * number) % 500 + 3 for number in range(count))

    return [Encoded(ids(5 * i, 7, 20), ids(11 * i, 3, 30)) for i in range(8)]


def load(path: Path) -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=torch.float32)


Run = Any


@pytest.fixture(scope="module")
def runs(dense: Path, calibration: list[Encoded], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Prunes once for each scheme and settings, saves, and remembers both."""
    done: dict[str, tuple[PrunedModel, Path]] = {}

    def run(name: str, **more: Any) -> tuple[PrunedModel, Path]:
        from paser.models.loading import load_tokenizer, save_causal_lm

        key = f"{name} {more}"
        if key not in done:
            result = prune(load(dense), calibration, settings_for(name, **more), SEED)
            folder = tmp_path_factory.mktemp(name) / "pruned"
            save_causal_lm(result.model, load_tokenizer(dense), folder)
            done[key] = (result, folder)
        return done[key]

    return run


def test_every_scheme_can_be_named_in_params_yaml() -> None:
    assert list(PRUNE_OPTIONS) == NAMES


def check_achieved(dense: Path, pruned: Path, result: PrunedModel, settings: PruneSettings) -> None:
    """Raises unless the saved files have lost what `settings` asks for."""
    from paser.models.sparsity import measure

    kind = schemes()[settings.scheme].kind
    if kind == "unstructured":
        check_zeros(measure(pruned), settings)
    elif kind == "sliced":
        before, after = check_width(dense, pruned, settings)
        assert after == 0.75 * before
    else:
        check_removed(removed(dense, pruned, result.report.facts.get("blocks")), kind, settings)


@pytest.mark.parametrize(("name", "more"), VARIANTS)
def test_the_share_asked_for_is_found_in_the_saved_files(
    runs: Run, dense: Path, name: str, more: dict[str, Any]
) -> None:
    result, folder = runs(name, **more)
    check_achieved(dense, folder, result, settings_for(name, **more))


@pytest.mark.parametrize(("name", "more"), VARIANTS)
def test_the_same_seed_gives_the_same_bytes(
    runs: Run, dense: Path, calibration: list[Encoded], tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    from paser.artifacts import file_digests
    from paser.models.loading import load_tokenizer, save_causal_lm

    first, folder = runs(name, **more)
    again = prune(load(dense), calibration, settings_for(name, **more), SEED)
    save_causal_lm(again.model, load_tokenizer(dense), tmp_path / "again")
    assert file_digests(tmp_path / "again") == file_digests(folder)
    assert again.report == first.report


@pytest.mark.parametrize(("name", "more"), VARIANTS)
def test_what_was_saved_loads_with_equal_logits_and_generates(
    runs: Run, name: str, more: dict[str, Any]
) -> None:
    import torch

    result, folder = runs(name, **more)
    ids = torch.arange(5, 45)[None]
    loaded = load(folder)
    with torch.no_grad():
        expected, found = result.model(ids).logits, loaded(ids).logits
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, expected)
    text = loaded.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert text.shape == (1, 44)
    assert torch.equal(text, result.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", NAMES)
def test_tied_embeddings_stay_tied_where_the_scheme_allows(runs: Run, name: str) -> None:
    result, folder = runs(name)
    for model in (result.model, load(folder)):
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == schemes()[name].ties
        assert bool(model.config.tie_word_embeddings) == schemes()[name].ties


@pytest.mark.parametrize("name", NAMES)
def test_what_the_scheme_does_not_prune_is_equal_to_the_last_bit(runs: Run, dense: Path, name: str) -> None:
    """Embeddings and norms where the residual stream keeps its basis; whole blocks that were left alone."""
    import torch

    result, _ = runs(name)
    before, after = load(dense).state_dict(), result.model.state_dict()
    if schemes()[name].ties:
        assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
        assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    if schemes()[name].kind == "unstructured":
        assert all(torch.equal(after[key], before[key]) for key in before if "norm" in key)
    blocks = result.report.facts.get("blocks")
    if schemes()[name].kind == "structured" and blocks is not None:
        for key in before:
            if key.startswith("model.layers.") and int(key.split(".")[2]) not in blocks:
                assert torch.equal(after[key], before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_the_report_names_the_scheme_and_what_it_saw(
    runs: Run, calibration: list[Encoded], name: str
) -> None:
    import json

    report = runs(name)[0].report
    assert report.scheme == name
    assert report.samples in (0, len(calibration))
    assert report.tokens == (sum(s.tokens for s in calibration) if report.samples else 0)
    assert json.loads(json.dumps(report.facts)) == report.facts
