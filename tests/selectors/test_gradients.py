"""Selectors that train a little and take gradients, against loops written from the papers' formulas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from paser.errors import StageError
from paser.models.tokens import Encoded
from paser.records import draw_key
from paser.selectors import dynamics, influence, matching, predictive
from paser.selectors.registry import selector
from paser.selectors.resources import Meter
from paser.selectors.training import Tuned, adapted, epochs, row_gradients
from tests.selectors.conftest import Ground, plain_logits, plain_loss

DEAR = {
    "nuggets": {"anchors": 2},
    "el2n": {"share": 0.2},
    "grand": {"share": 0.2},
    "variance-of-gradients": {"share": 0.2},
    "influence-effort": {"groups": 4},
    "q-tuning": {},
    "preselect": {"share": 0.2},
    "less": {"share": 0.2, "dimensions": 64},
    "ifd": {},
    "instruction-mining": {},
}


@pytest.mark.parametrize("name", DEAR)
def test_the_amount_is_never_exceeded_and_a_second_run_takes_the_same_rows(ground: Ground, name: str) -> None:
    made = selector(name, DEAR[name], ground.resources, 1)
    first = made(ground.pool, 200, "tokens")
    assert 0 < int(ground.pool.tokens[first.accepted].sum()) == first.report["spent"] <= 200
    assert made(ground.pool, 200, "tokens").positions.tolist() == first.positions.tolist()
    assert set(first.report["cost"]) == {"forward_tokens", "backward_tokens", "embedded_rows"}


def drawn(ground: Ground, purpose: str, seed: int, count: int) -> list[Encoded]:
    order = sorted(range(24), key=lambda i: draw_key(purpose, seed, ground.pool.row_ids[i]))
    return [ground.encoded[i] for i in order[:count]]


def trained(ground: Ground, rows: Sequence[Encoded], seed: int, count: int) -> Tuned:
    tuned = adapted(ground.models.pruned(), ground.models.recover, seed)
    for _ in epochs(tuned, rows, count, Meter()):
        pass
    return tuned


def plain_gradient(tuned: Tuned, row: Encoded) -> np.ndarray:
    for parameter in tuned.parameters:
        parameter.grad = None
    plain_loss(tuned.inner, row).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in tuned.parameters if p.grad is not None])


def test_training_lowers_the_loss_of_its_rows_and_counts_its_tokens(ground: Ground) -> None:
    rows, meter = ground.encoded[:4], Meter()
    settings = ground.models.recover.model_copy(update={"learning_rate": 1e-2})
    tuned = adapted(ground.models.pruned(), settings, 1)
    before = sum(plain_loss(tuned.inner, row).item() for row in rows)
    assert list(epochs(tuned, rows, 5, meter)) == [1, 2, 3, 4, 5]
    assert sum(plain_loss(tuned.inner, row).item() for row in rows) < before - 0.1
    tokens = 5 * sum(row.tokens for row in rows)
    assert meter.as_json() == {"forward_tokens": tokens, "backward_tokens": tokens, "embedded_rows": 0}


def test_el2n_is_the_mean_error_vector_over_tokens_and_three_runs(ground: Ground) -> None:
    import torch

    found = dynamics.el2n(ground.pool, ground.models, dynamics.RepeatedOptions(share=0.2), 7, Meter())
    total = np.zeros(24)
    for seed in (7, 8, 9):
        model = trained(ground, drawn(ground, "early", seed, 5), seed, 1).inner
        for i, row in enumerate(ground.encoded):
            with torch.no_grad():
                shares = plain_logits(model, row).softmax(-1)
            errors = []
            for t, token in enumerate(row.response_ids):
                vector = shares[t].clone()
                vector[token] -= 1
                errors.append(float(vector.norm()))
            total[i] += np.mean(errors)
    assert found.values == pytest.approx(total / 3, rel=1e-4)


def test_grand_is_the_mean_gradient_norm_over_three_runs(ground: Ground) -> None:
    meter = Meter()
    found = dynamics.grand(ground.pool, ground.models, dynamics.RepeatedOptions(share=0.2), 7, meter)
    total, warm = np.zeros(24), 0
    for seed in (7, 8, 9):
        rows = drawn(ground, "early", seed, 5)
        warm += sum(row.tokens for row in rows)
        tuned = trained(ground, rows, seed, 1)
        total += [np.linalg.norm(plain_gradient(tuned, row)) for row in ground.encoded]
    assert found.values == pytest.approx(total / 3, rel=1e-3)
    assert meter.backward_tokens == warm + 3 * int(ground.pool.tokens.sum())


def test_variance_of_gradients_is_over_checkpoints_and_standard_in_each_cluster(ground: Ground) -> None:
    import torch

    options = dynamics.VarianceOptions(share=0.2)
    found = dynamics.gradient_variance(ground.pool, ground.models, options, 7, Meter()).values
    tuned = adapted(ground.models.pruned(), ground.models.recover, 7)
    gradients: list[list[np.ndarray]] = [[] for _ in range(24)]
    for _ in epochs(tuned, drawn(ground, "variance-of-gradients", 7, 5), 3, Meter()):
        for i, row in enumerate(ground.encoded):
            whole = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            inputs = tuned.inner.get_input_embeddings()(whole).detach().requires_grad_()
            logits = tuned.inner(inputs_embeds=inputs).logits[0, len(row.prompt_ids) - 1 : -1]
            mean = sum(logits[t, token] for t, token in enumerate(row.response_ids)) / len(row.response_ids)
            gradients[i].append(torch.autograd.grad(mean, inputs)[0].numpy())
    raw = np.array([np.std(np.stack(g), axis=0).mean() for g in gradients])
    for k in range(3):
        inside = raw[ground.pool.clusters == k]
        expected = (inside - inside.mean()) / inside.std()
        assert found[ground.pool.clusters == k] == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_less_sums_the_cosines_of_adam_steps_with_each_target_group(ground: Ground) -> None:
    options = matching.LessOptions(share=0.2, dimensions=4096)
    found = matching.less(ground.pool, ground.models, options, 7, Meter()).values
    tuned = adapted(ground.models.pruned(), ground.models.recover, 7)
    encoder = ground.models.pruned().encoder
    groups: dict[str, list[Encoded]] = {}
    for sample in ground.models.targets:
        groups.setdefault(str(sample.label), []).append(encoder.encode(sample, 200))
    size = sum(p.numel() for p in tuned.parameters)
    sketch = matching.Sketch(size, 4096, 7)
    matrix = np.zeros((4096, size), dtype=np.float32)
    matrix[sketch.place.numpy(), np.arange(size)] = sketch.sign.numpy()
    sums = np.zeros((24, len(groups)))
    for _ in epochs(tuned, drawn(ground, "less", 7, 5), 2, Meter()):
        states: list[Any] = [tuned.optimiser.state[p] for p in tuned.parameters]
        first = np.concatenate([s["exp_avg"].numpy().ravel() for s in states])
        second = np.concatenate([s["exp_avg_sq"].numpy().ravel() for s in states])
        steps = int(states[0]["step"]) + 1
        wanted = []
        for rows in groups.values():
            wanted.append(matrix @ np.mean([plain_gradient(tuned, row) for row in rows], axis=0))
        for i, row in enumerate(ground.encoded):
            gradient = plain_gradient(tuned, row)
            mean = (0.9 * first + 0.1 * gradient) / (1 - 0.9**steps)
            square = (0.999 * second + 0.001 * gradient**2) / (1 - 0.999**steps)
            step = matrix @ (mean / (np.sqrt(square) + 1e-8))
            for j, target in enumerate(wanted):
                cosine = step @ target / np.linalg.norm(step) / np.linalg.norm(target)
                sums[i, j] += ground.models.recover.learning_rate * cosine
    assert found == pytest.approx(sums.max(axis=1), rel=2e-2, abs=1e-6)


def test_the_sketch_keeps_inner_products_in_expectation() -> None:
    import torch

    torch.manual_seed(0)
    one, other = torch.randn(300), torch.randn(300)
    other += one
    found = [
        float(sketch(one) @ sketch(other))
        for sketch in (matching.Sketch(300, 64, seed) for seed in range(300))
    ]
    assert np.mean(found) == pytest.approx(float(one @ other), rel=0.05)


def test_influence_is_the_change_of_risk_when_a_row_is_left_out() -> None:
    """Against the surrogate fitted again without the row, to first order."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(400, 4))
    target = points @ np.array([2.0, -1.0, 1.0, 3.0]) + 0.5 * rng.normal(size=400)

    def fitted(kept: np.ndarray) -> np.ndarray:
        system = points[kept].T @ points[kept] / 400 + 0.5 * np.eye(4)
        return np.linalg.solve(system, points[kept].T @ target[kept] / 400)

    def risk(weights: np.ndarray) -> float:
        return float(((points @ weights - target) ** 2).mean() / 2)

    whole = risk(fitted(np.arange(400)))
    change = [risk(fitted(np.delete(np.arange(400), i))) - whole for i in range(400)]
    found = influence.removal_influence(points, target, 0.5)
    assert np.corrcoef(found, change)[0, 1] > 0.98
    assert np.polyfit(found, change, 1)[0] == pytest.approx(1.0, abs=0.15)


