"""Files of figures: complete, valid JSON, whole or not at all."""

from __future__ import annotations

import json

import pytest

from mpn_d2.utils.results import flat_metrics, write_results


def test_flat_metrics():
    nested = {"keypoints": {"AP": 1.5, "APs": None}, "sem_seg": {"IoU-person": 3}}
    assert flat_metrics(nested, "unseen/") == {
        "unseen/keypoints/AP": 1.5,
        "unseen/keypoints/APs": None,
        "unseen/sem_seg/IoU-person": 3,
    }


def test_write_results(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, {"a/AP": 12.5, "b/AP": None}, seconds=1.26, seed=3, config="x.yaml")
    content = json.loads(path.read_text())
    assert content["metrics"] == {"a/AP": 12.5, "b/AP": None}
    assert (content["seconds"], content["seed"], content["config"]) == (1.3, 3, "x.yaml")
    assert {"command", "commit", "date", "machine"} <= set(content)
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"a/AP": float("nan")}, seconds=1, seed=3)
    assert json.loads(path.read_text()) == content
