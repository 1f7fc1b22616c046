"""Tables in a page of the docs, filled from a results file between markers (design section 6)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpn_d2.utils.files import write_text_atomically
from mpn_d2.utils.results import format_figure

_START, _END = "<!-- table {name} -->", "<!-- end {name} -->"


def markdown_table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None]]]) -> str:
    """Rows of a name and figures, 0 to 100, None as "-", below the names of the columns."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, figures in rows:
        cells = [name, *(format_figure(figure).strip() for figure in figures)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill_tables(page: str | os.PathLike, tables: dict[str, str]) -> None:
    """Puts each table between its two markers in a page; nothing else changes.

    Raises:
        ValueError: a table without its markers; names page and marker.
    """
    text = Path(page).read_text()
    for name, table in tables.items():
        start, end = _START.format(name=name), _END.format(name=name)
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{page}: the table {name} needs the lines {start} and {end}")
        text = f"{before}{start}\n{table}\n{end}{after}"
    write_text_atomically(page, text)
