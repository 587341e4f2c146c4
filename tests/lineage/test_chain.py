from __future__ import annotations

from typing import Any

from paser.artifacts import tree_digest
from paser.lineage.chain import chain_order, links

FILES = {"a/one": "1" * 64, "a/two": "2" * 64, "b": "3" * 64}


def record(inputs: dict[str, str], outputs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"inputs": [{"path": p, "sha256": d, "bytes": 1} for p, d in inputs.items()], "outputs": outputs}


FETCH = record(
    {"list": "f" * 64}, [{"path": "out", "sha256": tree_digest(FILES), "bytes": 9, "files": FILES}]
)


def test_inputs_inside_a_directory_output_are_joined_to_it() -> None:
    inside = {
        "out/b": "3" * 64,
        "out/a": tree_digest({"one": "1" * 64, "two": "2" * 64}),
        "out/gone": "4" * 64,
    }
    found = {link.path: link for link in links({"fetch": FETCH, "use": record(inside, [])})}
    assert found["out/b"].ok
    assert found["out/a"].ok
    assert (found["out/gone"].ok, found["out/gone"].written) == (False, "absent")
    assert found["list"].producer is None


def test_stages_come_after_what_they_read_whatever_their_names() -> None:
    end = record({"z": "1" * 64}, [])
    middle = record({"out/b": "3" * 64}, [{"path": "z", "sha256": "1" * 64, "bytes": 1}])
    assert chain_order({"aa": end, "bb": middle, "fetch": FETCH}) == ["fetch", "bb", "aa"]
