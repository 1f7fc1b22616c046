"""From images to people in one call."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config, merge_options
from mpn_d2.config_files import config_file
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.pose_prediction import PosePrediction
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.tracker import PoseTracker

# An array, or the path of an image file.
ImageLike = np.ndarray | str | os.PathLike


class PosePredictor:
    """Finds people on images: arrays, files, batches, videos.

    Attributes:
        cfg: the whole config, frozen.
        skeleton: names, edges and sigmas of the keypoints.
    """

    def __init__(
        self,
        config: str | os.PathLike | CfgNode,
        weights: str | os.PathLike | None = None,
        options: Sequence[object] = (),
        *,
        confidence_threshold: float | None = None,
        device: str | torch.device | None = None,
        input_format: str = "RGB",
        heatmaps: bool = False,
    ) -> None:
        """
        Args:
            config: a file, the name of one that comes with the package
                ("MultiPoseNet/R_50.yaml"), or a config, which is left as it is.
            weights: checkpoint that fits the config; None takes MODEL.WEIGHTS.
            options: KEY, VALUE, KEY, VALUE ... over the config, as on a command line.
            confidence_threshold: least box score of people in the results, 0 to 1; None takes
                EVAL.CONFIDENCE_THRESH. Below MODEL.ASSEMBLER.BOX_SCORE_THRESH a box has no
                skeleton.
            device: "cpu", "cuda", "cuda:1" ...; None takes MODEL.DEVICE, or the CPU where a
                config file is given and PyTorch sees no GPU.
            input_format: of arrays: "RGB", or "BGR" as OpenCV reads them. (Files are read right.)
            heatmaps: keep the keypoint heatmaps in the results.

        Raises:
            FileNotFoundError: no such config or weights.
            ValueError: an argument out of range, an unknown key, weights that do not fit.
        """
        if confidence_threshold is not None:
            check_share("confidence_threshold", confidence_threshold)
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"input_format is {input_format!r}: RGB or BGR is needed")
        texts = [str(option) for option in options]
        if isinstance(config, CfgNode):
            cfg = config.clone()
            cfg.defrost()
            merge_options(cfg, texts)
        else:
            cfg = load_config(config_file(config), texts)
        if heatmaps:
            merge_options(cfg, ["EVAL.HEATMAPS", "True"])
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        _check_device(cfg.MODEL.DEVICE)
        cfg.freeze()
        self.cfg = cfg
        self.skeleton = get_skeleton(cfg.MODEL.SKELETON)
        if confidence_threshold is None:
            confidence_threshold = cfg.EVAL.CONFIDENCE_THRESH
        self._threshold = confidence_threshold
        self._input_format = input_format
        self._predict = ImagePredictor(cfg, os.fspath(weights or cfg.MODEL.WEIGHTS))

    @overload
    def __call__(self, images: str | os.PathLike) -> PosePrediction: ...
    @overload
    def __call__(self, images: list | tuple) -> list[PosePrediction]: ...
    @overload
    def __call__(self, images: np.ndarray) -> Any: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike]
    ) -> PosePrediction | list[PosePrediction]:
        """Predicts one image, or a list of images as one batch.

        Args:
            images: a uint8 array (H, W, 3), grey (H, W) or (H, W, 1), or with alpha (H, W, 4),
                which is dropped; or the path of an image file; or a list or tuple of these, of
                any sizes, or an array (N, H, W, C). All of a list are in memory at once: for many
                images, see `stream`.

        Returns:
            A PosePrediction for one image, a list of them for a list. An image's result does not
            depend on the others.

        Raises:
            FileNotFoundError: no such image file.
            ValueError: an array of another kind, or a file that is no image.
        """
        if isinstance(images, (str, os.PathLike)):
            return self._batch([images])[0]
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self._batch([images])[0]
        if not isinstance(images, (list, tuple, np.ndarray)):
            raise ValueError(
                f"cannot predict on a {type(images).__name__}: an array, a path or a list of "
                "these is needed (of PIL images: np.asarray(image.convert('RGB'))); for an "
                "iterator use stream"
            )
        return self._batch(list(images))

    def stream(
        self, frames: Iterable[ImageLike], batch_size: int = 1, track: bool = False
    ) -> Iterator[PosePrediction]:
        """Predicts images as they come: lazily, in order, `batch_size` of them in memory.

        Args:
            frames: any iterable, endless ones too, of what `__call__` takes for one image.
            batch_size: images predicted at a time.
            track: the frames are those of a video: give people numbers (`track_ids`) that they
                keep from frame to frame, see `mpn_d2.utils.tracker`.

        Returns:
            An iterator with a PosePrediction for each frame.

        Raises:
            ValueError: a batch size below 1, or one image, file or video in the place of frames;
                the iterator raises as `__call__` does.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: at least 1 is needed")
        # A path has letters, and an image has rows, one after another.
        if isinstance(frames, (str, os.PathLike)):
            raise ValueError(
                f"stream takes frames one after another, not the path {os.fspath(frames)!r}: for a "
                "video give (f.image for f in VideoReader(path)), for an image call the predictor"
            )
        if isinstance(frames, np.ndarray) and frames.ndim != 4:
            raise ValueError(
                f"stream takes frames one after another, not an array {frames.shape}: "
                "(N, H, W, C) is needed; for one image call the predictor"
            )
        return self._stream(iter(frames), batch_size, self.tracker() if track else None)

    def tracker(self) -> PoseTracker:
        """A new tracker for people of this skeleton."""
        return PoseTracker(self.skeleton.sigmas)

    def _stream(
        self, frames: Iterator[ImageLike], batch_size: int, tracker: PoseTracker | None
    ) -> Iterator[PosePrediction]:
        while batch := list(itertools.islice(frames, batch_size)):
            for people in self._batch(batch):
                if tracker is not None:
                    people = people.with_track_ids(tracker.update(people.boxes, people.keypoints))
                yield people

    def _batch(self, images: Sequence[ImageLike]) -> list[PosePrediction]:
        results = self._predict([self._to_rgb(image) for image in images])
        return [PosePrediction.from_result(r, self.skeleton, self._threshold) for r in results]

    def _to_rgb(self, image: ImageLike) -> np.ndarray:
        if isinstance(image, (str, os.PathLike)):
            return read_pose_image(image, "RGB")
        if not isinstance(image, np.ndarray):
            raise ValueError(f"an image is a {type(image).__name__}: an array or a path is needed")
        channels = 1 if image.ndim == 2 else image.shape[-1]
        right = image.ndim in (2, 3) and channels in (1, 3, 4) and image.size > 0
        if not right or image.dtype != np.uint8:
            raise ValueError(
                f"cannot predict on {image.dtype} {image.shape}: uint8 (H, W), (H, W, 1), "
                "(H, W, 3) or (H, W, 4) is needed, values 0 to 255"
            )
        if channels == 1:
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        image = image[:, :, :3]
        return image if self._input_format == "RGB" else image[:, :, ::-1]


def check_share(name: str, value: float) -> None:
    """Raises a ValueError that names it for a number that is not 0 to 1 (NaN, too)."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: 0 to 1 is needed")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE {name!r} is no device of PyTorch") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {name!r}, and PyTorch sees no GPU: set it to cpu")
