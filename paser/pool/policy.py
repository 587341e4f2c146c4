"""What the policy of `params.yaml` refuses before any row is selected: licences, and patterns in the text.

A refused row goes to quarantine with the rule that refused it. What a pattern matched, often personal
data, is written nowhere: neither in the detail nor in the quarantined text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from paser.pool.licences import names_in
from paser.records import Sample
from paser.settings import PolicySettings

TEXTS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Pattern:
    """A regular expression, and a check that a match of it is what it seems (a card's last digit, say)."""

    expression: re.Pattern[str]
    genuine: Callable[[str], bool] = bool

    def count(self, text: str) -> int:
        return sum(self.genuine(match[0]) for match in self.expression.finditer(text) if match[0])

    def redacted(self, text: str, name: str) -> str:
        """The text with `[name]` in place of every match."""

        def mark(match: re.Match[str]) -> str:
            return f"[{name}]" if match[0] and self.genuine(match[0]) else match[0]

        return self.expression.sub(mark, text)


def _luhn(text: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1, annex B), for 13 to 19 digits."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """The check digits of an international bank account number (ISO 13616-1)."""
    letters = text.replace(" ", "").upper()
    return int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1


BUILT_IN: dict[str, Pattern] = {
    "email": Pattern(
        re.compile(
            r"(?<![A-Za-z0-9_.+-])\w[\w.%+-]{0,63}@(?:(?:[^\W_]|-){1,63}\.)+"
            r"(?:[A-Za-z]{2,24}(?![A-Za-z0-9_])|[^\W\d_]{2,24}\b)"
        )
    ),
    "phone": Pattern(
        re.compile(
            r"(?<![\w+.-])(?:\+\d{1,3}(?:[ ./-]?\(?\d{1,4}\)?){2,6}"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([.-])\d{3}\1\d{4})(?![\w-])"
        ),
        lambda text: 8 <= sum(c.isdigit() for c in text) <= 15,
    ),
    "card": Pattern(re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w])"), _luhn),
    "iban": Pattern(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
}


@dataclass(frozen=True)
class Policy:
    """Licences that are refused, or the only ones allowed (none: all), and patterns by name.

    Licences are SPDX identifiers, with `*` for any characters, compared without regard to case.
    """

    refused: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    patterns: Mapping[str, Pattern] | None = None

    def against_license(self, license: str) -> str | None:
        """Why a row under this licence is refused, or None.

        Of a compound licence (`MIT OR GPL-3.0-only`, `MIT/GPL-3.0-only`) every part counts: the strictest
        decides. A name with such a character in it (`Terms of 1 May, annex B`) is allowed where it is written
        out among the allowed ones.
        """
        written_out = license.strip().casefold() in {rule.casefold() for rule in self.allowed}
        for part in names_in(license):
            if (rule := _matching(part, self.refused)) is not None:
                return f"{part} is refused ({rule})" if rule != part else f"{part} is refused"
            if self.allowed and not written_out and _matching(part, self.allowed) is None:
                return f"{part} is not among the allowed licences"
        if (rule := _matching(license, self.refused)) is not None:
            return f"{license} is refused ({rule})"
        return None

    def against_text(self, sample: Sample) -> str | None:
        """The patterns found in a row, with their number by field, or None. Never what they matched."""
        found = []
        for name, pattern in (self.patterns or {}).items():
            counts = {field: pattern.count(getattr(sample, field)) for field in TEXTS}
            where = ", ".join(f"{number} in {field}" for field, number in counts.items() if number)
            if where:
                found.append(f"{name}: {where}")
        return "; ".join(found) or None

    def redacted(self, sample: Sample) -> Sample:
        """The row with every match replaced by the pattern's name in brackets."""
        for name, pattern in (self.patterns or {}).items():
            instruction, input, output = (pattern.redacted(getattr(sample, f), name) for f in TEXTS)
            sample = replace(sample, instruction=instruction, input=input, output=output)
        return sample


def policy_of(settings: PolicySettings) -> Policy:
    """The policy that the settings describe."""
    own = {name: Pattern(re.compile(expression)) for name, expression in sorted(settings.patterns.items())}
    built_in: dict[str, Pattern] = {name: BUILT_IN[name] for name in settings.personal}
    return Policy(settings.licenses_refused, settings.licenses_allowed, {**built_in, **own})


def _matching(license: str, rules: tuple[str, ...]) -> str | None:
    return next((rule for rule in rules if fnmatchcase(license.casefold(), rule.casefold())), None)
