"""The Python interface: selection, damage and recovery from a notebook, with Hugging Face's objects.

The same code as behind `paser select` and `paser damage`; only what goes in and what comes out differs.
Errors are `paser.errors.PaserError`, whose text names cause and remedy.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from paser.artifacts import read_json, remove, staged, write_jsonl, write_table
from paser.cache import Cache
from paser.damage_profile import (
    DEFAULT_ROWS,
    clean_rows,
    name_and_model,
    profile_models,
    rows_by_capability,
    rows_to_measure,
    write_profile,
)
from paser.errors import PaserError, SourceError
from paser.lineage.provenance import PROVENANCE
from paser.lineage.verify import Check, verify_folder
from paser.models.subjects import subjects
from paser.models.tokens import SampleEncoder
from paser.pool.build import Rows
from paser.pool.clean import normalised
from paser.pool.contamination import Probe
from paser.progress import warn
from paser.selectors.choose import summary
from paser.settings import Settings, load_settings, parse_settings
from paser.standalone import Picked, fetch_encoder, fetch_rows, pick, pool_rules, probes_of, with_budget

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model: TypeAlias = str | Path | PreTrainedModel
    Samples: TypeAlias = str | Path | datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]
    Choices: TypeAlias = Settings | Mapping[str, Any] | str | Path | None

Row = dict[str, Any]
_FILE = "samples.json"
PRUNED, ORIGINAL = "data/models/pruned", "data/models/original"
SELECTED, SCORES, RECOVERED = "data/selected.jsonl", "data/scores.parquet", "data/models/recovered"


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select` chose, and why.

    `selected` and `control` (random rows with as many training tokens) are in training order, with the
    columns of the samples that were given. `decisions` has a line for every sample that could be used,
    `quarantine` for every other; `position` is the sample's place in what was given (of a file: its place
    there). `damage` has a line a cluster, the most damaged first: `jsd` is the mean Jensen-Shannon
    divergence, 0 (unharmed) to ln 2, in nats; `loss_increase` in nats a token; `allocated` and `spent` in
    the budget's unit. `budget` is the content of `budget.json`.
    """

    selected: datasets.Dataset
    control: datasets.Dataset
    decisions: pd.DataFrame
    damage: pd.DataFrame
    quarantine: pd.DataFrame
    budget: Row
    picked: Picked

    def write(self, folder: str | Path) -> Path:
        """Writes what `paser select --out` writes; the folder must not exist or be empty."""
        out = _new_folder(folder)
        self.picked.write(out)
        return out

    def __repr__(self) -> str:
        return f"<Selection: {summary(self.budget, len(self.decisions))}>"


@dataclass(frozen=True, repr=False)
class Damage:
    """What pruning damaged. `table` has a line a pruned model and capability, the most damaged first, with
    the columns of `damage.csv`; `profile` is the content of `damage.json`."""

    table: pd.DataFrame
    profile: Row

    def write(self, folder: str | Path) -> Path:
        """Writes table, profile and figure as `paser damage --out` does; the folder must not exist or be
        empty."""
        out = _new_folder(folder)
        write_profile(out, self.profile)
        return out

    def __repr__(self) -> str:
        return f"<Damage: {self.profile['rows']} rows>\n{self.table}"


@dataclass(frozen=True)
class Recovered:
    """A recovered model in the folder `path`, which any loader of transformers reads; `provenance` is the
    content of its `provenance.json`: rows, Merkle root, settings, digests."""

    path: Path
    provenance: Row = field(repr=False)


