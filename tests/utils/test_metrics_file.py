"""metrics.json through kills, resumes and new beginnings."""

from __future__ import annotations

import json

import pytest

from mpn_d2.utils.metrics_file import read_metrics


def write(path, *records, end="\n"):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + end)
    return path


def test_last_value_of_a_repeated_iteration_counts(tmp_path):
    file = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 5.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 4.0},
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 29, "total_loss": 2.0},
    )
    curves = read_metrics(file)
    assert curves["total_loss"] == [(19, 3.0), (29, 2.0), (39, 4.0)]
    # Values that were not written again stay.
    assert curves["lr"] == [(19, 0.1)]


def test_a_beginning_ends_what_came_before(tmp_path):
    first = [{"iteration": i, "a": 1.0} for i in (10, 20, 30, 40)]
    resumed = [{"iteration": 30, "start_iteration": 30.0}, {"iteration": 35, "a": 2.0}]
    file = write(tmp_path / "metrics.json", *first, *resumed)
    # 30 is also where the evaluation after iteration 29 is filed.
    assert read_metrics(file) == {"a": [(10, 1.0), (20, 1.0), (30, 1.0), (35, 2.0)]}
    anew = [{"iteration": 0, "start_iteration": 0.0, "a": 3.0}]
    file = write(tmp_path / "metrics.json", *first, *anew)
    assert read_metrics(file) == {"a": [(0, 3.0)]}


def test_half_written_lines_are_left_out(tmp_path):
    whole = [{"iteration": 1, "a": 1.0}, {"iteration": 2, "a": 2.0}]
    file = write(tmp_path / "metrics.json", *whole, '{"iteration": 3, "a"', end="")
    assert read_metrics(file)["a"] == [(1, 1.0), (2, 2.0)]
    # Killed in the middle of a line; the resumed run appended to it.
    file = write(tmp_path / "metrics.json", *whole, '{"a": 3.0, "it{"iteration": 4, "a": 4.0}')
    assert read_metrics(file)["a"] == [(1, 1.0), (2, 2.0), (4, 4.0)]


def test_nan_and_texts_are_left_out(tmp_path):
    lines = ['{"iteration": 1, "a": NaN, "b": 2, "c": "x", "d": null}']
    assert read_metrics(write(tmp_path / "metrics.json", *lines)) == {"b": [(1, 2.0)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no values yet"),
        ('{"iteration": 1, "start_iteration": 0.0}\n', "holds no values yet"),
        ('{"iteration": 1, "a": 1}\n{"a": 2}\n', r"metrics\.json, line 2: not a JSON object"),
        ('not json\n{"iteration": 1, "a": 1}\n', r"metrics\.json, line 1: not a JSON object"),
    ],
)
def test_useless_files_are_named(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_metrics(tmp_path / "metrics.json")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json not found"):
        read_metrics(tmp_path / "metrics.json")
