"""tools/train_assembly.py: every row's config loads; a row trains, goes on and keeps the others."""

from __future__ import annotations

import json

import pytest
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.evaluation.noise import NOISE_ROWS

tool = load_tool("train_assembly")


def run(folder, *arguments):
    line = ["--runs", str(folder / "runs"), "--output", str(folder / "docs"), *arguments]
    tool.main(tool.parse_args(line))
    return json.loads((folder / "docs" / "results" / "assembly.json").read_text())


def test_rows_train_by_configs_that_exist_and_differ_as_named():
    for name, row in tool.rows().items():
        cfg = load_config(str(tool.CONFIGS / f"{row.config}.yaml"), list(row.options))
        if row.split != tool.HELD_OUT:
            assert tuple(cfg.DATASETS.TEST) == (tool.SPLITS[row.split],), name
        assert row.split == tool.HELD_OUT or not name.startswith("ideas/")
        if name.startswith("E6/"):
            nodes, dropout, residual = name.removeprefix("E6/").split("_")
            assert cfg.MODEL.PRN.NODES == int(nodes) and cfg.MODEL.PRN.DROPOUT == float(dropout)
            assert (cfg.MODEL.ASSEMBLER.EVIDENCE == "prn") == (residual == "residual")
    short = {
        load_config(str(tool.CONFIGS / f"{r.config}.yaml"), list(r.options)).SOLVER.MAX_ITER
        for name, r in tool.rows().items()
        if name.startswith("E6/")
    }
    assert len(short) == 1


def test_a_row_is_recorded_beside_the_others_and_goes_on(tmp_path, mpn_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mpn_data))
    content = run(tmp_path, "--only", "max_poses")
    prefix = "coco_poses_val/PRN_poses/max+"
    assert 40 < content["metrics"][prefix + "reference/AP"] < 50
    assert content["metrics"][prefix + "reference/owner_share"] > 60
    assert {k.split("+")[1].split("/")[0] for k in content["runs"]} == set(tool.MATCHINGS)

    tiny = ["--opts", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "MODEL.DEVICE", "cpu"]
    tiny += ["MODEL.ASSEMBLER.LEARNED.WIDTH", "8", "MODEL.ASSEMBLER.LEARNED.ROUNDS", "1"]
    trained = run(tmp_path, "--only", "Assembler_poses", *tiny)
    assert prefix + "reference/AP" in trained["metrics"]
    own = "coco_poses_val/Assembler_poses/learned+hungarian"
    assert trained["metrics"][own + "/AP"] > 0
    assert trained["runs"][own]["iterations x batch"] == "2 x 32"
    assert 0 < trained["metrics"]["params/Assembler_poses"] < 2_000_000
    log = tmp_path / "runs" / "assembly" / "Assembler_poses" / "assembly" / "metrics.json"
    before = log.read_text()
    assert before
    again = run(tmp_path, "--only", "Assembler_poses", *tiny)
    assert again["metrics"] == trained["metrics"]
    # A finished run is not trained again.
    assert log.read_text() == before
    with pytest.raises(ValueError, match="rows are identity_poses"):
        run(tmp_path, "--only", "nothing")


def test_ucr_on_the_small_collection(tmp_path, mpn_data, monkeypatch):
    """All annotated boxes, the authors' matching (issue 5: about 0.72, within 0.02)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mpn_data))
    metrics = run(tmp_path, "--only", "UCR_poses")["metrics"]
    assert 70 <= metrics["coco_poses_val/UCR_poses/ucr+reference/AP"] <= 74
    # A grid of 56 x 36 for each of 17 types.
    assert metrics["params/UCR_poses"] == 17 * 56 * 36


def test_ideas_are_tried_on_images_held_out_of_the_training_set(tmp_path, mpn_data, monkeypatch):
    """Here of few people: trained on most of them, tested on the others."""
    few = mpn_data / "coco_poses" / "annotations" / "person_keypoints_train.json"
    folder = tmp_path / "data" / "coco_poses_full" / "annotations"
    folder.mkdir(parents=True)
    (folder / "person_keypoints_train2017.json").write_bytes(few.read_bytes())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    tiny = ["--opts", "SOLVER.MAX_ITER", "2", "MODEL.ASSEMBLER.LEARNED.WIDTH", "8"]
    content = run(tmp_path, "--only", "ideas/as_committed", *tiny, "MODEL.DEVICE", "cpu")
    assert content["metrics"]["train2017_dev/ideas/as_committed/AP"] > 0
    figures = [
        content["metrics"][f"train2017_dev/detections/{'_x_'.join(names)}/AP"]
        for names in tool.DETECTED_SCORES
    ]
    assert min(figures) > 0 and len(set(figures)) > 4
    parts = {}
    for part in ("fit", "dev"):
        path = tmp_path / "runs" / "assembly" / "held_out" / f"{part}.json"
        parts[part] = json.loads(path.read_text())
    images = {p: {i["id"] for i in c["images"]} for p, c in parts.items()}
    everything = json.loads(few.read_text())
    assert not images["fit"] & images["dev"] and len(images["dev"]) > 3
    assert images["fit"] | images["dev"] == {i["id"] for i in everything["images"]}
    for part, content in parts.items():
        assert {a["image_id"] for a in content["annotations"]} <= images[part]
    total = sum(len(c["annotations"]) for c in parts.values())
    assert total == len(everything["annotations"])


def test_noise_rows_are_recorded_by_damage(tmp_path, mpn_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mpn_data))
    row = tool.Row("PRN_poses", "coco_poses_val", ["MODEL.ASSEMBLER.EVIDENCE", "max"], noise=True)
    monkeypatch.setattr(tool, "rows", lambda: {"max_poses": row})
    metrics = run(tmp_path)["metrics"]
    for damage in NOISE_ROWS:
        assert metrics[f"coco_poses_val/noise/{damage}/max/AP"] is not None
    assert (
        metrics["coco_poses_val/noise/boxes_10/max/owner_share"]
        < metrics["coco_poses_val/noise/clean/max/owner_share"]
    )
