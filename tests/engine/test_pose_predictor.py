"""PosePredictor: what goes in, what comes out, and that it is what the network says."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO as CocoFile
from square_people import COCO, JOINTS, NETWORK, K, SquareNetwork, scene

from mpn_d2 import PosePrediction, PosePredictor, get_config
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.predictor import ImagePredictor

CONFIG = "quick/demo.yaml"
SMALL = ["MODEL.PRN.NODES", 8, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 96]
# A random network is unsure of everything: every box and cell counts.
SMALL += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 4]
SMALL += ["MODEL.ASSEMBLER.BOX_SCORE_THRESH", 0.0, "MODEL.PEAKS.THRESH", 0.0001]
TWO = {"red": (20, 10, 60, 90), "blue": (90, 20, 130, 100), "green": (140, 20, 150, 60)}
SIZE = (110, 160)


@pytest.fixture()
def squares(monkeypatch):
    """squares(...) -> a PosePredictor, arguments as its own after the weights, on squares."""
    monkeypatch.setattr(NETWORK, SquareNetwork)
    return lambda **options: PosePredictor(CONFIG, "some.pth", **options)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ImagePredictor]:
    """(checkpoint of a random network, the same as an ImagePredictor)."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    PoseCheckpointer(build_model(get_config(CONFIG, SMALL)), str(folder)).save("model")
    path = str(folder / "model.pth")
    return path, ImagePredictor(get_config(CONFIG, SMALL), path)


# ------------------------------------------------------------------- a real network


def test_results_are_the_networks(network, sample_dir: Path):
    weights, own = network
    file = sorted((sample_dir / "train").glob("*.jpg"))[0]
    image = np.asarray(Image.open(file).convert("RGB"))
    cfg = get_config(CONFIG, SMALL)
    cfg.freeze()
    one_line = PosePredictor(CONFIG, weights, SMALL, confidence_threshold=0)
    of_config = PosePredictor(cfg, Path(weights), confidence_threshold=0)
    in_config = PosePredictor(
        get_config(CONFIG, [*SMALL, "MODEL.WEIGHTS", weights]), confidence_threshold=0
    )
    (wanted,) = own([image])
    found = wanted["instances"]
    assert len(found) == 4 and found.pred_keypoints.any()
    for people in (one_line(image), one_line(file), one_line(str(file)), of_config(image),
                   in_config([image[::2], image])[1]):  # fmt: skip
        assert np.allclose(people.boxes, found.pred_boxes.tensor, atol=1e-3)
        assert np.allclose(people.scores, found.scores, atol=1e-4)
        assert np.allclose(people.pose_scores, found.pose_scores, atol=1e-4)
        assert np.allclose(people.keypoints, found.pred_keypoints, atol=1e-3)
        assert np.allclose(people.person_mask, wanted["sem_seg"][1], atol=1e-4)
        assert people.image_size == image.shape[:2] and people.track_ids is None


def test_what_does_not_fit_is_one_line(network, monkeypatch):
    weights, _ = network
    with pytest.raises(ValueError, match="assembler"):
        PosePredictor(CONFIG, weights, [*SMALL, "MODEL.PRN.NODES", 9])
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        PosePredictor(CONFIG, "gone.pth", SMALL)
    with pytest.raises(ValueError, match="no weights.*MODEL.WEIGHTS"):
        PosePredictor(CONFIG, options=[*SMALL, "MODEL.WEIGHTS", ""])


# ------------------------------------------------------------------- fields


def assert_two(people: PosePrediction) -> None:
    assert np.array_equal(people.boxes, np.array([TWO["red"], TWO["blue"]], np.float32))