def select(
    original: Model,
    pruned: Model,
    samples: Samples,
    budget: str | int | float = 0.2,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    evaluation: Sequence[Samples] = (),
    encoder: str | Path | None = None,
    settings: Choices = None,
    format: str = "auto",
) -> Selection:
    """Selects the samples that repair a pruned model.

    Models are `PreTrainedModel`s, folders or URIs (`hf:`, `pypi:`); `tokenizer` is needed where both are
    objects. Objects keep their weights, number type and device. `samples` are a `datasets.Dataset`, a
    pandas `DataFrame`, dictionaries or a file, in one of the formats of `paser select` (instruction, input
    and output; messages; prompt and completion; ...). `budget` is a share (0.2; 1.0 is all), a number of
    samples (500), or a text: "20%", "500", "20000 tokens", "20% tokens". Samples that show a prompt of
    `evaluation` are kept out.
    `encoder` is the folder or URI of a sentence encoder, by default all-MiniLM-L6-v2. `settings` are those
    of a `params.yaml`: its path, or a mapping such as `{"cluster": {"k": 8}}`; `budget` wins over them.

    What was scored is kept in `.paser/cache`, so that another budget costs no second pass.
    """
    import pandas as pd

    amount = f"{100 * budget:.12g}%" if isinstance(budget, float) else str(budget)
    chosen, cache = with_budget(_settings(settings), amount), Cache.of(Path.cwd())
    with (
        tempfile.TemporaryDirectory(prefix="paser-") as folder,
        subjects(
            {"original": original, "pruned": pruned}, tokenizer, chosen, cache, work := Path(folder)
        ) as models,
    ):
        given = _given(samples)
        probes: list[Probe] = []
        for number, held in enumerate(evaluation):
            name = f"evaluation-{number}"
            shown = str(held) if isinstance(held, str | Path) else name
            probes += probes_of(_rows(_given(held), name, "auto", cache, work), shown)
        picked = pick(
            _rows(given, "pool", format, cache, work),
            models,
            probes,
            fetch_encoder(str(encoder) if encoder else None, cache, work),
            chosen,
            cache,
        )
    report = picked.derived.report
    if report["unspent"]:
        warn(f"{report['unspent']} {report['unit']} of the budget are unspent: {report['cause']}")
    places = {row["row_id"]: _position(row["source_row"]) for row in picked.table}
    quarantine = pd.DataFrame(picked.quarantine)
    if len(quarantine):
        quarantine.insert(0, "position", [_position(row) for row in quarantine["source_row"]])
    return Selection(
        selected=_chosen(given, list(picked.derived.selected()), places),
        control=_chosen(given, list(picked.derived.random()), places),
        decisions=_decisions(picked, places),
        damage=_damage_by_cluster(picked),
        quarantine=quarantine,
        budget=report,
        picked=picked,
    )


def damage(
    original: Model,
    pruned: Model | Mapping[str, Model],
    samples: Samples | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    encoder: str | Path | None = None,
    settings: Choices = None,
    format: str = "auto",
) -> Damage:
    """Measures what pruning damaged, by capability, for one pruned model or several by name.

    Capabilities are the `label`s of the samples where any has one, else clusters of their prompts. Without
    samples: held-out rows of the default sources, six capabilities. Everything else is as for `select`.
    """
    import pandas as pd

    from paser.evaluation.damage import COLUMNS, long_rows

    chosen, cache = _settings(settings), Cache.of(Path.cwd())
    named = dict(pruned) if isinstance(pruned, Mapping) else {_name(pruned): pruned}
    if "original" in named:
        raise PaserError("a pruned model is named 'original'", remedy="give it another name")
    with (
        tempfile.TemporaryDirectory(prefix="paser-") as folder,
        subjects({"original": original, **named}, tokenizer, chosen, cache, work := Path(folder)) as models,
    ):
        rules = pool_rules(SampleEncoder(models.tokenizer), chosen)
        if samples is None:
            kept, benchmarks = rows_to_measure(None, format, rules, cache, work)
        else:
            kept, benchmarks = clean_rows(_rows(_given(samples), "pool", format, cache, work), rules), []
        rows = rows_by_capability(kept, str(encoder) if encoder else None, chosen, cache, work)
        profile = profile_models(models, rows, chosen, cache, benchmarks)
    profile["pool"] = DEFAULT_ROWS if samples is None else _shown(samples)
    return Damage(pd.DataFrame(long_rows(profile), columns=list(COLUMNS)), profile)


