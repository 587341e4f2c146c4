"""PASER: recovering pruned language models with the right data, provably."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("paser")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
