"""PASER: the budget follows the damage, samples go by efficiency, the concept graph filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from paser.errors import SettingsError
from paser.method.budget import distance_from_uniform, policy_weights
from paser.method.concepts import key_phrases
from paser.method.efficiency import agreement, cluster_means, efficiency
from paser.method.selection import REASONS, Candidates, Outcome, select
from paser.selectors.coverage import BY_THE_TOKEN, Covering, coverage_order
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


class RecoverableCoverageSettings(SelectSettings):
    """Shares by what a training token recovers; inside a cluster, rows that recover much and stand for others
    that do."""

    selector: Literal["recoverable-coverage"] = "recoverable-coverage"


class CoverageSettings(PaserSettings, Covering):
    """As for PASER, with the budget by damage and size and no concept filter unless asked for."""

    RULES: ClassVar[dict[str, dict[str, Any]]] = {
        "paser": {**PaserSettings.RULES["paser"], "policy": "damage_size", "strictness": 0.0}
    }


# (pool, amount, unit) -> a value a row, shape (n,), higher first
Ranking = Callable[[ScoredPool, int, str], "np.ndarray"]


@dataclass(frozen=True)
class Measured:
    """`ies`: what the usable rows are ranked by. `damage`, `weights`: damage and share of the K clusters."""

    ies: np.ndarray
    damage: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class PaserSelector:
    """method.md, sections 2 to 4, on scored and clustered rows.

    `ranking`: the order inside clusters, in place of the one that `settings.order` names, and `order`: what
    the report calls it.
    """

    settings: SelectSettings
    ranking: Ranking | None = None
    order: str | None = None

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        settings = self.settings
        ranking = self.ranking or ranking_of(settings)
        measured = measure(pool, settings, ranking(pool, amount, unit))
        outcome = decide(pool, measured, settings, amount, unit)
        selection = _on_pool(pool, outcome, measured.ies)
        report = {
            "selector": settings.selector,
            "policy": settings.policy,
            "divergence": pool.divergence,
            "order": self.order or settings.order,
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


def measure(pool: ScoredPool, settings: SelectSettings, values: np.ndarray) -> Measured:
    """Damage and budget shares (method.md, section 2) over the usable rows, which `values`, shape (n,),
    rank."""
    import numpy as np

    usable = pool.usable
    damage, clusters = pool.damage[usable], pool.clusters[usable]
    count = int(pool.clusters.max()) + 1 if len(pool) else 0
    means = cluster_means(damage, clusters, count)
    increase = cluster_means(pool.divergences[DELTA_LOSS][usable], clusters, count)
    sizes = np.bincount(clusters, minlength=count)
    rates = np.zeros(count)
    if settings.policy == "damage_rate":
        totals, tokens = (
            cluster_means(column[usable], clusters, count)
            for column in (damage_as(pool, "total"), pool.tokens.astype(float))
        )
        rates = totals / np.maximum(tokens, 1.0)
    return Measured(
        ies=values[usable],
        damage=means,
        weights=policy_weights(settings.policy, means, sizes, increase, rates, settings.gamma),
    )


def ranking_of(settings: SelectSettings, embeddings: Callable[[], np.ndarray] | None = None) -> Ranking:
    """The order inside clusters that `select.order` names.

    `embeddings()`: of the pool's prompts, shape (n, e); `coverage` alone asks for them. Raises SettingsError
    where it has none.
    """
    order = settings.order
    if order == "efficiency":
        return lambda pool, amount, unit: efficiency(pool.damage, pool.prompt_tokens, pool.response_tokens)
    if order != "coverage":
        return lambda pool, amount, unit: damage_as(pool, order)
    if embeddings is None:
        raise SettingsError(
            "the order `coverage` needs embeddings", remedy="give them, or take another order"
        )
    return lambda pool, amount, unit: coverage_order(pool, embeddings(), BY_THE_TOKEN, amount, unit)


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
