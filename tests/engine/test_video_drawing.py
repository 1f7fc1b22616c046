"""Reading, network and drawing at once: what overlaps, what errors leave behind, cameras."""

from __future__ import annotations

import functools
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from square_people import NETWORK, SquareNetwork, scene
from tqdm import tqdm

from mpn_d2 import PosePredictor
from mpn_d2.engine import video_drawing
from mpn_d2.engine.image_drawing import DrawingOptions, DrawingReport
from mpn_d2.engine.video_drawing import DrawnFrames, draw_video, name_video
from mpn_d2.utils.files import JsonListWriter
from mpn_d2.utils.video import Frame, VideoReader

WAIT = 10  # seconds after which a test gives up
FPS = 10.0


class Frames:
    """A source of made-up frames with a red person who walks to the right."""

    path = "made up"
    fps = FPS

    def __init__(self, count: int, live: bool = False, at: dict | None = None) -> None:
        """`at`: functions to call before a frame is handed out."""
        self.announced = None if live else count
        self.count, self.live, self.at = count, live, at or {}
        self.shortfall: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        for i in range(self.count):
            self.at.get(i, lambda: None)()
            left = 5 + 2 * i % 80
            image = scene({"red": (left, 5, left + 30, 60)}, (64, 128))
            yield Frame(i, i / FPS, image)


class Hooked(SquareNetwork):
    """Calls `at[i]` before the i-th image."""

    at: dict = {}  # noqa: RUF012

    def __call__(self, images):
        done = sum(self.batches)
        for i in range(done, done + len(images)):
            self.at.get(i, lambda: None)()
        return super().__call__(images)


@pytest.fixture()
def predictor(monkeypatch) -> PosePredictor:
    monkeypatch.setattr(NETWORK, Hooked)
    monkeypatch.setattr(Hooked, "at", {})
    return PosePredictor("quick/demo.yaml", "some.pth")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and "Monitor" not in str(t)]
    assert not left


def draw(folder: Path, source: Frames, predictor: PosePredictor, **options) -> DrawingReport:
    report = DrawingReport()
    drawing_at = options.pop("drawing_at", {})
    with (
        JsonListWriter(folder / "a.json") as rows,
        DrawnFrames(DrawingOptions(), str(folder / "a.avi"), FPS, rows=rows, live=source.live) as d,
    ):
        call, count = d.__call__, 0

        def hooked(item: tuple) -> None:
            nonlocal count
            drawing_at.get(count, lambda: None)()
            count += 1
            call(item)

        hooked.newest = None
        draw_video(source, predictor, hooked if drawing_at else d, report, **options)
    return report


def raiser(error: BaseException):
    def fail() -> None:
        raise error

    return fail


def test_the_three_run_at_once(tmp_path: Path, predictor: PosePredictor):
    """Frame 4 is being read while the network is at frame 2 and frame 0 is being drawn."""
    together = threading.Barrier(3, timeout=WAIT)
    Hooked.at[2] = together.wait
    source = Frames(8, at={4: together.wait})
    report = draw(tmp_path, source, predictor, drawing_at={0: together.wait})
    assert not together.broken
    assert (report.pictures, report.people, report.failures) == (8, 8, [])


def test_progress_counts_frames(tmp_path: Path, predictor: PosePredictor, monkeypatch):
    shown = io.StringIO()
    # As on a terminal.
    bar = functools.partial(tqdm, file=shown, mininterval=0)
    monkeypatch.setattr(video_drawing, "tqdm", lambda **given: bar(**{**given, "disable": False}))
    draw(tmp_path, Frames(4), predictor)
    assert "0/4" in shown.getvalue() and "4/4" in shown.getvalue()


def test_memory_is_bounded(tmp_path: Path, predictor: PosePredictor):
    """While nothing can be drawn, only so many frames are read."""
    seen = []
    at = {i: lambda i=i: seen.append(i) for i in range(200)}

    def look() -> None:
        time.sleep(0.3)
        seen.append("drawn")

    draw(tmp_path, Frames(24, at=at), predictor, drawing_at={0: look}, batch_size=2)
    assert seen.index("drawn") <= 16


@pytest.mark.parametrize("batch_size", [1, 3])
def test_all_frames_in_order(tmp_path: Path, predictor: PosePredictor, batch_size: int):
    report = draw(tmp_path, Frames(10), predictor, batch_size=batch_size, track=True)
    assert (report.pictures, report.people) == (10, 10)
    assert predictor._predict.batches == ([1] * 10 if batch_size == 1 else [3, 3, 3, 1])
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [r["frame"] for r in rows] == [r["image_id"] for r in rows] == list(range(10))
    assert [r["time"] for r in rows] == [i / FPS for i in range(10)]
    assert [r["bbox"][0] for r in rows] == [5 + 2 * i for i in range(10)]
    assert {r["track_id"] for r in rows} == {1}
    with VideoReader(tmp_path / "a.avi") as video:
        frames = [f.image.astype(int) for f in video]
    assert len(frames) == 10
    for i, frame in enumerate(frames):
        red = (frame[..., 0] - frame[..., 1] > 60).any(axis=0)
        assert abs(np.flatnonzero(red)[0] - (5 + 2 * i)) <= 3


