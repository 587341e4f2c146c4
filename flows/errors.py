"""Errors of the flows: like the library's, they say what is wrong and what to do about it."""

from __future__ import annotations

from paser.errors import PaserError


class FlowError(PaserError):
    """A flow that cannot run as asked."""


class Busy(FlowError):
    """Someone else works on the same project; the same call can succeed later."""