def recover(
    pruned: Model,
    samples: Selection | Samples,
    out: str | Path,
    *,
    original: Model | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Choices = None,
    format: str = "auto",
) -> Recovered:
    """Trains a pruned model on samples, in their order, with LoRA, and writes it to the folder `out`.

    Zeros and shapes stay as pruning left them. A model that is an object is not altered; `tokenizer` goes
    with it. `original` is needed where `recover.distill.weight` is above 0; `recover.weighting: damage` needs
    a `Selection`. `out` must not exist or be empty; an interrupted training goes on where it stopped.
    """
    from paser.lineage.record import code_digest
    from paser.recovery.job import Alone, recover_model
    from paser.stages.graph import stage

    chosen, cache, target = _settings(settings), Cache.of(Path.cwd()), _new_folder(out)
    if chosen.recover.distill.weight and original is None:
        raise PaserError(
            f"recover.distill.weight is {chosen.recover.distill.weight} and there is no teacher",
            remedy="give it: recover(..., original=...)",
        )
    if chosen.recover.weighting == "damage" and not isinstance(samples, Selection):
        raise PaserError(
            "recover.weighting is 'damage', and the samples have no scores",
            remedy="give the Selection that `paser.select` returned, or set recover.weighting: none",
        )
    with tempfile.TemporaryDirectory(prefix="paser-") as folder:
        work = Path(folder)
        places = {PRUNED: _on_disk(pruned, tokenizer, cache, work / "pruned")}
        if original is not None:
            places[ORIGINAL] = _on_disk(original, tokenizer, cache, work / "original")
        if isinstance(samples, Selection):
            rows = list(samples.picked.derived.selected())
            write_table(work / "scores.parquet", "scores", samples.picked.scores)
            places[SCORES] = work / "scores.parquet"
        else:
            rows = _training_rows(_rows(_given(samples), "rows", format, cache, work), places[PRUNED])
        write_jsonl(work / "selected.jsonl", rows)
        places[SELECTED] = work / "selected.jsonl"
        if target.exists():
            remove(target)
        with staged(target) as partial:
            recover_model(
                Alone(chosen, cache, places, partial),
                role="recovered",
                selection=SELECTED,
                output=RECOVERED,
                code=code_digest(stage("recover").all_code),
            )
    return Recovered(target, read_json(target / PROVENANCE))


def verify(model: str | Path) -> list[Check]:
    """Checks a recovered model's folder against its `provenance.json`: every file, and the Merkle root over
    its rows. An export's audit entry is checked too; that of a project is by `paser audit verify`."""
    return verify_folder(Path(model))


def _settings(given: Choices) -> Settings:
    if given is None:
        return Settings()
    if isinstance(given, Settings):
        return given
    if isinstance(given, Mapping):
        return parse_settings(dict(given), "settings")
    return load_settings(Path(given))


def _new_folder(folder: str | Path) -> Path:
    out = Path(folder)
    if out.resolve() == Path.cwd() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise PaserError(f"{out} exists and is not empty", remedy="choose a new folder")
    return out


def _given(samples: Samples) -> str | Path | datasets.Dataset:
    """Whatever was given as a `datasets.Dataset`; files stay what they are."""
    import datasets
    import pandas as pd

    if isinstance(samples, str | Path | datasets.Dataset):
        return samples
    if isinstance(samples, pd.DataFrame):
        return datasets.Dataset.from_pandas(samples, preserve_index=False)
    if isinstance(samples, datasets.DatasetDict | Mapping):
        raise SourceError(
            f"the samples are a {type(samples).__name__} with the keys {', '.join(map(repr, samples))}",
            remedy='give one of its splits: samples["train"]',
        )
    return datasets.Dataset.from_list([dict(row) for row in samples])


