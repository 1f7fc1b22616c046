"""tools/export_table.py: the table, and the equality that it asks for."""

from __future__ import annotations

import pytest
from repo_tools import load_tool

tool = load_tool("export_table")


def metrics(row: str, keypoints: float, boxes: float, **file: float) -> dict:
    found = {"keypoints/AP": keypoints, "bbox/AP": boxes, "sem_seg/IoU-person": 90.0}
    found |= {f"file/{name}": value for name, value in file.items()}
    return {f"{tool.GROUP}/{row}/{name}": value for name, value in found.items()}


def test_rows_that_were_measured():
    results = {
        "metrics": metrics("pytorch", 61.84, 63.8)
        | metrics("onnx_fp32", 61.2, 63.8, MiB=121.94, seconds=12.34),
        "runs": {f"{tool.GROUP}/{row}": {} for row in ("onnx_fp32", "pytorch")},
    }
    (table,) = tool.tables(results).values()
    assert table.splitlines() == [
        "|  | keypoint AP | box AP | person IoU | MiB | seconds to export |",
        "|---|---|---|---|---|---|",
        "| `pytorch` | 61.8 | 63.8 | 90.0 | - | - |",
        "| `onnx_fp32` | 61.2 | 63.8 | 90.0 | 121.9 | 12.3 |",
    ]
    assert tool.tables({}) == {}


@pytest.mark.parametrize("row", ["onnx_fp32", "torchscript_fp32"])
def test_single_precision_scores_as_pytorch(row):
    wanted = metrics("pytorch_mutual_best", 61.2, 63.8)
    tool.check_equal(wanted | metrics(row, 61.29, 63.71))
    tool.check_equal(wanted)
    with pytest.raises(ValueError, match=f"{row} has bbox/AP 63.60, PyTorch 63.80"):
        tool.check_equal(wanted | metrics(row, 61.2, 63.6))
    tool.check_equal(wanted | metrics("onnx_int8", 50.0, 50.0))


def test_rows_of_other_weights_are_not_mixed(tmp_path):
    file = tmp_path / "model_final.pth"
    with pytest.raises(FileNotFoundError, match=r"model_final\.pth not found: train it first"):
        tool.weights_digest(file)
    file.write_bytes(b"first")
    first = tool.weights_digest(file)
    file.write_bytes(b"second")
    second = tool.weights_digest(file)
    results = {
        "runs": {f"{tool.GROUP}/{row}": {"weights": first} for row in ("pytorch", "onnx_fp32")}
    }
    tool.check_rows({}, ["onnx_int8"], second)
    tool.check_rows(results, ["onnx_int8"], first)
    tool.check_rows(results, ["onnx_fp32", "pytorch"], second)
    with pytest.raises(ValueError, match="rows pytorch in the results are of other weights"):
        tool.check_rows(results, ["onnx_fp32"], second)


def test_rows_name_what_can_be_exported():
    from mpn_d2.export.files import FORMATS
    from mpn_d2.export.writing import PRECISIONS

    for row in filter(None, tool.ROWS.values()):
        assert row[0] in FORMATS and row[1] in PRECISIONS
