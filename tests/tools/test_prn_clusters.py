"""The command that draws what a PRN learned: the poses that come out are the people's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from repo_tools import load_tool

from mpn_d2.codecs.person_grid import points_to_cells
from mpn_d2.config import load_config
from mpn_d2.engine.assembler_weights import _Holder
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "MultiPoseNet" / "R_50.yaml")
COCO = get_skeleton("coco")
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.PRN.NODES", "3"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("prn_clusters")


def annotations(people, folder):
    """A COCO file of one person an image, with these joints labelled, the others not."""
    images, rows = [], []
    for number, shape in enumerate(people, start=1):
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 200, "width": 150})
        joints = [v for point in shape for v in (*point, 2)]
        joints += [0] * (3 * COCO.num_keypoints - len(joints))
        rows.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "area": 5000,
                "bbox": [20, 30, 72, 112],
                "keypoints": joints,
                "num_keypoints": len(shape),
            }
        )
    category = {"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names), "skeleton": []}
    file = folder / "people.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": [category]}))
    return str(file)


def two_kinds(folder, copies=(4, 2)):
    rng = np.random.default_rng(0)
    shapes = rng.integers((22, 32), (90, 140), (2, COCO.num_keypoints, 2))
    people = [shapes[i].tolist() for i, count in enumerate(copies) for _ in range(count)]
    return annotations(people, folder), shapes


@pytest.fixture()
def draw(tool, tmp_path):
    def draw(file, *options):
        picture = tmp_path / "made" / "clusters.png"
        arguments = ["--config-file", CONFIG, "--annotations", file, "--output", str(picture)]
        tool.main(tool.parse_args([*arguments, *options, *SMALL]))
        return picture

    return draw


def test_typical_poses_are_those_of_the_people(draw, tmp_path, capsys):
    file, shapes = two_kinds(tmp_path)
    numbers = tmp_path / "made" / "centres.json"
    picture = draw(file, "--evidence", "identity", "--json", str(numbers), "--clusters", "3")
    assert np.asarray(Image.open(picture)).shape[2] == 3
    said = capsys.readouterr().out
    assert "6 of 6 people" in said and "2 clusters, not 3" in said
    content = json.loads(numbers.read_text())
    assert [row["people"] for row in content["clusters"]] == [4, 2]
    assert [row["share"] for row in content["clusters"]] == pytest.approx([4 / 6, 2 / 6])
    box = torch.tensor([[20.0, 30.0, 92.0, 142.0]])
    for row, shape in zip(content["clusters"], shapes, strict=True):
        # Identity evidence is largest where the joint is; pixel indices + 0.5.
        cells = points_to_cells(torch.tensor(shape)[None] + 0.5, box, tuple(content["size"]))[0]
        expected = torch.cat([cells + 0.5, torch.ones(COCO.num_keypoints, 1)], dim=1)
        assert torch.allclose(torch.tensor(row["joints"]), expected, atol=1e-4)
        assert row["mean_oks"] == pytest.approx(1.0, abs=1e-5)
    assert sorted(path.name for path in picture.parent.iterdir()) == [
        "centres.json",
        "clusters.png",
    ]


def test_people_are_drawn_by_lot(draw, tmp_path, capsys):
    file, _ = two_kinds(tmp_path)
    draw(file, "--evidence", "identity", "--people", "3")
    assert "3 of 6 people" in capsys.readouterr().out


def test_weights_are_used_and_an_untrained_network_is_said_to_be(draw, tmp_path):
    file, _ = two_kinds(tmp_path)
    cfg = load_config(CONFIG, [*SMALL, "MODEL.ASSEMBLER.EVIDENCE", "prn"])
    assembler = build_pose_assembler(cfg)
    with torch.no_grad():
        for parameter in assembler.parameters():
            parameter.zero_()
    flat = tmp_path / "flat.pth"
    torch.save({"model": _Holder(assembler).state_dict()}, flat)
    with pytest.raises(ValueError, match="no joint of anybody anywhere .* is it trained"):
        draw(file, "--evidence", "prn", "--weights", str(flat))
    # The same network, made to put every joint into one cell.
    height, width = cfg.MODEL.PRN.CROP
    bias = torch.zeros(height, width, COCO.num_keypoints)
    bias[30, 7] = 9.0
    with torch.no_grad():
        assembler.evidence.network.output.bias.copy_(bias.flatten())
    torch.save({"model": _Holder(assembler).state_dict()}, flat)
    numbers = tmp_path / "centres.json"
    draw(file, "--evidence", "prn", "--weights", str(flat), "--json", str(numbers))
    (row,) = json.loads(numbers.read_text())["clusters"]
    assert row["joints"] == [[7.5, 30.5, 1.0]] * COCO.num_keypoints


def test_mistakes_are_named(draw, tool, tmp_path, monkeypatch):
    file, shapes = two_kinds(tmp_path, (1, 0))
    with pytest.raises(ValueError, match="--clusters is 0"):
        draw(file, "--clusters", "0")
    with pytest.raises(ValueError, match="needs weights"):
        draw(file, "--evidence", "prn")
    nobody = annotations([shapes[0, :2].tolist()], tmp_path)
    with pytest.raises(ValueError, match="nobody has 3 labelled keypoints"):
        draw(nobody, "--evidence", "identity")
    assert not (tmp_path / "made").exists()

    class Other(torch.nn.Module):
        evidence = torch.nn.Identity()

    monkeypatch.setattr(tool, "load_assembler", lambda cfg, weights: Other())
    with pytest.raises(ValueError, match="has no output grid"):
        draw(file)
