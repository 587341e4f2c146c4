"""`params.yaml` as frozen, validated settings.

An unknown key, a value out of range or a contradiction is an error that names the key, the value and
what would be accepted. The ranges are explained beside each key in `params.yaml`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from paser.errors import SettingsError

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"

Tokens = Annotated[int, Field(ge=16, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

NM_PATTERNS: dict[str, tuple[int, int]] = {"2:4": (2, 4), "4:8": (4, 8)}


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSettings(Group):
    precision: Literal["auto", "bfloat16", "float32"] = "auto"


class PoolSettings(Group):
    max_tokens: Tokens = 256
    near_duplicate: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    holdout_per_label: Annotated[int, Field(ge=1)] = 30
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class PruneOptions(Group):
    """What one pruning scheme alone has, as `prune.options`; this one is for schemes without options."""


_Options = TypeVar("_Options", bound=PruneOptions)


class SparseGptOptions(PruneOptions):
    block_size: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 128
    dampening: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01


class GlobalMagnitudeOptions(PruneOptions):
    keep_at_least: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2


class RandomOptions(PruneOptions):
    ratios: Literal["uniform", "layerwise"] = "uniform"


class GblmOptions(PruneOptions):
    alpha: Annotated[float, Field(ge=0.0, le=1e6)] = 100.0


class LlmPrunerOptions(PruneOptions):
    spare_first: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    spare_last: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"


class SliceGptOptions(PruneOptions):
    multiple: Annotated[int, Field(ge=1, le=1024)] = 8
    slice_head: bool = False


class CfspOptions(PruneOptions):
    slope: Annotated[float, Field(ge=0.0, le=1000.0)] = 13.1
    multiple: Annotated[int, Field(ge=1, le=1024)] = 1


class DepthOptions(PruneOptions):
    tokens: Literal["all", "last"] = "all"


# Every pruning scheme by name, with the class of its options; the schemes are in paser/pruning/protocol.py.
PRUNE_OPTIONS: dict[str, type[PruneOptions]] = {
    "wanda": PruneOptions,
    "sparsegpt": SparseGptOptions,
    "magnitude": PruneOptions,
    "global-magnitude": GlobalMagnitudeOptions,
    "random": RandomOptions,
    "gblm": GblmOptions,
    "llm-pruner": LlmPrunerOptions,
    "slicegpt": SliceGptOptions,
    "flap": PruneOptions,
    "cfsp": CfspOptions,
    "depth": DepthOptions,
}


class PolicySettings(Group):
    licenses_refused: tuple[str, ...] = ()
    licenses_allowed: tuple[str, ...] = ()
    personal: tuple[Literal["email", "phone", "card", "iban"], ...] = ()
    patterns: dict[str, str] = Field(default_factory=dict)

    @field_validator("licenses_refused", "licenses_allowed", "personal", mode="before")
    @classmethod
    def lists_are_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("patterns")
    @classmethod
    def patterns_are_expressions(cls, value: dict[str, str]) -> dict[str, str]:
        for name, expression in value.items():
            try:
                empty = re.compile(expression).search("")
            except re.error as error:
                raise ValueError(f"pattern {name!r} is not a regular expression: {error}") from error
            if empty:
                raise ValueError(f"pattern {name!r} matches the empty text, so every row")
        return value

    @model_validator(mode="after")
    def names_are_distinct(self) -> Self:
        if twice := sorted(set(self.patterns) & set(self.personal)):
            raise ValueError(f"pattern {twice[0]!r} has the name of a built-in one that is also on")
        return self


class PruneSettings(Group):
    scheme: str = "wanda"
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    max_tokens: Annotated[int, Field(ge=16, le=32768)] = 256
    options: dict[str, Any] = Field(default_factory=dict)
    external: str | None = None

    @field_validator("scheme")
    @classmethod
    def scheme_is_known(cls, value: str) -> str:
        if value not in PRUNE_OPTIONS:
            raise ValueError(f"{value!r} is no pruning scheme; one of {', '.join(PRUNE_OPTIONS)}")
        return value

    @field_validator("options", mode="before")
    @classmethod
    def options_may_be_left_out(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def options_are_of_the_scheme(self) -> Self:
        kind = PRUNE_OPTIONS[self.scheme]
        try:
            kind.model_validate(self.options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"][:1])
            if first["type"] != "extra_forbidden":
                raise ValueError(f"options.{key} is {first['input']!r}: {first['msg'].lower()}") from error
            known = ", ".join(kind.model_fields) or "none"
            others = [name for name, other in PRUNE_OPTIONS.items() if key in other.model_fields]
            belongs = f"; it belongs to {', '.join(others)}" if others else ""
            raise ValueError(
                f"options.{key} is {first['input']!r}, but {self.scheme} has no such option "
                f"(its options: {known}){belongs}"
            ) from error
        return self

    def options_as(self, kind: type[_Options]) -> _Options:
        """The options of the scheme, with its defaults; `kind` is the scheme's own class."""
        return kind.model_validate(self.options)

    @model_validator(mode="after")
    def pattern_fits_sparsity(self) -> Self:
        if self.pattern in NM_PATTERNS:
            kept, block = NM_PATTERNS[self.pattern]
            implied = 1 - kept / block
            if abs(self.sparsity - implied) > 1e-9:
                raise ValueError(
                    f"pattern {self.pattern} means a sparsity of {implied}, "
                    f"but prune.sparsity is {self.sparsity}"
                )
        return self


