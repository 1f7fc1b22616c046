"""tools/demo.py on videos and cameras, and mistakes; the network finds coloured squares."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from repo_tools import load_tool
from square_people import NETWORK, K, SquareNetwork, scene

from mpn_d2.engine.cli import run_command
from mpn_d2.utils.video import VideoReader, VideoWriter

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "quick" / "demo.yaml")
SIZE = (72, 160)
COUNT = 11


demo = load_tool("demo")


@pytest.fixture()
def run(monkeypatch):
    """run(arguments...) -> exit code of the tool in this process, with a network of squares."""
    monkeypatch.setattr(NETWORK, SquareNetwork)

    def call(*arguments: object) -> int:
        line = ["--config-file", CONFIG, *map(str, arguments), "--opts", "MODEL.DEVICE", "cpu"]
        try:
            run_command(lambda: demo.main(demo.parse_args(line)))
        except SystemExit as end:
            return end.code
        return 0

    return call


def walk(path: Path, count: int = COUNT) -> Path:
    """Red walks to the right, blue to the left and is away in frames 5 to 7."""
    with VideoWriter(path, 12.5) as writer:
        for i in range(count):
            people = {"red": (10 + 4 * i, 8, 34 + 4 * i, 64)}
            if i not in (5, 6, 7):
                people["blue"] = (125 - 4 * i, 10, 149 - 4 * i, 62)
            writer.write(scene(people, SIZE))
    return path


def rows_by_frame(path: Path) -> list[list[dict]]:
    rows = json.loads(path.read_text())
    return [[r for r in rows if r["frame"] == i] for i in range(COUNT)]


def test_video_to_video_and_json(run, tmp_path: Path, capsys):
    source = walk(tmp_path / "walk.avi")
    output, path = tmp_path / "new" / "drawn.mp4", tmp_path / "people.json"
    assert run("--video-input", source, "--output", output, "--json", path) == 0
    people = sum(map(len, rows_by_frame(path)))
    out = capsys.readouterr().out
    assert out == f"{COUNT} frames with {people} people drawn in {output}, people in {path}\n"
    with VideoReader(output) as drawn, VideoReader(source) as given:
        assert (drawn.fps, drawn.announced) == (12.5, COUNT)
        for one, other in zip(drawn, given, strict=True):
            assert one.image.shape == (*SIZE, 3)
            # Drawn over the person, and nothing far from people.
            different = np.abs(one.image.astype(int) - other.image).max(axis=2) > 60
            left = 10 + 4 * one.index
            assert different[10:62, left : left + 24].any()
            assert not different[:, :5].any()
    for i, rows in enumerate(rows_by_frame(path)):
        assert all(r["image_id"] == i and r["time"] == pytest.approx(i / 12.5) for r in rows)
        assert all(len(r["keypoints"]) == 3 * K and "track_id" not in r for r in rows)
        # Video blurs edges.
        assert np.allclose(rows[0]["bbox"], [10 + 4 * i, 8, 24, 56], atol=2)


def test_json_loads_in_pycocotools(run, tmp_path: Path):
    path = tmp_path / "people.json"
    arguments = ("--video-input", walk(tmp_path / "walk.avi"), "--output", tmp_path / "o")
    assert run(*arguments, "--json", path, "--track") == 0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(COUNT)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(str(path))
    assert len(loaded.anns) == len(json.loads(path.read_text())) > COUNT
    assert [a["image_id"] for a in loaded.loadAnns(loaded.getAnnIds([3]))] == [3, 3]


def test_tracked_people_keep_number_and_colour(run, tmp_path: Path):
    path = tmp_path / "people.json"
    arguments = ("--video-input", walk(tmp_path / "walk.avi"), "--output", tmp_path / "o.avi")
    assert run(*arguments, "--json", path, "--track", "--batch-size", "4", "--no-mask") == 0
    for i, rows in enumerate(rows_by_frame(path)):
        numbers = {round(r["score"], 1): r["track_id"] for r in rows}
        assert numbers == ({0.9: 1} if i in (5, 6, 7) else {0.9: 1, 0.8: 2}), i


def test_heatmaps_are_a_second_video(run, tmp_path: Path):
    source = walk(tmp_path / "walk.avi", 4)
    assert run("--video-input", source, "--output", tmp_path / "o", "--heatmaps") == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["walk.mp4", "walk_heatmaps.mp4"]
    with VideoReader(tmp_path / "o" / "walk_heatmaps.mp4") as video:
        frames = list(video)
    assert len(frames) == 4
    assert frames[0].image[36, 22].max() > 180 and frames[0].image[36, 60].max() < 70


def test_video_that_ends_early_is_drawn_as_far_as_it_goes(run, tmp_path: Path, capsys):
    source = walk(tmp_path / "walk.avi")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    path = tmp_path / "people.json"
    output = tmp_path / "o.mp4"
    assert run("--video-input", source, "--output", output, "--json", path) == 1
    captured = capsys.readouterr()
    with VideoReader(output) as video:
        count = len(list(video))
    assert 3 < count < COUNT
    assert captured.out.startswith(f"{count} frames with ")
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert f"{count} of the {COUNT} frames" in captured.err
    assert lines[-1] == "1 inputs failed (named above)"
    assert max(r["frame"] for r in json.loads(path.read_text())) == count - 1


def test_odd_sides_are_told(run, tmp_path: Path, capsys):
    with VideoWriter(tmp_path / "odd.avi", 25) as writer:
        writer.write(scene({"red": (5, 5, 30, 40)}, (51, 61)))
    arguments = ("--video-input", tmp_path / "odd.avi", "--output")
    assert run(*arguments, tmp_path / "o.mp4") == 0
    assert "even sides" in capsys.readouterr().out
    assert run(*arguments, tmp_path / "o.avi") == 0
    assert "even sides" not in capsys.readouterr().out
    with VideoReader(tmp_path / "o.avi") as video:
        assert next(iter(video)).image.shape == (51, 61, 3)


VIDEO, IMAGE = ["--video-input", "walk.avi"], ["--input", "a.png"]
NO_FOLDER = "folder notes.mp4.* cannot be made: notes.mp4 is a file"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--video-input", "gone.mp4", "--output", "o"], "video gone.mp4 not found"),
        (["--video-input", "notes.mp4", "--output", "o"], "notes.mp4 is text"),
        (["--video-input", "empty.mp4", "--output", "o"], "empty.mp4 is empty"),
        (["--video-input", "walk.avi", "--output", "walk.avi"], "would overwrite"),
        (["--video-input", "walk.avi", "--output", "o.png"], "no kind of video"),
        (["--video-input", "walk.avi", "--output", "o", "--json", "walk.avi"], "--json walk.avi"),
        (["--video-input", "walk.avi", "--output", "o.mp4", "--json", "o.mp4"], "--json o.mp4"),
        (["--video-input", "walk.avi", "--output", "o", "--json", "."], "is a folder"),
        (["--video-input", "walk.avi"], "--output is missing"),
        (["--video-input", "walk.avi", "--output", "o", "--confidence-threshold", "2"], "is 2.0"),
        (["--webcam", "--output", "o.png"], "no kind of video"),
        (["--webcam", "--output", "o"], "camera 0 cannot be opened"),
        (["--webcam", "96", "--output", "o"], "camera 96 cannot be opened"),
        (["--webcam", "-3", "--output", "o"], "camera -3 cannot be opened"),
        (["--webcam"], "no display .*give --output to record instead"),
        (["--webcam", "--output", "o", "--batch-size", "2"], "--batch-size is for images and v"),
        (["--webcam", "--heatmaps"], "--heatmaps are written, not shown"),
        # What is to be a folder is a file.
        ([*VIDEO, "--output", "notes.mp4/o.mp4", "--json", "new/p.json"], NO_FOLDER),
        ([*VIDEO, "--output", "o", "--json", "notes.mp4/p.json"], NO_FOLDER),
        ([*IMAGE, "--output", "notes.mp4/o"], NO_FOLDER),
        ([*IMAGE, "--output", "o", "--json", "notes.mp4/p.json"], NO_FOLDER),
        (["--webcam", "--output", "notes.mp4/o"], NO_FOLDER),
        # The JSON is something else, or the folder of something else.
        ([*IMAGE, "--output", "o", "--json", "o"], "--json o is a file of another use"),
        ([*IMAGE, "--output", "o/p", "--json", "o"], "--json o is"),
        ([*IMAGE, "--output", "o", "--json", "o/a.png/p.json"], "--json o/a.png/p.json is"),
        ([*IMAGE, "--output", "o", "--json", "o/a_heatmaps.png", "--heatmaps"], "--json o/a_heat"),
        ([*VIDEO, "--output", "o", "--json", "o"], "--json o is"),
        ([*VIDEO, "--output", "o", "--json", "o/walk_heatmaps.mp4", "--heatmaps"], "--json o/w"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run, tmp_path: Path, monkeypatch, capfd, arguments: list[str], words: str
):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    walk(tmp_path / "walk.avi", 2)
    (tmp_path / "notes.mp4").write_text("words")
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert run(*arguments) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(words, line), line
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert captured.out == ""


class FakeCamera:
    """cv2.VideoCapture of a camera that stops after some frames."""

    frames = COUNT

    def __init__(self, _: int) -> None:
        self.count = 0

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return 10.0 if key == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.count += 1
        image = scene({"red": (10, 8, 34, 64)}, SIZE)
        return self.count <= self.frames, np.ascontiguousarray(image[..., ::-1])

    def release(self) -> None:
        pass


def test_webcam_records_without_a_display(run, tmp_path: Path, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    real = cv2.VideoCapture
    fake = lambda source: FakeCamera(source) if isinstance(source, int) else real(source)  # noqa: E731
    monkeypatch.setattr(cv2, "VideoCapture", fake)
    path = tmp_path / "people.json"
    assert run("--webcam", "--output", tmp_path / "o", "--json", path, "--track") == 1
    captured = capsys.readouterr()
    assert "recording camera 0: Ctrl-C ends it" in captured.out
    assert f"camera 0 gave no more frames after {COUNT}" in captured.err
    (video,) = (tmp_path / "o").iterdir()
    assert video.name.startswith("camera_") and video.suffix == ".mp4"
    rows = json.loads(path.read_text())
    assert rows and {r["track_id"] for r in rows} == {1}
    with VideoReader(video) as reader:
        assert reader.fps == 10 and list(reader)


class LastingCamera(FakeCamera):
    """A picture every 2 ms, for longer than any test shows it."""

    frames = 1000

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.002)
        return super().read()


def _window_of(count: int, how: str, monkeypatch) -> tuple[list, list]:
    """A made-up window that the user ends at this picture; (pictures, titles closed)."""
    shown, closed = [], []

    def ended() -> bool:
        return len(shown) >= count

    def visible(*_: object) -> float:
        if how == "closed in Qt" and ended():
            raise cv2.error("NULL guiReceiver")
        return {"Q in GTK": -1, "closed": 0 if ended() else 1}.get(how, 1)

    def destroy(title: str) -> None:
        closed.append(title)
        if how == "closed in Qt":
            raise cv2.error("NULL guiReceiver")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if how[0] == "Q" and ended() else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", visible)
    monkeypatch.setattr(cv2, "destroyWindow", destroy)
    return shown, closed


@pytest.mark.parametrize("how", ["Q", "Q in GTK", "closed", "closed in Qt"])
def test_webcam_in_a_window(run, tmp_path: Path, monkeypatch, capsys, how: str):
    real = cv2.VideoCapture
    fake = lambda source: LastingCamera(source) if isinstance(source, int) else real(source)  # noqa: E731
    monkeypatch.setattr(cv2, "VideoCapture", fake)
    shown, closed = _window_of(3, how, monkeypatch)
    output = ["--output", tmp_path / "o.avi"] if how != "Q" else []
    assert run("--webcam", *output) == 0
    assert len(shown) == 3 and closed == ["mpn_d2"]
    assert shown[0].shape == (*SIZE, 3)
    assert ("people drawn in" if output else "people shown") in capsys.readouterr().out
    if output:
        with VideoReader(tmp_path / "o.avi") as video:
            assert list(video)
