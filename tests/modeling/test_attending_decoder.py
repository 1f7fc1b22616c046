"""The decoder that looks at the base's heatmaps: masks, coarse cells, what is fed back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from test_tags import an_image

from mpn_d2.modeling.heads.attending_decoder import AttendingDecoder
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
)

K = 3


def decoder(**options):
    options = {"widths": (6, 4), "second_widths": (), "noise": 0.1, "coarse": 2, **options}
    return AttendingDecoder(in_channels=5, num_keypoints=K, **options)


def seen_by(net, features, heatmaps, shrink=1):
    seen = net.look(net.join(features, heatmaps, shrink))
    return seen, net.start(net.lstm1, seen)


@pytest.mark.parametrize(("coarse", "shrink"), [(1, 1), (2, 1), (3, 2)])
def test_maps_are_the_heatmaps_behind_the_mask(coarse, shrink):
    """With constant mask and own maps: cell by cell, at the resolution of the maps."""
    net = decoder(coarse=coarse)
    torch.nn.init.zeros_(net.maps1.weight)
    own, mask = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 2.0])
    net.maps1.bias.data = torch.cat([own, mask])
    net.blur.weight.data = torch.randn_like(net.blur.weight)
    size = (6, 12)
    heatmaps = torch.rand(2, K, size[0] * shrink, size[1] * shrink)
    seen, state = seen_by(net, torch.rand(2, 5, *size), heatmaps, shrink)
    assert seen.shape[-2:] == (size[0] // coarse, size[1] // coarse)
    maps, logits, state = net.write(seen, state, 0)
    assert maps.shape == (2, K, *size) and logits.shape == (2,)
    cells = heatmaps.unflatten(2, (size[0], shrink)).unflatten(4, (size[1], shrink)).mean((3, 5))
    behind = F.pad(cells * mask.sigmoid()[:, None, None], (1, 1, 1, 1))
    for n, k, row, column in [(0, 0, 0, 0), (1, 2, 5, 11), (0, 1, 3, 7), (1, 0, 2, 4)]:
        window = behind[n, :, row : row + 3, column : column + 3]
        wanted = own[k] + (window * net.blur.weight[k]).sum()
        assert maps[n, k, row, column].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_at_first_maps_are_the_heatmaps_of_everybody():
    """Half of twice their height; own maps are small."""
    net, heatmaps = decoder(), torch.rand(1, K, 4, 6)
    torch.nn.init.zeros_(net.maps1.weight)
    seen, state = seen_by(net, torch.rand(1, 5, 4, 6), heatmaps)
    torch.testing.assert_close(net.write(seen, state, 0)[0], heatmaps)


def test_second_pass_is_fed_with_the_first_ones_maps_of_coarse_cells():
    net, fed = decoder(), []
    net.lstm1.register_forward_pre_hook(lambda m, args: fed.append(args))
    features, heatmaps = torch.rand(2, 5, 4, 6), torch.rand(2, K, 4, 6)
    seen, state = seen_by(net, features, heatmaps)
    net.write(seen, state, 0)
    assert len(fed) == 2 and fed[0][0].shape == (2, K, 2, 3) and 0 <= fed[0][0].min()
    assert fed[0][0].max() <= 0.1
    # The same on features averaged over 2 x 2 cells, in one convolution.
    inputs = torch.cat([F.avg_pool2d(features, 2), fed[0][0]], dim=1)
    hidden = net.lstm1.forward(inputs, state)[-1][0]
    own, mask = net.maps1(hidden).chunk(2, dim=1)
    wanted = own + net.blur(mask.sigmoid() * F.avg_pool2d(heatmaps, 2))
    torch.testing.assert_close(fed[1][0], wanted)


def test_gradients_reach_everything_and_images_do_not_mix():
    net = decoder().eval()
    features, heatmaps = torch.rand(2, 5, 4, 6), torch.rand(2, K, 4, 6, requires_grad=True)
    seen, state = seen_by(net, features, heatmaps)
    maps, logits, state = net.write(seen, state, 0)
    again, _, _ = net.write(seen, state, 1)
    alone, state = seen_by(net, features[1:], heatmaps[1:])
    torch.testing.assert_close(net.write(alone, state, 0)[0], maps[1:])
    (again.square().sum() + logits.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert heatmaps.grad.abs().sum() > 0


def test_it_learns_to_point_at_people_in_turn():
    """Three people side by side: each step one, with the curriculum of one more at a time."""
    torch.manual_seed(0)
    net = decoder(widths=(16, 8))
    places = torch.zeros(3, K, 6, 12)
    for person in range(3):
        for k in range(K):
            places[person, k, 1 + k, 2 + 4 * person] = 1
    heatmaps = places.amax(dim=0)[None]
    columns = torch.linspace(-1, 1, 12).expand(1, 1, 6, 12)
    features = torch.cat([columns, columns * 0, heatmaps], dim=1)
    targets = SequenceTargets(places, 1 + 20 * places)
    training = SequenceTraining(net, SequenceRules(most_steps=5))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(400):
        most = 1 + step // 50
        for losses in training.chunks(lambda: net.join(features, heatmaps, 1), [targets], 8, most):
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    net.eval()
    seen, state = seen_by(net, features, heatmaps)
    highest, scores = [], []
    for step in range(4):
        maps, logit, state = net.write(seen, state, step)
        highest.append(maps[0].flatten(1).argmax(dim=1).tolist())
        scores.append(logit.sigmoid().item())
    wanted = [person.flatten(1).argmax(dim=1).tolist() for person in places]
    assert sorted(highest[:3]) == sorted(wanted)
    assert min(scores[:3]) > 0.5 > scores[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SEQUENCE.LSTM2.ENABLED", "True"], "DECODER 'attending' has no second LSTM"),
        (["MODEL.SEQUENCE.COARSE", "0"], "MODEL.SEQUENCE.COARSE is 0"),
        (["MODEL.SEQUENCE.DECODER", "recurrent"], "COARSE is a key of DECODER 'attending'"),
        (["MODEL.SEQUENCE.PROJECT", "20"], "20 channels are no multiple of 8"),
        (["MODEL.SEQUENCE.CURRICULUM", "-1"], "MODEL.SEQUENCE.CURRICULUM is -1"),
    ],
)
def test_impossible_keys_are_named(paper_config, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(paper_config("UnifiedAssociation/quick_crowd.yaml", options))


def test_model_trains_and_finds_at_odd_sizes(paper_config):
    options = ["MODEL.SEQUENCE.MAX_ITERATIONS", "2", "MODEL.SEQUENCE.OMEGA_TEST", "0.0"]
    net = build_model(paper_config("UnifiedAssociation/quick_crowd.yaml", options))
    assert net.decoder.coarse == 2 and net.stride == 8 and net.size_divisibility % 16 == 0
    batch = [an_image(48, 64), an_image(70, 50)]
    (losses,) = list(net.train().training_chunks(batch))
    sum(losses.values()).backward()
    for module in (net.features, net.decoder):
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    people = net.eval()(batch)
    for found, (height, width) in zip(people, [(48, 64), (70, 50)], strict=True):
        found = found["instances"]
        assert len(found) == 2 and found.image_size == (height, width)
        assert (found.pred_keypoints[..., 0] <= width).all()
        assert (found.pred_keypoints[..., 1] <= height).all()
