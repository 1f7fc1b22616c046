"""Tables of results between markers in a page."""

from __future__ import annotations

import pytest

from mpn_d2.utils.doc_tables import fill_tables, markdown_table


def test_tables_replace_what_stood_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n<!-- table a -->\nold\n<!-- end a -->\ntext <!-- table b --><!-- end b -->\n"
    )
    table = markdown_table(["", "AP", "share"], [("x", [61.24, None]), ("`y`", [5.0, 100.0])])
    assert (
        table
        == "| | AP | share |\n|---|---|---|\n| x | 61.2 | - |\n| `y` | 5.0 | 100.0 |".replace(
            "| | AP", "|  | AP"
        )
    )
    for _ in range(2):
        fill_tables(page, {"a": table, "b": "B"})
        assert page.read_text() == (
            f"# T\n<!-- table a -->\n{table}\n<!-- end a -->\n"
            "text <!-- table b -->\nB\n<!-- end b -->\n"
        )
    with pytest.raises(ValueError, match=r"page\.md: the table c needs"):
        fill_tables(page, {"c": ""})