class EmbedSettings(Group):
    batch_tokens: Annotated[int, Field(ge=16, le=10_000_000)] = 1024


class ClusterSettings(Group):
    manifold: Literal["diffusion", "umap", "pca", "none"] = "diffusion"
    algorithm: Literal["nmf", "kmeans"] = "nmf"
    k: Literal["auto", "gap", "stability"] | Annotated[int, Field(ge=1)] = "auto"
    k_min: Annotated[int, Field(ge=1)] = 4
    k_max: Annotated[int, Field(ge=1)] = 16
    dimensions: Annotated[int, Field(ge=1, le=256)] = 40
    neighbours: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    search: Literal["auto", "exact", "approximate"] = "auto"
    landmarks: Literal["auto"] | Annotated[int, Field(ge=100)] = "auto"
    time: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1024.0)] = "auto"
    regularisation: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    stability_runs: Annotated[int, Field(ge=0, le=100)] = 5

    @model_validator(mode="after")
    def range_of_k(self) -> Self:
        if self.k_min > self.k_max:
            raise ValueError(f"k_min ({self.k_min}) is above k_max ({self.k_max})")
        return self


class ScoreSettings(Group):
    temperature: Positive = 1.0
    max_tokens: Tokens = 256
    batch_tokens: Annotated[int, Field(ge=16, le=10_000_000)] = 1024

    @model_validator(mode="after")
    def sample_fits_batch(self) -> Self:
        if self.batch_tokens < self.max_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) is below max_tokens ({self.max_tokens}): "
                "one sample would not fit"
            )
        return self


@dataclass(frozen=True)
class Budget:
    """What may be chosen: `amount` rows or training tokens, or a share (0 < amount <= 1) of the pool's."""

    amount: float
    unit: Literal["rows", "share", "tokens", "token_share"]

    @classmethod
    def parse(cls, text: str | int | float) -> Budget:
        """`"10%"`, `120`, `"120"`, `0.1` (a share; `1.0` is all), `"20000 tokens"`, `"10% tokens"`."""
        shown = repr(text)
        remedy = 'write "10%", "120" (rows), "20000 tokens" or "10% tokens"'
        if isinstance(text, bool):
            raise SettingsError(f"budget {shown} is not an amount", remedy=remedy)
        match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(%\s*tokens?|%|tokens?|rows?)?\s*", _written_out(text))
        if not match:
            raise SettingsError(f"budget {shown} is not an amount", remedy=remedy)
        amount, unit = float(match[1]), match[2] or ""
        if unit.startswith("%"):
            return cls._share(amount / 100, shown, "share" if unit == "%" else "token_share")
        if unit == "" and "." in match[1] and (amount <= 1 or not amount.is_integer()):
            return cls._share(amount, shown)
        if amount <= 0 or not amount.is_integer():
            raise SettingsError(
                f"budget {shown} is not a positive whole number of rows or tokens", remedy=remedy
            )
        return cls(amount, "tokens" if unit.startswith("token") else "rows")

    @classmethod
    def _share(cls, share: float, shown: str, unit: Literal["share", "token_share"] = "share") -> Budget:
        if not 0 < share <= 1:
            raise SettingsError(
                f"budget {shown} is not a share of the pool",
                remedy="choose more than 0 % and at most 100 %",
            )
        return cls(share, unit)


def _written_out(budget: Any) -> str:
    """As text; of a number all its places, without an exponent."""
    return format(Decimal(repr(float(budget))), "f") if isinstance(budget, float) else str(budget)


