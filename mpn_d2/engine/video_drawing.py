"""People drawn on a video: reading, the network, and drawing with writing run at once."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mpn_d2.engine.image_drawing import DrawingOptions, DrawingReport, heatmap_file
from mpn_d2.engine.pose_prediction import PosePrediction
from mpn_d2.engine.pose_predictor import PosePredictor
from mpn_d2.utils.background import Finisher, ReadAhead
from mpn_d2.utils.files import JsonListWriter, check_folder
from mpn_d2.utils.video import Camera, Frame, VideoReader, VideoWriter, check_video_suffix

# Batches that wait before the network, and frames that wait behind it.
_WAITING = 2


def draw_video(
    source: VideoReader | Camera,
    predictor: PosePredictor,
    drawn: DrawnFrames,
    report: DrawingReport,
    *,
    batch_size: int = 1,
    track: bool = False,
    show: Callable[[np.ndarray], bool] | None = None,
) -> None:
    """Draws the people on every frame of a video, or of a camera until it is stopped.

    One thread reads frames, this one runs the network, a third draws and writes. A camera's
    frames are dropped while the network is busy; Ctrl-C ends it in good order. In a file, Ctrl-C
    and errors of any of the three pass through, once the threads have ended.

    Args:
        source: of the frames; what it lacks at the end is reported.
        predictor: finds the people.
        drawn: takes frames and people.
        report: what has happened is added to it.
        batch_size: frames at a time.
        track: give people numbers that they keep.
        show: called with the newest picture in this thread, for a window; False ends the video.
    """
    tracker = predictor.tracker() if track else None
    ahead = 1 if source.live else _WAITING * batch_size
    with (
        tqdm(total=source.announced, unit="frame", disable=None) as progress,
        ReadAhead(source, ahead, newest_only=source.live) as frames,
        Finisher(drawn, max(_WAITING, batch_size)) as finisher,
    ):
        try:
            for batch in _batches(frames, batch_size):
                for frame, people in zip(batch, predictor([f.image for f in batch]), strict=True):
                    if tracker is not None:
                        numbers = tracker.update(people.boxes, people.keypoints)
                        people = people.with_track_ids(numbers)
                    finisher.put((frame, people))
                    report.pictures += 1
                    report.people += len(people)
                    progress.update()
                picture = drawn.newest
                if show is not None and picture is not None and not show(picture):
                    break
        except KeyboardInterrupt:
            if not source.live:
                raise
    if source.shortfall:
        report.fail(source.shortfall)


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch


class DrawnFrames:
    """Draws frames and writes them: a video, one of the heatmaps, JSON; each where it is wanted.

    A context: what it writes appears when it ends without an error. Call it with (frame, people).
    """

    def __init__(
        self,
        options: DrawingOptions,
        path: str | None,
        fps: float,
        *,
        rows: JsonListWriter | None = None,
        live: bool = False,
    ) -> None:
        """
        Args:
            options: what is drawn; heatmaps go to the `heatmap_file` of `path`.
            path: of the video; None writes none.
            fps: frames a second of the video.
            rows: takes people in COCO's result format with `frame`, which is the image_id, and
                `time` in seconds.
            live: frames come as their times say, with gaps: they are repeated to fill these. Then
                `frame` counts those of the recording, and a frame that has no place in it (they
                come faster than `fps`) has no rows; without a recording, those of the source.

        Raises:
            ValueError: a suffix that cannot be written.
        """
        self.newest: np.ndarray | None = None
        self._options = options
        self._fps = fps
        self._rows = rows
        self._live = live
        self._videos = []
        if path is not None:
            self._videos.append(VideoWriter(path, fps))
            if options.heatmaps:
                self._videos.append(VideoWriter(heatmap_file(path), fps))
        self._stack = ExitStack()

    def __enter__(self) -> DrawnFrames:
        for video in self._videos:
            self._stack.enter_context(video)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __call__(self, item: tuple[Frame, PosePrediction]) -> None:
        frame, people = item
        self.newest = self._options.draw(people, frame.image)
        pictures = [self.newest]
        if len(self._videos) > 1:
            pictures.append(people.draw_heatmaps(frame.image))
        index, copies = frame.index, 1
        if self._live and self._videos:
            index = round(frame.time * self._fps)
            copies = max(index + 1 - self._videos[0].written, 0)
        for video, picture in zip(self._videos, pictures, strict=False):
            video.write(picture, copies)
        if self._rows is not None and copies:
            place = {"frame": index, "time": round(frame.time, 6)}
            self._rows.extend({**row, **place} for row in people.to_coco(index))

    @property
    def cut(self) -> bool:
        """Whether the video lacks a column or row of the frames, see VideoWriter."""
        return any(video.cut for video in self._videos)


def name_video(output: str, source: str, heatmaps: bool = False) -> str:
    """The file of the drawn video: `output` itself, or in the folder `output` <stem>.mp4.

    A name with a suffix is a file, unless there is such a folder.

    Raises:
        ValueError: a suffix that cannot be written, or the video would overwrite its source.
        OSError: a file is in the place of its folder.
    """
    path = output
    if os.path.isdir(output) or output.endswith(os.sep) or not Path(output).suffix:
        path = os.path.join(output, f"{Path(source).stem}.mp4")
    check_video_suffix(path)
    check_folder(os.path.dirname(path))
    for written in (path, heatmap_file(path)) if heatmaps else (path,):
        if os.path.isdir(written):
            raise ValueError(f"{written} is a folder: name another output")
        if os.path.realpath(written) == os.path.realpath(source):
            raise ValueError(f"--output {output} would overwrite {written}: name another")
    return path


def camera_name() -> str:
    """A name for a recording that no earlier one has."""
    return time.strftime("camera_%Y%m%d_%H%M%S")