def test_fields(squares):
    people = squares()(scene(TWO, SIZE))
    assert isinstance(people, PosePrediction) and len(people) == 2
    assert_two(people)  # green's score is under 0.5
    assert people.scores.tolist() == pytest.approx([0.9, 0.8])
    assert people.pose_scores.tolist() == pytest.approx([0.45, 0.4])
    assert people.keypoints.shape == (2, K, 3) and people.keypoint_names == COCO.keypoint_names
    assert np.allclose(people.keypoints[0, :-1, :2], ([20, 10] + JOINTS * [40, 80])[:-1])
    assert not people.keypoints[:, -1].any() and people.skeleton == COCO
    assert people.image_size == SIZE and people.person_mask.shape == SIZE
    assert people.person_mask[50, 40] == pytest.approx(0.9) and people.person_mask[5, 5] == 0
    assert people.heatmaps is None and people.track_ids is None
    assert len(people.instances) == 2 and people.instances.image_size == SIZE
    for name in ("boxes", "scores", "pose_scores", "keypoints", "person_mask"):
        value = getattr(people, name)
        assert isinstance(value, np.ndarray) and value.dtype == np.float32, name


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (0.4, 3), (0.41, 2), (0.85, 1), (1, 0)])
def test_threshold(squares, threshold: float, count: int):
    people = squares(confidence_threshold=threshold)(scene(TWO, SIZE))
    assert len(people) == count
    assert people.keypoints.shape == (count, K, 3) and people.boxes.shape == (count, 4)
    assert len(people.instances) == count and len(people.to_coco(1)) == count
    assert people.draw(scene(TWO, SIZE)).shape == (*SIZE, 3)


def test_the_configs_threshold_where_none_is_asked_for(squares):
    options = ["EVAL.CONFIDENCE_THRESH", "0.85"]
    assert len(squares(options=options)(scene(TWO, SIZE))) == 1
    assert len(squares(options=options, confidence_threshold=0)(scene(TWO, SIZE))) == 3


def test_systems_without_poses_and_mask():
    found = SquareNetwork()([scene(TWO, SIZE)])[0]["instances"]
    for name in ("pred_keypoints", "pose_scores"):
        found.remove(name)
    people = PosePrediction.from_result({"instances": found}, COCO, 0.5)
    assert people.keypoints.shape == (2, K, 3) and not people.keypoints.any()
    assert people.pose_scores.tolist() == people.scores.tolist()
    assert people.person_mask is None
    assert not any(people.to_coco(1)[0]["keypoints"])
    assert people.draw(scene(TWO, SIZE)).shape == (*SIZE, 3)


