"""How strict a licence is, so that a text found under several counts under the strictest.

The order is by what a licence asks of somebody who trains on the text and passes the model on. It is no
legal advice; a licence that is not listed may ask for anything, so it is the strictest.
"""

from __future__ import annotations

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


def strictness(license: str) -> int:
    """0 (public domain) to 5 (no commercial use or no changes); 6 for a licence that is not listed."""
    return _RANK.get(license.strip().casefold(), UNKNOWN)


def strictest(licenses: Iterable[str]) -> str:
    """The most demanding of some licences (at least one); of equally strict ones the first by name."""
    return max(sorted({*licenses}), key=strictness)
