"""`paser init`: a folder with settings, sources and stages for somebody's own models and data.

Settings and stages are the repository's own files, so that there is one truth. Only the code that a stage
depends on is named differently: an installed package has no files in the project, so `paser.yaml` holds
digests of it (docs/decisions/0017-init.md).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import paser
from paser.artifacts import files_below, remove
from paser.errors import PaserError
from paser.lineage.record import code_digest
from paser.pool.clean import COLUMNS
from paser.sources.catalog import load_sources
from paser.sources.fetching import base_and_adapter
from paser.stages.graph import STAGES
from paser.standalone import DEFAULT_ENCODER

CODE = "paser.yaml"
STARTER = Path(__file__).parent
CALIBRATION_ROWS = 64
_DVC_HEADER = """\
# The twelve stages. `dvc repro` runs what is stale and nothing else; `paser stage NAME` runs one stage.
# The code of a stage is not in this folder: paser.yaml has a digest of it, by stage. After an upgrade of
# PASER, `paser init . --refresh` writes the new ones, and DVC runs the stages whose code changed.
# `meta` is for those who schedule stages: gpu, retries, and hours as a time limit. `dvc repro` ignores it.
"""
_CODE_HEADER = """\
# The code behind each stage: digests of PASER as it is installed. dvc.yaml depends on them.
# After an upgrade: `paser init . --refresh`.
"""
_DVCIGNORE = "__pycache__/\n*.pyc\n*.partial-*\n"


@dataclass(frozen=True)
class Wanted:
    """Models and rows as the user names them: paths, which come below `data/raw`, or URIs.

    None stands for a place below `data/raw` that is still empty. Without `calibration` some rows of the pool
    serve: those are then in no other table.
    """

    original: str | None = None
    pruned: str | None = None
    pool: Sequence[str] = ()
    calibration: Sequence[str] = ()
    encoder: str | None = None
    format: str = "auto"
    license: str = "unknown"


@dataclass
class _Raw:
    """Brings local files below `data/raw`, and remembers what the user still has to put there."""

    folder: Path
    missing: list[Path] = field(default_factory=list)

    def expect(self, name: str) -> str:
        self.missing.append(self.folder / name)
        return f"file:{name}"

    def take(self, given: str, name: str) -> str:
        """The URI of what was given; a local file or folder gets the name `name`, and its own suffix."""
        if re.match(r"(pypi|hf):", given):
            return given
        plain = re.sub(r"^file:(//)?", "", given)
        path = Path(plain).expanduser()
        if not path.exists():
            if pair := base_and_adapter(given, None):
                return f"{self.take(pair[0], f'{name}-base')}+{self.take(pair[1], f'{name}-adapter')}"
            raise PaserError(f"{plain} does not exist", remedy="give a file, a folder, or a hf: or pypi: URI")
        suffixes = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
        target = self.folder / (f"{name}{suffixes}" if path.is_file() else name)
        for file in files_below(path):
            copy = target if path.is_file() else target / file.relative_to(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _link(file.resolve(), copy)
        return f"file:{target.name}"


def _link(file: Path, target: Path) -> None:
    """A hard link, which takes no room, or a copy where the folder is on another disk."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def start(folder: Path, wanted: Wanted) -> list[Path]:
    """Writes a project into `folder` and returns what the user still has to put below `data/raw`.

    Raises `PaserError` where the folder holds anything but hidden files, and where a path does not exist.
    """
    if folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
        raise PaserError(f"{folder} is not empty", remedy="name a new folder; `--refresh` is for a project")
    new = not folder.exists()
    try:
        return _write(folder, wanted)
    except BaseException:
        remove(folder / "data")
        if new:
            remove(folder)
        raise


def _write(folder: Path, wanted: Wanted) -> list[Path]:
    raw = _Raw(folder / "data" / "raw")
    raw.folder.mkdir(parents=True)
    sources = _sources(wanted, raw)
    external = raw.take(wanted.pruned, "pruned") if wanted.pruned else None
    (folder / "data" / "sources.yaml").write_text(sources, encoding="utf-8")
    load_sources(folder / "data" / "sources.yaml")
    (folder / "data" / "withdrawn.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    (folder / "params.yaml").write_text(_settings(external), encoding="utf-8")
    (folder / "dvc.yaml").write_text(stages(_starter("stages.yaml")), encoding="utf-8")
    (folder / CODE).write_text(code(), encoding="utf-8")
    for name, text in ((".gitignore", _starter("gitignore")), (".dvcignore", _DVCIGNORE)):
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")
    return raw.missing


def refresh(folder: Path) -> list[str]:
    """Writes the digests of the installed code to `paser.yaml`; returns the stages whose code changed.

    Raises `PaserError` where the folder has no such file, or its `dvc.yaml` does not fit the stages.
    """
    if misfits := misfitting(folder):
        raise PaserError(
            f"{folder / 'dvc.yaml'} does not fit the installed PASER: {misfits[0]}",
            remedy="`paser init NEW` writes a dvc.yaml that does: take it over",
        )
    changed = outdated(folder)
    (folder / CODE).write_text(code(), encoding="utf-8")
    return changed


def outdated(folder: Path) -> list[str]:
    """Stages whose installed code is not the one in `paser.yaml`."""
    path = folder / CODE
    if not path.exists():
        raise PaserError(f"{path} does not exist", remedy="only projects of `paser init` have one")
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))["code"]
        return [name for name, digest in digests().items() if known.get(name) != digest]
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise PaserError(
            f"{path} has no digests below `code`: {error}", remedy="`git restore paser.yaml`"
        ) from error