def test_coco_rows(squares):
    people = squares()(scene(TWO, SIZE))
    rows = people.to_coco(7)
    assert [set(r) for r in rows] == [
        {"image_id", "category_id", "bbox", "score", "keypoints", "pose_score"}
    ] * 2
    assert rows[1]["bbox"] == [90, 20, 40, 80] and rows[1]["category_id"] == 1
    assert rows[1]["score"] == pytest.approx(0.8) and rows[1]["pose_score"] == pytest.approx(0.4)
    joints = np.array(rows[1]["keypoints"]).reshape(K, 3)
    # COCO's indices lie half a pixel lower; a joint that was not found is 0, 0, 0.
    assert np.allclose(joints[:-1, :2] + 0.5, people.keypoints[1, :-1, :2], atol=1e-4)
    assert not joints[-1].any()
    truth = CocoFile()
    truth.dataset = {"images": [{"id": 7}], "categories": [{"id": 1}], "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        assert len(truth.loadRes([dict(r) for r in rows]).anns) == 2
    numbered = people.with_track_ids(np.array([4, 9])).to_coco(7)
    assert [r["track_id"] for r in numbered] == [4, 9]
    assert [{k: v for k, v in r.items() if k != "track_id"} for r in numbered] == rows


def test_drawing(squares):
    image = scene(TWO, SIZE)
    people = squares()(image)
    picture = people.draw(image)
    x, y = people.keypoints[1, 0, :2].astype(int)
    changed = (picture != image).any(axis=2)
    assert changed[y, x] and changed[11:89, 21:59].all() and not changed[:, :17].any()
    assert (image == scene(TWO, SIZE)).all()
    plain = (people.draw(image, mask=False, boxes=False) != image).any(axis=2)
    assert plain[y, x] and plain.sum() < changed.sum() and not plain[10:20].any()
    nothing = people.draw(image, mask=False, boxes=False, keypoint_threshold=0.7)
    assert (nothing == image).all()
    only_mask = people.draw(image, boxes=False, keypoint_threshold=0.7, mask_threshold=0.89)
    assert (only_mask != image).any(axis=2).sum() == (people.person_mask > 0).sum()
    assert (people.with_track_ids([3, 4]).draw(image) != picture).any()
    with pytest.raises(ValueError, match=r"\(110, 160\), not on one of \(55, 80\)"):
        people.draw(image[::2, ::2])
    with pytest.raises(ValueError, match="heatmaps=True"):
        people.draw_heatmaps(image)


def test_heatmaps(squares):
    image = scene(TWO, SIZE)
    people = squares(heatmaps=True)(image)
    assert people.heatmaps.shape == (K, 28, 40)
    light = people.draw_heatmaps(image).max(axis=2)
    assert light.shape == SIZE and light[50, 40] > 200 and light[5, 5] < 60
    assert squares()(image).heatmaps is None


# ------------------------------------------------------------------- inputs


def test_kinds_of_images(squares, tmp_path: Path):
    image = scene(TWO, SIZE)
    predictor = squares()
    alpha = np.dstack([image, np.full(SIZE, 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(tmp_path / "turned.png", exif=exif)
    for given in (image, alpha, tmp_path / "alpha.png", str(tmp_path / "turned.png"),
                  np.asfortranarray(image), image[:, ::-1][:, ::-1]):  # fmt: skip
        assert_two(predictor(given))
    for people in predictor([image, tmp_path / "alpha.png"]) + predictor((image,)):
        assert_two(people)
    batch = predictor(np.stack([image, image[::-1]]))
    assert len(batch) == 2 and batch[1].boxes[0, 1] == 20
    assert predictor([]) == []
    for grey in (image[..., 0], image[..., :1]):  # black and white people are not found
        assert len(predictor(grey)) == 0
    seen = []
    predictor._predict = lambda images: seen.extend(images) or []
    list(predictor.stream([image[..., 0], image[..., :1]]))
    assert all((s == image[..., :1]).all() and s.shape == (*SIZE, 3) for s in seen)
    assert len(seen) == 2


def test_bgr(squares, tmp_path: Path):
    image = scene(TWO, SIZE)
    predictor = squares(input_format="BGR")
    assert_two(predictor(np.ascontiguousarray(image[..., ::-1])))
    assert_two(predictor(np.dstack([image[..., ::-1], image[..., 0]])))
    Image.fromarray(image).save(tmp_path / "a.png")
    assert_two(predictor(tmp_path / "a.png"))  # files are read right in either case


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), r"\(1, 2, 4, 4, 3\)"),
        (Image.new("RGB", (4, 4)), "Image.*np.asarray"),
        (torch.zeros(4, 4, 3), "Tensor"),
        ([torch.zeros(4, 4, 3)], "Tensor"),
        (iter([]), "use stream"),
        (None, "NoneType"),
    ],
)
def test_other_inputs_are_named(squares, image: object, words: str):
    with pytest.raises(ValueError, match=words):
        squares()(image)