Divergence = Literal["jsd", "kl", "reverse_kl", "delta_loss", "recoverability"]
Policy = Literal[
    "damage", "damage_size", "damage_power", "damage_rate", "delta_loss", "uniform", "proportional"
]  # fmt: skip
Order = Literal["efficiency", "mean", "total", "per_token", "coverage"]
AUTO = "auto"


class SelectSettings(Group):
    """`selector` decides what of its rule in `RULES` is not given, or given as `auto`."""

    RULES: ClassVar[dict[str, dict[str, Any]]] = {
        "paser": {
            "divergence": "jsd", "policy": "damage", "gamma": 2.0, "order": "efficiency", "strictness": 1.0,
        },
        "per-token": {
            "divergence": "jsd", "policy": "damage_size", "gamma": 2.0, "order": "per_token",
            "strictness": 0.0,
        },
        "recoverable": {
            "divergence": "recoverability", "policy": "damage_size", "gamma": 2.0, "order": "per_token",
            "strictness": 0.0,
        },
        "recoverable-coverage": {
            "divergence": "recoverability", "policy": "damage_rate", "gamma": 0.5, "order": "coverage",
            "strictness": 0.0,
        },
    }  # fmt: skip

    selector: Literal["paser", "per-token", "recoverable", "recoverable-coverage"] = "recoverable-coverage"
    budget: str = "10%"
    divergence: Divergence = "recoverability"
    policy: Policy = "damage_rate"
    order: Order = "coverage"
    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    floor: Annotated[int, Field(ge=0)] = 0
    concepts: Annotated[int, Field(ge=1, le=64)] = 8
    phrase_words: Annotated[int, Field(ge=1, le=8)] = 3
    strictness: Fraction = 0.0
    on_shortfall: Literal["relax", "leave"] = "relax"
    contamination: Literal["exclude", "report"] = "exclude"
    contamination_words: Annotated[int, Field(ge=5, le=50)] = 13

    @model_validator(mode="before")
    @classmethod
    def the_selector_rules(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        rule = cls.RULES.get(str(value.get("selector", cls.model_fields["selector"].default)), {})
        return value | {key: found for key, found in rule.items() if value.get(key, AUTO) == AUTO}

    @field_validator("budget", mode="before")
    @classmethod
    def budget_is_an_amount(cls, value: Any) -> str:
        try:
            Budget.parse(value)
        except SettingsError as error:
            raise ValueError(str(error.problem)) from error
        return _written_out(value)

    @property
    def parsed_budget(self) -> Budget:
        return Budget.parse(self.budget)


def resolved(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted keys, as `params.yaml` and `dvc.lock` have them, with what the selector says for
    `auto`; those of a time before selectors had names are the paper's."""
    selector = params.get("select.selector", "paser")
    rule = SelectSettings.RULES.get(str(selector), {})
    said = {f"select.{key}": value for key, value in rule.items()}
    return {key: said.get(key, value) if value == AUTO else value for key, value in params.items()}


class DistillSettings(Group):
    weight: Fraction = 0.0
    temperature: Positive = 1.0


class TokenPruningSettings(Group):
    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    neighbours: Fraction = 0.5


class EarlyStoppingSettings(Group):
    share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    steps: Annotated[int, Field(ge=1)] = 5


class RecoverSettings(Group):
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    zeros: Literal["trained", "merged"] = "trained"
    learning_rate: Positive = 5e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 8
    micro_batch_size: Annotated[int, Field(ge=1)] = 4
    packing: bool = True
    warmup: Annotated[int, Field(ge=2, le=1_000_000)] | Fraction = 0.1
    max_grad_norm: Positive = 1.0
    max_tokens: Tokens = 256
    distill: DistillSettings = DistillSettings()
    weighting: Literal["none", "damage"] = "none"
    token_pruning: TokenPruningSettings = TokenPruningSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    checkpoint_steps: Annotated[int, Field(ge=1)] = 10
    report_to: Literal["none", "tensorboard", "wandb"] = "none"

    @field_validator("targets", mode="before")
    @classmethod
    def targets_are_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})"
            )
        if not self.targets:
            raise ValueError("targets is empty: there would be nothing to train")
        return self

    @model_validator(mode="after")
    def stopping_needs_a_second_pass(self) -> Self:
        if self.early_stopping.share and self.epochs < 2:
            raise ValueError(
                f"early_stopping.share is {self.early_stopping.share:g}, but epochs is {self.epochs}: the "
                "first pass is always made, so that every recorded row is trained on"
            )
        return self


class ControlSettings(Group):
    enabled: bool = True


