"""MultiPoseNet with the pose score: what is read, what is learned, what it changes."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.export.network import export_network
from mpn_d2.modeling.heads.assembled_scoring import AssembledPoseScorer
from mpn_d2.structures.skeleton import get_skeleton
from tests.test_contract import BATCHES, SMALL

COCO = get_skeleton("coco")
FLIP = list(COCO.flip_indices)
K = COCO.num_keypoints
CONFIG = "MultiPoseNet/R_18_small.yaml"
SCORED = [*SMALL, "MODEL.META_ARCHITECTURE", "ScoredMultiPoseNet", "MODEL.POSE_SCORER.WIDTH", "16"]
TRAINS = [*SCORED, "MODEL.TRAIN_PARTS", "['scoring']"]


def some_people() -> tuple[torch.Tensor, Instances]:
    """Maps of 10 x 16 cells of 4 pixels, and two people, one joint of whom is missing."""
    people = Instances((40, 64))
    people.pred_boxes = Boxes(torch.tensor([[4.0, 2.0, 36.0, 34.0], [20.0, 8.0, 60.0, 24.0]]))
    people.scores = torch.tensor([0.9, 0.4])
    low, high = people.pred_boxes.tensor[:, None, :2], people.pred_boxes.tensor[:, None, 2:]
    places = low + torch.rand(2, K, 2) * (high - low)
    people.pred_keypoints = torch.cat([places, torch.rand(2, K, 1) * 0.9 + 0.1], dim=2)
    people.pred_keypoints[1, 5] = 0.0
    return torch.rand(K + 3, 10, 16), people


def bilinear(grid: torch.Tensor, x: float, y: float) -> float:
    """Value of a map at x, y in cells, whose centres are at halves; 0 beyond it."""
    total = 0.0
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            weight = max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5))
            total += weight * float(grid[row, column])
    return total


def test_what_is_read_of_a_pose():
    maps, people = some_people()
    joints, boxes = AssembledPoseScorer(num_keypoints=K).describe(maps, 4, people)
    assert joints.shape == (2, K, 4 + K + 1) and boxes.shape == (2, 3)
    x, y, score = people.pred_keypoints[0, 3].tolist()
    expected = [1.0, score, (x - 4) / 32, (y - 2) / 32]
    expected += [bilinear(maps[c], x / 4, y / 4) for c in range(K + 1)]
    torch.testing.assert_close(joints[0, 3], torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert (joints[1, 5] == 0).all() and (joints[1, 4] != 0).any()
    expected = torch.tensor([0.4, 40 / 64, 16 / 64])
    expected[1:] = expected[1:].log()
    torch.testing.assert_close(boxes[1], expected)
    nobody = AssembledPoseScorer(num_keypoints=K).expected_oks(maps, 4, people[:0])
    assert nobody.shape == (0,)


def test_a_mirrored_pose_is_expected_the_same():
    scorer, (maps, people) = AssembledPoseScorer(num_keypoints=K), some_people()
    torch.nn.init.normal_(scorer.output.weight)
    twin = Instances(people.image_size, **people.get_fields())
    box = people.pred_boxes.tensor
    twin.pred_boxes = Boxes(torch.stack([64 - box[:, 2], box[:, 1], 64 - box[:, 0], box[:, 3]], 1))
    twin.pred_keypoints = people.pred_keypoints[:, FLIP].clone()
    twin.pred_keypoints[..., 0] = (64 - twin.pred_keypoints[..., 0]) * (
        twin.pred_keypoints[..., 2] > 0
    )
    turned = maps[[*FLIP, *range(K, K + 3)]].flip(2)
    seen, _ = scorer.describe(turned, 4, twin)
    expected = scorer.mirrored(scorer.describe(maps, 4, people)[0], FLIP)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)
    oks = [scorer.expected_oks(m, 4, p, FLIP) for m, p in ((maps, people), (turned, twin))]
    torch.testing.assert_close(*oks, atol=1e-5, rtol=1e-4)
    alone = [scorer.expected_oks(m, 4, p) for m, p in ((maps, people), (turned, twin))]
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def losses_of(model, inputs) -> dict:
    with EventStorage():
        return model(inputs)


def test_the_loss_is_that_of_the_assembled_poses(paper_config):
    """Against numbers: each pose of a result, its OKS with everybody by the formula."""
    torch.manual_seed(0)
    model = build_model(paper_config(CONFIG, TRAINS)).train()
    torch.nn.init.normal_(model.pose_scorer.output.weight)
    inputs = BATCHES["people"]
    losses = losses_of(model, inputs)
    assert set(losses) == {"loss_scoring_oks"}
    alone = [{"image": x["image"]} for x in inputs]
    sigmas, terms = torch.tensor(COCO.sigmas), []
    for x, result, seen in zip(inputs, model.eval()(alone), model.look(alone), strict=True):
        people, truth = result["instances"], x["instances"]
        for i in range(len(people)):
            if people.pose_scores[i] == 0:
                continue
            pose, best = people.pred_keypoints[i, :, :2], 0.0
            for joints, area in zip(truth.gt_keypoints.tensor, truth.gt_boxes.area(), strict=True):
                squares = ((pose - joints[:, :2]) ** 2).sum(dim=1)
                oks = torch.exp(-squares / (2 * 0.53 * area * (2 * sigmas) ** 2)).mean()
                best = max(best, float(oks))
            parts = model.pose_scorer.describe(seen.maps, seen.stride, people[i : i + 1])
            p = model.pose_scorer(*parts).sigmoid()[0]
            terms.append(-best * p.log() - (1 - best) * (1 - p).log())
            # What ranks poses at test time: the assembler's score times this.
            assert people.pose_scores[i] <= p + 1e-6
    assert len(terms) > 5
    torch.testing.assert_close(
        losses["loss_scoring_oks"], sum(terms) / len(terms), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("batch", ["people", "nobody", "nobody labelled", "crowd alone"])
def test_only_the_scorer_learns(paper_config, batch):
    model = build_model(paper_config(CONFIG, TRAINS)).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"pose_scorer.{name}" for name, _ in model.pose_scorer.named_parameters()}
    loss = losses_of(model, BATCHES[batch])["loss_scoring_oks"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.pose_scorer.parameters())
    assert not model.backbone.bottom_up.training and model.pose_scorer.training
    if batch == "nobody labelled":
        # Poses on people of whom no joint is known teach nothing; others are nobody's: OKS 0.
        assert loss >= 0


def test_untrained_it_ranks_as_before(paper_config, tmp_path):
    """The same people, and half of every pose score; the other way round weights fit, too."""
    torch.manual_seed(1)
    plain = build_model(paper_config(CONFIG, SMALL)).eval()
    scored = build_model(paper_config(CONFIG, SCORED)).eval()
    scored.load_state_dict(plain.state_dict(), strict=False)
    image = [{"image": BATCHES["people"][0]["image"]}]
    a, b = plain(image)[0]["instances"], scored(image)[0]["instances"]
    assert len(a) > 0 and torch.equal(a.scores, b.scores)
    torch.testing.assert_close(b.pose_scores, 0.5 * a.pose_scores)
    assert {name for name, p in scored.named_parameters() if not p.requires_grad} >= {
        f"pose_scorer.{name}" for name, _ in scored.pose_scorer.named_parameters()
    }
    PoseCheckpointer(scored, str(tmp_path)).save("model")
    flip = ["TTA.ENABLED", "True", "TTA.FLIP", "True"]
    model = build_inference_model(
        paper_config(CONFIG, [*SCORED, *flip]), str(tmp_path / "model.pth")
    )
    assert len(model(image)[0]["instances"]) > 0


def test_mistakes_are_named(paper_config):
    for options, message in (
        (["MODEL.POSE_SCORER.WIDTH", "0"], r"POSE_SCORER\.WIDTH is 0"),
        (["MODEL.TRAIN_PARTS", "['scoring', 'person']"], r"train it alone \(--stage scoring\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(paper_config(CONFIG, [*SCORED, *options]))
    with pytest.raises(ValueError, match="pose scorer of a ScoredMultiPoseNet is in no file"):
        export_network(build_model(paper_config(CONFIG, SCORED)), min_size=64, max_size=96)
