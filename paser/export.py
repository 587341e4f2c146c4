"""`paser export`: one folder that says everything about a recovered model and loads as any other.

Weights and adapter are copied as they are, the proof beside them; the audit entry goes into `audit/`, and
README.md is the card that follows from it. So the folder can be verified and traced wherever it is copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from paser.artifacts import files_below, staged
from paser.errors import PaserError
from paser.lineage.documents.cards import model_card
from paser.lineage.documents.facts import read_facts
from paser.lineage.entry import ENTRY, EXPORTED, OWN_README, README
from paser.lineage.provenance import load_provenance, model_files
from paser.lineage.trace import entry_of
from paser.progress import say, warn


def export_model(model: Path, out: Path, entry: Path | None = None) -> list[Path]:
    """Assembles the folder `out` and returns its files; nothing is left behind when it fails.

    Raises `PaserError` where `out` is not empty, the model is altered or a control, or no audit entry tells
    of it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PaserError(f"{out} exists and is not empty", remedy="give a folder that does not exist")
    provenance = load_provenance(model)
    if provenance["role"] != "recovered":
        raise PaserError(
            f"{model} is a {provenance['role']}: the audit entry and its results are of the recovered model",
            remedy="give data/models/recovered",
        )
    if (model / EXPORTED / ENTRY).exists():
        raise PaserError(f"{model} is an export itself", remedy="copy the folder, or push it with --push")
    source = entry_of(model, entry, provenance)
    _refuse_altered(model, provenance["files"])
    card = model_card(read_facts(source.root))
    with staged(out) as partial:
        shutil.copytree(model, partial)
        shutil.copytree(source.root, partial / EXPORTED)
        if (own := model / README).exists():
            card += OWN_README + own.read_text(encoding="utf-8")
        (partial / README).write_text(card, encoding="utf-8")
    return [out / path.relative_to(out) for path in files_below(out)]


def _refuse_altered(model: Path, recorded: dict[str, str]) -> None:
    found = model_files(model)
    for name in sorted({*recorded, *found}):
        if recorded.get(name) != found.get(name):
            raise PaserError(
                f"{model / name} is not what its provenance names: recorded {recorded.get(name, 'nothing')}, "
                f"found {found.get(name, 'nothing')}",
                remedy="`dvc checkout` restores it; `paser audit verify` says more",
            )


def check_token() -> None:
    """Raises `PaserError` where nothing says who is pushing."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise PaserError(
            "no access token for the Hugging Face Hub was found, so nothing can be pushed",
            remedy="`hf auth login`, or set HF_TOKEN to a token with write access",
        )


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Uploads an export as one commit to a repository, which is made if it is missing; returns its address.

    A repository that is there keeps its visibility. Raises `PaserError` in the Hub's own words.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    check_token()
    if (folder / EXPORTED).is_dir():
        warn(
            f"{EXPORTED}/ goes with it: texts of the selected rows, and digests that tell whoever gets them "
            "whether a text they know was in the pool. A proof without them: `paser audit prove`"
        )
    api = HfApi()
    try:
        made: Any = api.create_repo(repository, private=private, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Recovered model, adapter, proof and card, exported by PASER",
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise PaserError(
            f"{repository} was not pushed: {lines[0] if lines else type(error).__name__}",
            remedy=f"the export is whole in {folder}; check name, token and network, then push it again",
        ) from error
    say(f"{repository}: pushed")
    return str(done.commit_url)
