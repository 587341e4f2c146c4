"""Where the explorer may listen, and what it shows of tokens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from paser.errors import PaserError
from paser.explore.app import check_host, serve, shade, visible


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_any_host_but_loopback_is_refused_with_a_way_out(host: str) -> None:
    with pytest.raises(PaserError, match="listens on loopback only") as refused:
        serve(Path("nowhere"), host, 0, 8, False)
    assert "ssh -L" in str(refused.value)


def test_loopback_is_taken_by_name_and_number() -> None:
    assert [check_host(host) for host in ("127.0.0.1", "localhost", "::1")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
    ]


def test_a_project_that_has_not_selected_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(PaserError, match=r"pool\.parquet does not exist"):
        serve(tmp_path, "127.0.0.1", 0, 8, False)


def test_a_port_in_use_is_an_error_with_its_remedy(finished: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PaserError, match="cannot be used.*\n?.*--port"):
            serve(finished, "127.0.0.1", taken.getsockname()[1], 8, False)


def test_tokens_are_shaded_by_divergence_and_always_seen() -> None:
    assert [shade(jsd) for jsd in (0.0, 0.02, 0.3, 0.69)] == [0, 1, 4, 5]
    assert [visible(text) for text in ("\n", "", " a\t", "\x1b")] == ["⏎", "∅", " a⇥", "�"]
