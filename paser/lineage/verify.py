"""Proves, or disproves, that a model is what its audit entry says, by hashing every byte again.

No check trusts another tool's idea of what is unchanged, and none stops at the first failure: the
answer is the whole list.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import json_text, read_json, sha256_bytes, tree_digest
from paser.errors import PaserError
from paser.lineage.chain import ABSENT, Record, artefacts, flat, inconsistent, links
from paser.lineage.entry import (
    CARD,
    COPIES,
    ENTRY,
    MODEL,
    OF_POOL,
    OWN_README,
    README,
    RECORDS,
    STOPPED_BY,
    Entry,
    Row,
    find_entry,
    is_export,
    without_export,
)
from paser.lineage.hashing import Hasher
from paser.lineage.lock import LOCK, against_bytes, against_record, read_lock
from paser.lineage.merkle import merkle_root
from paser.lineage.provenance import PROVENANCE, STAGE_OF_ROLE, held_out, load_provenance
from paser.lineage.record import Artefact, code_digest, package_versions
from paser.records import row_id
from paser.stages.graph import STAGES

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
CHECKOUT = "`dvc checkout` restores it"


@dataclass(frozen=True)
class Check:
    """One thing that was checked. `applies` is False where the check has no meaning for this model."""

    name: str
    ok: bool
    detail: str
    applies: bool = True


def passed(checks: list[Check]) -> bool:
    """Whether every check that applies is ok."""
    return all(check.ok for check in checks)


def as_json(checks: list[Check]) -> dict[str, Any]:
    return {"ok": passed(checks), "checks": [asdict(check) for check in checks]}


def verify(
    model: Path,
    entry: Path | None = None,
    *,
    deep: bool = False,
    key: Path | None = None,
    signature: Path | None = None,
) -> list[Check]:
    """Checks a model folder, its audit entry, and the project around the entry, where there is one.

    The entry is the given one, or that of the model's project. `deep` also makes the selection again from
    the recorded scores. `key` is the public key of whoever signed the model, `signature` the file beside
    the model by default. Whatever cannot be read is a failed check, never an exception; only a `model`
    that is no folder raises `PaserError`.
    """
    _require_folder(model)
    return _Verification(model, entry or find_entry(model), deep, key, signature).run()


def verify_folder(model: Path) -> list[Check]:
    """Checks a model folder against the provenance inside it, without an audit entry: its files and the
    Merkle root. What `paser export` adds to a folder is checked with its entry, as `verify` does. A `model`
    that is no folder raises `PaserError`."""
    _require_folder(model)
    if is_export(model, find_entry(model)):
        return verify(model)
    return _Verification(model, None).run_alone()


def _require_folder(model: Path) -> None:
    if not model.is_dir():
        load_provenance(model)  # says what is missing


@dataclass
class _Verification:
    model: Path
    entry_path: Path | None
    deep: bool = False
    key: Path | None = None
    signature: Path | None = None
    checks: list[Check] = field(default_factory=list)

    def run_alone(self) -> list[Check]:
        self._warm()
        self._section(PROVENANCE, self._model)
        return self.checks

    def run(self) -> list[Check]:
        self._warm()
        self._section(PROVENANCE, self._model)
        self._section("signature", self._signed)
        proven = self._provenance_is_readable()
        if self.entry_path is None:
            self._fail(
                "audit entry",
                "none found near the model; give its folder with --entry, or restore data/audit with "
                "`dvc checkout` in the model's project",
            )
            return self.checks
        self._section("audit entry", self._entry)
        self._section("entry.json", self._derived)
        self._section("records", self._chain)
        self._section("copies in the entry", self._copies)
        if proven:
            self._section("model against its record", self._model_record)
            self._section("provenance against its record", self._provenance_record)
            self._section("selected rows", self._selected)
        self._section("model card", self._card)
        if self.exported:
            self._section(README, self._readme)
        self._section("decisions", self._decisions)
        self._section("scores", self._scores)
        self._section("register of rows", self._register)
        if self.project is None:
            self._skip("files of the project", "the entry lies outside a project")
        else:
            self._section("records of the project", self._project_records)
            self._section("files of the project", self._project_files)
            self._section("params.yaml", self._settings)
            self._section(LOCK, self._lock)
        if self.deep:
            self._section("selection made again", self._follows)
        return self.checks

    # What is read once.

    @cached_property
    def entry(self) -> Entry:
        assert self.entry_path is not None
        return Entry(self.entry_path)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return load_provenance(self.model)

    @cached_property
    def hasher(self) -> Hasher:
        return Hasher(md5=self.project is not None and (self.project / LOCK).exists())

    def _warm(self) -> None:
        """Hashes in threads what will be asked for; what is missing or altered is told later."""
        paths = [self.model]
        if self.entry_path is not None:
            paths.append(self.entry_path)
        if self.project is not None:
            data = self.project / "data"
            paths += [data / RECORDS, data / "audit"]
            for file in sorted((data / RECORDS).glob("*.json")):
                with contextlib.suppress(PaserError, LookupError, TypeError, AttributeError):
                    record = read_json(file)
                    paths += [self.project / a.path for a in artefacts(record, "outputs")]
                    paths += [self.project / a.path for a in artefacts(record, "inputs")]
        self.hasher.warm(paths)

    @cached_property
    def role(self) -> str:
        role = self.provenance["role"]
        if role not in STAGE_OF_ROLE:
            raise PaserError(f"{PROVENANCE}: unknown role {role!r}")
        return str(role)

    @cached_property
    def exported(self) -> bool:
        """Whether the folder is an export, so that its `audit/` is the entry that is checked."""
        return is_export(self.model, self.entry_path)

    @cached_property
    def records(self) -> dict[str, Record]:
        return self.entry.records()

    @cached_property
    def card(self) -> str:
        from paser.lineage.documents.cards import model_card
        from paser.lineage.documents.facts import read_facts

        return model_card(read_facts(self.entry.root))

    @cached_property
    def selected(self) -> list[Row]:
        return self.entry.selected()

    @cached_property
    def trained_root(self) -> str:
        return merkle_root(self.provenance["row_ids"])

    @cached_property
    def project(self) -> Path | None:
        """The project whose `data/audit` the entry is."""
        if self.entry_path is None:
            return None
        root = self.entry.root.resolve()
        inside = root.name == "audit" and root.parent.name == "data"
        return root.parent.parent if inside and (root.parent / RECORDS).is_dir() else None

    def _provenance_is_readable(self) -> bool:
        try:
            return bool(self.role)
        except PaserError:
            return False

    def _digests(self, folder: Path) -> dict[str, str]:
        return self.hasher.sha256(folder)

    def _digest(self, file: Path) -> str:
        return self.hasher.file(file).sha256

    # How results are noted.

    def _ok(self, name: str, detail: str) -> None:
        self.checks.append(Check(name, True, detail))

    def _fail(self, name: str, detail: str) -> None:
        self.checks.append(Check(name, False, detail))

    def _skip(self, name: str, reason: str) -> None:
        self.checks.append(Check(name, True, f"does not apply: {reason}", applies=False))

    def _say(self, name: str, ok: bool, good: str, bad: str) -> None:
        self._ok(name, good) if ok else self._fail(name, bad)

    def _section(self, name: str, run: Callable[[], None]) -> None:
        """Runs some checks; content that cannot be read or has lost its shape is one more failure."""
        import pyarrow as pa

        try:
            run()
        except PaserError as error:
            self._fail(name, str(error.problem))
        except (LookupError, TypeError, ValueError, AttributeError, OSError, pa.ArrowException) as error:
            self._fail(name, f"cannot be read: {type(error).__name__}: {error}")

    def _compare(self, name: str, where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
        """One line if two sets of files are the same, else one for each file that differs."""
        differing = [n for n in sorted({*expected, *found}) if expected.get(n) != found.get(n)]
        for file in differing:
            path = f"{where}/{file}" if where else file
            if file not in found:
                self._fail(name, f"{path} is missing (recorded {expected[file]}); {CHECKOUT}")
            elif file not in expected:
                self._fail(name, f"{path} was added: no record knows it (found {found[file]})")
            else:
                self._fail(name, f"{path}: recorded {expected[file]}, found {found[file]}")
        if not differing:
            self._ok(name, f"{where} {tree_digest(dict(found))} ({len(expected)} files)")

    def _compare_model(self, name: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
        """The same for the files of the model; what `paser export` added has checks of its own."""
        if self.exported:
            expected, found = without_export(expected), without_export(found)
        self._compare(name, str(self.model), expected, found)

    # The checks.

    def _model(self) -> None:
        found = {n: d for n, d in self._digests(self.model).items() if n != PROVENANCE}
        self._compare_model("files of the model", self.provenance["files"], found)
        row_ids = self.provenance["row_ids"]
        root, stated = self.trained_root, self.provenance["merkle_root"]
        self._say(
            "Merkle root of the model",
            root == stated and len(row_ids) == self.provenance["rows"],
            f"{stated} over {len(row_ids)} rows",
            f"stated {stated} for {self.provenance['rows']} rows, its {len(row_ids)} row ids give {root}",
        )

    def _entry(self) -> None:
        content = self.entry.content()
        found = {n: d for n, d in self._digests(self.entry.root).items() if n not in (ENTRY, CARD)}
        self._compare("files of the audit entry", str(self.entry.root), content["files"], found)

    def _derived(self) -> None:
        """`entry.json` must be, to the byte, what the other files of the entry make it."""
        content = self.entry.content()
        path = self.entry.root / ENTRY
        expected = self.entry.derived_text(content["files"], self.selected)
        stated = path.read_text(encoding="utf-8")
        self._say(
            "entry.json follows from the files beside it",
            stated == expected,
            f"SHA-256 {self._digest(path)}",
            f"{path}: {_first_difference(content, expected)}",
        )

    def _chain(self) -> None:
        for stage, record in sorted(self.records.items()):
            for artefact in inconsistent(record):
                self._fail(
                    f"record of {stage}",
                    f"{artefact.path}: recorded {artefact.sha256}, its listed files give "
                    f"{tree_digest(artefact.files or {})}",
                )
        for link in links(self.records):
            if link.producer is None:
                continue
            more = f" (differs in {', '.join(link.differing[:3])})" if link.differing else ""
            self._say(
                f"{link.stage} read what {link.producer} wrote",
                link.ok,
                f"{link.path} {link.read}",
                f"{link.path}: {link.producer} wrote {link.written}, {link.stage} read {link.read}{more}",
            )

    def _copies(self) -> None:
        written = {a.path: a for record in self.records.values() for a in artefacts(record, "outputs")}
        for name, path in COPIES.items():
            recorded = written[path].sha256 if path in written else ABSENT
            copy = self.entry.root / name
            found = self._digest(copy) if copy.exists() else ABSENT
            self._say(
                "copy in the entry",
                found == recorded,
                f"{name} {found}",
                f"{copy}: the stage that writes {path} recorded {recorded}, found {found}",
            )
        files = written[MODEL].files if MODEL in written else None
        recorded = (files or {}).get(PROVENANCE, ABSENT)
        copy = self.entry.root / PROVENANCE
        found = self._digest(copy) if copy.exists() else ABSENT
        self._say(
            "copy in the entry",
            found == recorded,
            f"{PROVENANCE} {found}",
            f"{copy}: stage recover recorded {recorded}, found {found}",
        )

    def _model_record(self) -> None:
        stage = STAGE_OF_ROLE[self.role]
        outputs = artefacts(self.records[stage], "outputs")
        recorded = next((a for a in outputs if PROVENANCE in (a.files or {})), None)
        name = f"model against the record of {stage}"
        if recorded is None or recorded.files is None:
            self._fail(name, f"the record of {stage} holds no model with a {PROVENANCE}")
        else:
            self._compare_model(name, recorded.files, self._digests(self.model))

    def _provenance_record(self) -> None:
        """Settings, seed and inputs in the model's folder against the record of its stage."""
        stage = STAGE_OF_ROLE[self.role]
        record = self.records[stage]
        read = {a.path: a.sha256 for a in artefacts(record, "inputs")}
        name = f"provenance against the record of {stage}"
        for path, digest in sorted(self.provenance["inputs"].items()):
            recorded = read.get(path, ABSENT)
            self._say(
                name,
                digest == recorded,
                f"{path} {digest}",
                f"{path}: {PROVENANCE} says {digest}, the record {recorded}",
            )
        params = record["params"]
        for key, value in sorted(self.provenance["settings"].items()):
            recorded_value = params.get(key, params.get("recover", {}).get(key, ABSENT))
            if value != recorded_value:
                self._fail(name, f"setting {key}: {PROVENANCE} says {value!r}, the record {recorded_value!r}")
        seed = self.provenance["seed"]
        if seed != record["seed"]:
            self._fail(name, f"seed: {PROVENANCE} says {seed}, the record {record['seed']}")

    def _selected(self) -> None:
        """The rows in training order, their ids made again from their texts, against both roots."""
        name = "row ids follow from the texts"
        if self.role != "recovered":
            self._control_rows()
            return
        made = []
        for number, row in enumerate(self.selected, 1):
            made.append(row_id(row["instruction"], row["input"] or "", row["output"]))
            if made[-1] != row["row_id"]:
                self._fail(
                    name,
                    f"selected.jsonl line {number}: stated {row['row_id']}, its text gives {made[-1]}",
                )
        if made == [row["row_id"] for row in self.selected]:
            self._ok(name, f"{len(made)} rows of selected.jsonl")
        trained, aside = self.provenance["row_ids"], {*held_out(self.provenance)}
        if aside:
            strangers = sorted(aside - {*made})
            self._say(
                "rows held out are selected rows",
                not strangers,
                f"{len(aside)} rows",
                f"{len(strangers)} are not, the first is {(strangers or [''])[0]}",
            )
        made = [each for each in made if each not in aside]
        self._say(
            "selected rows are the trained rows, in order",
            made == trained,
            f"{len(made)} rows",
            _sequence_difference("selected.jsonl", made, PROVENANCE, trained),
        )
        roots = {
            "selected.jsonl": self.trained_root if made == trained else merkle_root(made),
            PROVENANCE: self.provenance["merkle_root"],
            ENTRY: self.entry.content()["merkle_root"],
        }
        listed = ", ".join(f"{file} {root}" for file, root in roots.items())
        self._say("Merkle roots agree", len(set(roots.values())) == 1, roots[ENTRY], listed)
        tokens = sum(int(row["tokens"]) for row in self.selected if row["row_id"] not in aside)
        self._say(
            "training tokens",
            tokens == self.provenance["tokens"],
            f"{tokens}",
            f"trained rows of selected.jsonl sum to {tokens}, {PROVENANCE} says {self.provenance['tokens']}",
        )

    def _control_rows(self) -> None:
        reason = "a control is trained on control.jsonl, which the entry does not hold"
        for name in ("row ids follow from the texts", "selected rows are the trained rows, in order"):
            self._skip(name, reason)
        rows = _columns(self.entry.register("row_id", "role"))
        known = {row_id for row_id, role in rows if role in OF_POOL}
        strangers = [r for r in self.provenance["row_ids"] if r not in known]
        self._say(
            "rows of the control are rows of the pool",
            not strangers,
            f"{self.provenance['rows']} rows",
            f"{len(strangers)} are not, the first is {(strangers or [''])[0]}",
        )

    def _card(self) -> None:
        """The card must be, to the byte, what the entry makes it; older entries have none."""
        path = self.entry.root / CARD
        if not path.exists():
            return
        self._say(
            "model card follows from the entry",
            path.read_text(encoding="utf-8") == self.card,
            CARD,
            f"{path} is not what entry.json and the files beside it make it",
        )

    def _readme(self) -> None:
        """README.md of an export: the card, then the model's own README.md where one was recorded."""
        path = self.model / README
        recorded = self.provenance["files"].get(README)
        if not path.exists() and recorded is None:
            return
        text, card, more = path.read_bytes(), self.card.encode(), ""
        same = text == card
        if recorded is not None:
            card += OWN_README.encode()
            same = text.startswith(card) and sha256_bytes(text.removeprefix(card)) == recorded
            more = f", with the model's own {README} (recorded {recorded}) after it"
        self._say(
            f"{README} follows from the entry",
            same,
            README,
            f"{path} is not the model card that {self.entry.root} makes{more}; `paser export` makes the "
            "folder again",
        )

    def _decisions(self) -> None:
        """`selected.jsonl` holds exactly the accepted rows, each in the cluster it was decided in."""
        decisions = self.entry.table("decisions", "row_id", "cluster", "decision")
        accepted = {row_id: cluster for row_id, cluster, what in _columns(decisions) if what == "accepted"}
        chosen = {row["row_id"]: row["cluster"] for row in self.selected}
        name = "selected rows are the accepted rows"
        wrong = sorted(chosen.items() ^ accepted.items(), key=str)
        self._say(
            name,
            not wrong and len(chosen) == len(self.selected),
            f"{len(accepted)} of {len(decisions)} decisions",
            f"decisions.parquet accepts {len(accepted)}, selected.jsonl holds {len(self.selected)}"
            + (f"; they differ in row {wrong[0][0]}" if wrong else "; a row stands twice"),
        )

    def _scores(self) -> None:
        """Each decision was made on the score that was recorded for its row."""
        scored = dict(_columns(self.entry.table("scores", "row_id", "jsd")))
        decisions = self.entry.table("decisions", "row_id", "jsd")
        wrong = [
            row_id
            for row_id, jsd in _columns(decisions)
            if row_id not in scored or not _same_number(jsd, scored[row_id])
        ]
        self._say(
            "decisions rest on the recorded scores",
            not wrong,
            f"{len(decisions)} rows",
            f"{len(wrong)} decisions have another JSD than scores.parquet, first row {(wrong or [''])[0]}",
        )

    def _register(self) -> None:
        """The register of rows names the trained rows, with source, licence and cluster."""
        keys = ("source", "source_row", "license", "label", "cluster")
        rows = self.entry.register("row_id", "role", *keys)
        registered = {
            row_id: tuple(found) for row_id, role, *found in _columns(rows) if role in ("trained", STOPPED_BY)
        }
        chosen = {row["row_id"]: tuple(row[key] for key in keys) for row in self.selected}
        wrong = sorted({n for n, _ in registered.items() ^ chosen.items()})
        self._say(
            "register names the selected rows",
            not wrong,
            f"{len(chosen)} rows of rows.parquet",
            f"rows.parquet and selected.jsonl differ in {len(wrong)} rows, first {(wrong or [''])[0]}",
        )

    def _project_records(self) -> None:
        assert self.project is not None
        held = self._digests(self.entry.root / RECORDS)
        folder = self.project / "data" / RECORDS
        found = {n: self._digest(folder / n) for n in held if (folder / n).exists()}
        self._compare("records of the project against the entry", str(folder), held, found)

    def _project_files(self) -> None:
        """Every recorded output, every root of the chain, and the entry itself, against the disk."""
        assert self.project is not None
        for link in links(self.records):
            if link.producer is None:
                recorded = Artefact(link.path, link.read, 0, files=link.files)
                self._on_disk(f"input of {link.stage} on disk", recorded)
        for stage, record in sorted(self.records.items()):
            for output in artefacts(record, "outputs"):
                self._on_disk(f"output of {stage} on disk", output)
        for stage, record in self.later_records.items():
            for artefact in artefacts(record, "inputs"):
                if artefact.path.startswith(f"data/{RECORDS}/"):
                    self._on_disk(f"input of {stage} on disk", artefact)
            for output in artefacts(record, "outputs"):
                self._on_disk(f"output of {stage} on disk", output)

    @cached_property
    def later_records(self) -> dict[str, Record]:
        """The project's records of stages that came after the entry: `audit` itself, `report`."""
        assert self.project is not None
        files = sorted((self.project / "data" / RECORDS).glob("*.json"))
        later = (f for f in files if not f.name.endswith(".run.json") and f.stem not in self.records)
        return {file.stem: read_json(file) for file in later}

    def _settings(self) -> None:
        """A setting that was edited since is not the one the model was made with."""
        from paser.settings import load_settings

        assert self.project is not None
        path = self.project / "params.yaml"
        stated = flat(load_settings(path).model_dump(mode="json"))
        wrong = [
            f"{key} is {stated[key]!r}, stage {stage} recorded {value!r}; put it back, or `dvc repro`"
            for stage, record in sorted({**self.records, **self.later_records}.items())
            for key, value in flat(record["params"]).items()
            if key in stated and stated[key] != value
        ]
        name = "params.yaml against the records"
        for problem in wrong:
            self._fail(name, problem)
        if not wrong:
            self._ok(name, "every recorded setting is as it was")

    def _lock(self) -> None:
        """What DVC believes, against the bytes and the records; DVC's word alone proves nothing."""
        assert self.project is not None
        path = self.project / LOCK
        if not path.exists():
            self._skip(f"{LOCK} against files and records", f"the project has no {LOCK}")
            return
        records = {**self.records, **self.later_records}
        stages = read_lock(path)
        for name in sorted(set(records) - set(stages)):
            self._fail(f"{LOCK} against the records", f"stage {name} has a record, but is not in {path}")
        for name, locked in sorted(stages.items()):
            own = STAGES.get(name)
            if own is None:
                self._skip(f"{LOCK}, stage {name}", "no stage of PASER writes a record for it")
                continue
            if name not in records:
                self._fail(f"{LOCK} against the records", f"stage {name} is locked, but has no record")
                continue
            code = self._code(own.all_code) == records[name]["code"]
            problems = against_bytes(locked, self.project, self.hasher, code)
            problems += against_record(locked, records[name], self.project, self.hasher)
            for problem in problems:
                self._fail(f"{LOCK}, stage {name}", problem)
            if not problems:
                count = f"{len(locked.deps)} inputs and code files, {len(locked.outs)} outputs"
                if not code:
                    count += "; its code has changed since and was not compared"
                self._ok(f"{LOCK}, stage {name}", count)

    def _code(self, paths: tuple[str, ...]) -> str:
        """Digest of a stage's code as it lies in the project; empty where the project holds none."""
        assert self.project is not None
        return code_digest(paths, self.project) if (self.project / "paser").is_dir() else ""

    def _signed(self) -> None:
        from paser.lineage.signature import default_place, problem_with

        place = self.signature or default_place(self.model)
        if self.key is None:
            reason = f"{place} is there; give --key to check it" if place.exists() else "not signed"
            self._skip("signature", reason)
            return
        problem = problem_with(self.model, self.entry_path, place, self.key)
        self._say("signature", problem is None, f"{place} by the holder of {self.key}", problem or "")

    def _follows(self) -> None:
        from paser.lineage.deep import follows

        if self.project is None:
            self._skip("selection made again", "it needs the tables of the project")
            return
        project, record = self.project, self.records["select"]
        for found in follows(record, self.entry.root, lambda path: project / path):
            problem = found.problem
            if problem:
                problem += self._changed_since(record)
            self._say(found.name, problem is None, found.detail, problem or "")

    def _changed_since(self, record: Record) -> str:
        """What, besides an altered record, may make a selection come out otherwise."""
        causes = []
        if code_digest(STAGES["select"].all_code) != record["code"]:
            causes.append("the code of select")
        now = package_versions()
        causes += [n for n, v in record["versions"].items() if n in now and now[n] != v]
        return f"; since then changed: {', '.join(causes)}" if causes else ""

    def _on_disk(self, name: str, recorded: Artefact) -> None:
        assert self.project is not None
        path = self.project / recorded.path
        if not path.exists():
            self._fail(name, f"{recorded.path} is missing (recorded {recorded.sha256}); {CHECKOUT}")
        elif path.is_dir() and recorded.files is not None:
            self._compare(name, recorded.path, recorded.files, self._digests(path))
        else:
            found = tree_digest(self._digests(path)) if path.is_dir() else self._digest(path)
            self._say(
                name,
                found == recorded.sha256,
                f"{recorded.path} {found}",
                f"{recorded.path}: recorded {recorded.sha256}, found {found}",
            )


