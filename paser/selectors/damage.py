"""PASER: the budget follows the damage, samples go by efficiency, the concept graph filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from paser.method.budget import distance_from_uniform, policy_weights
from paser.method.concepts import key_phrases
from paser.method.efficiency import agreement, cluster_means, efficiency
from paser.method.selection import REASONS, Candidates, Outcome, select
from paser.selectors.protocol import DELTA_LOSS, JSD, ScoredPool, Selection, costs
from paser.selectors.ranked import damage_as
from paser.settings import SelectSettings

if TYPE_CHECKING:
    import numpy as np


class PaserSettings(SelectSettings):
    """The paper's rule, where nothing else is given."""

    selector: Literal["paser"] = "paser"


class PerTokenSettings(SelectSettings):
    """The rule by damage a token: each cluster gives the rows that show the most for each training token."""

    selector: Literal["per-token"] = "per-token"


class RecoverableSettings(SelectSettings):
    """The same by recoverability in place of damage."""

    selector: Literal["recoverable"] = "recoverable"


@dataclass(frozen=True)
class Measured:
    """`ies`: what the usable rows are ranked by. `damage`, `weights`: damage and share of the K clusters."""

    ies: np.ndarray
    damage: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class PaserSelector:
    """method.md, sections 2 to 4, on scored and clustered rows.

    `ranking(pool, amount, unit)`: the order inside clusters, in place of efficiency: a value a row, shape
    (n,), higher first.
    """

    settings: SelectSettings
    ranking: Callable[[ScoredPool, int, str], np.ndarray] | None = None

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        settings = self.settings
        measured = measure(pool, settings)
        if self.ranking:
            measured = replace(measured, ies=self.ranking(pool, amount, unit)[pool.usable])
        outcome = decide(pool, measured, settings, amount, unit)
        selection = _on_pool(pool, outcome, measured.ies)
        report = {
            "selector": settings.selector,
            "policy": settings.policy,
            "divergence": pool.divergence,
            "order": settings.order,
            "agreement": _agreement(pool),
            "concepts": {"phrases": settings.concepts, "words": settings.phrase_words},
            "budget": amount,
            "unit": unit,
            "spent": sum(outcome.spent),
            "unspent": amount - sum(outcome.spent),
            "cause": outcome.cause,
            "distance_from_uniform": round(distance_from_uniform(outcome.allocated), 6),
            "clusters": _clusters(pool, selection, outcome, measured),
            "moves": [vars(move) for move in outcome.moves],
            "rejected": selection.rejected,
            "conflicts": outcome.conflicts,
            "rejected_share": round(outcome.conflicts / outcome.judged, 6) if outcome.judged else 0.0,
            "relaxed": outcome.relaxed,
            "concepts_known": len(outcome.graph),
        }
        return replace(selection, report=report)


def measure(pool: ScoredPool, settings: SelectSettings) -> Measured:
    """Efficiency, damage and budget shares (method.md, section 2) over the usable rows."""
    import numpy as np

    usable = pool.usable
    damage, clusters = pool.damage[usable], pool.clusters[usable]
    count = int(pool.clusters.max()) + 1 if len(pool) else 0
    means = cluster_means(damage, clusters, count)
    increase = cluster_means(pool.divergences[DELTA_LOSS][usable], clusters, count)
    sizes = np.bincount(clusters, minlength=count)
    totals, tokens = (
        cluster_means(values[usable], clusters, count)
        for values in (damage_as(pool, "total"), pool.tokens.astype(float))
    )
    rates = totals / np.maximum(tokens, 1.0)
    return Measured(
        ies=_order(pool, settings)[usable],
        damage=means,
        weights=policy_weights(settings.policy, means, sizes, increase, rates, settings.gamma),
    )


def _order(pool: ScoredPool, settings: SelectSettings) -> np.ndarray:
    """What the rows of a cluster are ranked by, higher first. Shape (n,)."""
    if settings.order == "efficiency":
        return efficiency(pool.damage, pool.prompt_tokens, pool.response_tokens)
    return damage_as(pool, settings.order)


def decide(pool: ScoredPool, measured: Measured, settings: SelectSettings, amount: int, unit: str) -> Outcome:
    """The algorithm (method.md, section 4) on the usable rows, in their order."""
    usable = pool.usable

    def concepts(positions: np.ndarray) -> list[tuple[str, ...]]:
        texts = pool.texts(usable[positions])
        return [key_phrases(text, settings.concepts, settings.phrase_words) for text in texts]

    return select(
        Candidates(
            row_ids=[pool.row_ids[i] for i in usable.tolist()],
            clusters=pool.clusters[usable],
            ies=measured.ies,
            cost=costs(pool, unit)[usable],
            concepts=concepts,
        ),
        amount,
        measured.weights,
        measured.damage,
        strictness=settings.strictness,
        on_shortfall=settings.on_shortfall,
        floor=settings.floor,
    )


def _on_pool(pool: ScoredPool, outcome: Outcome, ies: np.ndarray) -> Selection:
    """The outcome on usable rows, with the refusals of the others."""
    import numpy as np

    usable = pool.usable
    accepted, scores = np.zeros(len(pool), dtype=bool), np.full(len(pool), np.nan)
    reasons, rank = pool.refusals.copy(), np.zeros(len(pool), dtype=np.int64)
    accepted[usable], scores[usable], rank[usable] = outcome.accepted, ies, outcome.rank
    reasons[usable] = np.array(REASONS, dtype=object)[outcome.reasons]

    def detail(position: int) -> str:
        if pool.refusals[position]:
            return pool.refusal_detail(position)
        return outcome.detail(int(np.searchsorted(usable, position)))

    return Selection(accepted, reasons, detail, scores, rank)


def _clusters(
    pool: ScoredPool, selection: Selection, outcome: Outcome, measured: Measured
) -> list[dict[str, Any]]:
    """One entry a cluster. `cds`: mean JSD; `damage`: mean of the divergence that was selected by;
    `visited`: 1 for the cluster that was visited first.
    """
    rows = Counter(pool.clusters.tolist())
    cds = cluster_means(pool.divergences[JSD][pool.usable], pool.clusters[pool.usable], len(measured.damage))
    accepted = Counter(pool.clusters[selection.accepted].tolist())
    return [
        {
            "cluster": k,
            "rows": rows[k],
            "cds": float(cds[k]),
            "damage": float(measured.damage[k]),
            "share": float(measured.weights[k]),
            "allocated": outcome.allocated[k],
            "spent": outcome.spent[k],
            "accepted": accepted[k],
            "visited": outcome.visiting.index(k) + 1,
        }
        for k in range(len(measured.damage))
    ]


def _agreement(pool: ScoredPool) -> dict[str, Any]:
    """How the divergences rank the usable rows for which all of them are known."""
    import numpy as np

    columns = {name: values[pool.usable] for name, values in pool.divergences.items()}
    known = np.logical_and.reduce([np.isfinite(values) for values in columns.values()])
    return agreement({name: values[known] for name, values in columns.items()})