def test_files_that_cannot_be_read(squares, tmp_path: Path):
    (tmp_path / "zero.jpg").touch()
    with pytest.raises(ValueError, match="zero.jpg cannot be read"):
        squares()(tmp_path / "zero.jpg")
    with pytest.raises(FileNotFoundError, match="gone.jpg"):
        squares()([tmp_path / "gone.jpg"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence_threshold": 1.1}, "confidence_threshold is 1.1"),
        ({"confidence_threshold": -0.1}, "confidence_threshold is -0.1"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold is nan"),
        ({"input_format": "L"}, "input_format is 'L'"),
        ({"device": "tpux"}, "'tpux' is no device"),
        ({"options": ["MODEL.NO_KEY", 1]}, "MODEL.NO_KEY"),
        ({"options": ["MODEL.WEIGHTS"]}, "KEY VALUE"),
    ],
)
def test_arguments_out_of_range(squares, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        squares(**options)


def test_device(squares, monkeypatch):
    assert squares(device="cpu").cfg.MODEL.DEVICE == "cpu"
    assert squares(device=torch.device("cpu")).cfg.MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert squares().cfg.MODEL.DEVICE == "cpu"
    for make in (lambda: squares(device="cuda:1"),
                 lambda: squares(options=["MODEL.DEVICE", "cuda"])):  # fmt: skip
        with pytest.raises(ValueError, match="no GPU"):
            make()


def test_a_given_config_stays(squares):
    cfg = get_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    cfg.freeze()
    before = cfg.dump()
    predictor = PosePredictor(cfg, "a.pth", ["SEED", 9], device="cpu")
    assert cfg.dump() == before and cfg.is_frozen()
    assert predictor.cfg.SEED == 9 and predictor.cfg.is_frozen()


# ------------------------------------------------------------------- streams


def test_what_is_no_stream_is_named(squares, tmp_path: Path):
    """A path would be taken letter by letter, an image row by row."""
    image, predictor = scene(TWO, SIZE), squares()
    for frames, words in (
        ("walk.mp4", "'walk.mp4'.*VideoReader"),
        (tmp_path, "VideoReader"),
        (image, r"array \(110, 160, 3\).*call the predictor"),
        (image[..., 0], r"array \(110, 160\)"),
    ):
        with pytest.raises(ValueError, match=words):
            predictor.stream(frames)
    assert [len(people) for people in predictor.stream(np.stack([image, image]))] == [2, 2]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stream_is_lazy_and_in_order(squares, size: int):
    predictor = squares()
    taken = []

    def frames() -> Iterator[np.ndarray]:
        for i in itertools.count():
            taken.append(i)
            yield scene({"red": (i, 5, i + 20, 60)}, (64, 200))

    stream = predictor.stream(frames(), batch_size=size)
    assert taken == []
    for i in range(6):
        assert next(stream).boxes[0, 0] == i
        assert len(taken) == size * (i // size + 1)
    assert set(predictor._predict.batches) == {size}


def test_stream_ends_with_its_frames(squares):
    predictor = squares()
    image = scene(TWO, SIZE)
    assert len(list(predictor.stream([image] * 5, batch_size=2))) == 5
    assert predictor._predict.batches == [2, 2, 1]
    assert list(predictor.stream([])) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor.stream([], batch_size=0)


def test_stream_numbers_people(squares):
    """Red is missing for a while, and they pass each other."""
    frames = []
    for i in range(20):
        people = {
            "red": (10 + 3 * i, 20, 40 + 3 * i, 100),
            "blue": (150 - 3 * i, 25, 180 - 3 * i, 99),
        }
        if i in (3, 4):
            del people["red"]
        frames.append(scene(people, (110, 220)))
    results = list(squares().stream(iter(frames), batch_size=3, track=True))
    for i, people in enumerate(results):
        assert people.track_ids.dtype == np.int64
        if len(people) == 2:
            assert people.track_ids.tolist() == [1, 2], i
    assert [p.track_ids.tolist() for p in results[3:5]] == [[2], [2]]
    assert sum(len(p) == 2 for p in results) > 12
    # Each stream counts anew.
    again = next(squares().stream(frames[:1], track=True))
    assert again.track_ids.tolist() == [1, 2]
    assert next(squares().stream(frames[:1])).track_ids is None


def test_importing_the_package_imports_no_engine():
    heavy = ("mpn_d2.engine.", "mpn_d2.evaluation", "mpn_d2.export")
    code = f"import sys, mpn_d2; print([m for m in sys.modules if m.startswith({heavy})])"
    code += "; print([m for m in ('matplotlib', 'onnx', 'timm', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
