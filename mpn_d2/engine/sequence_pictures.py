"""What a recurrent decoder writes at each step, as a picture.

Letters: P people, K keypoint types. Frame of everything: the image as given, continuous pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from mpn_d2.engine.inference_model import load_trained_model
from mpn_d2.engine.showcase import contact_sheet
from mpn_d2.engine.views import View, Viewer
from mpn_d2.modeling.meta_arch.bottom_up_poses import instances_of_poses
from mpn_d2.modeling.meta_arch.common import finish_instances, image_heatmaps
from mpn_d2.modeling.meta_arch.sequence_inference import read_people
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.heatmap_picture import draw_heatmaps
from mpn_d2.utils.visualize import draw_people

_BAR = 22  # height of the text above a picture, pixels


class SequenceDrawer:
    """Draws images step by step."""

    def __init__(self, cfg: CfgNode, weights: str) -> None:
        """
        Args:
            cfg: of a network with a recurrent decoder.
            weights: its checkpoint.

        Raises:
            ValueError: a network that writes no people one after the other, or weights that do
                not fit.
            FileNotFoundError: no such weights.
        """
        self.model = load_trained_model(cfg, weights)
        if not hasattr(self.model, "written"):
            raise ValueError(
                f"{cfg.MODEL.META_ARCHITECTURE} writes no people one after the other: give a "
                "config of a recurrent decoder"
            )
        self.viewer = Viewer.from_config(cfg, self.model)
        self.skeleton = get_skeleton(cfg.MODEL.SKELETON)

    @torch.no_grad()
    def __call__(self, image_rgb: np.ndarray, columns: int = 4) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> a sheet: the image with everybody, then one picture a step.

        A step shows the strongest of its K maps over the dim image, the joints read off them, and
        its stop score; the last one the score at which nobody was left.
        """
        size = image_rgb.shape[:2]
        tensor = torch.from_numpy(np.ascontiguousarray(image_rgb.transpose(2, 0, 1)))
        view = View((0, 0, size[1], size[0]))
        images = self.model.preprocess_image([self.viewer.network_input(tensor, "RGB", view)])
        height, width = images.image_sizes[0]
        shown, stride = (int(height), int(width)), self.model.stride
        people, _ = self.model.written(images.tensor)
        written = people[0]
        poses = read_people(
            written, stride, shown, tau=self.model.rules.tau, subcell=self.model.subcell
        )
        everybody = self._draw(image_rgb, poses, shown)
        pictures = [titled(everybody, f"{len(poses)} people")]
        for step, (maps, score) in enumerate(
            zip(written.maps, written.stop_scores.tolist(), strict=True)
        ):
            spanning = image_heatmaps(maps, stride, shown).clamp(0, 1).cpu().numpy()
            picture = self._draw(draw_heatmaps(image_rgb, spanning), poses[step : step + 1], shown)
            pictures.append(titled(picture, f"step {step + 1}: somebody {score:.2f}"))
        if written.last_score is not None:
            text = f"step {len(poses) + 1}: nobody ({written.last_score:.2f})"
            pictures.append(titled(image_rgb // 3, text))
        return contact_sheet(pictures, columns=columns)

    def _draw(self, picture: np.ndarray, poses: torch.Tensor, shown: tuple[int, int]) -> np.ndarray:
        """Skeletons of poses in the frame of the network input, (height, width) `shown`."""
        scores = torch.ones(len(poses))
        found = instances_of_poses(poses.cpu(), scores, shown, self.model.stride)
        found = finish_instances(found, *picture.shape[:2])
        return draw_people(picture, found, self.skeleton, boxes=False, score_threshold=0.0)


def titled(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture below a line of text."""
    bar = np.full((_BAR, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, _BAR - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, picture])