def test_strata_of_influence_and_effort_take_turns(ground: Ground) -> None:
    tuned = adapted(ground.models.pruned(), ground.models.recover, 5)
    effort = np.array([np.linalg.norm(plain_gradient(tuned, row)) for row in ground.encoded])
    embeddings, loss = ground.resources.embeddings, ground.resources.loss_pruned
    assert embeddings is not None
    assert loss is not None
    points, count = embeddings.astype(float), len(loss)
    inverse = np.linalg.inv(sum(np.outer(p, p) for p in points) / count + 0.01 * np.eye(points.shape[1]))
    weights = inverse @ sum(p * y for p, y in zip(points, loss, strict=True)) / count
    gradients = [float(p @ weights - y) * p for p, y in zip(points, loss, strict=True)]
    whole = sum(gradients) / count
    rise = np.array([float(whole @ inverse @ g) / count for g in gradients])

    def scaled(values: np.ndarray) -> np.ndarray:
        return (values - values.min()) / (values.max() - values.min())

    score = scaled(scaled(rise) + 0.5 * scaled(effort))
    stratum = np.minimum((score * 4).astype(int), 3)
    ids = ground.pool.row_ids
    queues = [
        sorted(np.flatnonzero(stratum == k).tolist(), key=lambda i: draw_key("influence-effort", 5, ids[i]))
        for k in sorted(range(4), key=lambda k: (int((stratum == k).sum()), k))
    ]
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    filled = len(set(stratum.tolist()))
    selection = selector("influence-effort", {"groups": 4}, ground.resources, 5)(ground.pool, filled, "rows")
    for k in set(ground.pool.clusters.tolist()):
        inside = [i for i in turns if ground.pool.clusters[i] == k]
        assert selection.rank[inside].tolist() == list(range(1, len(inside) + 1))
    assert sorted(selection.positions.tolist()) == sorted(turns[:filled])
    assert sorted(stratum[selection.positions]) == sorted(set(stratum.tolist()))


