"""Every selector by name, with the class of its options and what it needs beside the scored pool.

One way to make them, so that a comparison differs in a name and in nothing else. What a selector sent through
models is in its report, scoring of the pool included where it reads what scoring measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from paser.errors import SettingsError
from paser.selectors.filling import Scored, take_best, take_in_order
from paser.selectors.protocol import ScoredPool, Selection, Selector
from paser.selectors.resources import LanguageModel, Meter, Models, Resources
from paser.settings import Group

if TYPE_CHECKING:
    import numpy as np

    from paser.selectors.damage import Ranking

EMBEDDINGS, CLUSTERS, SCORES = "embeddings", "clusters", "scores"
LOSSES, MODELS = "losses", "models"
SMALL, TARGETS = "models.small", "models.targets"


class NoOptions(Group):
    """For selectors without options."""


# (options, resources, seed, meter) -> the selector
Build = Callable[[Any, Resources, int, Meter], Selector]


@dataclass(frozen=True)
class Entry:
    """The class of the options, the making of the selector, and what of pool and resources it reads."""

    options: type[Group]
    build: Build
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Counted:
    """A selector that goes by its own divergence, and whose report says its name and what it cost."""

    name: str
    entry: Entry
    options: Group
    resources: Resources
    seed: int

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        meter = Meter()
        if {SCORES, LOSSES} & self.entry.needs:
            meter.forward_tokens += 2 * int(pool.tokens.sum())
        if {EMBEDDINGS, CLUSTERS} & self.entry.needs:
            meter.embedded_rows += len(pool)
        self.check(pool)
        pool = replace(pool, divergence=self._divergence(pool))
        selection = self.entry.build(self.options, self.resources, self.seed, meter)(pool, amount, unit)
        report = {**selection.report, "selector": self.name, "cost": meter.as_json()}
        return replace(selection, report=report)

    def check(self, pool: ScoredPool) -> None:
        """Raises SettingsError where the pool lacks the divergence that the selector goes by."""
        if self._divergence(pool) not in pool.divergences:
            raise SettingsError(
                f"the selector {self.name} goes by {self._divergence(pool)}, which the scores do not have",
                remedy="score the pool again with `dvc repro -f score`",
            )

    def _divergence(self, pool: ScoredPool) -> str:
        return str(getattr(self.options, "divergence", pool.divergence))


@dataclass(frozen=True)
class ByScore:
    """Takes the rows with the highest `scores(pool)`."""

    scores: Callable[[ScoredPool], Scored]

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        return take_best(self.scores(pool), pool, amount, unit)


@dataclass(frozen=True)
class ByOrder:
    """Takes rows in the order of `order(pool, amount, unit)`."""

    order: Callable[[ScoredPool, int, str], Any]

    def __call__(self, pool: ScoredPool, amount: int, unit: str) -> Selection:
        return take_in_order(self.order(pool, amount, unit), pool, amount, unit)


def selector(name: str, settings: Mapping[str, Any] | Group, resources: Resources, seed: int) -> Counted:
    """The selector of this name.

    `settings`: its options, checked; for the family of PASER the keys of `select`. Raises SettingsError for
    an unknown name or option and for a resource that is missing.
    """
    known = selectors()
    if name not in known:
        raise SettingsError(f"unknown selector {name!r}", remedy=f"one of {', '.join(known)}")
    entry = known[name]
    given = {
        EMBEDDINGS: resources.embeddings is not None,
        LOSSES: resources.loss_original is not None and resources.loss_pruned is not None,
        MODELS: resources.models is not None,
        SMALL: resources.models is not None and resources.models.small is not None,
        TARGETS: resources.models is not None and bool(resources.models.targets),
    }
    if missing := sorted(need for need in entry.needs if not given.get(need, True)):
        raise SettingsError(
            f"the selector {name} needs {', '.join(missing)}",
            remedy="give them in Resources, or take another",
        )
    return Counted(name, entry, _options(name, entry.options, settings), resources, seed)


def _options(name: str, kind: type[Group], settings: Mapping[str, Any] | Group) -> Group:
    values = settings.model_dump() if isinstance(settings, Group) else dict(settings)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"option {key} of the selector {name} is {first['input']!r}: {first['msg'].lower()}",
            remedy=f"its options: {', '.join(kind.model_fields) or 'none'}",
        ) from error


def embeddings_of(resources: Resources) -> np.ndarray:
    """The embeddings, which `selector` has made sure of."""
    assert resources.embeddings is not None
    return resources.embeddings


def models_of(resources: Resources) -> Models:
    """The models, which `selector` has made sure of."""
    assert resources.models is not None
    return resources.models


def small_of(resources: Resources) -> LanguageModel:
    """The small model, which `selector` has made sure of."""
    small = models_of(resources).small
    assert small is not None
    return small()


def losses_of(resources: Resources) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the original and the pruned model, which `selector` has made sure of."""
    assert resources.loss_original is not None
    assert resources.loss_pruned is not None
    return resources.loss_original, resources.loss_pruned


