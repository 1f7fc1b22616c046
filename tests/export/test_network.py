"""The network that is exported against the model that it came from, both in PyTorch."""

from __future__ import annotations

import pytest
import torch
from export_cases import (
    ARGMAX,
    HEATMAP,
    LEARNED,
    SIZES,
    picture,
    predict,
    small_config,
    small_network,
)

from mpn_d2.export.agreement import reference_model
from mpn_d2.export.network import ExportNetwork, check_exportable
from mpn_d2.modeling.assembly.matching import HungarianMatching

KINDS = {
    "prn": [],
    "prn with fallback": ARGMAX,
    "prn of heatmaps": HEATMAP,
    "learned": [*LEARNED, *ARGMAX],
    "ucr": ["MODEL.ASSEMBLER.EVIDENCE", "ucr"],
    "max": ["MODEL.ASSEMBLER.EVIDENCE", "max"],
    "identity": ["MODEL.ASSEMBLER.EVIDENCE", "identity"],
}


def exported(cfg, model, **options):
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return ExportNetwork(model, **sizes, **options)


def assert_same(found, result):
    people = result["instances"]
    boxes, scores, pose_scores, keypoints, mask = found
    torch.testing.assert_close(boxes, people.pred_boxes.tensor, atol=1e-3, rtol=0)
    torch.testing.assert_close(scores, people.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(pose_scores, people.pose_scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(keypoints, people.pred_keypoints, atol=1e-3, rtol=0)
    torch.testing.assert_close(mask, result["sem_seg"][1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_the_model_finds(kind):
    cfg = small_config(*KINDS[kind], "MODEL.ASSEMBLER.MATCHING", "hungarian")
    model = small_network(cfg)
    network, reference = exported(cfg, model), reference_model(model)
    image = picture(70, 110, 0.6)
    result = predict(cfg, reference, image)
    people = result["instances"]
    assert len(people) > 5 and (people.pred_keypoints[..., 2] > 0).sum() > 50
    # Boxes below the threshold of the assembler have no pose.
    assert ((people.pose_scores == 0) == (people.scores < 0.4)).all()
    assert_same(network(torch.from_numpy(image)), result)
    nobody = picture(*SIZES[0], 0.0)
    assert_same(network(torch.from_numpy(nobody)), predict(cfg, reference, nobody))
    # The given model keeps its matching.
    assert isinstance(model.assembler.matching, HungarianMatching)


def test_images_keep_their_size_where_the_config_says_so():
    cfg = small_config("INPUT.MIN_SIZE_TEST", "0")
    model = small_network(cfg)
    image = picture(70, 65, 0.6)
    result = predict(cfg, reference_model(model), image)
    assert len(result["instances"])
    assert_same(exported(cfg, model)(torch.from_numpy(image)), result)


def test_half_precision_is_near_and_leaves_the_model():
    cfg = small_config()
    model = small_network(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.from_numpy(picture(70, 110, 1.0))
    network = exported(cfg, model, precision="fp16")
    half = [p for p in network.parameters() if p.dtype == torch.float16]
    assert sum(p.numel() for p in half) > 0.99 * sum(p.numel() for p in network.parameters())
    found, whole = network(image), exported(cfg, model)(image)
    assert all(x.dtype == torch.float32 for x in found)
    assert 0 < (found[4] - whole[4]).abs().max() < 0.02
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["TTA.ENABLED", "True"], "TTA"),
        (["OKS_NMS.MODE", "hard"], "OKS_NMS"),
        (["SPEED.MODE", "fp32"], "SPEED.MODE"),
        (["MODEL.RETINANET.NMS", "soft_linear"], "MODEL.RETINANET.NMS"),
        (["MODEL.ASSEMBLER.MATCHING", "argmax"], "MODEL.ASSEMBLER.MATCHING argmax"),
        (["EVAL.BOX_SOURCE", "gt"], "EVAL.BOX_SOURCE"),
        (["SINGLE_PERSON.ENABLED", "True"], "SINGLE_PERSON.ENABLED"),
    ],
)
def test_configs_that_a_file_cannot_follow_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        check_exportable(small_config(*options))


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="a Linear has no backbone"):
        ExportNetwork(torch.nn.Linear(1, 1), min_size=64, max_size=96)
    cfg = small_config()
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        exported(cfg, small_network(cfg), precision="fp8")
