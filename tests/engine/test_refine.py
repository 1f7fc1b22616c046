"""Refinement: crops of boxes out, poses back into the image; merged, rated, refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.refine import PoseRefiner, build_refiner, merge_joints, rate_again
from mpn_d2.structures.outputs import HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

CONFIG = "quick/single_person_drawn.yaml"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILE = str(CONFIGS / CONFIG)
K = 17
SIGMAS = get_skeleton("coco").sigmas
SIZE = (65, 47)


def people(size, boxes, *, pose: float = 0.5, seed: int = 0) -> Instances:
    """First poses anywhere in their boxes, every joint of score `pose`."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    joints = torch.rand(len(boxes), K, 3, generator=generator)
    joints[..., :2] = boxes[:, None, :2] + joints[..., :2] * (boxes[:, 2:] - boxes[:, :2])[:, None]
    joints[..., 2] = pose
    found = Instances(size)
    found.pred_boxes = Boxes(boxes)
    found.scores = torch.linspace(0.9, 0.3, len(boxes)) if len(boxes) else torch.zeros(0)
    found.pose_scores = torch.full((len(boxes),), pose)
    found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    found.pred_keypoints = joints
    return found


def picture(size, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)


class Recorder(torch.nn.Module):
    """In place of a network: joint k of a crop lies at `places[k]` of its sides, at `score`."""

    max_crops = 4

    def __init__(self, score: float = 0.8) -> None:
        super().__init__()
        self.places = torch.rand(K, 2, generator=torch.Generator().manual_seed(5))
        self.score = score
        self.chunks = []

    def forward(self, crops):
        self.chunks.append(crops)
        results = []
        for crop in crops:
            matrix = crop["to_crop"]
            assert crop["image"].shape == (3, *SIZE) and crop["image"].dtype == torch.uint8
            points = self.places.double() * torch.tensor([SIZE[1], SIZE[0]])
            image = (points - matrix[:, 2]) / matrix[0, 0]
            joints = torch.cat([image, torch.full((K, 1), self.score)], dim=1).float()
            person = Instances((crop["height"], crop["width"]), pred_keypoints=joints[None])
            results.append({"instances": person})
        return results

    def expected(self, box: list[float], margin: float) -> torch.Tensor:
        """Where the joints are in the image, without any matrix."""
        x1, y1, x2, y2 = box
        sides = torch.tensor([x2 - x1, y2 - y1], dtype=torch.float64) * (1 + 2 * margin)
        crop = torch.tensor([SIZE[1], SIZE[0]], dtype=torch.float64)
        shown = crop * (sides / crop).max()
        corner = torch.tensor([x1 + x2, y1 + y2], dtype=torch.float64) / 2 - shown / 2
        return (corner + self.places * shown).float()


def refiner(merge: str = "replace", model=None, **options) -> PoseRefiner:
    options = {"size": SIZE, "margin": 0.125, "merge": merge, "sigmas": SIGMAS, **options}
    return PoseRefiner(model or Recorder(), **options)


def test_every_box_gets_its_pose():
    """Odd sizes, boxes at borders, three images, one of them without people; chunks of four."""
    sizes = [(101, 77), (50, 333), (64, 64)]
    boxes = [
        [[0.0, 0, 30, 60], [70.5, 90.2, 77, 101], [0, 0, 77, 101]],
        [],
        [[3.3, 4.4, 33.3, 9.1], [60, 1, 64, 64], [1, 1, 2, 3]],
    ]
    images = [picture(size, i) for i, size in enumerate(sizes)]
    found = [people(size, box) for size, box in zip(sizes, boxes)]
    before = [x.pred_keypoints.clone() for x in found]
    refine = refiner()
    refined = refine(images, found)
    assert [len(chunk) for chunk in refine.model.chunks] == [4, 2]
    for i, (x, result) in enumerate(zip(found, refined, strict=True)):
        assert result is not x and result.image_size == sizes[i] and len(result) == len(x)
        assert torch.equal(result.pred_boxes.tensor, x.pred_boxes.tensor)
        assert torch.equal(result.scores, x.scores)
        assert torch.equal(x.pred_keypoints, before[i]) and (x.pose_scores == 0.5).all()
        for joints, box in zip(result.pred_keypoints, boxes[i], strict=True):
            wanted = refine.model.expected(box, 0.125)
            torch.testing.assert_close(joints[:, :2], wanted, atol=1e-3, rtol=0)
        # Rated as before, the mean of the joints' scores apart: 0.8 instead of 0.5.
        torch.testing.assert_close(result.pose_scores, torch.full((len(x),), 0.8))


