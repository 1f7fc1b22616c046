"""Views of an image: which are taken, and what the model is given of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.views import View, Viewer, ViewPlan, build_view_plan

QUICK = "MultiPoseNet/R_18_small.yaml"


def test_the_default_is_one_plain_view(paper_config):
    assert build_view_plan(paper_config(QUICK)) == ViewPlan()
    # Only TTA.ENABLED switches the others on.
    assert build_view_plan(paper_config(QUICK, ["TTA.FLIP", "True"])) == ViewPlan()
    assert ViewPlan().views((30, 40)) == [[View((0, 0, 40, 30))]]


def test_plan_of_all_keys(paper_config):
    keys = ["TTA.ENABLED", "True", "TTA.SCALES", "[1.0, 0.5, 1.0]", "TTA.FLIP", "True"]
    keys += ["TTA.CROPS", "2", "TTA.CROP_OVERLAP", "0.5"]
    plan = build_view_plan(paper_config(QUICK, keys))
    views = plan.views((60, 90))
    assert all(b == View(a.box, a.scale, mirrored=True) and not a.mirrored for a, b in views)
    whole, parts = views[:2], views[2:]
    assert [(a.box, a.scale) for a, _ in whole] == [((0, 0, 90, 60), 1.0), ((0, 0, 90, 60), 0.5)]
    # Two of 2/3 a side overlap by half of each.
    assert [a.box for a, _ in parts] == [
        *((0, 0, 60, 40), (30, 0, 90, 40), (0, 20, 60, 60), (30, 20, 90, 60)),
    ]
    assert all(a.scale == 1.0 and not a.is_whole((60, 90)) for a, _ in parts)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 20000), (7, 5), (480, 641)])
@pytest.mark.parametrize(("crops", "overlap"), [(2, 0.25), (3, 0.0), (5, 0.9)])
def test_parts_cover_every_pixel_and_are_there_once(size, crops, overlap):
    views = [v for (v,) in ViewPlan(crops=crops, overlap=overlap).views(size)]
    assert len(set(views)) == len(views) <= 1 + crops**2
    for axis in (0, 1):
        spans = sorted({(v.box[1 - axis], v.box[3 - axis]) for v in views[1:]}) or [(0, size[axis])]
        assert spans[0][0] == 0 and spans[-1][1] == size[axis]
        assert all(b[0] <= a[1] for a, b in zip(spans, spans[1:], strict=False))
        sides = {end - start for start, end in spans}
        assert len(sides) == 1 and min(sides) >= 1
    assert all(min(v.size) >= 1 for v in views)
    mirrored = {(size[1] - v.box[2], v.box[1], size[1] - v.box[0], v.box[3]) for v in views}
    assert mirrored == {v.box for v in views}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["TTA.SCALES", "[]"], "TTA.SCALES"),
        (["TTA.SCALES", "[1.0, 0.0]"], "TTA.SCALES"),
        (["TTA.SCALES", "[.nan]"], "TTA.SCALES"),
        (["TTA.SCALES", "['large']"], r"TTA.SCALES is \['large'\]: .* another type"),
        (["TTA.SCALES", "[None]"], r"TTA.SCALES is \[None\]: .* another type"),
        (["TTA.SCALES", "[True]"], r"TTA.SCALES is \[True\]: numbers are needed"),
        (["TTA.CROPS", "-1"], "TTA.CROPS is -1"),
        (["TTA.CROP_OVERLAP", "1.0"], "TTA.CROP_OVERLAP is 1.0"),
    ],
)
def test_impossible_keys(paper_config, keys, words):
    with pytest.raises(ValueError, match=words):
        build_view_plan(paper_config(QUICK, ["TTA.ENABLED", "True", *keys]))


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_plain_view_is_the_mappers_image(paper_config, sample_dir, image_format):
    cfg = paper_config(QUICK, ["INPUT.FORMAT", image_format])
    viewer = Viewer.from_config(cfg, nn.Identity())
    for file in sorted((sample_dir / "train").glob("*.jpg"))[:3]:
        image = torch.from_numpy(read_pose_image(str(file), "RGB").transpose(2, 0, 1).copy())
        view = View((0, 0, image.shape[2], image.shape[1]))
        given = viewer.network_input(image, "RGB", view)
        wanted = PoseDatasetMapper(cfg, is_train=False)({"file_name": str(file)})
        assert torch.equal(given["image"], wanted["image"])
        assert (given["height"], given["width"]) == (wanted["height"], wanted["width"])
        # An image of that size already is left as it is.
        again = View((0, 0, given["image"].shape[2], given["image"].shape[1]))
        assert torch.equal(
            viewer.network_input(given["image"], image_format, again)["image"], given["image"]
        )


def test_parts_scales_and_mirrors():
    image = torch.randint(0, 255, (3, 31, 43), dtype=torch.uint8)
    viewer = Viewer(nn.Identity(), min_size=0, max_size=0, image_format="BGR")
    part = viewer.network_input(image, "BGR", View((5, 3, 20, 30), mirrored=True))
    assert torch.equal(part["image"], image[:, 3:30, 5:20].flip(-1))
    assert (part["height"], part["width"]) == (27, 15)
    swapped = viewer.network_input(image, "RGB", View((0, 0, 43, 31)))["image"]
    assert torch.equal(swapped, image.flip(0))
    assert viewer.network_input(image, "BGR", View((0, 0, 43, 31), 2.0))["image"].shape[1:] == (
        *(62, 86),
    )
    sized = Viewer(nn.Identity(), min_size=62, max_size=80, image_format="BGR")
    assert sized.input_size((31, 43)) == (58, 80)
    assert sized.input_size((31, 43), 0.5) == (29, 40)
    assert sized.input_size((1, 20000)) == (1, 80)
    tall = sized.network_input(
        torch.zeros(3, 20000, 1, dtype=torch.uint8), "BGR", View((0, 0, 1, 20000))
    )
    assert tall["image"].shape == (3, 80, 1)


def test_mirrored_images_have_mirrored_inputs(sample_dir):
    file = sorted((sample_dir / "train").glob("*.jpg"))[0]
    image = torch.from_numpy(read_pose_image(str(file), "RGB").transpose(2, 0, 1).copy())
    image = image[:, :301, :411]
    box = (0, 0, 411, 301)
    for scale in (0.5, 1.0, 1.7):
        viewer = Viewer(nn.Identity(), min_size=160, max_size=999, image_format="RGB")
        plain = viewer.network_input(image, "RGB", View(box, scale))["image"]
        mirrored = viewer.network_input(image.flip(-1), "RGB", View(box, scale, mirrored=True))
        assert torch.equal(plain, mirrored["image"])


def test_other_colour_orders_are_refused(paper_config):
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'L'"):
        Viewer.from_config(paper_config(QUICK, ["INPUT.FORMAT", "L"]), nn.Identity())
