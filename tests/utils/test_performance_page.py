"""Tables of docs/performance.md: figures in the right rows, columns and units."""

from __future__ import annotations

from speed_figures import FIGURES

from mpn_d2.utils.performance_page import accuracy_table, speed_tables, targets_table
from mpn_d2.utils.speed_plot import plot_speed, speed_lines


def cells(table: str) -> list[list[str]]:
    lines = table.splitlines()
    assert set(lines[1]) == {"|", "-"}
    return [[c.strip() for c in line.split("|")[1:-1]] for line in [lines[0], *lines[2:]]]


def test_tables_of_speed():
    found = speed_tables("net", FIGURES)
    assert set(found) == {
        f"{name}_net" for name in ("people", "sizes", "steps", "parts", "around", "memory", "bound")
    }
    head, one, twenty = cells(found["people_net"])
    assert head[:3] == ["people", "top_down, ms", "plain, ms"] and head[-1] == "fp32, %"
    row = dict(zip(head, one, strict=True))
    assert (row["top_down, ms"], row["plain, ms"], row["plain, %"]) == ("1000.0", "500.0", "50.0")
    assert row["half, ms"] == row["half, %"] == row["fp32, ms"] == "-"
    row = dict(zip(head, twenty, strict=True))
    assert (row["people"], row["fp32, ms"], row["plain, %"]) == ("20", "250.0", "30.0")
    assert cells(found["sizes_net"]) == [
        ["side", "top_down, ms", "plain, ms"],
        ["320", "-", "200.0"],
        ["640", "1900.0", "900.0"],
    ]
    assert cells(found["steps_net"])[1:] == [["plain", "600.0", "100.0"], ["fold", "540.0", "90.0"]]
    assert cells(found["parts_net"])[1:] == [
        ["backbone", "300.0", "100.0", "23.5", "12.0", "10.0"],
        ["peaks", "10.0", "-", "-", "-", "-"],
    ]
    assert cells(found["around_net"])[1:] == [["drawing", "70.0"], ["training step", "1500.0"]]
    assert cells(found["memory_net"])[1:] == [
        ["net, plain", "812.3"],
        ["top_down, plain", "1000.0"],
    ]
    # 10 GFLOP at 80 a second take 125 ms, half of the 250 that were measured.
    assert cells(found["bound_net"])[1:] == [
        ["net, fp32", "10.0", "80.0", "125.0", "250.0", "50.0"],
        ["top_down", "40.0", "80.0", "500.0", "2000.0", "25.0"],
    ]


def test_nothing_measured_gives_no_table():
    assert speed_tables("net", {}) == {} and accuracy_table({}) == ""
    alone = speed_tables("net", {"seconds/net/3/plain": 0.1})
    assert cells(alone["people_net"]) == [["people", "plain, ms"], ["3", "100.0"]]


def test_table_of_accuracy():
    figures = {
        "one/plain/keypoints/AP": 60.0,
        "one/plain/bbox/AP": 70.0,
        "one/half/keypoints/AP": 59.9,
        "two/half/keypoints/AP": None,
    }
    assert cells(accuracy_table(figures))[1:] == [
        ["one, plain", "60.0", "70.0", "-", "0.0"],
        ["one, half", "59.9", "-", "-", "-0.1"],
        ["two, half", "-", "-", "-", "-"],
    ]


def test_table_of_targets():
    figures = {
        "ratio/1/fp32": 0.7,
        "ratio/20/fp32": 0.6,
        "ratio/20/fastest": None,
        "seconds/net/1/fp32": 0.2,
        "seconds/net/50/fp32": 0.23,
        "peak_mib/net/20/plain": 700.0,
        "peak_mib/net/20/fp32": 900.0,
        "peak_mib/top_down/20/plain": 1000.0,
    }
    table = cells(targets_table("net", figures, "small", {"ratio/20/fp32": 0.08}))
    assert table == [
        ["", "at most, %", "measured, %"],
        ["net, fp32: time at 1 person", "100.0", "70.0"],
        ["net, fp32: time at 5 people", "80.0", "-"],
        ["net, fp32: time at 20 people", "50.0", "60.0"],
        ["net, fastest: time at 20 people", "25.0", "-"],
        ["net, fp32: time at 50 people of that at 1", "110.0", "115.0"],
        ["net, fp32: memory at 20 people", "100.0", "90.0"],
        ["small, fp32: time at 20 people", "10.0", "8.0"],
    ]
    assert targets_table("net", {}, "small", {"ratio/20/fp32": 0.08}) == ""
    missing = cells(targets_table("net", {"ratio/1/fp32": 0.7}, "small", {}))
    assert [row[2] for row in missing[1:]] == ["70.0", *["-"] * 6]


def test_lines_of_the_plot(tmp_path):
    lines = speed_lines(FIGURES)
    assert lines["net, plain"] == [(1, 0.5), (20, 0.6)]
    assert lines["top_down, plain"] == [(1, 1.0), (20, 2.0)]
    assert lines["net, fp32"] == [(20, 0.25)] and "net, half" not in lines
    plot_speed(FIGURES, tmp_path / "new" / "p.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.png"]