def _columns(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """A table's rows, from whole columns: many times faster than a dictionary for each."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _same_number(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and a != a and b != b)


def _sequence_difference(name_a: str, a: list[str], name_b: str, b: list[str]) -> str:
    for position, (left, right) in enumerate(zip(a, b, strict=False), 1):
        if left != right:
            return f"row {position}: {name_a} has {left}, {name_b} {right}"
    return f"{name_a} has {len(a)} rows, {name_b} {len(b)}"


def _first_difference(stated: Any, expected_text: str) -> str:
    """Where `entry.json` departs from what it must say, as a dotted path."""
    expected = json.loads(expected_text)
    if json_text(stated) == expected_text:
        return "the same values, but not the bytes PASER writes"
    path: list[str] = []
    while isinstance(stated, dict) and isinstance(expected, dict):
        differing = [k for k in sorted({*stated, *expected}) if stated.get(k) != expected.get(k)]
        if not differing:
            break
        path.append(differing[0])
        stated, expected = stated.get(differing[0]), expected.get(differing[0])
    return f"{'.'.join(path)} is {_short(stated)}, the other files give {_short(expected)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def render(checks: list[Check], console: Console | None = None) -> None:
    """Prints every check as a line of a table, then the failures in full, where the eye ends."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(title="What was checked", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("check", overflow="fold")
    table.add_column("detail", overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]FAILED[/]"
        detail = _DIGEST.sub(lambda digest: f"{digest[0][:12]}…", check.detail)
        table.add_row(mark if check.applies else "[dim]n/a[/]", escape(check.name), escape(detail))
    console.print(table)
    failures = [check for check in checks if not check.ok]
    applied = sum(check.applies for check in checks)
    for check in failures:
        console.print(
            f"[bold red]FAILED[/] {escape(check.name)}\n  {escape(check.detail)}",
            soft_wrap=True,
            highlight=False,
        )
    if failures:
        console.print(f"[bold red]{len(failures)} of {applied} checks FAILED[/]", highlight=False)
    else:
        console.print(f"[green]all {applied} checks ok[/]", highlight=False)
