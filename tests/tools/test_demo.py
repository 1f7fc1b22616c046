"""tools/demo.py and the predictor under it, on bundled photographs with a small random model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from repo_tools import load_tool
from square_people import NETWORK as PREDICTOR
from square_people import SquareNetwork, scene

from mpn_d2.config import load_config
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "quick" / "demo.yaml")
SMALL = ["MODEL.PRN.NODES", "8", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96"]
# A random model is unsure of everything: every box and cell counts.
EAGER = [
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "4"),
    *("MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0", "MODEL.PEAKS.THRESH", "0.0001"),
]


demo = load_tool("demo")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    PoseCheckpointer(build_model(load_config(CONFIG, SMALL)), str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture(scope="module")
def predictor(weights: str) -> ImagePredictor:
    return ImagePredictor(load_config(CONFIG, [*SMALL, *EAGER]), weights)


@pytest.fixture()
def run(tmp_path: Path, weights: str):
    """run(inputs, arguments..., opts=[...]) -> exit code of the tool in this process."""

    def call(inputs: list, *arguments: str, opts: list[str] | None = None) -> int:
        opts = ["MODEL.WEIGHTS", weights, *SMALL, *EAGER, *(opts or [])]
        line = ["--config-file", CONFIG, "--input", *map(str, inputs)]
        line += ["--output", str(tmp_path / "drawn"), *arguments, "--opts", *opts]
        try:
            run_command(lambda: demo.main(demo.parse_args(line)))
        except SystemExit as end:
            return end.code
        return 0

    return call


def photographs(sample_dir: Path, count: int, split: str = "train") -> list[Path]:
    return sorted((sample_dir / split).glob("*.jpg"))[:count]


# ------------------------------------------------------------------- the command


def test_command_draws_and_writes_from_the_repository_root(
    tmp_path: Path, weights: str, sample_dir: Path
):
    folder = tmp_path / "in"
    folder.mkdir()
    given = photographs(sample_dir, 2)
    for file in given:
        shutil.copy(file, folder)
    (folder / "notes.txt").write_text("no image")
    command = [sys.executable, "tools/demo.py", "--config-file", "configs/quick/demo.yaml"]
    command += ["--input", str(folder), "--output", str(tmp_path / "drawn")]
    command += ["--json", str(tmp_path / "new" / "people.json"), "--confidence-threshold", "0"]
    command += ["--batch-size", "2", "--opts", "MODEL.WEIGHTS", weights, *SMALL, *EAGER]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "new" / "people.json").read_text())
    assert f"2 images with {len(rows)} people drawn in {tmp_path / 'drawn'}" in done.stdout
    assert "people.json" in done.stdout

    values = 3 * get_skeleton("coco").num_keypoints
    assert {r["image_id"] for r in rows} == {int(f.stem) for f in given}
    assert {r["file_name"] for r in rows} == {str(folder / f.name) for f in given}
    assert all(r["category_id"] == 1 and len(r["keypoints"]) == values for r in rows)
    assert any(any(r["keypoints"]) for r in rows)
    for file in given:
        picture = Image.open(tmp_path / "drawn" / f"{file.stem}.png")
        original = Image.open(file).convert("RGB")
        assert picture.size == original.size and picture.mode == "RGB"
        assert (np.asarray(picture) != np.asarray(original)).any()
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == [
        f"{f.stem}.png" for f in given
    ]


class Truth:
    """A predictor that knows the annotations, in their continuous frame."""

    def __init__(self, truth: COCO, ids: list[int]) -> None:
        self.truth, self.ids = truth, iter(ids)

    def __call__(self, images: list[np.ndarray]) -> list[dict]:
        return [self._people(next(self.ids), image) for image in images]

    def _people(self, image_id: int, image: np.ndarray) -> dict:
        people = self.truth.loadAnns(self.truth.getAnnIds([image_id], iscrowd=False))
        boxes = np.array([p["bbox"] for p in people], dtype=np.float32).reshape(-1, 4)
        keypoints = np.array([p["keypoints"] for p in people], dtype=np.float32)
        keypoints = keypoints.reshape(len(people), -1, 3)
        keypoints[:, :, :2] += 0.5 * (keypoints[:, :, 2:] > 0)
        keypoints[:, :, 2] = keypoints[:, :, 2].clip(max=1)
        boxes[:, 2:] += boxes[:, :2]
        count = len(people)
        instances = Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.from_numpy(boxes)),
            scores=torch.linspace(0.9, 0.6, count),
            pose_scores=torch.linspace(0.3, 0.8, count),
            pred_classes=torch.zeros(count, dtype=torch.long),
            pred_keypoints=torch.from_numpy(keypoints),
        )
        return {"instances": instances, "sem_seg": torch.zeros(2, *image.shape[:2])}


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_json_of_true_people_scores_perfectly(
    run, monkeypatch, tmp_path: Path, sample_dir: Path, batch_size: str
):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(sample_dir / "annotations" / "person_keypoints_train.json"))
    files = photographs(sample_dir, 7)
    ids = [int(f.stem) for f in files]
    monkeypatch.setattr(PREDICTOR, lambda cfg, weights: Truth(truth, ids))
    path = tmp_path / "people.json"
    assert run([sample_dir / "train"], "--json", str(path), "--batch-size", batch_size) == 0

    rows = json.loads(path.read_text())
    first = [r for r in rows if r["image_id"] == ids[0]]
    annotations = truth.loadAnns(truth.getAnnIds([ids[0]], iscrowd=False))
    assert len(first) == len(annotations)
    for row, annotation in zip(first, annotations, strict=True):
        wanted = np.array(annotation["keypoints"]).reshape(-1, 3)[:, :2]
        assert np.allclose(np.array(row["keypoints"]).reshape(-1, 3)[:, :2], wanted, atol=1e-3)
        assert np.allclose(row["bbox"], annotation["bbox"], atol=1e-3)
    assert first[0]["score"] == pytest.approx(0.9)
    assert first[0]["pose_score"] == pytest.approx(0.3)

    with contextlib.redirect_stdout(io.StringIO()):
        results = truth.loadRes(str(path))
        scorer = COCOeval(truth, results, "bbox")
        scorer.evaluate(), scorer.accumulate(), scorer.summarize()
    assert scorer.stats[0] == pytest.approx(1, abs=1e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(truth, results, "keypoints")
        scorer.evaluate(), scorer.accumulate(), scorer.summarize()
    assert scorer.stats[5] == pytest.approx(1)  # AR: every pose is found at every OKS


def test_threshold_drops_people_from_picture_and_json(
    run, monkeypatch, tmp_path: Path, sample_dir: Path
):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(sample_dir / "annotations" / "person_keypoints_train.json"))
    file = photographs(sample_dir, 1)[0]  # four people, scores 0.9, 0.8, 0.7, 0.6
    counts = []
    for threshold in ("0.75", "1"):
        monkeypatch.setattr(PREDICTOR, lambda *_: Truth(truth, [int(file.stem)]))
        path = tmp_path / "people.json"
        assert run([file], "--json", str(path), "--confidence-threshold", threshold) == 0
        counts.append(len(json.loads(path.read_text())))
    assert counts == [2, 0]
    picture = read_image(str(tmp_path / "drawn" / f"{file.stem}.png"), "RGB")
    assert (picture == read_image(str(file), "RGB")).all()


def test_unreadable_images_are_named_and_the_rest_goes_on(
    run, tmp_path: Path, sample_dir: Path, capsys
):
    good = photographs(sample_dir, 1)[0]
    bad = {"zero.jpg": b"", "text.png": b"no image", "cut.jpg": good.read_bytes()[:3000]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    inputs = [tmp_path / "zero.jpg", tmp_path / "gone.jpg", good, tmp_path / "no*.jpg"]
    inputs += [tmp_path / "text.png", tmp_path / "cut.jpg"]
    json_path = tmp_path / "people.json"
    assert run(inputs, "--json", str(json_path), "--batch-size", "2") == 1
    captured = capsys.readouterr()
    for name in (*bad, "gone.jpg", "no*.jpg"):
        assert sum(str(tmp_path / name) in line for line in captured.err.splitlines()) == 1, name
    assert "5 inputs failed" in captured.err
    assert captured.out.startswith("1 images with ")
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == [f"{good.stem}.png"]
    assert json_path.is_file()


def test_grey_alpha_rotated_and_tiny_images(run, tmp_path: Path, sample_dir: Path):
    photo = Image.open(photographs(sample_dir, 1)[0]).resize((90, 60))
    photo.convert("L").save(tmp_path / "grey.png")
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    photo.convert("P").save(tmp_path / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("RGB", (3000, 1)).save(tmp_path / "thin.png")
    Image.new("RGB", (20000, 40)).save(tmp_path / "wide.png")
    assert run([tmp_path], "--confidence-threshold", "0", "--batch-size", "4") == 0
    sizes = {p.stem: Image.open(p).size for p in (tmp_path / "drawn").iterdir()}
    same = dict.fromkeys(("grey", "alpha", "palette"), (90, 60))
    assert sizes == {**same, "turned": (60, 90), "one": (1, 1), "thin": (3000, 1)} | {
        "wide": (20000, 40)
    }


@pytest.mark.parametrize(
    ("arguments", "opts", "words"),
    [
        (["--confidence-threshold", "1.5"], [], "--confidence-threshold is 1.5"),
        (["--confidence-threshold", "nan"], [], "--confidence-threshold"),
        (["--batch-size", "0"], [], "--batch-size is 0"),
        (["--json", str(REPO)], [], "is a folder"),
        (["--keypoint-threshold", "-1"], [], "--keypoint-threshold is -1"),
        (["--keypoint-threshold", "nan"], [], "--keypoint-threshold"),
        (["--track"], [], "--track follows people in a video"),
        ([], ["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS"),
        ([], ["MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        ([], ["MODEL.PRN.NODES", "9"], "assembler"),
        ([], ["MODEL.NO_KEY", "9"], "MODEL.NO_KEY"),
        ([], ["EVAL.BOX_SOURCE", "gt"], "EVAL.BOX_SOURCE"),
        ([], ["INPUT.FORMAT", "L"], "INPUT.FORMAT"),
    ],
)
def test_mistakes_are_one_line(
    run, sample_dir: Path, tmp_path: Path, capfd, arguments: list, opts: list, words: str
):
    assert run([sample_dir / "train"], *arguments, opts=opts) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "drawn").exists()


def test_no_image_at_all_is_one_line(run, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert run([tmp_path / "empty", tmp_path / "gone.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no images in it" in line and "gone.jpg: not found" in line


# ------------------------------------------------------------------- outputs


def test_inputs_are_never_overwritten(run, tmp_path: Path, capsys):
    (tmp_path / "drawn").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn" / "a.png")
    before = (tmp_path / "drawn" / "a.png").read_bytes()
    assert run([tmp_path / "drawn"]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert (tmp_path / "drawn" / "a.png").read_bytes() == before
    assert run([tmp_path / "drawn"], "--output", str(tmp_path), "--json",
               str(tmp_path / "drawn" / "a.png")) == 2  # fmt: skip
    assert "--json" in capsys.readouterr().err
    assert run([tmp_path / "drawn"], "--output", str(tmp_path / "drawn" / "a.png")) == 2
    assert "is a file: images need a folder" in capsys.readouterr().err
    assert (tmp_path / "drawn" / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*")] == ["drawn", "a.png"]


def test_what_is_drawn(run, monkeypatch, tmp_path: Path):
    """Of true people in colours: the options reach the picture."""
    monkeypatch.setattr(PREDICTOR, SquareNetwork)
    image = scene({"red": (20, 10, 60, 90)}, (100, 80))
    Image.fromarray(image).save(tmp_path / "a.png")

    def draw(*options: str, opts: list[str] | None = None) -> np.ndarray:
        assert run([tmp_path / "a.png"], *options, opts=opts) == 0
        picture = read_image(str(tmp_path / "drawn" / "a.png"), "RGB")
        return (picture != image).any(axis=2)

    whole = draw()
    assert whole[50, 19:21].any() and whole[12, 40]
    without = draw("--no-boxes", "--no-mask")
    assert not without[50, 19:21].any() and not without[12, 40] and without.any()
    boxes = draw("--no-mask")
    assert boxes[50, 19:21].any() and (whole & ~boxes).sum() > 200
    assert not draw("--no-boxes", "--no-mask", "--keypoint-threshold", "0.7").any()
    # The mask says 0.9.
    assert (draw(opts=["EVAL.MASK_THRESH", "0.95"]) == boxes).all()
    assert not list((tmp_path / "drawn").glob("*heat*"))
    assert (draw("--heatmaps") == whole).all()
    heat = read_image(str(tmp_path / "drawn" / "a_heatmaps.png"), "RGB").max(axis=2)
    assert heat.shape == (100, 80) and heat[50, 40] > 200 and heat[95, 5] < 60


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as end:
        demo.parse_args(["--help"])
    assert end.value.code == 0 and "--confidence-threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source", [[], ["--input", "a.png", "--webcam"], ["--input", "a", "--video-input", "b"]]
)
def test_there_is_one_source(source: list[str], capsys):
    with pytest.raises(SystemExit) as end:
        demo.parse_args(["--config-file", CONFIG, "--output", "o", *source])
    assert end.value.code == 2 and "--webcam" in capsys.readouterr().err


def test_output_is_needed(run, capsys):
    line = ["--config-file", CONFIG, "--input", "a.png"]
    with pytest.raises(SystemExit):
        run_command(lambda: demo.main(demo.parse_args(line)))
    assert "--output is missing" in capsys.readouterr().err


def test_a_video_is_no_image(run, capsys):
    line = ["--config-file", CONFIG, "--output", "o", "--input", "a.png", "walk.MP4"]
    with pytest.raises(SystemExit):
        run_command(lambda: demo.main(demo.parse_args(line)))
    assert "--input walk.MP4 is a video: give it as --video-input" in capsys.readouterr().err


# ------------------------------------------------------------------- predictor


def fields(result: dict) -> list[torch.Tensor]:
    people = result["instances"]
    boxes = people.pred_boxes.tensor
    return [boxes, people.scores, people.pose_scores, people.pred_keypoints, result["sem_seg"]]


def assert_same(one: dict, other: dict, tolerance: float) -> None:
    assert one["instances"].image_size == other["instances"].image_size
    for a, b in zip(fields(one), fields(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_predictor_equals_detectron2s_own(
    predictor: ImagePredictor, weights: str, sample_dir: Path
):
    cfg = load_config(CONFIG, [*SMALL, *EAGER, "MODEL.WEIGHTS", weights])
    theirs = DefaultPredictor(cfg)
    file = str(photographs(sample_dir, 1)[0])
    (result,) = predictor([read_image(file, "RGB")])
    assert len(result["instances"]) > 0 and result["instances"].pred_keypoints.any()
    assert_same(result, theirs(read_image(file, "BGR")), 1e-4)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictor_prepares_images_as_the_mapper(
    predictor: ImagePredictor, monkeypatch, sample_dir: Path, image_format: str
):
    file = str(photographs(sample_dir, 1)[0])
    cfg = load_config(CONFIG, [*SMALL, "INPUT.FORMAT", image_format])
    wanted = PoseDatasetMapper(cfg, is_train=False)({"file_name": file})
    monkeypatch.setattr(predictor.viewer, "image_format", image_format)
    seen = []
    monkeypatch.setattr(predictor, "model", lambda inputs: seen.extend(inputs))
    predictor([read_image(file, "RGB")])
    assert torch.equal(seen[0]["image"], wanted["image"])
    assert (seen[0]["height"], seen[0]["width"]) == (wanted["height"], wanted["width"])


def test_predictor_takes_sizes_together_and_apart(predictor: ImagePredictor, sample_dir: Path):
    image = read_image(str(photographs(sample_dir, 1)[0]), "RGB")
    images = [image, image[:301, 50:251], image[::3, ::3]]
    together = predictor(images)
    for given, result in zip(images, together, strict=True):
        assert result["instances"].image_size == given.shape[:2]
        assert result["sem_seg"].shape == (2, *given.shape[:2])
        assert not result["sem_seg"].requires_grad
        assert_same(result, predictor([given])[0], 1e-3)
    assert predictor([]) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_predictor_names_other_shapes(predictor: ImagePredictor, image: np.ndarray):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        predictor([image])
