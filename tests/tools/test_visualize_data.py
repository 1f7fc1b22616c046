"""What enters the losses, drawn: file names, and keypoints where the heatmap is brightest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repo_tools import load_tool

from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.utils.visualize import track_color

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "quick" / "demo.yaml")
SMALL = ["INPUT.MIN_SIZE_TRAIN", "(128,)", "MODEL.PRN.NODES", "8", "MODEL.WEIGHTS", ""]
CAPTION = 20


@pytest.fixture(scope="module")
def tool():
    return load_tool("visualize_data")


@pytest.fixture()
def draw(tool, tmp_path):
    def draw(stage, images, *options, dataset="coco_sample_two"):
        arguments = ["--config-file", CONFIG, "--output", str(tmp_path), "--images", str(images)]
        arguments += ["--stage", stage, "--dataset", dataset]
        tool.main(tool.parse_args([*arguments, *SMALL, *options]))
        return sorted(path.name for path in tmp_path.iterdir())

    return draw


def test_files_are_named_by_image(draw):
    register_pose_datasets()
    ids = [str(record["image_id"]) for record in load_pose_dicts("coco_sample_two", is_train=True)]
    # Both images once, then again: the stream has no end.
    names = draw("keypoint", 3)
    assert len(names) == 3
    assert {f"{i}.png" for i in ids} <= set(names)
    assert sum(name.endswith("_2.png") for name in names) == 1


def test_heatmap_is_brightest_at_the_keypoints_of_the_network_input(draw, tool, tmp_path):
    seen = []
    pictures = tool.pictures

    def spy(cfg, model, x):
        seen.append(x)
        return pictures(cfg, model, x)

    tool.pictures = spy
    try:
        draw("keypoint", 2, "INPUT.AUGMENTATION", "crop", "INPUT.CROP_SIZE", "192")
    finally:
        tool.pictures = pictures
    checked = 0
    for x in seen:
        picture = np.asarray(Image.open(tmp_path / f"{x['image_id']}.png")).astype(int)
        height, width = x["image"].shape[-2:]
        assert (height, width) == (192, 192)
        heat = picture[CAPTION : CAPTION + height, width + 4 : 2 * width + 4]
        # Anything but grey is heatmap.
        assert heat.shape == (height, width, 3)
        for px, py, v in x["instances"].gt_keypoints.tensor.reshape(-1, 3).tolist():
            if v > 0:
                here = heat[min(int(py), height - 1), min(int(px), width - 1)]
                # At least what a Gaussian of 7 px has 2.83 px from its middle (a cell's corner).
                assert here.sum() > 550, (px, py, here)
                checked += 1
    assert checked > 10


def test_person_stage_draws_boxes_and_joint_the_grids_too(draw):
    first = draw("person", 2)
    assert len(first) == 2 and not any("people" in name for name in first)
    names = draw("joint", 2)
    assert sum(name.endswith("_people.png") for name in names) >= 1


def test_assembly_draws_people_without_any_image(draw, register_coco, sample_dir):
    content = json.loads((sample_dir / "annotations/person_keypoints_two.json").read_text())
    for image in content["images"]:
        image["file_name"] = "missing/" + image["file_name"]
    names = draw("assembly", 3, dataset=register_coco(content))
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) == 3 and all("_person" in name for name in pictures)
    ids = {str(image["id"]) for image in content["images"]}
    assert {name.split("_")[0] for name in pictures} <= ids


def test_crops_of_people_show_joints_and_heatmaps(tool, tmp_path):
    config = REPO / "configs" / "quick" / "single_person_drawn.yaml"
    arguments = ["--config-file", str(config), "--output", str(tmp_path), "--images", "3"]
    arguments += ["--stage", "keypoint", "--dataset", "coco_sample_two"]
    tool.main(tool.parse_args([*arguments, "SINGLE_PERSON.SIZE", "(96, 64)", *SMALL]))
    pictures = sorted(tmp_path.glob("*_person*.png"))
    assert len(pictures) == 3
    for path in pictures:
        # Six times as large.
        joints, heat = np.split(np.asarray(Image.open(path)).astype(int)[CAPTION:], [386], axis=1)
        assert joints.shape[0] == 6 * 96 and heat.shape[1] == 6 * 64 + 2
        assert (heat.sum(axis=2) > 550).any(), "peaks"


def test_mistakes_are_named(draw):
    with pytest.raises(ValueError, match="unknown --stage box"):
        draw("box", 1)
    with pytest.raises(ValueError, match="--images is 0"):
        draw("keypoint", 0)
    with pytest.raises(ValueError, match="'nowhere' is not registered"):
        draw("keypoint", 1, dataset="nowhere")


def test_locations_of_pose_regression(tool, tmp_path):
    """People above, below them the locations that learn their poses."""
    register_pose_datasets()
    config = str(REPO / "configs" / "PoseRegression" / "quick_overfit_two.yaml")
    arguments = ["--config-file", config, "--output", str(tmp_path), "--images", "1"]
    tool.main(tool.parse_args([*arguments, "INPUT.MIN_SIZE_TRAIN", "(128,)"]))
    (file,) = tmp_path.iterdir()
    picture = np.asarray(Image.open(file)).astype(int)
    # Two pictures of one size, one above the other; the lower has discs in the people's colours.
    assert picture.shape[0] >= 2 * 128
    (record,) = [
        r for r in load_pose_dicts("coco_sample_two", is_train=True)
        if str(r["image_id"]) == file.stem
    ]  # fmt: skip
    lower = picture[picture.shape[0] // 2 :]
    for person in range(len(record["annotations"])):
        color = [round(255 * c) for c in track_color(person)]
        assert (lower == color).all(axis=2).sum() > 9, person
