"""Each unstructured scheme against its formula, written as slow loops over a tiny model's weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.pruning.layers import linear_layers
from paser.pruning.protocol import prune
from paser.settings import PruneSettings

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def calibration() -> list[Encoded]:
    return [Encoded(tuple(range(3, 20 + i)), tuple(range(40, 60 + 3 * i))) for i in range(6)]


def load(path: Path) -> Any:
    import torch

    from paser.models.loading import load_causal_lm

    return load_causal_lm(path, dtype=torch.float32)


def pruned(path: Path, calibration: list[Encoded], seed: int = 17, **settings: Any) -> dict[str, Any]:
    """Weights of the linear layers after pruning."""
    model = load(path)
    prune(model, calibration, PruneSettings(**settings), seed)
    return {name: layer.weight.detach() for name, layer in linear_layers(model).items()}


def weights(path: Path) -> dict[str, Any]:
    return {name: layer.weight.detach() for name, layer in linear_layers(load(path)).items()}


def first_inputs(path: Path, calibration: list[Encoded]) -> Any:
    """What enters the first query projection: (samples' tokens, inputs), and the samples one by one."""
    import torch

    model, seen = load(path), []
    model.get_submodule(QUERY).register_forward_pre_hook(lambda _, args: seen.append(args[0][0].detach()))
    for sample in calibration:
        with torch.no_grad():
            model(torch.tensor([sample.prompt_ids + sample.response_ids]))
    return seen


def lowest(values: list[float], count: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda i: values[i])[:count])


def test_magnitude_removes_the_smallest_of_each_layer(llama: Path, calibration: list[Encoded]) -> None:
    before, after = weights(llama), pruned(llama, calibration, scheme="magnitude", sparsity=0.3)
    for name, weight in before.items():
        flat = weight.flatten().tolist()
        gone = lowest([abs(value) for value in flat], round(0.3 * len(flat)))
        expected = [0.0 if i in gone else value for i, value in enumerate(flat)]
        assert after[name].flatten().tolist() == expected


def test_global_magnitude_has_one_threshold_but_for_layers_at_the_limit(
    llama: Path, calibration: list[Encoded]
) -> None:
    model = load(llama)
    import torch

    with torch.no_grad():  # a layer of small weights, which one threshold alone would empty
        model.get_submodule(QUERY).weight.mul_(1e-3)
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(model).items()}
    settings = PruneSettings(scheme="global-magnitude", sparsity=0.4, options={"keep_at_least": 0.25})
    report = prune(model, calibration, settings, 0).report
    after = {name: layer.weight.detach() for name, layer in linear_layers(model).items()}

    protected = {
        (name, i)
        for name, weight in before.items()
        for i in set(range(weight.numel()))
        - lowest(weight.abs().flatten().tolist(), int(0.75 * weight.numel()))
    }
    everything = sorted(
        (float(value), name, i)
        for name, weight in before.items()
        for i, value in enumerate(weight.abs().flatten().tolist())
    )
    count = int(0.4 * len(everything))
    gone = {(n, i) for _, n, i in [e for e in everything if (e[1], e[2]) not in protected][:count]}
    found = {(n, i) for n, w in after.items() for i in (w == 0).flatten().nonzero().flatten().tolist()}
    assert found == gone
    assert float((after[QUERY] == 0).float().mean()) == 0.75
    assert report.facts == {"layers_at_limit": 1}


def test_global_magnitude_refuses_a_limit_that_cannot_be_kept(
    llama: Path, calibration: list[Encoded]
) -> None:
    with pytest.raises(StageError, match=r"keep_at_least is 0\.6.*leaves 0\.5"):
        pruned(llama, calibration, scheme="global-magnitude", options={"keep_at_least": 0.6})


def test_the_default_limit_of_global_magnitude_allows_four_fifths(
    llama: Path, calibration: list[Encoded]
) -> None:
    found = pruned(llama, calibration, scheme="global-magnitude", sparsity=0.8).values()
    zeros = sum(int((weight == 0).sum()) for weight in found)
    assert zeros / sum(weight.numel() for weight in found) == pytest.approx(0.8, abs=0.001)
    with pytest.raises(StageError, match=r"leaves 0\.19 [\s\S]*at most 0\.19"):
        pruned(llama, calibration, scheme="global-magnitude", sparsity=0.81)


def test_random_depends_on_the_seed_alone_and_not_on_the_weights(
    llama: Path, calibration: list[Encoded]
) -> None:
    first = {n: w != 0 for n, w in pruned(llama, calibration, scheme="random").items()}
    other = {n: w != 0 for n, w in pruned(llama, [], seed=18, scheme="random").items()}
    assert all((first[name] != other[name]).any() for name in first)
    share = sum(float(w.float().sum()) for w in first.values()) / sum(w.numel() for w in first.values())
    assert share == 0.5
    same_shape = [name for name in first if first[name].shape == first[QUERY].shape]
    assert any((first[name] != first[QUERY]).any() for name in same_shape), "layers share one draw"