def test_the_crop_is_cut_out_where_the_box_is():
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    image[0, 20:60, 30:50] = 200
    refine = refiner(swap_channels=True, margin=0.0)
    refine([image], [people((90, 120), [[30, 20, 50, 60]])])
    crop = refine.model.chunks[0][0]["image"]
    # 20 x 40 in 47 x 65: 65 / 40 of its size, in the middle; its channels in the other order.
    assert not crop[0].any() and not crop[1].any()
    columns = (crop[2, 32] > 100).nonzero()[:, 0]
    assert (columns.min().item(), columns.max().item()) == (7, 39)
    assert (crop[2, 1:-1, 9:38] == 200).all()


def test_boxes_that_are_left_alone():
    """Without an area, not a number, or below the threshold; nobody is left over."""
    boxes = [[5.0, 5, 20, 40], [5, 5, 5, 40], [5, 5, 40, float("nan")], [1, 1, 30, 30]]
    found = people((60, 60), boxes)
    found.scores = torch.tensor([0.9, 0.9, 0.9, 0.19])
    for merge in ("replace", "pool", "fill", "average"):
        refine = refiner(merge, box_score_thresh=0.2)
        (result,) = refine([picture((60, 60))], [found])
        assert len(result) == (5 if merge == "pool" else 4)
        kept = result.pred_keypoints[1:4]
        torch.testing.assert_close(kept, found.pred_keypoints[1:], equal_nan=True)
        assert len(refine.model.chunks) == len(refine.model.chunks[0]) == 1
    refine = refiner(box_score_thresh=0.95)
    (result,) = refine([picture((60, 60))], [found])
    assert refine.model.chunks == [] and result is not found
    assert refine([], []) == []


def test_pool_keeps_both_poses_of_a_box():
    boxes = [[5.0, 5, 20, 40], [10, 5, 50, 50], [20, 20, 40, 60]]
    found = people((60, 60), boxes)
    # The second box has no pose yet.
    found.pred_keypoints[1] = 0
    found.pose_scores[1] = 0
    (result,) = refiner("pool")([picture((60, 60))], [found])
    assert result.pred_boxes.tensor.tolist() == [*boxes, boxes[0], boxes[2]]
    assert result.scores.tolist() == [*found.scores.tolist(), *found.scores[[0, 2]].tolist()]
    assert torch.equal(result.pred_keypoints[[0, 2]], found.pred_keypoints[[0, 2]])
    (alone,) = refiner("replace")([picture((60, 60))], [found])
    assert torch.equal(result.pred_keypoints[[3, 1, 4]], alone.pred_keypoints)
    # A first pose: like it; none: by its box.
    wanted = [0.5, 0.8 * float(found.scores[1]), 0.5, 0.8, 0.8]
    torch.testing.assert_close(result.pose_scores, torch.tensor(wanted))
    assert result.pred_classes.tolist() == [0] * 5


