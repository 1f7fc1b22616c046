"""Frames from video files and cameras, and video files from pictures, by OpenCV.

Frames are (H, W, 3) uint8 RGB. Sound is neither read nor written.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mpn_d2.utils.files import make_folder, partial_beside

# What OpenCV's own builds can write everywhere; H.264 is in none of them.
CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
CODECS |= {".webm": "VP80"}
# Kinds of image file (Pillow's names) that may be animated; in others, pages are no frames.
_MOVING = {"AVIF", "GIF", "PNG", "WEBP"}
# For videos and cameras that do not tell their own.
_DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Frame:
    """A frame of a video: its number from 0 on, seconds from the start, and (H, W, 3) RGB."""

    index: int
    time: float
    image: np.ndarray


class VideoReader:
    """The frames of a video file, once and in order.

    Frames are turned as the file says; one of another size than the first is resized to it.
    Close it, or use it as a context.

    Attributes:
        path: what it reads.
        fps: frames a second.
        announced: frames that the file says it has, None where it does not say.
        read: frames that were read so far.
    """

    live = False

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no video that OpenCV can read.
        """
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"video {self.path} not found")
        _refuse_what_only_looks_like_video(self.path)
        self._capture = _open_capture(self.path)
        if self._capture is None:
            raise ValueError(
                f"{self.path} is no video that OpenCV can read (cut off, damaged, or of an "
                "unknown kind)"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else _DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # Some kinds of video do not tell; OpenCV then gives a number far below zero.
        self.announced = int(count) if math.isfinite(count) and count > 0 else None
        self.read = 0

    def __iter__(self) -> Iterator[Frame]:
        """
        Raises:
            ValueError: there is not one frame that can be read.
        """
        size = None
        while True:
            image = _next_image(self._capture)
            if image is None:
                break
            size = size or image.shape[1::-1]
            if image.shape[1::-1] != size:
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not seconds > 0:  # the first, or a backend that does not tell
                seconds = self.read / self.fps
            self.read += 1
            yield Frame(self.read - 1, seconds, image)
        if not self.read:
            raise ValueError(f"{self.path} holds no frame that can be read")

    @property
    def shortfall(self) -> str | None:
        """After the last frame: a line where fewer came than the file announces, else None."""
        if self.announced is None or self.read >= self.announced - self._tolerance():
            return None
        return (
            f"{self.path} is damaged or ends early: {self.read} of the {self.announced} frames "
            "that it announces could be read"
        )

    def _tolerance(self) -> int:
        """Frames that `announced` may be wrong by: only these kinds count them, others estimate."""
        with open(self.path, "rb") as file:
            head = file.read(12)
        counted = head[4:8] == b"ftyp" or head[:4] == b"RIFF"
        return 0 if counted else 1 + self.announced // 50

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Camera:
    """The frames of a camera until it is closed or stops; times from the first frame on.

    Close it, or use it as a context. Attributes: see VideoReader.
    """

    live = True
    announced = None

    def __init__(self, index: int) -> None:
        """
        Args:
            index: 0 for the first camera.

        Raises:
            ValueError: it cannot be opened.
        """
        self.path = f"camera {index}"
        self._capture = _open_capture(index) if index >= 0 else None
        if self._capture is None:
            raise ValueError(f"camera {index} cannot be opened: is it connected, free and allowed?")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 1 <= fps <= 240 else _DEFAULT_FPS
        self.read = 0
        self.shortfall: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        """
        Raises:
            ValueError: there is not one picture.
        """
        start = None
        while True:
            image = _next_image(self._capture)
            if image is None and not self.read:
                raise ValueError(f"{self.path} gives no pictures: is another program using it?")
            if image is None:
                self.shortfall = f"{self.path} gave no more frames after {self.read}"
                return
            now = time.monotonic()
            start = now if start is None else start
            self.read += 1
            yield Frame(self.read - 1, now - start, image)

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoWriter:
    """A video file that appears whole, when the context ends without an error, or not at all.

    The codec follows from the suffix (`CODECS`). All but .avi need even sides: of an odd one the
    last column or row is cut off (`cut` tells). Without a picture no file is made.
    """

    def __init__(self, path: str | os.PathLike, fps: float) -> None:
        """
        Raises:
            ValueError: the suffix is not that of a kind of video that can be written.
        """
        self.path = Path(path)
        check_video_suffix(self.path)
        self.fps = fps
        self.written = 0
        self.cut = False
        self._partial = partial_beside(self.path, suffix=self.path.suffix.lower())
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image_rgb: np.ndarray, copies: int = 1) -> None:
        """Appends a picture, `copies` times.

        Raises:
            ValueError: no such video can be opened, or the size changes.
        """
        if self._writer is None:
            self._open(image_rgb)
        if image_rgb.shape[1::-1] != self._size:
            raise ValueError(
                f"{self.path}: a picture of {image_rgb.shape[1]} x {image_rgb.shape[0]} in a "
                f"video of {self._size[0]} x {self._size[1]}"
            )
        bgr = np.ascontiguousarray(image_rgb[:, :, ::-1])
        for _ in range(copies):
            self._writer.write(bgr)
            self.written += 1

    def _open(self, image_rgb: np.ndarray) -> None:
        height, width = image_rgb.shape[:2]
        self._size = (width, height)
        make_folder(self.path.parent)
        codec = CODECS[self.path.suffix.lower()]
        backend = cv2.CAP_ANY
        if height % 2 or width % 2:
            # OpenCV's own writer keeps odd sides, but rounds the rate.
            exact = codec == "MJPG" and self.fps >= 1 and abs(self.fps - round(self.fps)) < 1e-6
            backend = cv2.CAP_OPENCV_MJPEG if exact else backend
            self.cut = not exact
        with quiet_opencv():
            writer = cv2.VideoWriter(
                str(self._partial), backend, cv2.VideoWriter.fourcc(*codec), self.fps, self._size
            )
        self._writer = writer
        if not writer.isOpened():
            raise ValueError(
                f"cannot write {self.path}: this OpenCV cannot make {self.path.suffix} ({codec}) "
                f"of {width} x {height} at {self.fps:g} frames a second; is the folder writable? "
                "Else try .avi or a larger picture"
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Finishes the file; after an error removes it.

        Raises:
            OSError: fewer frames arrived on the disk than were written.
        """
        if self._writer is None:
            return
        self._writer.release()
        try:
            if kind is None and self.written:
                self._check()
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _check(self) -> None:
        """OpenCV says nothing where a disk is full: reads the header."""
        with quiet_opencv():
            capture = cv2.VideoCapture(str(self._partial))
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
            capture.release()
        if count < 0.9 * self.written - 1:
            raise OSError(f"{self.path} could not be written whole: is the disk full?")


def check_video_suffix(path: str | os.PathLike) -> None:
    """Raises a ValueError for a file that VideoWriter cannot write."""
    if Path(path).suffix.lower() not in CODECS:
        raise ValueError(f"{path} is no kind of video that can be written: {', '.join(CODECS)}")


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """OpenCV's and FFmpeg's own lines stay away from the terminal: an error of ours tells."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, when FFmpeg is first used
    log = cv2.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)


def _open_capture(source: str | int) -> cv2.VideoCapture | None:
    with quiet_opencv():
        capture = cv2.VideoCapture(source)
    if capture.isOpened():
        return capture
    capture.release()
    return None


def _next_image(capture: cv2.VideoCapture) -> np.ndarray | None:
    """RGB, None at the end."""
    good, image = capture.read()
    if not good or image is None or image.size == 0:
        return None
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _refuse_what_only_looks_like_video(path: str) -> None:
    """FFmpeg plays text as moving letters and a picture as a video of one frame."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        raise ValueError(f"{path} is empty")
    if b"\0" not in head:
        with contextlib.suppress(UnicodeDecodeError):
            # Not `head.decode()`: the last letter may be cut.
            codecs.getincrementaldecoder("utf-8")().decode(head)
            raise ValueError(f"{path} is text, not a video")
    try:
        with Image.open(path) as image:
            moves = image.format in _MOVING and getattr(image, "n_frames", 1) > 1
            # Pillow knows the head of an MPEG film.
            moves = moves or image.format == "MPEG"
    except Exception:  # Pillow raises very different ones for what it cannot read
        return
    if not moves:
        raise ValueError(f"{path} is an image, not a video")