@pytest.mark.parametrize("where", ["reading", "network", "drawing"])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_errors_pass_through_and_leave_nothing(
    tmp_path: Path, predictor: PosePredictor, where: str, error: BaseException
):
    (tmp_path / "a.json").write_text("before")
    at = {3: raiser(error)}
    Hooked.at = at if where == "network" else {}
    source = Frames(1000, at=at if where == "reading" else {})
    with pytest.raises(type(error), match="broken|^$"):
        draw(tmp_path, source, predictor, drawing_at=at if where == "drawing" else {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


def test_error_in_the_last_picture(tmp_path: Path, predictor: PosePredictor):
    with pytest.raises(OSError, match="disk full"):
        draw(tmp_path, Frames(3), predictor, drawing_at={2: raiser(OSError("disk full"))})
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_reported(tmp_path: Path, predictor: PosePredictor, capsys):
    source = Frames(4)
    source.shortfall = "made up ends early"
    report = draw(tmp_path, source, predictor)
    assert report.failures == ["made up ends early"] and report.pictures == 4
    assert "made up ends early" in capsys.readouterr().err
    assert (tmp_path / "a.avi").is_file() and (tmp_path / "a.json").is_file()


# ------------------------------------------------------------------- cameras


def test_interrupted_recordings_are_kept(tmp_path: Path, predictor: PosePredictor):
    Hooked.at[3] = raiser(KeyboardInterrupt())
    report = draw(tmp_path, Frames(10**6, live=True), predictor)
    assert report.pictures == 3 and not report.failures
    assert len(json.loads((tmp_path / "a.json").read_text())) == 3
    with VideoReader(tmp_path / "a.avi") as video:
        assert len(list(video)) >= 3


def test_recordings_keep_the_time_whatever_is_dropped(predictor: PosePredictor, tmp_path: Path):
    """Frames of a camera at 0, 0.5 and 0.6 seconds fill 7 frames of a video of 10 a second."""
    images = [scene({name: (20, 5, 60, 60)}, (64, 96)) for name in ("red", "blue", "green")]
    with DrawnFrames(DrawingOptions(mask=False), str(tmp_path / "a.avi"), FPS, live=True) as drawn:
        for i, (seconds, image) in enumerate(zip((0, 0.5, 0.6), images, strict=True)):
            drawn((Frame(i, seconds, image), predictor(image)))
    with VideoReader(tmp_path / "a.avi") as video:
        strongest = [int(f.image[50, 55].argmax()) for f in video]
    assert strongest == [0, 2, 2, 2, 2, 2, 1]


def test_rows_of_a_camera_are_those_of_its_recording(predictor: PosePredictor, tmp_path: Path):
    """`frame` finds the person of that colour; what comes too fast is in neither."""
    people = [("red", 0), ("blue", 0.46), ("red", 0.54), (None, 0.58)]

    def record(path: str | None) -> list[dict]:
        with (
            JsonListWriter(tmp_path / "a.json") as rows,
            DrawnFrames(DrawingOptions(mask=False), path, FPS, rows=rows, live=True) as drawn,
        ):
            for i, (name, seconds) in enumerate(people):
                image = scene({name: (20, 5, 60, 60)} if name else {}, (64, 96))
                drawn((Frame(10 + i, seconds, image), predictor(image)))
        return json.loads((tmp_path / "a.json").read_text())

    rows = record(str(tmp_path / "a.avi"))
    assert [(r["frame"], r["image_id"], r["time"]) for r in rows] == [(0, 0, 0), (5, 5, 0.46)]
    with VideoReader(tmp_path / "a.avi") as video:
        strongest = [int(f.image[50, 55].argmax()) for f in video]
    assert len(strongest) == 7 and [strongest[r["frame"]] for r in rows] == [0, 2]
    # Without a recording, the camera's own numbers.
    assert [(r["frame"], r["time"]) for r in record(None)] == [(10, 0), (11, 0.46), (12, 0.54)]


def test_a_slow_network_gets_the_newest_frame(tmp_path: Path, predictor: PosePredictor):
    far = threading.Event()
    Hooked.at[0] = lambda: far.wait(WAIT)
    source = Frames(40, live=True, at={30: far.set})
    draw(tmp_path, source, predictor)
    frames = [r["frame"] for r in json.loads((tmp_path / "a.json").read_text())]
    assert frames == sorted(set(frames)) and frames[-1] == 39
    # One was in work, one had been taken before it; all others up to 29 were dropped.
    assert len([f for f in frames if f < 29]) <= 2


def test_window_gets_pictures_and_ends_the_show(predictor: PosePredictor):
    shown = []

    def show(picture: np.ndarray) -> bool:
        shown.append(picture)
        return len(shown) < 5

    report = DrawingReport()
    with DrawnFrames(DrawingOptions(), None, FPS, live=True) as drawn:
        draw_video(Frames(10**6, live=True), predictor, drawn, report, show=show)
    assert len(shown) == 5 and 5 <= report.pictures < 100
    assert shown[0].shape == (64, 128, 3)


# ------------------------------------------------------------------- names


def test_name_video(tmp_path: Path):
    (tmp_path / "there.avi").mkdir()

    def name(output: str, source: str = "in/walk.mov", **options) -> str:
        return name_video(str(tmp_path / output), source, **options)

    assert name("new") == str(tmp_path / "new" / "walk.mp4")
    assert name("there.avi") == str(tmp_path / "there.avi" / "walk.mp4")
    assert name_video("new.v2/", "walk.mov") == "new.v2/walk.mp4"
    assert name("a.avi") == str(tmp_path / "a.avi") and name("A.MKV").endswith("A.MKV")
    with pytest.raises(ValueError, match=r"a.png is no kind of video.*\.avi"):
        name("a.png")
    with pytest.raises(ValueError, match="would overwrite"):
        name("walk.mp4", str(tmp_path / "walk.mp4"))
    with pytest.raises(ValueError, match="would overwrite"):
        name("", str(tmp_path / "walk.mp4"))
    with pytest.raises(ValueError, match="would overwrite"):
        name("a.mp4", str(tmp_path / "a_heatmaps.mp4"), heatmaps=True)
    (tmp_path / "walk.mp4").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        name("")
