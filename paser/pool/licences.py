"""How strict a licence is, so that a text found under several counts under the strictest.

The order is by what a licence asks of somebody who trains on the text and passes the model on. It is no
legal advice; a licence that is not listed may ask for anything, so it is the strictest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNKNOWN = 6
# From the least to the most demanding; SPDX identifiers, compared without regard to case.
CLASSES: dict[int, tuple[str, ...]] = {
    0: ("CC0-1.0", "Unlicense", "0BSD", "PDDL-1.0", "public-domain"),
    1: (
        "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Apache-2.0", "PSF-2.0", "Python-2.0",
        "Zlib", "BSL-1.0", "CC-BY-3.0", "CC-BY-4.0", "ODC-By-1.0", "CDLA-Permissive-2.0",
    ),
    2: ("MPL-2.0", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "EPL-2.0"),
    3: (
        "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "CC-BY-SA-3.0",
        "CC-BY-SA-4.0", "ODbL-1.0",
    ),
    4: ("AGPL-3.0-only", "AGPL-3.0-or-later"),
    5: ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
}  # fmt: skip
_RANK = {name.casefold(): rank for rank, names in CLASSES.items() for name in names}
# A `+` that ends a name belongs to it (`GPL-2.0+`).
_BETWEEN = re.compile(r"\s+(?:AND|OR|WITH|AND/OR)\s+|[(),;&|]|(?<=\s)\+|\+(?=\w)|(?<=\+)\s+", re.IGNORECASE)
_EXCEPTION = re.compile(r"\s+WITH\s+[\w.-]*exception[\w.-]*", re.IGNORECASE)


def names_in(license: str) -> list[str]:
    """The licences and exceptions of a compound one: an SPDX expression, or names with `/ , ; & + |` between.

    A URL is one name.
    """
    found: list[str] = []
    for part in _BETWEEN.split(license):
        found += [part] if "://" in part else part.split("/")
    return [name.strip() for name in found if name.strip()]


def strictness(license: str) -> int:
    """0 (public domain) to 5 (no commercial use or no changes); 6 for a licence that is not listed.

    A compound licence is as strict as the strictest in it; an exception after `WITH` only permits more.
    """
    names = names_in(_EXCEPTION.sub("", license))
    return max((_RANK.get(name.casefold(), UNKNOWN) for name in names), default=UNKNOWN)


def strictest(licenses: Iterable[str]) -> str:
    """The most demanding of some licences (at least one); of equally strict ones the first by name."""
    return max(sorted({*licenses}), key=strictness)