def misfitting(folder: Path) -> list[str]:
    """Where `dvc.yaml` and the installed stages differ in data or settings, in sentences."""
    try:
        found = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        return [f"it cannot be read: {error}"]
    problems = []
    for name, spec in STAGES.items():
        stage = found.get(name) or {}
        inputs = {path for path in stage.get("deps", []) if not path.startswith("paser/")}
        named = [*stage.get("outs", []), *stage.get("metrics", [])]
        outputs = {next(iter(item)) if isinstance(item, dict) else item for item in named}
        wanted = {*spec.outputs, spec.record, spec.run_record}
        for what, is_, should in (("reads", inputs, {*spec.inputs}), ("writes", outputs, wanted)):
            if extra := sorted(is_ ^ should):
                verb = "does not have" if extra[0] in should else "has"
                problems.append(f"stage {name} {what} other files: it {verb} {extra[0]}")
    return problems


def digests() -> dict[str, str]:
    """Digest of the installed code of each stage."""
    return {name: code_digest(spec.all_code) for name, spec in STAGES.items()}


def code() -> str:
    """The text of `paser.yaml`."""
    lines = [f"  {name}: {digest}\n" for name, digest in digests().items()]
    return f"{_CODE_HEADER}version: {paser.__version__}\ncode:\n{''.join(lines)}"


def stages(text: str) -> str:
    """The repository's `dvc.yaml` with one digest in `paser.yaml` in place of each stage's code files."""
    head, _, rest = text.partition("stages:\n")
    del head
    end = re.search(r"(?m)^\S", rest)
    body, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    parts = re.split(r"(?m)^(?=  \w[\w-]*:$)", body)
    return f"{_DVC_HEADER}stages:\n{''.join(map(_stage, parts))}{tail}"


def _stage(text: str) -> str:
    match = re.match(r"  ([\w-]+):\n", text)
    if not match:
        return text
    text = re.sub(r"(?m)^      - paser/.*\n", "", text)
    if "    params:\n" not in text:
        text = text.replace("    outs:\n", "    params:\n    outs:\n", 1)
    key = f"      - paser.yaml:\n          - code.{match[1]}\n"
    return re.sub(r"(    params:\n(?:      .*\n)*)", lambda found: found[1] + key, text, count=1)


def _starter(name: str) -> str:
    return (STARTER / name).read_text(encoding="utf-8")


def _settings(external: str | None) -> str:
    first, _, rest = _starter("params.yaml").partition("\n")
    more = "# `paser plan` says what a run costs; `dvc repro` runs what depends on a changed key."
    text = f"{first}\n{more}\n{rest}"
    return text.replace("  external: null\n", f"  external: {yaml_text(external)}\n") if external else text


def _sources(wanted: Wanted, raw: _Raw) -> str:
    head = _starter("sources.yaml").partition("\nsources:\n")[0]
    original = raw.take(wanted.original, "original") if wanted.original else raw.expect("original")
    pool = [raw.take(given, _numbered("pool", n, wanted.pool)) for n, given in enumerate(wanted.pool)]
    pool = pool or [raw.expect("pool.jsonl")]
    other = [
        raw.take(given, _numbered("calibration", n, wanted.calibration))
        for n, given in enumerate(wanted.calibration)
    ]
    calibration = other or pool
    share = -(-CALIBRATION_ROWS // len(calibration))
    encoder = raw.take(wanted.encoder, "encoder") if wanted.encoder else DEFAULT_ENCODER
    text = f"{head}\nsources:\n  # The dense model\n"
    text += _entry("original", original, "original", wanted.license)
    text += "  # The sentence encoder, by which prompts are clustered\n"
    text += _entry("encoder", encoder, "encoder", "unknown" if wanted.encoder else "MIT")
    text += "  # The pool: what is selected from\n"
    for number, uri in enumerate(pool):
        more = [f"format: {wanted.format}", "# label: a capability; a row may have its own"]
        text += _entry(_numbered("pool", number, pool), uri, "pool", wanted.license, *more)
    whose = (
        "rows of their own"
        if other
        else "some rows of the pool, which are then neither selected nor held out"
    )
    text += f"  # Calibration of pruning: {whose}\n"
    for number, uri in enumerate(calibration):
        more = [f"format: {wanted.format}", f"max_rows: {share}", "sample_seed: 1"]
        text += _entry(
            _numbered("calibration", number, calibration), uri, "calibration", wanted.license, *more
        )
    return text


def _numbered(name: str, number: int, of: Sequence[object]) -> str:
    return f"{name}-{number + 1}" if len(of) > 1 else name


def _entry(name: str, uri: str, role: str, license: str, *more: str) -> str:
    lines = [f"uri: {yaml_text(uri)}", f"role: {role}", f"license: {yaml_text(license)}", *more]
    return f"  - name: {name}\n" + "".join(f"    {line}\n" for line in lines)


def yaml_text(text: str) -> str:
    """A text as YAML writes it on one line, in quotes only where it needs them."""
    return yaml.safe_dump(text, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
