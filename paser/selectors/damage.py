"""PASER: the budget follows the damage, samples go by efficiency, the concept graph filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paser.method.budget import distance_from_uniform, policy_weights
from paser.method.concepts import key_phrases
from paser.method.efficiency import cluster_means, efficiency
from paser.method.selection import Candidates, select
from paser.selectors.protocol import ACCEPTED, REJECTED, Decided, ScoredRow, Selection
from paser.settings import SelectSettings


@dataclass(frozen=True)
class PaserSelector:
    """method.md, sections 2 to 4, on scored and clustered rows."""

    settings: SelectSettings

    def __call__(self, rows: Sequence[ScoredRow], amount: int, unit: str) -> Selection:
        import numpy as np

        settings = self.settings
        jsd = np.array([np.nan if row.refusal else row.jsd for row in rows], dtype=float)
        increase = np.array([np.nan if row.refusal else row.loss_increase for row in rows], dtype=float)
        clusters = np.array([row.cluster for row in rows], dtype=np.int64)
        ies = efficiency(
            jsd,
            np.array([row.prompt_tokens for row in rows]),
            np.array([row.response_tokens for row in rows]),
        )
        count = int(clusters.max()) + 1 if len(rows) else 0
        usable = [i for i, row in enumerate(rows) if row.refusal is None]
        sizes = np.bincount(clusters[usable], minlength=count)
        cds = cluster_means(jsd, clusters, count)
        weights = policy_weights(
            settings.policy, cds, sizes, cluster_means(increase, clusters, count), settings.gamma
        )
        outcome = select(
            Candidates(
                [rows[i].row_id for i in usable],
                [rows[i].cluster for i in usable],
                [float(ies[i]) for i in usable],
                [rows[i].tokens if unit == "tokens" else 1 for i in usable],
                [key_phrases(rows[i].text, settings.concepts, settings.phrase_words) for i in usable],
            ),
            amount,
            weights,
            cds,
            strictness=settings.strictness,
            on_shortfall=settings.on_shortfall,
            floor=settings.floor,
        )
        ranks = _ranks(rows, ies.tolist(), usable)
        decisions: list[Decided] = []
        chosen = dict(zip(usable, outcome.decisions, strict=True))
        for i, row in enumerate(rows):
            if row.refusal:
                decisions.append(Decided(REJECTED, *row.refusal))
            else:
                decision = chosen[i]
                word = ACCEPTED if decision.accepted else REJECTED
                decisions.append(Decided(word, decision.reason, decision.detail, float(ies[i]), ranks[i]))
        considered = sum(d.accepted or d.reason == "conflict" for d in outcome.decisions)
        accepted = Counter(rows[i].cluster for i in usable if chosen[i].accepted)
        steps = Counter(
            d.detail.split(";")[0].removeprefix("strictness ")
            for d in outcome.decisions
            if d.accepted and d.reason == "relaxed"
        )
        report = {
            "policy": settings.policy,
            "budget": amount,
            "unit": unit,
            "spent": sum(outcome.spent),
            "unspent": amount - sum(outcome.spent),
            "cause": outcome.cause,
            "distance_from_uniform": round(distance_from_uniform(outcome.allocated), 6),
            "clusters": [
                {
                    "cluster": k,
                    "rows": int((clusters == k).sum()),
                    "cds": float(cds[k]),
                    "share": float(weights[k]),
                    "allocated": outcome.allocated[k],
                    "spent": outcome.spent[k],
                    "accepted": accepted[k],
                }
                for k in range(count)
            ],
            "moves": [vars(move) for move in outcome.moves],
            "rejected": dict(sorted(Counter(d.reason for d in decisions if d.decision == REJECTED).items())),
            "conflicts": outcome.conflicts,
            "rejected_share": round(outcome.conflicts / considered, 6) if considered else 0.0,
            "relaxed": dict(sorted(steps.items(), reverse=True)),
            "concepts_known": len(outcome.graph.introduced),
        }
        return Selection(decisions, report)


def _ranks(rows: Sequence[ScoredRow], ies: Sequence[float], usable: Sequence[int]) -> dict[int, int]:
    """Position of each usable row by efficiency in its cluster, 1 the first."""
    ranks: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for i in sorted(usable, key=lambda i: (-ies[i], rows[i].row_id)):
        seen[rows[i].cluster] += 1
        ranks[i] = seen[rows[i].cluster]
    return ranks
