from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from paser.errors import PaserError
from paser.lineage.signature import default_place, problem_with, sign
from paser.lineage.verify import passed, verify

MODEL = "data/models/recovered"


def new_key(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(project: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A signed project and the public key."""
    private, public = new_key(tmp_path, "release")
    model = project / MODEL
    sign(model, project / "data/audit", default_place(model), private)
    return project, public


def test_a_signed_model_verifies_with_the_key_and_stays_intact(signed: tuple[Path, Path]) -> None:
    project, public = signed
    checks = verify(project / MODEL, key=public)
    assert passed(checks)
    assert any(check.name == "signature" and check.applies for check in checks)


def test_another_key_does_not_verify(signed: tuple[Path, Path], tmp_path: Path) -> None:
    project, _ = signed
    _, other = new_key(tmp_path, "other")
    failed = [check for check in verify(project / MODEL, key=other) if not check.ok]
    assert [check.name for check in failed] == ["signature"]
    assert "not signed by the holder" in failed[0].detail


def test_an_unsigned_model_fails_where_a_signature_is_demanded(project: Path, tmp_path: Path) -> None:
    _, public = new_key(tmp_path, "release")
    assert not passed(verify(project / MODEL, key=public))


def test_a_model_with_a_rewritten_and_consistent_record_is_caught_by_the_signature_alone(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Somebody who can write everything makes a whole other project; only the key is not theirs."""
    from synthetic_project import build

    from paser.stages.run import run_stage

    project, public = signed
    forged = build(tmp_path / "forged", seed=4)
    run_stage("audit", forged)
    shutil.copy(default_place(project / MODEL), default_place(forged / MODEL))
    failed = [check.name for check in verify(forged / MODEL, key=public) if not check.ok]
    assert failed == ["signature"]


def test_every_changed_byte_of_a_signature_file_is_noticed(signed: tuple[Path, Path]) -> None:
    project, public = signed
    model, place = project / MODEL, default_place(project / MODEL)
    content, rng = place.read_bytes(), random.Random(3)
    start, end = content.index(b'"signature"'), len(content)
    signed_part = range(content.index(b'"signed"'), end)
    for position in [*rng.sample(range(start, end), 40), *rng.sample(list(signed_part), 40)]:
        altered = bytearray(content)
        altered[position] ^= rng.randrange(1, 128)
        place.write_bytes(bytes(altered))
        try:
            same = json.loads(altered) == json.loads(content)
        except ValueError:
            same = False
        try:
            problem = problem_with(model, project / "data/audit", place, public)
        except PaserError as error:
            problem = str(error)
        assert same or problem, position


def test_a_key_inside_the_project_is_refused(project: Path) -> None:
    private, _ = new_key(project, "release")
    with pytest.raises(PaserError, match="inside the project"):
        sign(project / MODEL, None, default_place(project / MODEL), private)


def test_the_key_may_come_from_the_environment(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = new_key(tmp_path, "release")
    monkeypatch.setenv("PASER_SIGNING_KEY", private.read_text("utf-8"))
    place = tmp_path / "somewhere.json"
    sign(project / MODEL, None, place, None)
    assert problem_with(project / MODEL, None, place, public) is None
    monkeypatch.delenv("PASER_SIGNING_KEY")
    with pytest.raises(PaserError, match="no key to sign with"):
        sign(project / MODEL, None, place, None)
