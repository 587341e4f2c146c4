"""The one exception a user is meant to read.

Every message names the file, row or key concerned, the value found and what to do about it, so that
the command line can print it alone, without a trace.
"""

from __future__ import annotations


class PaserError(Exception):
    """A problem that the user can remedy. `str(error)` is the whole message."""

    def __init__(self, problem: str, *, remedy: str | None = None) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)


class SettingsError(PaserError):
    """An unknown, malformed or contradictory parameter."""


class SourceError(PaserError):
    """A source that is missing, altered, malformed or of unknown shape."""


class ModelError(PaserError):
    """A model that cannot be loaded, or two models that do not belong together."""


class StageError(PaserError):
    """A stage that cannot run or whose inputs changed under it."""