def _rows(given: str | Path | datasets.Dataset, name: str, format: str, cache: Cache, work: Path) -> Rows:
    """Samples as a source; those in memory by way of a file, so that both are read by the same adapters."""
    if isinstance(given, str | Path):
        return fetch_rows(str(given), name, format, cache, work)
    if not len(given):
        raise SourceError("the samples are empty", remedy="give at least some rows")
    folder = work / f"{name}-given"
    folder.mkdir()
    (folder / _FILE).write_text(json.dumps(list(given), default=str), encoding="utf-8")
    return fetch_rows(str(folder / _FILE), name, format, cache, work)


def _position(place: str) -> Any:
    """The index of a sample that was given in memory, else its place in a file."""
    prefix, _, index = place.rpartition(":")
    return int(index.strip("[]")) if prefix == _FILE else place


def _chosen(
    given: str | Path | datasets.Dataset, rows: Sequence[Row], places: Mapping[str, Any]
) -> datasets.Dataset:
    import datasets

    if isinstance(given, str | Path):
        return datasets.Dataset.from_list(list(rows))
    return given.select([places[row["row_id"]] for row in rows])


def _decisions(picked: Picked, places: Mapping[str, Any]) -> pd.DataFrame:
    import pyarrow as pa

    from paser.records import schema

    columns = schema("decisions")
    batches = [pa.RecordBatch.from_pydict(b, schema=columns) for b in picked.derived.decisions()]
    found: pd.DataFrame = pa.Table.from_batches(batches).to_pandas()
    found.insert(0, "position", [places[row_id] for row_id in found["row_id"]])
    return found.sort_values("position", ignore_index=True)


def _damage_by_cluster(picked: Picked) -> pd.DataFrame:
    import pandas as pd

    scores = pd.DataFrame(picked.scores)
    scores["cluster"] = [row["cluster"] for row in picked.clusters]
    scores["loss_increase"] = scores["loss_pruned"] - scores["loss_original"]
    means = scores.groupby("cluster")[["jsd", "loss_increase"]].mean()
    columns = ["cluster", "name", "rows", "allocated", "spent", "accepted"]
    found = pd.DataFrame(picked.derived.report["clusters"])[columns]
    found = found.merge(means, left_on="cluster", right_index=True)
    return found.sort_values("jsd", ascending=False, ignore_index=True)


def _name(model: Model) -> str:
    return name_and_model(str(model))[0] if isinstance(model, str | Path) else "pruned"


def _shown(samples: Samples) -> str:
    return str(samples) if isinstance(samples, str | Path) else f"a {type(samples).__name__} in memory"


def _on_disk(model: Model, tokenizer: PreTrainedTokenizerBase | None, cache: Cache, folder: Path) -> Path:
    """The folder of a model; an object is saved to one."""
    from paser.models.given import fetch_models
    from paser.models.loading import save_causal_lm

    if isinstance(model, str | Path):
        return fetch_models({"model": str(model)}, cache, folder)["model"].path
    if tokenizer is None:
        raise PaserError(
            "the model is an object, and no tokenizer was given",
            remedy="give it with the model: tokenizer=AutoTokenizer.from_pretrained(...)",
        )
    save_causal_lm(model, tokenizer, folder)
    return folder


def _training_rows(rows: Rows, model: Path) -> list[Row]:
    """Rows of `selected.jsonl`, in the order of the samples."""
    from paser.models.loading import load_tokenizer
    from paser.selectors.tables import POOL_COLUMNS

    encoder, found = SampleEncoder(load_tokenizer(model)), []
    for sample in map(normalised, rows.samples):
        if not sample.prompt or not sample.output:
            raise SourceError(
                f"sample {sample.source_row} has no {'response' if sample.prompt else 'prompt'}",
                remedy="leave it out: there is nothing to learn from it",
            )
        columns = {name: getattr(sample, name) for name in POOL_COLUMNS}
        found.append(columns | {"tokens": encoder.count(sample)})
    return found