def test_joints_merged_by_hand():
    """Near joints, far ones (one better here, one there), a missing one and a guess."""
    first = torch.tensor([[[10.0, 20, 0.6], [50, 50, 0.4], [9, 9, 0.7], [0, 0, 0], [4, 4, 0]]])
    seen = torch.tensor([[[16.0, 8, 0.3], [90, 20, 0.5], [70, 9, 0.2], [7, 7, 0.2], [9, 9, 0.1]]])
    # At area 400 and sigma 0.5, 13.4 pixels have an OKS of exp(-180 / 800) = 0.8, 50 of 0.04.
    sizes = torch.tensor([400.0]), torch.full((5,), 0.5)
    assert torch.equal(merge_joints(first, seen, "replace", *sizes), seen)
    assert torch.equal(merge_joints(first, seen, "pool", *sizes), seen)
    filled = merge_joints(first, seen, "fill", *sizes)
    assert torch.equal(filled, torch.cat([first[:, :3], seen[:, 3:]], dim=1))
    mean = merge_joints(first, seen, "average", *sizes)
    torch.testing.assert_close(mean[0, 0], torch.tensor([12.0, 16.0, 0.45]))
    assert torch.equal(mean[0, 1:], torch.stack([seen[0, 1], first[0, 2], *seen[0, 3:]]))
    # A smaller person: 13.4 pixels are far.
    small = merge_joints(first, seen, "average", sizes[0] / 20, sizes[1])
    assert torch.equal(small[0, 0], first[0, 0])


def test_ratings_by_hand():
    """The first one's times the ratio on its own joints, whatever its other factors; at most 1."""
    found = people((60, 60), [[5, 5, 20, 40], [5, 5, 50, 40], [5, 5, 30, 40]])
    found.pred_keypoints[0, 3:] = 0
    found.pose_scores = torch.tensor([0.02, 0.9, 0.0])
    found.pred_keypoints[2, :, 2] = 0
    found.scores = torch.tensor([0.9, 0.9, 0.7])
    joints = torch.full((3, K, 3), 0.8)
    joints[0, :3, 2] = torch.tensor([0.5, 0.4, 0.3])
    wanted = torch.tensor([0.02 * 1.2 / 1.5, 1.0, 0.7 * 0.8])
    torch.testing.assert_close(rate_again(found, joints), wanted)
    # Nothing is given to her by the refinement of others.
    (result,) = refiner("fill")([picture((60, 60))], [found])
    torch.testing.assert_close(result.pose_scores, torch.tensor([0.02, 0.9, 0.7 * 0.8]))


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="2 images, but people of 1"):
        refiner()([picture((9, 9))] * 2, [people((9, 9), [])])
    with pytest.raises(ValueError, match=r"\(9, 9\).*\(8, 9\)"):
        refiner()([picture((9, 9))], [people((8, 9), [])])


@pytest.fixture()
def checkpoint(paper_config, tmp_path):
    """A network with random weights and its file."""
    model = build_model(paper_config(CONFIG)).eval()
    PoseCheckpointer(model, str(tmp_path)).save("single")
    return model, str(tmp_path / "single.pth")


def test_a_config_makes_a_refiner(paper_config, checkpoint, monkeypatch):
    """From keys to poses: clean maps come back within 0.05 pixels of the crop."""
    _, weights = checkpoint
    options = ["REFINE.CONFIG", FILE, "REFINE.WEIGHTS", weights, "REFINE.MERGE", "fill"]
    options += ["REFINE.BOX_SCORE_THRESH", "0.25"]
    assert build_refiner(paper_config("quick/drawn_v1.yaml")) is None
    refine = build_refiner(paper_config("quick/drawn_v1.yaml", options))
    assert (refine.merge, refine.box_score_thresh) == ("fill", 0.25)
    assert refine.size == (192, 128) and refine.margin == 0.125 and not refine.swap_channels
    rgb = build_refiner(paper_config("quick/drawn_v1.yaml", [*options, "INPUT.FORMAT", "RGB"]))
    assert rgb.swap_channels and not rgb.model.training
    box = [11.0, 7, 61.5, 96.25]
    found = people((99, 131), [box], pose=0.0)
    # 65.6 of 89.25 pixels with the margin: the height decides, 192 / 111.5625.
    scale, points = 192 / (89.25 * 1.25), found.pred_keypoints[0, :, :2].clone()
    crop = (points - torch.tensor([36.25, 51.625])) * scale + torch.tensor([64.0, 96.0])
    joints = torch.cat([crop, torch.ones(K, 1)], dim=1)[None]
    maps = encode_heatmaps([joints], K, (48, 32), 4, 5.0)
    head = refine.model.keypoint_head
    monkeypatch.setattr(head, "layers", lambda _: HeatmapOutputs(maps, 4))
    (result,) = refine([picture((99, 131))], [found])
    error = (result.pred_keypoints[0, :, :2] - points).norm(dim=1) * scale
    assert error.max() < 0.05


