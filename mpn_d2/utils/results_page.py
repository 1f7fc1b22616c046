"""One HTML page of pictures and figures; opens from a folder, without a server or a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5em; max-width: 1900px; }
table { border-collapse: collapse; margin: 0.5em 0; }
th, td { border: 1px solid #bbb; padding: 0.1em 0.6em; text-align: right; }
section { border-top: 1px solid #bbb; padding: 0.5em 0 1em; }
h2 { font-size: 1.1em; margin: 0.3em 0; overflow-wrap: anywhere; }
img { max-width: 100%; display: block; margin: 0.5em 0; }
.bad { color: #b00000; }
"""


@dataclass(frozen=True)
class PagePicture:
    """A part of the page about one image.

    Attributes:
        title: what stands over it.
        figures: one line of text.
        picture: path of the picture relative to the page; None: there is none.
        problem: why there is none.
        rows: cells of a table below, the first row its heads.
    """

    title: str
    figures: str
    picture: str | None
    problem: str = ""
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


def results_page(
    title: str,
    paragraphs: Sequence[str],
    tables: Mapping[str, Sequence[Sequence[str]]],
    pictures: Sequence[PagePicture],
) -> str:
    """The page; every text is escaped.

    Args:
        title: of the page.
        paragraphs: texts on top.
        tables: caption to cells, the first row its heads.
        pictures: in this order.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in paragraphs),
        *(_table(rows, caption) for caption, rows in tables.items()),
        *map(_section, pictures),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(picture: PagePicture) -> str:
    parts = [f"<section><h2>{escape(picture.title)}</h2><p>{escape(picture.figures)}</p>"]
    if picture.picture is None:
        parts.append(f'<p class="bad">{escape(picture.problem)}</p>')
    else:
        parts.append(
            f'<img src="{escape(quote(picture.picture))}" alt="{escape(picture.title)}" '
            'loading="lazy">'
        )
    if picture.rows:
        parts.append(_table(picture.rows))
    return "".join(parts) + "</section>"


def _table(rows: Sequence[Sequence[str]], caption: str = "") -> str:
    heads, *body = rows
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in heads) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"