def test_layerwise_ratios_are_those_of_erdos_and_renyi(llama: Path, calibration: list[Encoded]) -> None:
    before = weights(llama)
    after = pruned(llama, calibration, scheme="random", sparsity=0.6, options={"ratios": "layerwise"})
    total = sum(weight.numel() for weight in before.values())
    density = {name: float((weight != 0).float().mean()) for name, weight in after.items()}
    assert sum(density[n] * before[n].numel() for n in before) == pytest.approx(0.4 * total, abs=len(before))
    factors = {
        name: density[name] / ((weight.shape[0] + weight.shape[1]) / weight.numel())
        for name, weight in before.items()
        if density[name] < 1
    }
    assert max(factors.values()) == pytest.approx(min(factors.values()), rel=0.01)
    assert all(density[name] == 1 or name in factors for name in before)


def test_layerwise_ratios_leave_small_layers_dense_rather_than_pass_one() -> None:
    import torch

    from paser.pruning.random import layerwise

    layers = {"wide": torch.nn.Linear(1000, 1000), "small": torch.nn.Linear(10, 10)}
    found = layerwise(layers, 0.5)
    assert found["small"] == 0.0
    assert found["wide"] * 1_000_000 == pytest.approx(0.5 * 1_000_100)


def test_sparsegpt_is_the_loop_of_its_paper(llama: Path, calibration: list[Encoded]) -> None:
    """Column by column: prune by w^2 / [H^-1]_cc^2, spread the error over the columns after it."""
    import torch

    before = weights(llama)[QUERY].double()
    samples = [x.double() for x in first_inputs(llama, calibration)]
    hessian = sum(2 / len(samples) * x.T @ x for x in samples)
    hessian += 0.05 * hessian.diag().mean() * torch.eye(len(hessian), dtype=torch.double)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    rows, columns, block = *before.shape, 16
    expected = before.clone()
    for at in range(0, columns, block):
        stop = at + block
        saliency = expected[:, at:stop] ** 2 / inverse.diag()[at:stop] ** 2
        threshold = saliency.flatten().sort().values[int(saliency.numel() * 0.5)]
        gone = saliency <= threshold
        for column in range(at, stop):
            kept = expected[:, column].clone()
            for row in range(rows):
                if gone[row, column - at]:
                    kept[row] = 0.0
            error = (expected[:, column] - kept) / inverse[column, column]
            expected[:, column] = kept
            for later in range(column + 1, columns):
                expected[:, later] -= error * inverse[column, later]
    found = pruned(llama, calibration, scheme="sparsegpt", options={"block_size": 16, "dampening": 0.05})[
        QUERY
    ]
    assert torch.equal(found != 0, expected != 0)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_gblm_adds_the_gradient_to_the_score(llama: Path, calibration: list[Encoded]) -> None:
    import torch

    model = load(llama)
    weight = model.get_submodule(QUERY).weight
    values = weight.detach()
    squares = torch.zeros_like(weight, dtype=torch.double)
    for sample in calibration:
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        logits = model(ids).logits[0].double()
        loss = 0.0
        for position in range(ids.shape[1] - 1):
            loss = loss - torch.log_softmax(logits[position], dim=0)[ids[0, position + 1]]
        (gradient,) = torch.autograd.grad(loss / (ids.shape[1] - 1), weight)
        squares += gradient.double() ** 2
    samples = first_inputs(llama, calibration)
    norms = [
        math.sqrt(sum(float(x[:, column].double() @ x[:, column].double()) for x in samples) / len(samples))
        for column in range(weight.shape[1])
    ]

    def expected(alpha: float) -> Any:
        stays = torch.ones(weight.shape, dtype=torch.bool)
        for row in range(weight.shape[0]):
            score = []
            for column in range(weight.shape[1]):
                size = abs(float(values[row, column]))
                score.append(size * norms[column] + alpha * size * math.sqrt(squares[row, column]))
            for column in lowest(score, weight.shape[1] // 2):
                stays[row, column] = False
        return stays

    for alpha in (0.0, 1e5):
        found = pruned(llama, calibration, scheme="gblm", options={"alpha": alpha})[QUERY] != 0
        assert torch.equal(found, expected(alpha))
    assert not torch.equal(expected(0.0), expected(1e5))


def test_gblm_leaves_no_gradient_and_no_hook(llama: Path, calibration: list[Encoded]) -> None:
    model = load(llama)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    prune(model, calibration, PruneSettings(scheme="gblm"), 0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
