"""The command that draws one assignment, from a file to the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.data.people_file import load_people_file
from mpn_d2.engine.assembler_weights import _Holder
from mpn_d2.engine.assignment import assign
from mpn_d2.evaluation.assembly import assemble_scenes
from mpn_d2.evaluation.scenes import annotated_scenes
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.modeling.assembly.evidence import Evidence, Rating
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.target_pictures import type_colors

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "MultiPoseNet" / "R_50.yaml")
COCO = get_skeleton("coco")
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.PRN.NODES", "3"]
CAPTION = 20


@pytest.fixture(scope="module")
def tool():
    return load_tool("draw_assignment")


@pytest.fixture()
def draw(tool, tmp_path):
    """draw(annotations, image id, options...) -> the picture."""

    def draw(file, image_id, *options):
        path = tmp_path / "made" / f"{image_id}.png"
        arguments = ["--annotations", str(file), "--image-id", str(image_id)]
        arguments += ["--config-file", CONFIG, "--output", str(path), *options]
        tool.main(tool.parse_args([*arguments, *SMALL]))
        assert all(file.suffix == ".png" for file in path.parent.iterdir())
        return np.asarray(Image.open(path)).astype(int)

    return draw


@pytest.fixture()
def sample(sample_dir):
    """Annotations and folder of the bundled photographs, and one with several people."""
    file = sample_dir / "annotations" / "person_keypoints_val.json"
    content = json.loads(file.read_text())
    counts = {}
    for annotation in content["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    return file, sample_dir / "val", max(counts, key=counts.get)


def alone(tmp_path):
    """A file of one person: the nose at pixel (30, 20), a shoulder at (50, 70)."""
    joints = [0] * (3 * COCO.num_keypoints)
    joints[:3] = [30, 20, 2]
    shoulder = 3 * COCO.keypoint_names.index("left_shoulder")
    joints[shoulder : shoulder + 3] = [50, 70, 2]
    person = {"id": 1, "image_id": 3, "category_id": 1, "iscrowd": 0, "area": 2000,
              "bbox": [0, 0, 180, 99], "keypoints": joints, "num_keypoints": 2}  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names), "skeleton": []}
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 180}
        for number in (3, 4)
    ]
    file = tmp_path / "alone.json"
    everything = {"images": images, "annotations": [person], "categories": [category]}
    file.write_text(json.dumps(everything))
    return file


def test_joint_lies_at_its_pixel_on_a_plain_canvas(draw, tool, tmp_path):
    picture = draw(alone(tmp_path), 3, "--evidence", "identity")
    # 180 pixels wide, drawn four times as large; annotated pixel (30, 20) reaches to 31, 21.
    panel = picture[CAPTION : CAPTION + 400, :720]
    y, x = 20 * 4 + 2, 30 * 4 + 2
    assert np.abs(panel[y, x] - type_colors(COCO.num_keypoints)[0]).max() <= 2
    assert (panel[390, 700] == tool.PLAIN // 2).all()
    # No box, no keypoint: the canvas alone.
    empty = draw(alone(tmp_path), 4, "--evidence", "identity")
    assert len(np.unique(empty[CAPTION : CAPTION + 400].reshape(-1, 3), axis=0)) <= 2


def test_photograph_is_drawn_where_it_is_there(draw, sample, tmp_path, capsys):
    file, folder, image_id = sample
    drawn = draw(file, image_id, "--evidence", "identity", "--images", str(folder))
    assert "plain canvas" not in capsys.readouterr().out
    plain = draw(file, image_id, "--evidence", "identity", "--images", str(tmp_path))
    assert "plain canvas" in capsys.readouterr().out
    assert drawn.shape == plain.shape
    assert drawn[CAPTION:420, :720].std() > plain[CAPTION:420, :720].std()
    with pytest.raises(FileNotFoundError, match="--images .*nowhere: there is no such folder"):
        draw(file, image_id, "--evidence", "identity", "--images", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("matching", ["reference", "hungarian", "argmax"])
def test_assignment_is_what_the_assembler_decides(tool, sample, matching):
    file, _, image_id = sample
    options = ["MODEL.ASSEMBLER.EVIDENCE", "identity", "MODEL.ASSEMBLER.MATCHING", matching]
    assembler = build_pose_assembler(load_config(CONFIG, [*SMALL, *options])).eval()
    scenes = annotated_scenes(load_people_file(str(file), COCO), COCO.num_keypoints)
    scene = next(s for s in scenes if s.image_id == image_id)
    assignment = assign(assembler, scene)
    (poses,) = assemble_scenes(assembler, [scene], one_to_one=False)
    assert torch.equal(assignment.poses.keypoints, poses.keypoints)
    assert torch.equal(assignment.poses.candidate_ids, poses.candidate_ids)
    assert assignment.grids.shape[:2] == (len(scene.boxes), COCO.num_keypoints)
    # A pair has a score where the candidate lies within the box and its margin, only there.
    margin = assembler.evidence.margin
    for box, row in zip(scene.boxes, assignment.pair_scores, strict=True):
        slack = margin * (box[2:] - box[:2])
        low, high = box[:2] - slack, box[2:] + slack
        inside = ((scene.candidates.points > low) & (scene.candidates.points < high)).all(dim=1)
        assert torch.equal(row > 0, inside)


def test_evidence_without_a_grid_is_drawn(draw, tool, sample, monkeypatch):
    """The nearer to the middle of the box, the better."""

    class Near(Evidence):
        def __init__(self):
            super().__init__()
            self.placeholder = torch.nn.Parameter(torch.zeros(()))

        def rate(self, batch, maps=None, *, peaks=False, oks=False):
            middle = (batch.boxes[:, :2] + batch.boxes[:, 2:]) / 2
            away = (batch.points[batch.image] - middle[:, None, None]).norm(dim=-1)
            return Rating((batch.ids[batch.image] >= 0) / (1 + away))

    file, folder, image_id = sample
    cfg = load_config(CONFIG, [*SMALL, "MODEL.ASSEMBLER.EVIDENCE", "identity"])
    assembler = build_pose_assembler(cfg)
    assembler.evidence = Near()
    scenes = annotated_scenes(load_people_file(str(file), COCO), COCO.num_keypoints)
    scene = next(s for s in scenes if s.image_id == image_id)
    assignment = assign(assembler, scene)
    assert assignment.grids is None
    middle = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    expected = 1 / (1 + (scene.candidates.points[None] - middle[:, None]).norm(dim=-1))
    assert torch.allclose(assignment.pair_scores, expected)
    monkeypatch.setattr(tool, "load_assembler", lambda cfg, weights: assembler)
    assert draw(file, image_id, "--images", str(folder)).std() > 0


def test_keypoints_and_boxes_of_files_and_weights_of_a_checkpoint(draw, tmp_path, capsys):
    file = alone(tmp_path)
    keypoints, boxes = tmp_path / "keypoints.json", tmp_path / "boxes.json"
    rows = [{"image_id": i, "keypoints": [[1, 100, 50, 0.9]]} for i in (3, 4, 99)]
    rows.append({"image_id": 3, "category_id": 2, "keypoints": [[1, 20, 50, 0.9]]})
    keypoints.write_text(json.dumps(rows))
    low = {"image_id": 3, "bbox": [0, 0, 180, 99], "score": 0.1}
    boxes.write_text(json.dumps([{**low, "bbox": [80, 30, 40, 40], "score": 0.9}, low]))
    cfg = load_config(CONFIG, [*SMALL, "MODEL.ASSEMBLER.EVIDENCE", "prn"])
    weights = tmp_path / "prn.pth"
    torch.save({"model": _Holder(build_pose_assembler(cfg)).state_dict()}, weights)
    options = ["--evidence", "prn", "--weights", str(weights)]
    picture = draw(file, 3, *options, "--keypoints", str(keypoints), "--boxes", str(boxes))
    said = capsys.readouterr().out
    assert "skipped 1 entries of images that are not in the annotations" in said
    assert "skipped 1 entries of other categories than people" in said
    color = type_colors(COCO.num_keypoints)[1]
    assert np.abs(picture[CAPTION + 50 * 4 + 2, 100 * 4 + 2] - color).max() <= 2
    # One box of two takes part: one evidence panel.
    panels = picture[-340:-4].any(axis=(0, 2))
    assert panels[:216].all() and not panels[216:].any()


def test_mistakes_are_named(draw, tmp_path):
    file = alone(tmp_path)
    with pytest.raises(ValueError, match=r"--image-id 5 is not in .*: it has 2 images, 3, 4"):
        draw(file, 5, "--evidence", "identity")
    with pytest.raises(FileNotFoundError, match="give --annotations the path"):
        draw(tmp_path / "nowhere.json", 3, "--evidence", "identity")
    with pytest.raises(ValueError, match="needs weights"):
        draw(file, 3, "--evidence", "prn")
    with pytest.raises(ValueError, match="choose one of"):
        draw(file, 3, "--evidence", "magic")
    with pytest.raises(FileNotFoundError, match="--boxes nowhere.json: no such file; give"):
        draw(file, 3, "--evidence", "identity", "--boxes", "nowhere.json")
    assert not (tmp_path / "made").exists()