def selectors() -> dict[str, Entry]:
    """Every selector; docs/selectors.md says where each comes from."""
    from paser.selectors import (
        ablations,
        coverage,
        dynamics,
        geometric,
        influence,
        matching,
        mining,
        predictive,
        ranked,
        readings,
    )
    from paser.selectors.damage import (
        CoverageSettings,
        PaserSelector,
        PaserSettings,
        PerTokenSettings,
        RecoverableCoverageSettings,
        RecoverableSettings,
    )
    from paser.selectors.random import RandomSelector

    paser = frozenset({CLUSTERS, SCORES})
    scores, points, models = frozenset({SCORES}), frozenset({EMBEDDINGS}), frozenset({MODELS})
    return {
        "random": Entry(NoOptions, lambda options, resources, seed, meter: RandomSelector(seed)),
        "full": Entry(NoOptions, lambda options, resources, seed, meter: ranked.FullSelector()),
        "longest": Entry(NoOptions, lambda options, resources, seed, meter: ByScore(ranked.longest)),
        "k-centre": Entry(
            NoOptions,
            lambda options, resources, seed, meter: ByOrder(
                lambda pool, amount, unit: geometric.k_centre(
                    pool, embeddings_of(resources), amount, unit, seed
                )
            ),
            points,
        ),
        "prototypes": Entry(
            geometric.PrototypeOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: geometric.prototypes(pool, embeddings_of(resources), options, seed)
            ),
            points | {CLUSTERS},
        ),
        "top-damage": Entry(NoOptions, _by_damage("mean"), scores),
        "total-damage": Entry(NoOptions, _by_damage("total"), scores),
        "damage-per-token": Entry(NoOptions, _by_damage("per_token"), scores),
        "paser": Entry(PaserSettings, _by_rule(), paser),
        "paser-no-clusters": Entry(
            PaserSettings,
            lambda options, resources, seed, meter: ablations.OneCluster(
                options, _ranking(options, resources)
            ),
            scores,
        ),
        "paser-uniform": Entry(PaserSettings, _by_rule(policy="uniform"), paser),
        "paser-random-inside": Entry(
            PaserSettings,
            lambda options, resources, seed, meter: PaserSelector(
                options, ablations.random_inside(seed), "random"
            ),
            paser,
        ),
        "paser-no-conflicts": Entry(PaserSettings, _by_rule(strictness=0.0), paser),
        "coverage": Entry(
            CoverageSettings,
            lambda options, resources, seed, meter: PaserSelector(
                options,
                lambda pool, amount, unit: coverage.coverage_order(
                    pool, embeddings_of(resources), options, amount, unit
                ),
                "coverage",
            ),
            paser | points,
        ),
        "per-token": Entry(PerTokenSettings, _by_rule(), paser),
        "per-token-no-damage": Entry(
            PerTokenSettings,
            lambda options, resources, seed, meter: PaserSelector(
                options.model_copy(update={"policy": "proportional"}),
                ablations.response_share,
                "response_share",
            ),
            paser,
        ),
        "recoverable": Entry(RecoverableSettings, _by_rule(), paser),
        "recoverable-coverage": Entry(RecoverableCoverageSettings, _by_rule(), paser | points),
        "ifd": Entry(
            NoOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: readings.ifd(pool, models_of(resources), models_of(resources).pruned(), meter)
            ),
            models,
        ),
        "ifd-small": Entry(
            NoOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: readings.ifd(
                    pool, models_of(resources), small_of(resources), meter, perplexity=True
                )
            ),
            models | {SMALL},
        ),
        "instruction-mining": Entry(
            NoOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: mining.instruction_mining(pool, embeddings_of(resources))
            ),
            points,
        ),
        "nuggets": Entry(readings.NuggetsOptions, _by_models(readings.nuggets), models),
        "el2n": Entry(dynamics.RepeatedOptions, _by_models(dynamics.el2n), models),
        "grand": Entry(dynamics.RepeatedOptions, _by_models(dynamics.grand), models),
        "variance-of-gradients": Entry(
            dynamics.VarianceOptions, _by_models(dynamics.gradient_variance), models | {CLUSTERS}
        ),
        "influence-effort": Entry(
            influence.InfluenceOptions,
            lambda options, resources, seed, meter: ByOrder(
                lambda pool, amount, unit: influence.influence_effort(
                    pool,
                    models_of(resources),
                    embeddings_of(resources),
                    losses_of(resources)[1],
                    options,
                    seed,
                    meter,
                )
            ),
            models | points | {LOSSES},
        ),
        "q-tuning": Entry(
            NoOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: readings.quadrants(pool, models_of(resources), meter)
            ),
            models,
        ),
        "preselect": Entry(
            predictive.PreselectOptions,
            lambda options, resources, seed, meter: ByScore(
                lambda pool: predictive.preselect(
                    pool, models_of(resources), losses_of(resources), options, seed, meter
                )
            ),
            models | {LOSSES},
        ),
        "less": Entry(matching.LessOptions, _by_models(matching.less), models | {TARGETS}),
    }


def _by_rule(**changes: Any) -> Build:
    """PASER by its options, with these changed."""
    from paser.selectors.damage import PaserSelector

    def built(options: Any, resources: Resources, seed: int, meter: Meter) -> Selector:
        options = options.model_copy(update=changes)
        return PaserSelector(options, _ranking(options, resources))

    return built


def _ranking(options: Any, resources: Resources) -> Ranking:
    from paser.selectors.damage import ranking_of

    given = resources.embeddings
    return ranking_of(options, None if given is None else lambda: given)


def _by_models(scores: Callable[[ScoredPool, Models, Any, int, Meter], Scored]) -> Build:
    return lambda options, resources, seed, meter: ByScore(
        lambda pool: scores(pool, models_of(resources), options, seed, meter)
    )


def _by_damage(amount: Any) -> Build:
    from paser.selectors.ranked import damage_as

    return lambda options, resources, seed, meter: ByScore(lambda pool: Scored(damage_as(pool, amount)))
