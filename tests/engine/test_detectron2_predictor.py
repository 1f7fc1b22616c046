"""Detectron2's own DefaultPredictor finds people with our configs (design 7.20)."""

from __future__ import annotations

import cv2
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import mpn_d2
from mpn_d2.engine.checkpoint import PoseCheckpointer


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_default_predictor(tmp_path, sample_dir, image_format):
    options = ["MODEL.DEVICE", "cpu", "MODEL.PRN.NODES", 4, "INPUT.FORMAT", image_format]
    options += ["INPUT.MIN_SIZE_TEST", 96, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    options += ["TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.ASSEMBLER.BOX_SCORE_THRESH", 0.0]
    options += ["MODEL.PEAKS.THRESH", 0.0]
    cfg = mpn_d2.get_config("MultiPoseNet/R_18_small.yaml", options)
    model = build_model(cfg).eval()
    PoseCheckpointer(model, str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    image = cv2.imread(str(sorted((sample_dir / "val").glob("*.jpg"))[0]))
    result = DefaultPredictor(cfg)(image)
    # The same by hand.
    pixels = image[:, :, ::-1] if image_format == "RGB" else image
    pixels = ResizeShortestEdge([96, 96], 800).get_transform(pixels).apply_image(pixels)
    tensor = torch.from_numpy(pixels.astype("float32").transpose(2, 0, 1).copy())
    with torch.no_grad():
        [expected] = model([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])
    people, wanted = result["instances"], expected["instances"]
    assert len(people) == len(wanted) > 0 and people.image_size == image.shape[:2]
    torch.testing.assert_close(people.pred_boxes.tensor, wanted.pred_boxes.tensor)
    torch.testing.assert_close(people.pred_keypoints, wanted.pred_keypoints)
    assert people.pred_keypoints.shape[1:] == (17, 3)
    assert (people.pred_keypoints[..., 2] > 0).any()
    torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])
    assert result["sem_seg"].shape == (2, *image.shape[:2])