def test_predictive_strength_is_the_share_of_pairs_ranked_as_by_ability() -> None:
    losses = np.array([[1.0, 2.0, 1.0], [2.0, 1.5, 2.0], [3.0, 1.0, 3.5]])
    assert predictive.predictive_strength(losses).tolist() == [1.0, 0.0, 1.0]
    assert predictive.predictive_strength(losses[:, [0, 1, 2, 2]]).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_preselect_ranks_both_models_and_those_of_its_short_run_and_learns_who_agrees(ground: Ground) -> None:
    import torch

    pool = ground.pool
    loss_original, loss_pruned = ground.resources.loss_original, ground.resources.loss_pruned
    assert loss_original is not None
    assert loss_pruned is not None
    table = [loss_original.tolist(), loss_pruned.tolist()]
    warm = drawn(ground, "preselect", 3, 5)
    for count in (1, 2, 3):
        tuned = trained(ground, warm, 3, count)
        with torch.no_grad():
            table.append([float(plain_loss(tuned.inner, row)) for row in ground.encoded])
    able = [sum(losses) / len(losses) for losses in table]
    strength = []
    for row in range(24):
        pairs = [(a, b) for a in range(5) for b in range(5) if able[a] < able[b]]
        strength.append(sum(table[a][row] < table[b][row] for a, b in pairs) / len(pairs))
    given = [loss_original, loss_pruned]
    options = predictive.PreselectOptions(share=0.2)
    found = predictive.preselect(pool, ground.models, given, options, 3, Meter())
    assert found.facts == {"models": 5, "strength": pytest.approx(sum(strength) / 24, abs=1e-6)}
    order = sorted(range(24), key=lambda i: pool.row_ids[i])
    scores = predictive.fitted_scores(
        list(pool.texts(np.array(order))), np.array([strength[i] for i in order]), 0.3
    )
    assert found.values[order] == pytest.approx(scores, abs=1e-9)


