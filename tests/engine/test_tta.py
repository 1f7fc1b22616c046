"""Views merged into one result: places, scores and sides of people, by a fake network."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances
from fake_network import FLIP, FakeNetwork, picture

from mpn_d2.engine import tta
from mpn_d2.engine.inference_model import PoseInference
from mpn_d2.engine.suppression import PoseSuppression
from mpn_d2.engine.tta import Look, average_maps, merge_boxes, merge_looks, shared_frame
from mpn_d2.engine.views import View, Viewer, ViewPlan
from mpn_d2.structures.nms import BoxSuppression
from mpn_d2.structures.outputs import ImageEvidence

SIGMAS = (0.05, 0.05, 0.05)


def wrapped(*networks: FakeNetwork, mode: str = "none", **arguments) -> PoseInference:
    arguments = {"plan": ViewPlan(), **arguments}
    viewers = [Viewer(n, min_size=128, max_size=400, image_format="RGB") for n in networks]
    return PoseInference(
        viewers=viewers,
        flip_indices=FLIP,
        suppression=PoseSuppression(mode, 0.5, SIGMAS),
        **arguments,
    ).eval()


def run(model: PoseInference, image: torch.Tensor) -> dict:
    return model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])[0]


PLANS = {
    "flip": ViewPlan(flip=True),
    "scales": ViewPlan(scales=(1.0, 0.75, 1.5)),
    "all": ViewPlan(scales=(1.0, 1.3), flip=True, crops=2, overlap=0.5),
}
# Not multiples of anything; the blobs are small enough for a part of the image.
SIZE, POINTS = (211, 333), [(40.0, 60.0), (100.0, 30.0), (70.0, 74.0)]


@pytest.mark.parametrize("fusion", ["maps", "poses"])
@pytest.mark.parametrize("plan", PLANS)
def test_keypoints_stay_where_they_are(plan, fusion):
    network = FakeNetwork()
    mode = "hard" if fusion == "poses" else "none"
    result = run(
        wrapped(network, plan=PLANS[plan], fusion=fusion, mode=mode), picture(SIZE, POINTS)
    )
    people = result["instances"]
    assert people.image_size == SIZE and len(people) == 1
    want = torch.tensor([POINTS[0], POINTS[1], POINTS[2]])
    # The picture's blobs are found to a quarter of a pixel once it is resized.
    assert (people.pred_keypoints[0, :, :2] - want).abs().max() < 0.4
    assert people.pred_keypoints[0, :, 2].min() > 0.85
    box = torch.tensor([40.0, 30, 100, 74])
    assert (people.pred_boxes.tensor[0] - box).abs().max() < 0.5
    assert people.scores[0] == pytest.approx(0.9, abs=1e-5)
    # Told to look both ways where views are mirrored, and else not.
    want_flip = FLIP if PLANS[plan].flip and fusion == "maps" else None
    assert set(network.flip_seen) == {want_flip}


@pytest.mark.parametrize("fusion", ["maps", "poses"])
def test_person_mask_is_the_mean_of_the_views(fusion):
    # Each view says 0.75 in its left half: a mirrored one in the right half of the image.
    arguments = {"fusion": fusion, "mode": "hard"}
    image = picture((128, 256), [])
    plain = run(wrapped(FakeNetwork()), image)["sem_seg"]
    both = run(wrapped(FakeNetwork(), plan=ViewPlan(flip=True), **arguments), image)["sem_seg"]
    assert plain.shape == both.shape == (2, 128, 256)
    assert plain[1, :, :100].unique().tolist() == [0.75] and not plain[1, :, 160:].any()
    torch.testing.assert_close(both[1, :, 20:100], torch.full((128, 80), 0.375))
    torch.testing.assert_close(both[1, :, 160:236], torch.full((128, 76), 0.375))
    torch.testing.assert_close(both.sum(0), torch.ones(128, 256))


def look(boxes: list[list[float]], scores: list[float], view: View, size=(100, 200)) -> Look:
    people = Instances(size, pred_boxes=Boxes(torch.tensor(boxes).view(-1, 4)))
    people.scores = torch.tensor(scores)
    return Look(view, ImageEvidence(torch.zeros(2, 25, 50), 4, people))


WHOLE = View((0, 0, 200, 100))


def merged(looks: list[Look]) -> Instances:
    suppression = BoxSuppression(threshold=0.5)
    return merge_boxes(looks, (100, 200), (100, 200), suppression=suppression, most=9)


def test_boxes_of_views_worked_example():
    a = look([[10.0, 10, 50, 90], [100, 10, 140, 90]], [0.8, 0.4], WHOLE)
    # The mirrored view finds the first one 4 pixels further left, and nothing else.
    b = look([[154.0, 10, 194, 90]], [0.4], View(WHOLE.box, mirrored=True))
    people = merged([a, b])
    # 10 at weight 0.8, 6 at 0.4; mean scores 0.6 and 0.2.
    want = torch.tensor([[8.6667, 10, 48.6667, 90], [100, 10, 140, 90]])
    torch.testing.assert_close(people.pred_boxes.tensor, want, atol=1e-3, rtol=0)
    torch.testing.assert_close(people.scores, torch.tensor([0.6, 0.2]))
    assert people.pred_classes.tolist() == [0, 0]
    alone = merged([a])
    assert torch.equal(alone.pred_boxes.tensor, a.evidence.people.pred_boxes.tensor)
    assert len(merged([look([], [], WHOLE), look([], [], WHOLE)])) == 0
    flat = merged([look([[5.0, 5, 5, 9]], [0.5], WHOLE), look([], [], WHOLE)])
    assert flat.pred_boxes.tensor.tolist() == [[5, 5, 5, 9]]


@pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian"])
def test_a_person_of_three_looks_is_one_however_boxes_are_suppressed(method):
    # The third look's box overlaps the first one's by 0.45 alone.
    places = [(0.0, 0.9), (1.0, 0.85), (15.2, 0.8)]
    looks = [look([[10.0 + x, 10, 50 + x, 90]], [score], WHOLE) for x, score in places]
    # Somebody else, whom one look finds, and a box that one look hardly believes in.
    looks[0].evidence.people = Instances.cat(
        [looks[0].evidence.people, look([[100.0, 10, 140, 90]], [0.6], WHOLE).evidence.people]
    )
    looks[1].evidence.people = Instances.cat(
        [looks[1].evidence.people, look([[160.0, 10, 190, 90]], [0.12], WHOLE).evidence.people]
    )
    suppression = BoxSuppression(method, threshold=0.3, min_score=0.05)
    people = merge_boxes(looks, (100, 200), (100, 200), suppression=suppression, most=9)
    if method == "hard":
        assert people.scores.tolist() == pytest.approx([0.85, 0.2])
        # 10, 11 and 25.2 at weights 0.9, 0.85, 0.8.
        assert people.pred_boxes.tensor[0, 0].item() == pytest.approx(15.1020, abs=1e-3)
    else:
        # No box is dropped for its overlap: the third look's is somebody of its own, if less so.
        mean = BoxSuppression(method, threshold=0.3, min_score=0.05)
        boxes = torch.tensor([[10.4857, 10, 50.4857, 90], [25.2, 10, 65.2, 90]])
        want = mean(boxes, torch.tensor([1.75 / 3, 0.8 / 3]), 9)[1]
        assert people.scores.tolist() == pytest.approx(
            sorted([*want.tolist(), 0.2])[::-1], abs=1e-4
        )
    assert (people.scores >= 0.05).all()


def test_parts_of_the_image_speak_of_small_whole_people():
    # A part of 100 x 100 image pixels, seen at 200 x 200.
    part = View((100, 0, 200, 100))
    inside = [120.0, 60, 160, 110]  # 20 x 25 pixels at (160, 30)
    cut = [0.5, 60, 40, 110]  # begins at the inner border
    large = [60.0, 10, 100, 190]
    at_edge = [160.0, 60, 200, 110]  # ends at the border of the image: whole
    some = look([inside, cut, large, at_edge], [0.8, 0.9, 0.7, 0.6], part, size=(200, 200))
    people = merged([look([[160.0, 30, 180, 55]], [0.4], WHOLE), some])
    want = {(160.0, 30, 180, 55), (180.0, 30, 200, 55)}
    assert {tuple(box) for box in people.pred_boxes.tensor.round().tolist()} == want
    # The whole image does not see the second one.
    torch.testing.assert_close(people.scores.sort().values, torch.tensor([0.3, 0.6]))
    # Who is outside of a part, or too large for it, is not its to judge.
    people = merged([look([[10.0, 10, 30, 35], [110, 5, 150, 95]], [0.8, 0.9], WHOLE), some])
    assert {round(s, 4) for s in people.scores.tolist()} >= {0.8, 0.9}


def test_maps_of_parts_count_around_their_people_alone():
    size = (96, 192)
    view = View((0, 0, 96, 96))
    whole = look([], [], View((0, 0, 192, 96)), size)
    part = look([[40.0, 40, 80, 80]], [0.9], view, (192, 192))
    whole.evidence.maps = torch.zeros(2, 24, 48)
    part.evidence.maps = torch.ones(2, 48, 48)
    mean = average_maps([whole, part], size, size, (0,))
    # 20..40 and a fifth of its sides around it, 16..44: cells 4 to 10 of both axes.
    want = torch.zeros(2, 24, 48)
    want[:, 4:11, 4:11] = 0.5
    torch.testing.assert_close(mean, want)
    # A box that is hardly believed is no reason to trust a part.
    part.evidence.people.scores = torch.tensor([0.29])
    assert not average_maps([whole, part], size, size, (0,)).any()


def test_shared_frame_is_whole_cells_and_as_fine_as_asked():
    base = look([], [], View((0, 0, 333, 211)), size=(128, 202))
    large = look([], [], View((0, 0, 333, 211), 2.0), size=(256, 404))
    part = look([], [], View((0, 0, 180, 120)), size=(128, 192))
    assert shared_frame([base, large], (211, 333)) == (128, 204)
    assert shared_frame([base, large, part], (211, 333)) == (228, 356)
    assert shared_frame([base, large], (211, 333), map_scale=2.0) == (256, 408)
    single = merge_looks(
        [base],
        (211, 333),
        flip_indices=(0,),
        boxes="merged",
        suppression=BoxSuppression(),
        most_boxes=9,
    )
    assert single is base.evidence


def test_base_boxes_stay_the_base_s():
    first, second = FakeNetwork(score=0.8), FakeNetwork(score=0.2, grow=9.0)
    image = picture(SIZE, POINTS)
    base = run(wrapped(first, second, boxes="base"), image)["instances"]
    plain = run(wrapped(first), image)["instances"]
    scores = run(wrapped(first, second), image)["instances"].scores
    torch.testing.assert_close(base.scores, plain.scores)
    assert (base.pred_boxes.tensor - plain.pred_boxes.tensor).abs().max() < 1e-3
    assert scores.tolist() != base.scores.tolist()


def test_members_and_views_are_all_asked():
    first, second = FakeNetwork(height=1.0), FakeNetwork(height=0.5)
    people = run(wrapped(first, second, plan=ViewPlan(flip=True)), picture(SIZE, POINTS))[
        "instances"
    ]
    torch.testing.assert_close(
        people.pred_keypoints[0, :, 2], torch.full((3,), 0.75), atol=0.02, rtol=0
    )
    # Only the first assembles.
    assert len(first.flip_seen) == 1 and not second.flip_seen


def test_networks_without_maps_are_pooled():
    class Closed(FakeNetwork):
        look = property()

    with pytest.raises(ValueError, match="TTA.FUSION maps"):
        wrapped(Closed(), plan=ViewPlan(flip=True))

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = FakeNetwork()

        def forward(self, inputs):
            return self.inner(inputs)

    model = wrapped(Plain(), plan=PLANS["all"], fusion="poses", mode="hard")
    people = run(model, picture(SIZE, POINTS))["instances"]
    assert len(people) == 1
    assert (people.pred_keypoints[0, :, :2] - torch.tensor(POINTS)).abs().max() < 0.5


def test_missing_joints_stay_zero_in_pooled_views():
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[5.0, 5, 20, 30]])))
    found.scores = found.pose_scores = torch.tensor([0.9])
    found.pred_keypoints = torch.tensor([[[6.0, 7, 0.9], [0, 0, 0], [9, 9, 0.5]]])
    view = View((100, 200, 200, 300), mirrored=True)
    pooled = tta.pool_people([(view, {"instances": found})], (300, 400), FLIP)["instances"]
    want = torch.tensor([[[0.0, 0, 0], [194, 207, 0.9], [191, 209, 0.5]]])
    torch.testing.assert_close(pooled.pred_keypoints, want)
    assert pooled.pred_boxes.tensor.tolist() == [[180, 205, 195, 230]]
    assert torch.equal(found.pred_keypoints[0, 0], torch.tensor([6.0, 7, 0.9]))


@pytest.mark.parametrize("masked", [0, 1])
def test_masks_that_not_all_networks_give_are_left_out(masked):
    results = []
    for number in (0, 1):
        people = Instances((30, 40), pred_boxes=Boxes(torch.tensor([[5.0, 5, 20, 25]])))
        people.scores = people.pose_scores = torch.tensor([0.9 - number / 10])
        people.pred_keypoints = torch.ones(1, 3, 3)
        if number == masked:
            people.pred_masks = torch.ones(1, 30, 40, dtype=torch.bool)
        results.append((View((0, 0, 40, 30)), {"instances": people}))
    pooled = tta.pool_people(results, (30, 40), FLIP)["instances"]
    assert len(pooled) == 2 and not pooled.has("pred_masks")
    assert results[masked][1]["instances"].has("pred_masks")
    both = tta.pool_people([results[masked]] * 2, (30, 40), FLIP)["instances"]
    assert both.pred_masks.shape == (2, 30, 40)