def test_a_box_is_refined_alike_alone_and_among_others(checkpoint):
    model, _ = checkpoint
    sizes = [(120, 90), (77, 160)]
    boxes = [[[3.0, 3, 60, 110], [30, 30, 90, 100]], [[0, 0, 160, 77], [100, 20, 130, 70]]]
    images = [picture(size, i) for i, size in enumerate(sizes)]
    found = [people(size, box) for size, box in zip(sizes, boxes)]
    refine = PoseRefiner(model, size=(96, 64), margin=0.1, sigmas=SIGMAS)
    together = refine(images, found)
    for image, x, result in zip(images, found, together, strict=True):
        for row in range(len(x)):
            (alone,) = refine([image], [x[row : row + 1]])
            torch.testing.assert_close(
                alone.pred_keypoints[0], result.pred_keypoints[row], atol=1e-2, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"CONFIG": "none.yaml"}, FileNotFoundError, r"REFINE\.CONFIG: config none\.yaml"),
        (
            {"CONFIG": str(CONFIGS / "quick/demo.yaml")},
            ValueError,
            r"REFINE\.CONFIG: .*no single-person",
        ),
        ({"WEIGHTS": ""}, ValueError, r"REFINE\.WEIGHTS is empty"),
        ({"WEIGHTS": "/none.pth"}, FileNotFoundError, r"REFINE\.WEIGHTS: .*/none\.pth not found"),
        ({"MERGE": "mean"}, ValueError, r"REFINE\.MERGE is 'mean'; choose one of average, fill"),
        ({"MERGE": "pool"}, ValueError, r"REFINE\.MERGE pool .*OKS_NMS\.MODE hard"),
        ({"BOX_SCORE_THRESH": "1.5"}, ValueError, r"REFINE\.BOX_SCORE_THRESH is 1\.5"),
    ],
)
def test_mistakes_name_their_key(paper_config, options, kind, message):
    given = {"CONFIG": FILE, "WEIGHTS": "single.pth", **options}
    flat = [text for key, value in given.items() for text in (f"REFINE.{key}", value)]
    with pytest.raises(kind, match=message):
        build_refiner(paper_config("quick/drawn_v1.yaml", flat))


def test_other_networks_do_not_fit(paper_config, checkpoint, tmp_path):
    _, weights = checkpoint
    keys = ["REFINE.CONFIG", FILE, "REFINE.WEIGHTS"]
    with pytest.raises(ValueError, match=r"REFINE\.CONFIG: MODEL\.SKELETON .*'coco'.*'crowdpose'"):
        build_refiner(
            paper_config("quick/drawn_v1.yaml", [*keys, weights, "MODEL.SKELETON", "crowdpose"])
        )
    other = build_model(paper_config(CONFIG, ["MODEL.KP_SUBNET.SMOOTH_DIM", "16"]))
    PoseCheckpointer(other, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match=r"REFINE\.WEIGHTS: .*other\.pth does not fit"):
        build_refiner(paper_config("quick/drawn_v1.yaml", [*keys, str(tmp_path / "other.pth")]))
