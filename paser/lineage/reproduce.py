"""Trains a recovered model once more from its record and compares the weights.

No digest can prove that weights came from the recorded rows; doing it again can. What may make another
machine's result differ is named beside the answer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import file_digests, read_json, sha256_path
from paser.cache import Cache
from paser.errors import PaserError
from paser.lineage.chain import Record, artefacts, flat
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE, load_provenance
from paser.lineage.record import code_digest, package_versions
from paser.lineage.trace import entry_of

if TYPE_CHECKING:
    from paser.settings import Settings

SELECTION = {"recovered": "data/selected.jsonl", "control": "data/control.jsonl"}
MAY_DIFFER = (
    "the same bytes are promised for the same inputs, settings, package versions, number of threads and "
    "processor; another processor or thread count adds up in another order, which changes last digits"
)


@dataclass(frozen=True)
class Compared:
    """One file of the model: digests as recorded and as trained again (None where it is not there)."""

    file: str
    recorded: str | None
    found: str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.found


@dataclass(frozen=True)
class Reproduced:
    """What came of it. `largest_change` is the largest absolute difference of two weights (0 if none);
    `differences` are those of code, versions, machine and current settings to the record's."""

    model: str
    out: str
    stage: str
    files: list[Compared]
    differences: list[str]
    largest_change: float | None
    may_differ: str = MAY_DIFFER

    @property
    def same(self) -> bool:
        return all(file.same for file in self.files)

    def as_json(self) -> dict[str, Any]:
        return {"same": self.same, **asdict(self)}


@dataclass
class _Again:
    """What `recover_model` needs of a stage's context, taken from the record."""

    project: Path
    target: Path
    settings: Settings
    cache: Cache
    digests: Mapping[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def input(self, relative: str) -> Path:
        return self.project / relative

    def digest(self, relative: str) -> str:
        return self.digests[relative]

    def out(self, relative: str) -> Path:
        return self.target

    def note(self, **facts: Any) -> None:
        self.facts.update(facts)


def reproduce(model: Path, out: Path, entry: Path | None = None) -> Reproduced:
    """Runs `recover` (or `control`) again from the record of a model into the new folder `out`.

    Raises `PaserError` where the project does not hold the recorded inputs, byte for byte, or `out` is not
    empty. Nothing of an earlier run is used, so it takes as long as the first time.
    """
    from paser.recovery.job import recover_model

    provenance = load_provenance(model)
    source, role = entry_of(model, entry, provenance), provenance["role"]
    stage, selection = STAGE_OF_ROLE[role], SELECTION[role]
    record = source.records()[stage]
    project = _project(source.root, model)
    read = {a.path: a.sha256 for a in artefacts(record, "inputs")}
    for path, digest in read.items():
        there = sha256_path(project / path)
        if there != digest:
            raise PaserError(
                f"{path} is not what stage {stage} read: recorded {digest}, found {there}",
                remedy="`git checkout` the commit of the model's dvc.lock, then `dvc checkout`",
            )
    if out.exists() and any(out.iterdir()):
        raise PaserError(f"{out} is not empty", remedy="give another folder with --out")
    settings = settings_again(record, project)
    above = out.resolve().parent
    above.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="paser-", dir=above) as cache:
        recover_model(
            _Again(project, out, settings, Cache(Path(cache)), read),
            role=role,
            selection=selection,
            output=f"data/models/{role}",
            code=code_digest(("paser/models", "paser/recovery")),
        )
    recorded = {**provenance["files"]}
    made = {name: digest for name, digest in file_digests(out).items() if name != PROVENANCE}
    files = [Compared(n, recorded.get(n), made.get(n)) for n in sorted({*recorded, *made})]
    same = all(file.same for file in files)
    return Reproduced(
        model=str(model),
        out=str(out),
        stage=stage,
        files=files,
        differences=differences(record, project, stage),
        largest_change=0.0 if same else largest_change(model, out),
    )


def settings_again(record: Record, project: Path) -> Settings:
    """The recorded settings, with number type and processes of then; else `runtime` is the project's own."""
    from paser.settings import load_settings, parse_settings

    params = record["params"]
    now = load_settings(project / "params.yaml")
    content = {
        "seed": record["seed"],
        "model": {**params["model"], "precision": record["facts"]["dtype"]},
        "recover": {**params["recover"], "report_to": "none"},
        "runtime": now.runtime.model_dump(mode="json"),
    }
    if "processes" in record["facts"]:
        content["runtime"]["processes"] = record["facts"]["processes"]
    return parse_settings(content, "the record of recover")


def differences(record: Record, project: Path, stage: str) -> list[str]:
    """What is not now as it was when the model was made, in sentences."""
    import platform

    from paser.settings import load_settings
    from paser.stages.graph import STAGES

    found = []
    code = code_digest(STAGES[stage].all_code)
    if code != record["code"]:
        found.append(f"code of stage {stage}: recorded {record['code'][:12]}…, now {code[:12]}…")
    now = {"python": platform.python_version(), **package_versions()}
    for name, version in sorted(record["versions"].items()):
        if name in now and now[name] != version:
            found.append(f"{name}: recorded {version}, now {now[name]}")
    stated = flat(load_settings(project / "params.yaml").model_dump(mode="json"))
    for key, value in flat(record["params"]).items():
        if key in stated and stated[key] != value:
            found.append(f"params.yaml: {key} is {stated[key]!r}; the recorded {value!r} was used")
    run = project / STAGES[stage].run_record
    if run.exists():
        facts = read_json(run)
        for key, value in (("machine", platform.machine()), ("cpus", os.cpu_count())):
            if key in facts and facts[key] != value:
                found.append(f"{key}: recorded {facts[key]}, now {value}")
    return found


def largest_change(model: Path, out: Path) -> float | None:
    """Largest absolute difference of two weights; None where names or shapes are not the same."""
    from safetensors.torch import load_file

    largest = 0.0
    for path in sorted(model.glob("*.safetensors")):
        if not (out / path.name).exists():
            return None
        mine, theirs = load_file(out / path.name), load_file(path)
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            return None
        for name, tensor in mine.items():
            change = (tensor.float() - theirs[name].float()).abs().max().item() if tensor.numel() else 0.0
            largest = max(largest, change)
    return largest


def _project(entry: Path, model: Path) -> Path:
    for folder in (*entry.resolve().parents, *model.resolve().parents):
        if (folder / "data" / "models" / "pruned").is_dir() and (folder / "params.yaml").exists():
            return folder
    raise PaserError(
        f"neither {entry} nor {model} lies in a project with the pruned model and the selected rows",
        remedy="clone the project, `dvc checkout` or `dvc pull recover`, and give the model there",
    )
