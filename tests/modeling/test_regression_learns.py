"""All parts of pose regression learn together: two real photographs by heart (spec section 14)."""

from __future__ import annotations

import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.modeling.heads.pose_scoring import oks_with_people

ITERATIONS = 60


def test_two_photographs_by_heart(paper_config):
    """Everybody is found with an OKS over 0.9, before anything else; the PSM knows it."""
    register_pose_datasets()
    cfg = paper_config("PoseRegression/quick_overfit_two.yaml", ["INPUT.MIN_SIZE_TRAIN", "(112,)"])
    mapper = PoseDatasetMapper(cfg, is_train=True)
    inputs = [mapper(entry) for entry in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    model = build_model(cfg).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.SOLVER.BASE_LR)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 15) * (1 - i / ITERATIONS)
    )
    with EventStorage():
        for _ in range(ITERATIONS):
            optimizer.zero_grad()
            sum(model(inputs).values()).backward()
            optimizer.step()
            rate.step()
    results = model.eval()([{"image": x["image"]} for x in inputs])
    sigmas = torch.tensor(model.pose_losses.sigmas)
    for x, result in zip(inputs, results, strict=True):
        known = x["instances"][(x["instances"].gt_keypoints.tensor[..., 2] > 0).any(dim=1)]
        assert len(known) >= 2
        found = result["instances"][: len(known)]
        oks = oks_with_people(
            found.pred_keypoints[..., :2], known.gt_keypoints.tensor, known.gt_areas, sigmas
        )
        assert (oks.amax(dim=0) > 0.9).all(), oks
        assert (found.scores > 0.5).all()
