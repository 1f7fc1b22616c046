"""Every stage learns: two real photographs overfitted for a minute, by tools/overfit.py.

The tool with its own schedule reaches 90 and more (docs/results/overfit_two.json); the bounds here
are what a part of it reaches with room to spare. An untrained network has 0 in every figure but the
assembly's.
"""

from __future__ import annotations

from repo_tools import load_tool

from mpn_d2.data.datasets import register_pose_datasets

SHORT = ["INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192"]
SHORT += ["DATALOADER.NUM_WORKERS", "0"]
for stage, iterations in (("KEYPOINT", 150), ("PERSON", 100), ("ASSEMBLY", 60)):
    SHORT += [f"STAGES.{stage}.SOLVER.MAX_ITER", str(iterations)]
    SHORT += [f"STAGES.{stage}.SOLVER.STEPS", f"({int(iterations * 0.8)},)"]
SHORT += ["STAGES.PERSON.INPUT.MIN_SIZE_TRAIN", "(192,)"]


def test_every_stage_overfits_two_photographs(paper_config, tmp_path):
    overfit = load_tool("overfit")
    register_pose_datasets()
    options = [*SHORT, "OUTPUT_DIR", str(tmp_path)]
    cfg = paper_config("quick/overfit_two.yaml", options)
    cfg.freeze()
    figures = overfit.train_and_measure(cfg, options)
    assert figures["keypoint_stage/keypoints/AP"] >= 70
    assert figures["person_stage/bbox/AP"] >= 70
    assert figures["assembly_stage/keypoints/AP"] >= 95
    assert figures["all_stages/keypoints/AP"] >= 70
    assert figures["all_stages/sem_seg/IoU-person"] >= 75
