"""The pool as one table with scores and decisions, and questions to it: filter, search, sort, one page.

The table stays in Arrow columns, so that a question to 100,000 rows takes a moment and a page holds only the
rows that it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paser.errors import PaserError

if TYPE_CHECKING:
    import pyarrow as pa

PAGE = 50
# Key in the address -> column, whether the largest come first, and what it is called.
ORDERS: dict[str, tuple[str, bool, str]] = {
    "damage": ("jsd", True, "most damaged first"),
    "least": ("jsd", False, "least damaged first"),
    "loss": ("loss_rise", True, "loss rose most first"),
    "efficiency": ("ies", True, "ranked highest first"),
    "tokens": ("tokens", True, "longest first"),
    "pool": ("", False, "order of the pool"),
}
# Filters on equal values, and the columns that each looks at.
FILTERS = ("cluster", "decision", "reason", "label", "source")
SEARCHED = ("instruction", "input", "output")


@dataclass(frozen=True)
class Question:
    """What is asked: `text` stands in a row's prompt or response, or begins its id; `page` counts from 1."""

    text: str = ""
    cluster: str = ""
    decision: str = ""
    reason: str = ""
    label: str = ""
    source: str = ""
    order: str = "damage"
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Question:
        """From the parameters of an address. Unknown ones are ignored; a value without sense is an error."""
        known = {key: given[key].strip() for key in ("text", *FILTERS) if key in given}
        order, page = given.get("order", "damage"), given.get("page", "1")
        if order not in ORDERS:
            raise PaserError(f"order={order!r} is unknown", remedy=f"one of {', '.join(ORDERS)}")
        if not page.isascii() or not page.isdigit() or int(page[:9]) < 1:
            raise PaserError(f"page={page!r} is no page", remedy="pages count from 1")
        if known.get("cluster") and not (known["cluster"].isascii() and known["cluster"].isdigit()):
            raise PaserError(
                f"cluster={known['cluster']!r} is no cluster", remedy="clusters are numbers from 0"
            )
        return cls(**known, order=order, page=int(page[:9]))

    def address(self, **changes: Any) -> str:
        """The parameters of this question, with `changes`, as the query of an address."""
        from urllib.parse import urlencode

        changed = replace(self, **changes)
        plain = Question()
        return urlencode(
            {
                key: getattr(changed, key)
                for key in ("text", *FILTERS, "order", "page")
                if getattr(changed, key) != getattr(plain, key)
            }
        )


@dataclass(frozen=True)
class Page:
    """Rows `first` to `last` (from 1) of the `found` that answer a question."""

    rows: list[dict[str, Any]]
    found: int
    number: int
    pages: int

    @property
    def first(self) -> int:
        return (self.number - 1) * PAGE + 1 if self.found else 0

    @property
    def last(self) -> int:
        return min(self.number * PAGE, self.found)


class Rows:
    """Every row of the pool with its scores and its decision."""

    def __init__(self, pool: pa.Table, scores: pa.Table, decisions: pa.Table) -> None:
        """Tables of `records`; scores and decisions are joined to the pool's rows by `row_id`.

        A row without a score or a decision has nulls in these columns.
        """
        import pyarrow.compute as pc

        table = pool
        for other, columns in (
            (scores, ("jsd", "loss_original", "loss_pruned", "status")),
            (decisions, ("cluster", "ies", "rank", "decision", "reason", "detail")),
        ):
            where = pc.index_in(pool["row_id"], value_set=other["row_id"].combine_chunks())
            for name in columns:
                table = table.append_column(name, other[name].combine_chunks().take(where.combine_chunks()))
        rise = pc.subtract(table["loss_pruned"], table["loss_original"])
        self._table = table.append_column("loss_rise", rise)

    def __len__(self) -> int:
        return len(self._table)

    def choices(self, column: str) -> list[Any]:
        """The values of a column, sorted; nulls and empty ones left out."""
        import pyarrow.compute as pc

        return sorted(
            value for value in pc.unique(self._table[column]).to_pylist() if value not in (None, "")
        )

    def row(self, row_id: str) -> dict[str, Any] | None:
        """One row with all columns, by its whole id."""
        import pyarrow.compute as pc

        found: list[dict[str, Any]] = self._table.filter(pc.equal(self._table["row_id"], row_id)).to_pylist()
        return found[0] if found else None

    def page(self, question: Question) -> Page:
        """The rows that a question asks for, `PAGE` at most; a page behind the last one is the last one.

        Rows without a value to sort by come last; ties keep the pool's order.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._filtered(question)
        column, largest_first, _ = ORDERS[question.order]
        pages = max(1, -(-len(table) // PAGE))
        number = min(question.page, pages)
        positions = pa.array(range(len(table)))
        if column:
            keys = pa.table({"key": _finite(table[column]), "place": positions})
            order = "descending" if largest_first else "ascending"
            positions = pc.sort_indices(keys, sort_keys=[("key", order), ("place", "ascending")])
        shown = positions.slice((number - 1) * PAGE, PAGE)
        return Page(table.take(shown).to_pylist(), len(table), number, pages)

    def _filtered(self, question: Question) -> pa.Table:
        import pyarrow.compute as pc

        table = self._table
        for name in FILTERS:
            if value := getattr(question, name):
                wanted = int(value) if name == "cluster" else value
                table = table.filter(pc.equal(table[name], wanted))
        if question.text:
            table = table.filter(_contains(table, question.text))
        return table


def _contains(table: pa.Table, text: str) -> Any:
    import functools

    import pyarrow.compute as pc

    places: Sequence[Any] = [
        pc.fill_null(pc.match_substring(table[name], text, ignore_case=True), False) for name in SEARCHED
    ]
    return functools.reduce(pc.or_, places, pc.starts_with(table["row_id"], text))


def _finite(column: Any) -> Any:
    """NaN as null: both are no value to sort by."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