def test_the_scorer_finds_the_words_of_strong_rows() -> None:
    lines = [f"the {'river' if i % 2 else 'stone'} number{i}" for i in range(40)]
    strength = np.array([float(i % 2) if i < 20 else 0.5 for i in range(40)])
    found = predictive.fitted_scores(lines, strength, 0.25)
    assert min(found[21::2]) > max(found[20::2])
    with pytest.raises(StageError, match="same predictive strength"):
        predictive.fitted_scores(lines, np.ones(40), 0.25)


def test_the_scorer_is_a_ridge_logistic_regression_on_shares_of_words_and_pairs_of_words() -> None:
    """Against Newton's steps on the penalised likelihood, with a column for each word and pair."""
    lines = [
        "a red fox runs",
        "red fox sleeps",
        "the owl sees red",
        "blue owl",
        "blue fox and owl",
        "the red owl",
    ]
    strength = np.array([0.9, 0.5, 0.8, 0.1, 0.2, 0.6])
    bags = []
    for line in lines:
        words = [word for word in line.split() if len(word) > 1]
        bags.append(words + [f"{one} {two}" for one, two in pairwise(words)])
    terms = sorted({term for bag in bags for term in bag})
    counts = np.array([[float(bag.count(term)) for term in terms] for bag in bags])
    columns = np.hstack([counts / np.linalg.norm(counts, axis=1, keepdims=True), np.ones((6, 1))])
    strong, weak = [0, 2], [4, 3]
    given, label = columns[strong + weak], np.array([1.0, 1.0, 0.0, 0.0])
    penalty = np.diag([1.0] * len(terms) + [0.0])
    weights = np.zeros(len(terms) + 1)
    for _ in range(30):
        chance = 1 / (1 + np.exp(-given @ weights))
        slope = given.T @ (chance - label) + penalty @ weights
        curve = given.T @ (given * (chance * (1 - chance))[:, None]) + penalty
        weights -= np.linalg.solve(curve, slope)
    assert predictive.fitted_scores(lines, strength, 0.3) == pytest.approx(columns @ weights, abs=1e-3)


def test_a_bfloat16_model_is_read_and_differentiated(ground: Ground) -> None:
    import torch

    language = ground.models.pruned()
    language.model.to(torch.bfloat16)
    tuned = adapted(language, ground.models.recover, 1)
    for _ in epochs(tuned, ground.encoded[:4], 1, Meter()):
        pass
    from paser.selectors.reading import read

    assert np.isfinite(read(tuned.inner, ground.encoded[:3], Meter()).loss).all()
    gradients = list(row_gradients(tuned, ground.encoded[:2], Meter()))
    assert all(torch.isfinite(g).all() and g.norm() > 0 for g in gradients)
    assert torch.isfinite(dynamics.input_gradient(tuned, ground.encoded[0], Meter())).all()
