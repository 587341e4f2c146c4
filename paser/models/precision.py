"""Device, threads and number type: measured on the machine at hand, not assumed.

bfloat16 is several times faster than float32 where the processor has instructions for it and several
times slower where it has not, so a probe of some milliseconds decides, once per machine.
"""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

from paser.artifacts import fingerprint, read_json, write_json
from paser.cache import Cache
from paser.errors import SettingsError

if TYPE_CHECKING:
    import torch

NATIVE_SPEEDUP = 1.3
# Share of the free memory that models may fill with `runtime.device_map: auto`; the rest is for their work.
MODEL_SHARE = 0.9


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU when torch sees one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "runtime.device is 'cuda', but torch sees no GPU",
            remedy="set runtime.device: auto, or install a CUDA build of torch",
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def memory_shares(device: str, models: int) -> dict[int | str, int]:
    """Bytes of each device that one of `models` models may fill, as accelerate's `max_memory`.

    All GPUs and the main memory with device `cuda`, the main memory alone with `cpu`; what does not fit is
    read from disk when it is needed.
    """
    from accelerate.utils import get_max_memory

    free: dict[int | str, int] = get_max_memory()
    return {
        where: int(MODEL_SHARE * size / models)
        for where, size in free.items()
        if device == "cuda" or where == "cpu"
    }


def set_threads(threads: int) -> int:
    """Sets torch's threads (0 = all cores) and returns their number; results depend on it."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    return int(torch.get_num_threads())


def choose_dtype(wanted: str, device: str, cache: Cache) -> torch.dtype:
    """torch.bfloat16 or torch.float32; `auto` takes bfloat16 where it is faster."""
    import torch

    if wanted == "auto":
        wanted = "bfloat16" if bfloat16_speedup(device, cache) >= NATIVE_SPEEDUP else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wanted]


def bfloat16_speedup(device: str, cache: Cache) -> float:
    """Time of a float32 matrix product over that in bfloat16; measured once per processor and kept."""
    import torch

    if device == "cuda":
        return 10.0 if torch.cuda.is_bf16_supported() else 0.1
    processor = [platform.machine(), _processor_name(), torch.__version__, torch.get_num_threads()]
    entry = cache.entry("probe", fingerprint(processor) + ".json")
    if not entry.exists():
        ratio = _time_product(torch.float32) / _time_product(torch.bfloat16)
        write_json(entry, {"bfloat16_speedup": round(ratio, 2)})
    return float(read_json(entry)["bfloat16_speedup"])


def _time_product(dtype: torch.dtype, repeats: int = 7) -> float:
    """Median seconds of a product of the size of a small model's layer."""
    import torch

    left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 2048, dtype=dtype)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            lines = [line for line in stream if line.startswith(("model name", "flags"))][:2]
        return "".join(lines) or platform.processor()
    except OSError:
        return platform.processor()
