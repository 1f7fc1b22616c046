"""The decoder without recurrence: everybody in one pass, handed out step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from test_tags import an_image

from mpn_d2.modeling.heads.fixed_people import FixedPeopleDecoder
from mpn_d2.modeling.meta_arch.sequence_inference import write_people
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
)

CONFIG = "UnifiedAssociation/feed_forward.yaml"
SMALL = ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.GROWTH", "4", "MODEL.HOURGLASS.STACKS", "1"]
SMALL += ["MODEL.SEQUENCE.LSTM1.WIDTH", "8", "MODEL.SEQUENCE.MAX_ITERATIONS", "4"]
K, P = 3, 4


def decoder():
    return FixedPeopleDecoder(in_channels=5, num_keypoints=K, people=P, layers=2, width=6)


def test_steps_are_the_channels_of_one_pass():
    net, features = decoder(), torch.randn(2, 5, 4, 6)
    x, maxima = features, []
    for conv in net.layers:
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
        maxima += [x.amax((2, 3))]
    everybody = F.conv2d(x, net.maps1.weight, net.maps1.bias, padding=1)
    scores = torch.cat(maxima, 1) @ net.stop.weight.T + net.stop.bias
    state = net.start(net.lstm1, features)
    for step in range(P):
        maps, logits, state = net.write(features, state, step)
        torch.testing.assert_close(maps, everybody[:, K * step : K * step + K])
        torch.testing.assert_close(logits, scores[:, step])


def test_training_and_writing_go_through_all_people():
    net, features = decoder(), torch.randn(1, 5, 4, 6)
    torch.nn.init.constant_(net.stop.weight, 0.0)
    net.stop.bias.data = torch.tensor([2.0, 1.0, -3.0, -3.0])
    with torch.no_grad():
        maps = net.start(None, features)[0][0]
    # The second person's maps are the first annotated one's.
    targets = SequenceTargets(maps[0, [1, 0]] + 0.1, torch.ones(1, 1, 4, 6))
    (losses,) = SequenceTraining(net, SequenceRules(most_steps=P)).chunks(
        lambda: features, [targets], None
    )
    assert losses["loss_sequence_heatmap"].item() == pytest.approx(2 * K * 0.01, rel=1e-3)
    wanted = F.binary_cross_entropy_with_logits(
        net.stop.bias[:3], torch.tensor([1.0, 1.0, 0.0]), reduction="sum"
    )
    assert losses["loss_sequence_stop"].item() == pytest.approx(wanted.item(), rel=1e-5)
    sum(losses.values()).backward()
    reached = net.maps1.weight.grad.unflatten(0, (P, K)).flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [True, True, False, False]
    with torch.no_grad():
        (found,) = write_people(net, features, omega=0.5, most=P, order="learned", tau=0.1)
    torch.testing.assert_close(found.maps, maps[0, :2])


def test_it_trains_and_finds_people_as_a_network(paper_config):
    net = build_model(paper_config(CONFIG, [*SMALL, "MODEL.SEQUENCE.OMEGA_TEST", "0.0"]))
    losses = net.train()([an_image(48, 64), an_image(64, 64, 6)])
    sum(losses.values()).backward()
    assert net.decoder.stop.bias.grad.abs().sum() > 0
    found = net.eval()([an_image(50, 70)])[0]["instances"]
    assert len(found) <= 4 and found.image_size == (50, 70)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SEQUENCE.EXACT_SGD", "False"], "set LSTM2.ENABLED False and EXACT_SGD True"),
        (["MODEL.SEQUENCE.LSTM2.ENABLED", "True"], "set LSTM2.ENABLED False and EXACT_SGD True"),
        (["MODEL.SEQUENCE.DECODER", "none"], "MODEL.SEQUENCE.DECODER is 'none'"),
        (["MODEL.SEQUENCE.LSTM1.LAYERS", "0"], "LSTM1.LAYERS 0"),
    ],
)
def test_keys_that_do_not_fit_are_named(paper_config, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(paper_config(CONFIG, [*SMALL, *options]))
