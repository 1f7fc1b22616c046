"""The oracle: what annotations themselves reach, with grids and without."""

from __future__ import annotations

import torch

from mpn_d2.config import load_config
from mpn_d2.data.people_file import PEOPLE_FILE, load_people_file
from mpn_d2.evaluation.owners import own_joints, rate_by_owner
from mpn_d2.evaluation.people_scorer import PeopleScorer
from mpn_d2.evaluation.scenes import Scene, annotated_scenes
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.structures.outputs import Candidates
from mpn_d2.structures.skeleton import get_skeleton


def test_oracle_on_the_small_collection(mpn_data):
    """All annotated boxes, one-to-one: at least 0.99 (issue 5)."""
    skeleton = get_skeleton("coco")
    path = mpn_data / "coco_poses" / "annotations" / "person_keypoints_val.json"
    scenes = annotated_scenes(load_people_file(str(path), skeleton), skeleton.num_keypoints)
    assembler = build_pose_assembler(load_config("configs/MultiPoseNet/Assembler_poses.yaml"))
    poses = []
    for scene in scenes:
        batch = assembler.collate([scene.candidates], [scene.boxes])
        poses += assembler.assemble(batch, rate_by_owner(batch, [scene], assembler.num_keypoints))
    scorer = PeopleScorer(PEOPLE_FILE, torch.tensor(skeleton.sigmas))
    assert scorer.score(scenes, poses) >= 99


def test_own_joints_of_boxes_that_are_nobodys():
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    scene = Scene(
        image_id=1,
        size=(9, 9),
        candidates=Candidates(points, torch.tensor([0, 1, 1]), torch.ones(3)),
        boxes=torch.zeros(3, 4),
        owners=torch.tensor([0, 0, -1]),
        people=torch.tensor([-2, 0, 1]),
    )
    found = own_joints(scene, 2)
    assert found.tolist() == [[[0] * 3] * 2, [[1, 2, 1], [3, 4, 1]], [[0] * 3] * 2]
    scene.people = torch.full((3,), -2)
    scene.owners = torch.full((3,), -1)
    assert found.shape == own_joints(scene, 2).shape
    assert own_joints(scene, 2).abs().sum() == 0
