"""PASER: recovering pruned language models with the right data, provably.

`paser.select`, `paser.damage`, `paser.recover` and `paser.verify` are the Python interface (`paser/api.py`);
nothing heavy is imported before one of them is asked for.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paser.api import Damage, Recovered, Selection, damage, recover, select, verify

try:
    __version__ = version("paser")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_INTERFACE = ("Damage", "Recovered", "Selection", "damage", "recover", "select", "verify")
__all__ = [
    "Damage",
    "Recovered",
    "Selection",
    "__version__",
    "damage",
    "recover",
    "select",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _INTERFACE:
        from paser import api

        return getattr(api, name)
    raise AttributeError(f"module 'paser' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_INTERFACE})
