"""Video files that are written, read back, cut off and damaged; cameras that are made up."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mpn_d2.utils import video
from mpn_d2.utils.video import CODECS, Camera, VideoReader, VideoWriter, check_video_suffix

COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def picture(i: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """One of three colours, bright at the top left."""
    image = np.full((*size, 3), COLORS[i % 3], np.uint8)
    image[: size[0] // 2, : size[1] // 2] = 255
    return image


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def write(path: Path, count: int = 9, fps: float = 12.5, make=picture, **options) -> VideoWriter:
    with VideoWriter(path, fps) as writer:
        for i in range(count):
            writer.write(make(i, **options))
    return writer


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_written_videos_read_back(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    writer = write(path)
    assert (writer.written, writer.cut) == (9, False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with VideoReader(path) as reader:
        assert (reader.fps, reader.announced) == (12.5, 9)
        frames = list(reader)
        assert reader.read == 9 and reader.shortfall is None
    assert [f.index for f in frames] == list(range(9))
    assert np.allclose([f.time for f in frames], np.arange(9) / 12.5, atol=0.002)
    for i, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        assert np.abs(frame.image[36, 48].astype(int) - COLORS[i % 3]).max() < 25  # RGB, not BGR
        assert (frame.image[10, 10] > 225).all()


def test_capital_suffixes_and_folders_that_are_not_there(tmp_path: Path):
    write(tmp_path / "new" / "A.MP4", 2)
    with VideoReader(tmp_path / "new" / "A.MP4") as reader:
        assert len(list(reader)) == 2


@pytest.mark.parametrize(
    ("name", "fps", "kept"), [("a.avi", 25, True), ("a.avi", 12.5, False), ("a.mp4", 25, False)]
)
def test_odd_sides(tmp_path: Path, name: str, fps: float, kept: bool):
    writer = write(tmp_path / name, 3, fps, size=(33, 47))
    assert writer.cut is not kept
    with VideoReader(tmp_path / name) as reader:
        assert reader.fps == fps
        assert {f.image.shape for f in reader} == {(33, 47, 3) if kept else (32, 46, 3)}


def test_copies(tmp_path: Path):
    with VideoWriter(tmp_path / "a.avi", 10) as writer:
        for i, copies in enumerate((1, 0, 3)):
            writer.write(picture(i), copies)
    with VideoReader(tmp_path / "a.avi") as reader:
        brightest = [int(f.image[40, 60].argmax()) for f in reader]
    assert brightest == [0, 2, 2, 2]


# ------------------------------------------------------------------- what cannot be written


def test_no_file_after_an_error_and_without_pictures(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("before")
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "a.mp4", 25) as writer:
        writer.write(picture(0))
        assert len(list(tmp_path.iterdir())) == 2
        raise ZeroDivisionError
    with VideoWriter(tmp_path / "a.mp4", 25):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "before"


def test_pictures_of_another_size_are_an_error(tmp_path: Path):
    with (
        pytest.raises(ValueError, match="64 x 47 in a video of 64 x 48"),
        VideoWriter(tmp_path / "a.mp4", 25) as writer,
    ):
        writer.write(picture(0))
        writer.write(picture(0, (47, 64)))
    assert not list(tmp_path.iterdir())


def test_sizes_and_kinds_that_cannot_be_written(tmp_path: Path, capfd):
    with pytest.raises(ValueError, match="cannot make .mp4.* of 1 x 1"):
        write(tmp_path / "a.mp4", 1, size=(1, 1))
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""
    for name in ("a.gif", "a", "a.mpg"):
        with pytest.raises(ValueError, match="no kind of video that can be written"):
            VideoWriter(tmp_path / name, 25)
    check_video_suffix("a.AVI")


def test_a_disk_that_keeps_nothing_is_noticed(tmp_path: Path):
    """OpenCV writes on in silence; here the file has lost its frames."""
    writer = VideoWriter(tmp_path / "a.avi", 25)
    with pytest.raises(OSError, match="disk full"), writer:
        for i in range(9):
            writer.write(picture(i))
        writer.written = 90
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------- what cannot be read


def test_files_that_are_no_videos(tmp_path: Path, capfd):
    good = write(tmp_path / "good.mp4").path.read_bytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("wörds and words\n" * 500)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])  # its table stands at the end
    (tmp_path / "noise.avi").write_bytes(bytes(range(256)) * 20)
    words = {
        "empty.mp4": "is empty",
        "image.png": "is an image",
        "image.jpg": "is an image",
        "notes.txt": "is text",
        "cut.mp4": "no video that OpenCV can read",
        "noise.avi": "no video that OpenCV can read",
    }
    for name, reason in words.items():
        with pytest.raises(ValueError, match=f"{name} .*{reason}"):
            VideoReader(tmp_path / name)
    for name in ("gone.mp4", ""):
        with pytest.raises(FileNotFoundError, match="not found"):
            VideoReader(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_moving_pictures_are_videos(tmp_path: Path):
    images = [Image.fromarray(picture(i)) for i in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    with VideoReader(tmp_path / "a.gif") as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm"])
def test_videos_that_end_early(tmp_path: Path, name: str):
    content = write(tmp_path / name, 60, make=noise).path.read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with VideoReader(tmp_path / name) as reader:
        frames = list(reader)
        assert 10 < len(frames) < 50
        assert f"{name} is damaged or ends early: {len(frames)} of the 60" in reader.shortfall


def test_damaged_frames_in_the_middle(tmp_path: Path):
    """Zeros over some frames: the others are read."""
    content = bytearray(write(tmp_path / "a.avi", 20, make=noise).path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    (tmp_path / "a.avi").write_bytes(content)
    with VideoReader(tmp_path / "a.avi") as reader:
        count = len(list(reader))
        assert 15 <= count < 20
        assert f"{count} of the 20" in reader.shortfall


class FakeCapture:
    """What cv2.VideoCapture is for our code."""

    def __init__(self, images: list[np.ndarray], properties: dict | None = None) -> None:
        self.images = iter(images)
        self.properties = properties or {}
        self.released = False

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return self.properties.get(key, 0.0)

    def read(self) -> tuple[bool, np.ndarray | None]:
        image = next(self.images, None)
        return image is not None, image

    def release(self) -> None:
        self.released = True


@pytest.fixture()
def capture(monkeypatch):
    """capture(images, properties) is what OpenCV opens next."""

    def give(images: list[np.ndarray], properties: dict | None = None) -> FakeCapture:
        fake = FakeCapture(images, properties)
        monkeypatch.setattr(video.cv2, "VideoCapture", lambda _: fake)
        return fake

    return give


def test_videos_that_tell_little(tmp_path: Path, capture):
    """No rate, no count, no times, grey frames, one of another size."""
    (tmp_path / "a.mp4").write_bytes(bytes(32))
    images = [np.full((20, 30), 7, np.uint8), np.full((40, 60, 3), 9, np.uint8)]
    fake = capture(images, {cv2.CAP_PROP_FPS: float("nan"), cv2.CAP_PROP_FRAME_COUNT: -9.2e18})
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.announced is None and reader.fps == 30
        frames = list(reader)
        assert reader.shortfall is None
    assert [f.image.shape for f in frames] == [(20, 30, 3)] * 2
    assert [f.time for f in frames] == [0, pytest.approx(1 / 30)]
    assert [int(f.image[5, 5, 1]) for f in frames] == [7, 9]
    assert fake.released


def test_counts_that_are_estimates_may_be_a_little_off(tmp_path: Path, capture):
    for head, missing, fine in ((b"", 3, True), (b"", 4, False), (b"RIFF", 1, False)):
        (tmp_path / "a.mkv").write_bytes(head + bytes(32))
        frames = [np.zeros((4, 4, 3), np.uint8)] * (100 - missing)
        capture(frames, {cv2.CAP_PROP_FRAME_COUNT: 100})
        with VideoReader(tmp_path / "a.mkv") as reader:
            assert len(list(reader)) == 100 - missing
            assert (reader.shortfall is None) is fine


def test_no_frame_at_all(tmp_path: Path, capture):
    (tmp_path / "a.mp4").write_bytes(bytes(32))
    capture([], {cv2.CAP_PROP_FRAME_COUNT: 5})
    with VideoReader(tmp_path / "a.mp4") as reader:
        with pytest.raises(ValueError, match="a.mp4 holds no frame"):
            list(reader)


# ------------------------------------------------------------------- cameras


def test_cameras(capture, monkeypatch):
    fake = capture([np.full((4, 6, 3), (1, 2, 3), np.uint8)] * 3, {cv2.CAP_PROP_FPS: 15})
    clock = iter([100.0, 100.5, 102.0])
    monkeypatch.setattr(video.time, "monotonic", lambda: next(clock))
    with Camera(0) as camera:
        frames = list(camera)
        assert camera.live and camera.fps == 15
        assert "camera 0 gave no more frames after 3" in camera.shortfall
    assert [f.time for f in frames] == [0, 0.5, 2]
    assert frames[0].image[0, 0].tolist() == [3, 2, 1]
    assert fake.released
    capture([])
    with Camera(1) as camera:
        assert camera.fps == 30
        with pytest.raises(ValueError, match="camera 1 gives no pictures"):
            list(camera)


@pytest.mark.parametrize("index", [97, -1])
def test_camera_that_cannot_be_opened(index: int, capfd):
    with pytest.raises(ValueError, match=f"camera {index} cannot be opened"):
        Camera(index)
    assert capfd.readouterr().err == ""
