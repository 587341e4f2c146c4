"""A detached signature over a model's proof: the answer to an attacker who can rewrite every file.

It covers the Merkle root, `provenance.json` (and through it the weights, settings and rows) and, where
there is one, `entry.json` (and through it records and decisions). Ed25519; the private key never lies in
the project.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.artifacts import json_text, read_json, sha256_file, write_json
from paser.errors import PaserError
from paser.lineage.entry import ENTRY
from paser.lineage.provenance import PROVENANCE, load_provenance

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_VERSION = 1
SIGNING_KEY, PASSWORD = "PASER_SIGNING_KEY", "PASER_SIGNING_PASSWORD"
_NEW_KEY = "`openssl genpkey -algorithm ed25519 -out KEY` makes one, `openssl pkey -in KEY -pubout` its half"


def default_place(model: Path) -> Path:
    """Beside the model's folder, whose own files are all recorded: `recovered.signature.json`."""
    folder = model.resolve()
    return folder.with_name(f"{folder.name}.signature.json")


def statement(model: Path, entry: Path | None) -> dict[str, Any]:
    """What is signed: digests of the files that name all others."""
    provenance = load_provenance(model)
    return {
        "version": SIGNATURE_VERSION,
        "merkle_root": provenance["merkle_root"],
        "rows": provenance["rows"],
        "provenance_sha256": sha256_file(model / PROVENANCE),
        "entry_sha256": None if entry is None else sha256_file(entry / ENTRY),
    }


def sign(model: Path, entry: Path | None, place: Path, key: Path | None) -> dict[str, Any]:
    """Signs with a private key in PEM, from a file or from `PASER_SIGNING_KEY`; writes and returns it.

    A password of the key comes from `PASER_SIGNING_PASSWORD`. Raises `PaserError` for a key inside the
    model's project.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = _private_key(key, _project(model))
    signed = statement(model, entry)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = {
        "signed": signed,
        "algorithm": "ed25519",
        "public_key": public.decode(),
        "signature": base64.b64encode(private.sign(_message(signed))).decode(),
    }
    write_json(place, content)
    return content


def problem_with(model: Path, entry: Path | None, place: Path, key: Path) -> str | None:
    """None where the signature holds under the given public key, else what is wrong.

    The public key that the file itself states is never trusted. Without an entry at hand, what was signed
    of the entry is left unchecked.
    """
    from cryptography.exceptions import InvalidSignature

    if not place.exists():
        return f"{place} does not exist: the model is not signed"
    public = _public_key(key)
    content = read_json(place)
    try:
        signed, signature = content["signed"], base64.b64decode(content["signature"], validate=True)
        public.verify(signature, _message(signed))
    except InvalidSignature:
        return f"{place} was not signed by the holder of {key}, or was altered since"
    except (LookupError, TypeError, ValueError, binascii.Error) as error:
        return f"{place} is no signature of PASER: {type(error).__name__}: {error}"
    if base64.b64encode(signature).decode() != content["signature"]:
        return f"{place} writes its signature in an unusual way"
    found = statement(model, entry)
    if entry is None:
        found["entry_sha256"] = signed["entry_sha256"]
    differing = [name for name in found if found[name] != signed.get(name)]
    if differing:
        name = differing[0]
        return f"{name}: signed {signed.get(name)}, found {found[name]}"
    return None


def _message(signed: Any) -> bytes:
    return b"paser-signature\n" + json_text(signed).encode()


def _private_key(key: Path | None, project: Path | None) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = os.environ.get(SIGNING_KEY, "")
    if key is not None:
        if project is not None and key.resolve().is_relative_to(project):
            raise PaserError(f"{key} lies inside the project", remedy="keep private keys outside it")
        text = _read(key)
    if not text:
        raise PaserError("no key to sign with", remedy=f"give --key, or set {SIGNING_KEY}; {_NEW_KEY}")
    password = os.environ.get(PASSWORD)
    try:
        found = load_pem_private_key(text.encode(), password.encode() if password else None)
    except (ValueError, TypeError) as error:
        raise PaserError(
            f"the signing key cannot be read: {error}",
            remedy=f"a private key in PEM; {PASSWORD} holds its password; {_NEW_KEY}",
        ) from error
    if not isinstance(found, Ed25519PrivateKey):
        raise PaserError("the signing key is not an Ed25519 key", remedy=_NEW_KEY)
    return found


def _public_key(key: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(_read(key).encode())
    except ValueError as error:
        raise PaserError(f"{key} is not a public key in PEM: {error}", remedy=_NEW_KEY) from error
    if not isinstance(found, Ed25519PublicKey):
        raise PaserError(f"{key} is not an Ed25519 key", remedy=_NEW_KEY)
    return found


def _read(key: Path) -> str:
    try:
        return key.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PaserError(f"{key} cannot be read: {error}", remedy=_NEW_KEY) from error


def _project(model: Path) -> Path | None:
    """The folder above that holds `data/`, of a model inside a project."""
    return next((p for p in model.resolve().parents if (p / "data" / "records").is_dir()), None)
