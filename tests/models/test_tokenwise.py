"""Single tokens' values: the same on any number of threads, and through a compiler's front end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from paser.models.tokenwise import comparing, token_values

TOKENS, VOCABULARY = 23, 40_000


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def logits(models: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(TOKENS, VOCABULARY, generator=draw).bfloat16() * 3 for _ in range(models)]
    return drawn, torch.randint(VOCABULARY, (TOKENS,), generator=draw)


def on_threads(count: int, temperature: float, size: int) -> torch.Tensor:
    torch.set_num_threads(count)
    given, targets = logits()
    with comparing(torch.device("cpu"), temperature) as compare:
        found = compare(given, targets, size)
        assert torch.get_num_threads() == count
    return found


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_number_of_threads_changes_no_bit(threads: int, temperature: float) -> None:
    one = on_threads(1, temperature, TOKENS)
    assert one.shape == (11, TOKENS)
    for count in (2, 5, TOKENS + 3):
        assert torch.equal(on_threads(count, temperature, TOKENS), one)
    assert torch.equal(on_threads(2, temperature, 4), one[:, :4])
    given, targets = logits()
    torch.testing.assert_close(token_values(given, targets, temperature), one, rtol=1e-5, atol=1e-6)


def test_a_failure_in_a_thread_is_raised(threads: int) -> None:
    given, targets = logits()
    with comparing(torch.device("cpu"), 1.0) as compare, pytest.raises(RuntimeError, match="out of bounds"):
        compare(given, targets + VOCABULARY, TOKENS)


def test_the_front_end_of_torch_compile_keeps_the_values() -> None:
    """What a GPU's compiler is given; its code generator needs a GPU."""
    given, targets = logits()
    compiled = torch.compile(token_values, dynamic=False, backend="aot_eager")
    with torch.inference_mode():
        for temperature in (1.0, 1.7):
            found = compiled(given, targets, temperature)
            torch.testing.assert_close(found, token_values(given, targets, temperature), rtol=1e-5, atol=1e-6)
