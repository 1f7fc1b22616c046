"""Drawn people: the same everywhere, exact, and as hard as promised."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import transforms as T

from mpn_d2.data import PoseDatasetMapper, limits
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.data.drawn_coco import load_layouts
from mpn_d2.data.drawn_from_joints import figure_from_joints
from mpn_d2.data.drawn_picture import draw_image
from mpn_d2.data.drawn_pose import JOINT, SKELETON, sample_figure
from mpn_d2.data.drawn_random import Draws
from mpn_d2.data.synthetic import measure_difficulty, write_dataset

SEED = 1


@functools.cache
def _pictures(name: str, count: int) -> list[tuple[np.ndarray, list[dict]]]:
    return [draw_image(name, "test", index, SEED) for index in range(count)]


def _content(name: str, count: int) -> dict:
    people = [a for _, a in _pictures(name, count)]
    return {
        "images": [{"id": i} for i in range(count)],
        "annotations": [{**a, "image_id": i} for i, found in enumerate(people) for a in found],
    }


def _digest(image: np.ndarray, annotations: list[dict]) -> str:
    text = json.dumps(annotations, sort_keys=True)
    return hashlib.sha256(image.tobytes() + text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "split", "index", "expected"),
    [
        ("drawn-v1", "train", 0, "59d63431357a4d77"),
        ("drawn-v1", "test", 7, "0903d760d24bc336"),
        ("drawn-crowd-v1", "train", 0, "7f0a420041a833ce"),
        ("drawn-crowd-v1", "test", 7, "c4c2ad6c21a37872"),
    ],
)
def test_pictures_and_annotations_never_change(name, split, index, expected):
    """A version fixes every pixel: who changes the drawing makes a new version."""
    assert _digest(*draw_image(name, split, index, SEED)) == expected


def test_bundled_layouts_never_change():
    for split, expected in (("train", "f32cf922b0492ba9"), ("test", "51426db1cf7a6f36")):
        layouts, _ = load_layouts(split)
        image, annotations = draw_image("drawn-coco-v1", split, 3, SEED, layouts[3])
        assert _digest(image, annotations) == expected


def test_difficulty_of_drawn_v1():
    """Of all 200 test images, which the version fixes."""
    found = measure_difficulty(_content("drawn-v1", 200))
    assert found["images"] == 200
    assert found["mean_people"] >= 3 and found["most_people"] <= 8
    assert 40 <= found["min_height"] <= 60 and 240 <= found["max_height"] <= 280
    assert found["overlapping"] >= 0.4
    assert found["cut_or_covered"] >= 0.2
    assert 0.08 <= found["unannotated"] <= 0.12
    counts = [len(annotations) for _, annotations in _pictures("drawn-v1", 200)]
    assert min(counts) >= 1


def test_difficulty_of_drawn_crowd_v1():
    """Of the first 60 test images; all 200, as the tool prints: mean 0.55."""
    found = measure_difficulty(_content("drawn-crowd-v1", 60))
    assert found["mean_largest_iou"] >= 0.5
    assert found["most_people"] <= 10
    assert min(len(annotations) for _, annotations in _pictures("drawn-crowd-v1", 60)) >= 3


def test_difficulty_of_a_worked_example():
    def person(x: float, pixels: int, keypoints: int, height: int = 50) -> dict:
        mask = np.zeros((40, 100), dtype=np.uint8, order="F")
        mask[:10, int(x) : int(x) + 10] = 1
        return {
            "image_id": 1,
            "bbox": [x, 0, 10, 10],
            "area": 100,
            "num_keypoints": keypoints,
            "segmentation": mask_util.encode(mask),
            "figure": {"height": height, "pixels": pixels, "pixels_in_image": pixels},
        }

    # Boxes 10 wide, 5 apart: IoU 50 / 150. The second one's outline is half covered.
    people = [person(0, 100, 3), person(5, 200, 3, 90), person(50, 100, 0)]
    found = measure_difficulty({"images": [{"id": 1}], "annotations": people})
    assert found["people"] == 3 and found["mean_people"] == 3
    assert found["overlapping"] == pytest.approx(2 / 3)
    assert found["cut_or_covered"] == pytest.approx(1 / 3)
    assert found["unannotated"] == pytest.approx(1 / 3)
    assert found["mean_largest_iou"] == pytest.approx(2 / 9)
    assert (found["min_height"], found["max_height"]) == (50, 90)


@pytest.mark.parametrize("name", ["drawn-v1", "drawn-crowd-v1"])
def test_masks_boxes_and_joints_fit(name):
    visible = hidden = 0
    for _, people in _pictures(name, 60):
        masks = [mask_util.decode(a["segmentation"]) for a in people]
        assert np.sum(masks, axis=0).max() <= 1, "two masks overlap"
        for annotation, mask in zip(people, masks):
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == len(rows) >= 20
            keypoints = np.array(annotation["keypoints"]).reshape(-1, 3)
            assert annotation["num_keypoints"] == (keypoints[:, 2] > 0).sum()
            assert not keypoints[keypoints[:, 2] == 0].any()
            if "figure" in annotation:
                assert len(rows) >= 0.15 * annotation["figure"]["pixels"]
            for u, v, flag in keypoints[keypoints[:, 2] > 0]:
                column, row = int(u + 0.5), int(v + 0.5)
                assert 0 <= column < mask.shape[1] and 0 <= row < mask.shape[0]
                if flag == 2:
                    visible += 1
                    assert mask[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].any()
                # Pixels on the edge of two people may go to either: look two pixels around.
                others = sum(m for m in masks if m is not mask)
                window = np.s_[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
                if len(masks) > 1 and others[window].all():
                    hidden += 1
                    assert flag == 1, "covered by somebody and called visible"
    assert visible > 500 and hidden > 30


def test_a_picture_depends_on_its_index_alone(tmp_path):
    content, drawn = write_dataset("drawn-v1", "test", tmp_path, count=3)
    assert drawn
    _, alone = draw_image("drawn-v1", "test", 2, SEED)
    of_run = [
        {k: v for k, v in a.items() if k not in ("id", "image_id")}
        for a in content["annotations"]
        if a["image_id"] == 3
    ]
    assert json.loads(json.dumps(alone)) == of_run
    assert _digest(*draw_image("drawn-v1", "train", 2, SEED)) != _digest(
        *draw_image("drawn-v1", "test", 2, SEED)
    )


def test_written_once_and_again_when_incomplete(tmp_path):
    write_dataset("drawn-v1", "test", tmp_path, count=2)
    assert write_dataset("drawn-v1", "test", tmp_path, count=2)[1] is False
    image = tmp_path / "drawn-v1" / "test" / "000002.png"
    before = image.read_bytes()
    image.unlink()
    assert write_dataset("drawn-v1", "test", tmp_path, count=2)[1] is True
    assert image.read_bytes() == before
    assert write_dataset("drawn-v1", "test", tmp_path, count=1)[1] is True
    assert not image.exists()


@pytest.mark.parametrize("name", ["drawn-v1", "drawn-coco-v1"])
@pytest.mark.parametrize("damage", ["pixel", "cut", "empty", "gone", "joint", "person", "no info"])
def test_what_other_code_drew_or_is_damaged_is_drawn_again(tmp_path, caplog, name, damage):
    def files() -> dict:
        return {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    right, _ = write_dataset(name, "test", tmp_path, count=2)
    before = files()
    assert write_dataset(name, "test", tmp_path, count=2) == (json.loads(json.dumps(right)), False)
    assert not caplog.records
    image = tmp_path / name / "test" / "000001.png"
    json_file = tmp_path / name / "annotations" / "test.json"
    content = json.loads(json_file.read_text())
    if damage == "pixel":
        pixels = cv2.imread(str(image))
        pixels[7, 5, 1] ^= 1
        cv2.imwrite(str(image), pixels)
    elif damage in ("cut", "empty"):
        data = image.read_bytes()
        image.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    elif damage == "gone":
        image.unlink()
    elif damage == "joint":
        keypoints = content["annotations"][0]["keypoints"]
        keypoints[keypoints.index(2) - 1] += 0.25
    elif damage == "person":
        del content["annotations"][0]
    json_file.write_text('{"info": null}' if damage == "no info" else json.dumps(content))
    assert write_dataset(name, "test", tmp_path, count=2)[1] is True
    assert files() == before
    said = [r.message for r in caplog.records]
    if damage not in ("gone", "no info"):
        assert len(said) == 1 and "000001.png" in said[0] and "drawing all again" in said[0]


def test_left_is_on_the_viewers_right_from_the_front():
    front = back = 0
    for index in range(80):
        figure = sample_figure(Draws(9, index), 200.0)
        shoulders = [JOINT["left_shoulder"], JOINT["right_shoulder"]]
        across = np.subtract(*figure.joints[shoulders])[0]
        facing = figure.head_axes[2, 2]
        # The head turns against the trunk: only clear cases.
        if abs(across) < 30 or abs(facing) < 0.5:
            continue
        assert (across > 0) == (facing > 0)
        front, back = front + (facing > 0), back + (facing < 0)
    assert front > 10 and back > 5


def test_heads_face_as_the_joints_say():
    def forward(**points: tuple[float, float]) -> np.ndarray:
        keypoints = np.zeros((SKELETON.num_keypoints, 3))
        for name, (x, y) in points.items():
            keypoints[JOINT[name]] = (x, y, 2)
        box = np.array([0.0, 0.0, 200.0, 200.0])
        return figure_from_joints(Draws(1), keypoints, box).head_axes[2]

    body = {"left_hip": (115, 190), "right_hip": (85, 190)}
    front = forward(
        nose=(100, 62), left_eye=(105, 56), right_eye=(95, 56), left_ear=(112, 60),
        right_ear=(88, 60), left_shoulder=(122, 100), right_shoulder=(78, 100), **body,
    )  # fmt: skip
    assert front[2] > 0.8
    back = forward(
        left_ear=(88, 60), right_ear=(112, 60), left_shoulder=(78, 100),
        right_shoulder=(122, 100), left_hip=(85, 190), right_hip=(115, 190),
    )  # fmt: skip
    assert back[2] < -0.8
    side = forward(
        nose=(115, 62), right_eye=(110, 56), right_ear=(97, 60), left_shoulder=(102, 100),
        right_shoulder=(98, 100), **body,
    )  # fmt: skip
    assert side[0] > 0.7


def test_layouts_keep_their_annotations():
    layouts, _ = load_layouts("test")
    for index in (0, 5, 11):
        image, annotations = draw_image("drawn-coco-v1", "test", index, SEED, layouts[index])
        assert image.shape == (*layouts[index].size, 3)
        key = lambda a: (a["bbox"], a["keypoints"], a["area"])  # noqa: E731
        assert sorted(map(key, annotations)) == sorted(map(key, layouts[index].people))
        masks = [mask_util.decode(a["segmentation"]) for a in annotations]
        assert np.sum(masks, axis=0).max() <= 1


def test_joints_of_layouts_are_hidden_where_annotated():
    """Most of the joints that COCO calls visible, and few of those that it calls hidden."""
    inside = {1: [], 2: []}
    layouts, _ = load_layouts("test")
    for index in range(20):
        _, annotations = draw_image("drawn-coco-v1", "test", index, SEED, layouts[index])
        for annotation in annotations:
            mask = mask_util.decode(annotation["segmentation"])
            keypoints = np.array(annotation["keypoints"]).reshape(-1, 3)
            limbs = [i for n, i in JOINT.items() if n.split("_")[-1] in ("wrist", "knee", "ankle")]
            for x, y, v in keypoints[limbs]:
                if v:
                    row, column = min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)
                    inside[v].append(bool(mask[row, column]))
    assert np.mean(inside[2]) >= 0.85
    assert len(inside[1]) >= 5


def test_test_layouts_are_fixed_and_apart_from_train(mpn_data):
    layouts, _ = load_layouts("test", mpn_data / "coco_poses_full")
    ids = [layout.image_id for layout in layouts]
    assert len(ids) == 300
    assert hashlib.sha256(str(ids).encode()).hexdigest()[:16] == "aee26dc638fb9bd6"
    bundled, _ = load_layouts("test")
    assert {layout.image_id for layout in bundled} < set(ids)


def test_bundled_layouts_are_few_and_apart():
    train, test = (load_layouts(split)[0] for split in ("train", "test"))
    assert sum(len(layout.people) for layout in train + test) <= 500
    assert not {x.image_id for x in train} & {x.image_id for x in test}


def test_bad_requests_are_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown drawn dataset 'drawn-v9'"):
        write_dataset("drawn-v9", "test", tmp_path)
    with pytest.raises(ValueError, match="unknown split 'val'"):
        write_dataset("drawn-v1", "val", tmp_path)
    with pytest.raises(ValueError, match="0 images by 1 processes"):
        write_dataset("drawn-v1", "test", tmp_path, count=0)
    with pytest.raises(ValueError, match="not drawn from layouts"):
        write_dataset("drawn-v1", "test", tmp_path, layouts=tmp_path)
    with pytest.raises(FileNotFoundError, match="--layouts must name a folder"):
        write_dataset("drawn-coco-v1", "test", tmp_path, layouts=tmp_path)
    packed = gzip.compress(json.dumps({"annotations": [], "images": []}).encode())
    for content in (
        b"no gzip",
        packed[:-9],
        packed[:12] + b"00" + packed[14:],
        gzip.compress(b"["),
    ):
        (tmp_path / "person_keypoints_val2017_half.json.gz").write_bytes(content)
        with pytest.raises(ValueError, match="no gzipped COCO keypoint file"):
            write_dataset("drawn-coco-v1", "test", tmp_path, layouts=tmp_path)
    (tmp_path / "person_keypoints_val2017_half.json.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"half\.json\.gz has no annotated people"):
        write_dataset("drawn-coco-v1", "test", tmp_path, layouts=tmp_path)
    monkeypatch.setattr(limits, "MOST_JSON_BYTES", 20)
    with pytest.raises(ValueError, match=r"^\S+half\.json\.gz holds more than 20 bytes of JSON"):
        write_dataset("drawn-coco-v1", "test", tmp_path, layouts=tmp_path)


def test_registered_loaded_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_pose_datasets()
    with pytest.raises(FileNotFoundError, match="make_synthetic.py --dataset drawn-v1") as error:
        load_pose_dicts("drawn-v1-test", is_train=False)
    assert "\n" not in str(error.value)
    content, _ = write_dataset("drawn-v1", "test", tmp_path, count=2)
    dicts = load_pose_dicts("drawn-v1-test", is_train=True)
    assert [len(d["annotations"]) for d in dicts] == [
        sum(a["image_id"] == i for a in content["annotations"]) for i in (1, 2)
    ]
    mapper = PoseDatasetMapper(
        is_train=True,
        augmentations=[T.Resize((203, 331))],
        image_format="BGR",
        skeleton=SKELETON,
        with_annotations=True,
    )
    record = mapper(dicts[0])
    assert record["image"].shape == (3, 203, 331)
    share = sum(a["area"] for a in content["annotations"] if a["image_id"] == 1) / 320**2
    assert float(record["person_mask"].float().mean()) == pytest.approx(share, abs=0.02)
    first = next(a for a in content["annotations"] if a["num_keypoints"])
    expected = np.array(first["keypoints"], dtype=float).reshape(-1, 3)
    labelled = expected[:, 2] > 0
    found = record["instances"].gt_keypoints.tensor[0].numpy()[labelled, :2]
    wanted = (expected[labelled, :2] + 0.5) * [331 / 320, 203 / 320]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
