"""Losses and divergences of single tokens from several models' logits, spread over threads or fused.

On a CPU each thread takes tokens of its own, one at a time, so that everything stays in its cache; torch's
own threads would meet after every operation. On a GPU torch.compile fuses the operations where Triton is
there; a CPU's bytes must not depend on a compiler.
"""

from __future__ import annotations

import importlib.util
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paser.method.divergence import Distribution, compare
from paser.method.recoverability import recoverability

if TYPE_CHECKING:
    import torch

# Tokens compared at once on a GPU.
GPU_BLOCK = 64

Compare = Callable[["Sequence[torch.Tensor]", "torch.Tensor", int], "torch.Tensor"]


def token_values(logits: Sequence[torch.Tensor], targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Values of each token, float64, shape (values, tokens).

    `logits`: one tensor (tokens, vocabulary) a model, the reference first; `targets`: token ids (tokens).
    In order: the reference's loss, then for each other model its loss and its recoverability (all at
    temperature 1) and the fields of `Divergences` of (reference, model) at `temperature`.
    """
    import torch

    original = Distribution.of(logits[0])
    reference = original if temperature == 1.0 else Distribution.of(logits[0], temperature)
    values = [original.loss(targets)]
    for other in logits[1:]:
        plain = Distribution.of(other)
        values += [plain.loss(targets), recoverability(original, plain, targets)]
        values += compare(reference, plain if temperature == 1.0 else Distribution.of(other, temperature))
    return torch.stack([value.double() for value in values])


@contextmanager
def comparing(device: torch.device, temperature: float) -> Iterator[Compare]:
    """Yields `compare(logits, targets, size)`: `token_values` of the first `size` tokens, on the CPU.

    `logits` and `targets` may lie on any device; the work is done on `device`.
    """
    if device.type == "cpu":
        with _on_threads(temperature) as run:
            yield run
    else:
        yield _on_gpu(device, temperature)


def _on_gpu(device: torch.device, temperature: float) -> Compare:
    import torch

    function = token_values
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        function = torch.compile(token_values, dynamic=False)

    def run(logits: Sequence[torch.Tensor], targets: torch.Tensor, size: int) -> torch.Tensor:
        there, ids = [each.to(device) for each in logits], targets.to(device)
        parts = []
        with torch.inference_mode():
            for begin in range(0, size, GPU_BLOCK):
                block = slice(begin, begin + GPU_BLOCK)
                parts.append(function([each[block] for each in there], ids[block], temperature))
        return torch.cat(parts, dim=1)[:, :size].cpu()

    return run


@contextmanager
def _on_threads(temperature: float) -> Iterator[Compare]:
    import torch

    def tokens(
        logits: Sequence[torch.Tensor], targets: torch.Tensor, begin: int, end: int
    ) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [
                token_values([each[i : i + 1] for each in logits], targets[i : i + 1], temperature)
                for i in range(begin, end)
            ]

    threads = torch.get_num_threads()
    with _single_threads(threads) as pool:

        def run(logits: Sequence[torch.Tensor], targets: torch.Tensor, size: int) -> torch.Tensor:
            there = [each.cpu() for each in logits]
            bounds = [size * i // threads for i in range(threads + 1)]
            work = [pool.submit(tokens, there, targets, *pair) for pair in itertools.pairwise(bounds)]
            return torch.cat([part for each in work for part in each.result()], dim=1)

        yield run


@contextmanager
def _single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """`count` threads in each of which torch uses one; the caller's number stays."""
    import torch

    together = threading.Barrier(count)

    def prepare() -> None:
        torch.get_num_threads()  # torch initialises a thread's number at its first question
        torch.set_num_threads(1)
        together.wait()

    with ThreadPoolExecutor(count) as pool:
        for ready in [pool.submit(prepare) for _ in range(count)]:
            ready.result()
        torch.set_num_threads(count)  # MKL's number is the process's, not the thread's
        yield pool