class EvaluateSettings(Group):
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    allow_contaminated: bool = False
    tasks: tuple[str, ...] = ()
    perplexity: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=1)] | None = None
    windows: Annotated[int, Field(ge=1)] | None = None
    context: Literal["auto"] | Annotated[int, Field(ge=2, le=1_000_000)] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    run_code: bool = False

    @field_validator("tasks", "perplexity", mode="before")
    @classmethod
    def lists_are_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def names_are_given_once(self) -> Self:
        for key, names in (("tasks", self.tasks), ("perplexity", self.perplexity)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key} names {twice[0]!r} twice")
        return self


class ReportSettings(Group):
    map_rows: Annotated[int, Field(ge=10, le=100_000)] = 2000
    sweep: str | None = None


class RuntimeSettings(Group):
    """Where and how the work is done. Scores depend on it in their last digits at most; a model that was
    trained in several `processes` with dropout is another one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_map: Literal["none", "auto"] = "none"
    threads: Annotated[int, Field(ge=0)] = 0
    engine: Literal["local", "ray"] = "local"
    ray_address: Annotated[str, Field(min_length=1)] = "local"
    actors: Annotated[int, Field(ge=0)] = 0
    gpus_per_actor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    cache_gb: Annotated[float, Field(ge=0.0)] = 20.0

    @model_validator(mode="after")
    def actors_have_one_device(self) -> Self:
        if self.engine == "local":
            return self
        if self.device_map == "auto":
            raise ValueError(
                "device_map 'auto' spreads a model over devices, but engine 'ray' gives each actor one: "
                "choose engine 'local' for models too large for one GPU"
            )
        if (self.device == "cuda") != (self.gpus_per_actor > 0) and self.device != "auto":
            raise ValueError(
                f"device '{self.device}' does not go with gpus_per_actor {self.gpus_per_actor:g}: "
                "with engine 'ray', gpus_per_actor decides where the models compute"
            )
        return self


class Settings(Group):
    """All of `params.yaml`; a key that is left out has the default shown there."""

    seed: Annotated[int, Field(ge=0)] = 17
    model: ModelSettings = ModelSettings()
    pool: PoolSettings = PoolSettings()
    policy: PolicySettings = PolicySettings()
    prune: PruneSettings = PruneSettings()
    embed: EmbedSettings = EmbedSettings()
    cluster: ClusterSettings = ClusterSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    recover: RecoverSettings = RecoverSettings()
    control: ControlSettings = ControlSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()


def parse_settings(content: Any, origin: str) -> Settings:
    """Validates a parsed document; `origin` names it in errors."""
    if not isinstance(content, dict):
        raise SettingsError(
            f"{origin}: expected a mapping of settings, found {type(content).__name__}",
            remedy="write `group:` and below it `key: value` lines, as in params.yaml",
        )
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        named = [str(part) for part in first["loc"] if part not in ("int", "float")]
        key = ".".join(part for part in named if not part.startswith("literal["))
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{origin}: unknown key {key!r}", remedy=_closest(key)) from error
        if first["type"] == "value_error":
            raise SettingsError(
                f"{origin}: {key}: {first['ctx']['error']!s}",
                remedy="the comments in params.yaml give the range",
            ) from error
        raise SettingsError(
            f"{origin}: {key} is {first['input']!r}: {first['msg'].lower()}",
            remedy="the comments in params.yaml give type and range",
        ) from error


def load_settings(path: Path) -> Settings:
    """Reads and validates a settings file."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} does not exist", remedy="run in a PASER project, or copy its params.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}", remedy="correct it at that line") from error
    return parse_settings(content or {}, str(path))


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


class _Yaml12Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2, which DVC reads: `2:4` is a text, `1e-4` a number, `010` ten. A key that stands
    twice in a mapping is an error, as there."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        known = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in known:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            known.add((key.tag, key.value))
        return node


_Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Yaml12Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Yaml12Loader.add_constructor(_INT, _whole_number)


def read_yaml(text: str) -> Any:
    """A YAML document with the numbers of YAML 1.2; raises `yaml.YAMLError`."""
    return yaml.load(text, _Yaml12Loader)  # a SafeLoader


def _closest(key: str) -> str:
    """The known key that the user most likely meant."""
    known = []
    for name, info in Settings.model_fields.items():
        known.append(name)
        group = info.annotation
        if isinstance(group, type) and issubclass(group, Group):
            known += [f"{name}.{field}" for field in group.model_fields]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "see params.yaml for the known keys"
