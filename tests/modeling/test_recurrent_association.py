"""The recurrent decoder: passes, chunks, detached states, people used once, learning."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_tags import an_image

from mpn_d2.modeling.heads.bottom_up_features import TagReader
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.heads.tag_head import AssociativeEmbeddingHead
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
    steps_of_curriculum,
)

K = 3
CONFIG = "UnifiedAssociation/unified.yaml"
TINY = ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.GROWTH", "4", "MODEL.HOURGLASS.STACKS", "2"]
TINY += ["MODEL.SEQUENCE.LSTM1.WIDTH", "16", "MODEL.SEQUENCE.LSTM2.WIDTH", "8"]
TINY += ["MODEL.SEQUENCE.MAX_ITERATIONS", "6"]


def decoder(**options):
    options = {"widths": (6, 3), "second_widths": (4,), "noise": 0.0, **options}
    return PartSequenceDecoder(in_channels=5, num_keypoints=K, **options)


def people(count, size=(6, 7), weight=1.0):
    return SequenceTargets(torch.rand(count, K, *size), torch.full((1, 1, *size), weight))


class Script(PartSequenceDecoder):
    """Stop scores and maps as given; one hidden number counts the steps."""

    def __init__(self, scores, maps):
        super().__init__(in_channels=5, num_keypoints=K, widths=(1,), second_widths=())
        self.scores, self.given, self.steps = scores, maps, []

    def write(self, features, state, step):
        self.steps.append(step)
        zero = self.stop.bias * 0
        logit = torch.tensor([math.log(s[step] / (1 - s[step])) for s in self.scores]) + zero
        return torch.stack([m[step] for m in self.given]) + zero, logit, state


def chunks_of(net, targets, chunk, **rules):
    features = torch.rand(len(targets), 5, 6, 7)
    training = SequenceTraining(net, SequenceRules(**rules))
    return list(training.chunks(lambda: features, targets, chunk)), training


@pytest.mark.parametrize(("loop", "passes"), [(0, 1), (2, 2), (3, 3)])
def test_passes_per_person(loop, passes):
    net, fed = decoder(loop=loop, noise=0.1), {1: [], 2: []}
    net.lstm1.register_forward_pre_hook(lambda m, args: fed[1].append(args[0]))
    net.lstm2.register_forward_pre_hook(lambda m, args: fed[2].append(args[0]))
    features = torch.rand(2, 5, 6, 7)
    seen = net.look(features)
    maps, logits, _ = net.write(seen, net.start(net.lstm1, seen), 0)
    again, _ = net.write_again(seen, maps, net.start(net.lstm2, seen))
    assert logits.shape == (2,) and again.shape == maps.shape == (2, K, 6, 7)
    assert len(fed[1]) == len(fed[2]) == passes
    # Noise first (zeros without a loop), then what the pass before wrote; LSTM2: LSTM1's maps.
    if loop == 0:
        assert fed[1][0].abs().sum() == 0
    else:
        assert 0 < fed[1][0].max() <= 0.1 and fed[1][0].min() >= 0
        before = net.maps1(_states_h(net.lstm1, features, fed[1], passes - 1))
        torch.testing.assert_close(fed[1][-1], before)
    assert torch.equal(fed[2][0], maps)
    # All of them on [features, maps] in one convolution.
    torch.testing.assert_close(maps, net.maps1(_states_h(net.lstm1, features, fed[1], passes)))
    torch.testing.assert_close(again, net.maps2(_states_h(net.lstm2, features, fed[2], passes)))
    once, two = decoder(loop=loop, second_feedback=False), []
    once.lstm2.register_forward_pre_hook(lambda m, args: two.append(1))
    once.write_again(once.look(features), maps, once.start(once.lstm2, features))
    assert len(two) == 1


def _states_h(lstm, features, fed, count):
    """Its last hidden state after `count` passes on what was fed."""
    state = lstm.zero_state(len(features), tuple(features.shape[-2:]), features.device)
    for maps in fed[:count]:
        # Not through the hook of the test.
        state = lstm.forward(torch.cat([features, maps], dim=1), state)
    return state[-1][0]


def test_noise_is_drawn_anew_while_training_and_fixed_at_test_time():
    net, features = decoder(noise=0.1), torch.zeros(2, 5, 4, 4)
    assert not torch.equal(net._first_maps(features, 0), net._first_maps(features, 0))
    net.eval()
    assert torch.equal(net._first_maps(features, 3), net._first_maps(features, 3))
    assert not torch.equal(net._first_maps(features, 3), net._first_maps(features, 4))
    assert torch.equal(net._first_maps(features, 3)[0], net._first_maps(features[:1], 3)[0])


def test_length_of_the_unrolling_and_stop_targets():
    """Until the score is below omega and all stop targets are supervised: max(z, zhat) + 1."""
    low, high = 0.2, 0.6
    cases = [
        # scores by step, z, steps that are made
        ([high, low, low, low, low], 3, 4),  # fewer found
        ([high, high, low, low], 2, 3),
        ([high, high, high, low], 1, 4),  # more found
        ([low, low], 0, 1),
        ([high] * 6, 0, 5),  # MAX_ITERATIONS
        ([high] * 6, 9, 5),
    ]
    for scores, z, steps in cases:
        net = Script([scores], [torch.rand(6, K, 6, 7)])
        (losses,), _ = chunks_of(net, [people(z)], None, most_steps=5)
        assert len(net.steps) == steps, scores
        wanted = sum(
            -math.log(p) if t < z else -math.log(1 - p) for t, p in enumerate(scores[:steps])
        )
        assert losses["loss_sequence_stop"].item() == pytest.approx(wanted, rel=1e-4)


def test_steps_for_the_unannotated_are_free():
    scores = [0.6, 0.6, 0.6, 0.1, 0.1]
    targets = people(1)
    targets.unknown = 2
    net = Script([scores], [torch.rand(5, K, 6, 7)])
    (losses,), _ = chunks_of(net, [targets], None, unannotated="ignore")
    assert losses["loss_sequence_stop"].item() == pytest.approx(-math.log(0.6) - math.log(0.9))
    (losses,), _ = chunks_of(net, [targets], None)
    wanted = -math.log(0.6) - 2 * math.log(0.4) - math.log(0.9)
    assert losses["loss_sequence_stop"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 3, None])
def test_everybody_is_matched_once_and_chunks_match_among_the_remaining(chunk):
    targets = people(4)
    written = torch.cat([targets.maps[[2, 0, 3, 1]] + 0.001, torch.zeros(2, K, 6, 7)])
    net = Script([[0.9, 0.9, 0.9, 0.9, 0.1, 0.1]], [written])
    training = SequenceTraining(net, SequenceRules())
    images = []
    begin = training._begin
    training._begin = lambda *given: images.append(begin(*given)) or images[-1]
    features = torch.rand(1, 5, 6, 7)
    found = list(training.chunks(lambda: features, [targets], chunk))
    assert len(found) == math.ceil(5 / (chunk or 5))
    assert images[0].written == [(1, 2), (2, 0), (3, 3), (4, 1)]
    assert images[0].remaining == []
    total = sum(losses["loss_sequence_heatmap"].item() for losses in found)
    assert total == pytest.approx(4 * K * 1e-6, rel=0.01)


def test_matching_looks_at_the_chunk_alone():
    """Two equal first maps: with T = 1 the first takes its person before the second is seen."""
    targets = people(2)
    written = torch.stack([targets.maps[0] * 0.9 + 0.1 * targets.maps[1], targets.maps[0]])
    net = Script([[0.9, 0.9, 0.1]], [torch.cat([written, written[:1]])])
    exact, _ = chunks_of(net, [targets], None)
    cut, _ = chunks_of(net, [targets], 1)
    sums = [sum(x["loss_sequence_heatmap"].item() for x in found) for found in (exact, cut)]
    square = (targets.maps[1] - targets.maps[0]).square().sum().item() / 42
    # Exact: 0 to the second step, 1 to the first, 0.9 away; cut: 0 to the first, 0.1 away.
    assert sums[0] == pytest.approx(0.81 * square, rel=1e-3)
    assert sums[1] == pytest.approx((0.01 + 1) * square, rel=1e-3)


def gradients(net, run):
    net.zero_grad()
    run()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_one_chunk_is_exact_and_values_go_on_through_chunks():
    torch.manual_seed(4)
    net = decoder()
    torch.nn.init.constant_(net.stop.bias, 1.0)
    targets, features = [people(3), people(1)], torch.rand(2, 5, 6, 7, requires_grad=True)
    training = SequenceTraining(net, SequenceRules(most_steps=4))

    def run(chunk):
        for losses in training.chunks(lambda: features, targets, chunk):
            sum(losses.values()).backward()

    exact = gradients(net, lambda: run(None))
    long = gradients(net, lambda: run(100))
    for name, gradient in exact.items():
        torch.testing.assert_close(long[name], gradient)
    # Values of all steps are those of one run: the stop losses of the chunks add up.
    found = [
        sum(
            losses["loss_sequence_stop"].item()
            for losses in training.chunks(lambda: features, targets, n)
        )
        for n in (None, 2, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5) == pytest.approx(found[2], rel=1e-5)


def test_chunks_of_two_steps_by_hand():
    """Two steps of three people, the states' values alone, the last person and a stop."""
    net, targets, features = decoder(), people(3), torch.rand(1, 5, 6, 7)
    torch.nn.init.constant_(net.stop.bias, 1.0)
    for head in (net.maps1, net.maps2):
        torch.nn.init.normal_(head.weight, std=0.5)
    training = SequenceTraining(net, SequenceRules(most_steps=4))

    def run(chunk):
        for losses in training.chunks(lambda: features, [targets], chunk):
            sum(losses.values()).backward()

    def by_hand(cut):
        seen = net.look(features)
        states = [net.start(net.lstm1, seen), net.start(net.lstm2, seen)]
        left, total = {0, 1, 2}, torch.zeros(())
        for first, count in ((0, 2), (2, 1)):
            if cut:
                states = [[(h.detach(), c.detach()) for h, c in state] for state in states]
            written = []
            for step in (first, first + 1):
                maps, logit, states[0] = net.write(seen, states[0], step)
                written.append(maps[0])
                score = logit[0].sigmoid()
                total = total - (score if step < 3 else 1 - score).log()
            way = min(
                itertools.permutations(left, count),
                key=lambda way: sum(slow(m, targets.maps[z]) for m, z in zip(written, way)),
            )
            left -= {*way}
            for maps, z in zip(written, way):
                again, states[1] = net.write_again(seen, maps[None], states[1])
                squares = (maps - targets.maps[z]) ** 2 + (again[0] - targets.maps[z]) ** 2
                total = total + squares.sum() / 42
        total.backward()

    found = gradients(net, lambda: run(2))
    wanted, whole = (gradients(net, lambda cut=cut: by_hand(cut)) for cut in (True, False))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    # The cut is seen in both LSTMs.
    for name in ("lstm1.gates.0.weight", "lstm2.gates.0.weight"):
        assert (whole[name] - wanted[name]).norm() > 0.01 * wanted[name].norm()


def test_no_gradient_reaches_an_earlier_chunk():
    net = decoder(second_widths=())
    torch.nn.init.constant_(net.stop.bias, 1.0)
    inputs = [torch.rand(1, 5, 6, 7, requires_grad=True) for _ in range(3)]
    given = iter(inputs)
    training = SequenceTraining(net, SequenceRules(most_steps=3))
    for place, losses in enumerate(training.chunks(lambda: next(given), [people(2)], 1)):
        for x in inputs:
            x.grad = None
        sum(losses.values()).backward()
        reached = [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in inputs]
        assert reached == [i == place for i in range(3)]


def test_second_lstm_gets_the_people_in_the_imposed_order_with_their_own_targets():
    net, targets = decoder(loop=0), people(3)
    torch.nn.init.constant_(net.stop.bias, 2.0)
    handed = []
    write_again = net.write_again
    net.write_again = lambda f, m, s: handed.append(m[0].detach()) or write_again(f, m, s)
    features = torch.rand(1, 5, 6, 7)
    losses = {}
    for order in ("learned", "inverse"):
        handed.clear()
        training = SequenceTraining(net, SequenceRules(most_steps=3, order=order))
        (found,) = training.chunks(lambda: features, [targets], None)
        losses[order] = found["loss_sequence_refined"].item()
        seen = net.look(features)
        state, written = net.start(net.lstm1, seen), []
        for step in range(3):
            maps, _, state = net.write(seen, state, step)
            written.append(maps[0])
        wanted = written if order == "learned" else written[::-1]
        assert all(torch.equal(a, b) for a, b in zip(handed, wanted, strict=True))
        # The targets that LSTM1's maps are matched to, in the same order.
        cost = [[slow(m, z) for z in targets.maps] for m in written]
        best = _best(cost)
        again, state2 = [], net.start(net.lstm2, seen)
        for maps in wanted:
            maps, state2 = write_again(seen, maps[None], state2)
            again.append(maps[0])
        rows = [0, 1, 2] if order == "learned" else [2, 1, 0]
        total = sum((m - targets.maps[best[t]]).square().sum().item() for m, t in zip(again, rows))
        assert losses[order] == pytest.approx(total / 42, rel=1e-4)
    assert losses["learned"] != losses["inverse"]


def slow(a, b):
    return sum((x - y).square().sum().sqrt().item() for x, y in zip(a, b, strict=True))


def _best(cost):
    ways = itertools.permutations(range(len(cost)))
    return min(ways, key=lambda way: sum(cost[t][z] for t, z in enumerate(way)))


def test_loss_on_the_second_lstm_alone():
    net = decoder()
    (losses,), _ = chunks_of(net, [people(2)], None, loss_on="lstm2", most_steps=2)
    assert losses["loss_sequence_heatmap"] == 0 and losses["loss_sequence_refined"] > 0
    with pytest.raises(ValueError, match="LOSS_ON is 'lstm2'"):
        SequenceTraining(decoder(second_widths=()), SequenceRules(loss_on="lstm2"))


def test_gradients_of_the_second_lstm_reach_the_first_through_its_maps():
    """A loss on LSTM2 alone still teaches LSTM1: what it writes is LSTM2's input."""
    net = decoder()
    torch.nn.init.constant_(net.stop.bias, 1.0)
    (losses,), _ = chunks_of(net, [people(2)], None, loss_on="lstm2", most_steps=2)
    losses["loss_sequence_refined"].backward()
    for name in ("maps1", "lstm1", "maps2", "lstm2"):
        for parameter in getattr(net, name).parameters():
            assert parameter.grad.abs().sum() > 0, name
    # The stop head has no part in it.
    assert net.stop.weight.grad is None


def test_second_lstm_learns_what_a_frozen_first_does_not_write():
    """Three people, of whom nothing but LSTM1's untrained maps tells who is next."""
    net = decoder(loop=0, second_widths=(16, 8))
    torch.nn.init.normal_(net.maps1.weight, std=0.5)
    torch.nn.init.constant_(net.stop.bias, 2.0)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    gaps = [[(rows - 2 * k) ** 2 + (columns - 3 * z) ** 2 for k in range(K)] for z in range(3)]
    targets = SequenceTargets(
        torch.stack([torch.stack(of_person) for of_person in gaps]).div(-2).exp(),
        torch.ones(1, 1, 6, 7),
    )
    for module in (net.lstm1, net.maps1, net.stop):
        module.requires_grad_(False)
    optimizer = torch.optim.Adam([*net.lstm2.parameters(), *net.maps2.parameters()], 1e-2)
    training, features = SequenceTraining(net, SequenceRules(most_steps=3)), torch.rand(1, 5, 6, 7)
    history = []
    for _ in range(80):
        (losses,) = training.chunks(lambda: features, [targets], None)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = history[0], history[-1]
    assert last["loss_sequence_heatmap"] == pytest.approx(first["loss_sequence_heatmap"])
    assert last["loss_sequence_refined"] < 0.1 * first["loss_sequence_refined"]
    assert last["loss_sequence_refined"] < 0.1 * last["loss_sequence_heatmap"]


def test_curriculum_goes_one_person_further_after_so_many_iterations():
    assert steps_of_curriculum(0) is None and steps_of_curriculum(5) is None
    for iteration, steps in [(0, 1), (4, 1), (5, 2), (14, 3)]:
        with EventStorage(iteration):
            assert steps_of_curriculum(5) == steps and steps_of_curriculum(0) is None
    with pytest.raises(ValueError, match="MODEL.SEQUENCE.CURRICULUM is -1"):
        steps_of_curriculum(-1)


def test_first_person_of_the_curriculum_is_whoever_is_written_best():
    targets = people(3)
    net = Script([[0.9, 0.9, 0.9, 0.1]], [targets.maps[[1, 0, 2, 2]] + 0.001])
    training, features = SequenceTraining(net, SequenceRules()), torch.rand(1, 5, 6, 7)
    for most, steps in ((1, 1), (2, 2), (9, 4)):
        net.steps.clear()
        (losses,) = list(training.chunks(lambda: features, [targets], 4, most))
        assert len(net.steps) == steps
        found = losses["loss_sequence_heatmap"].item()
        assert found == pytest.approx(min(steps, 3) * K * 1e-6, rel=0.01)
    # An image of nobody is not cut short.
    net, nobody = Script([[0.9, 0.9, 0.1]], [torch.rand(3, K, 6, 7)]), people(0)
    list(SequenceTraining(net, SequenceRules()).chunks(lambda: features, [nobody], 4, 1))
    assert len(net.steps) == 3


@pytest.mark.parametrize("case", ["nobody", "more than steps", "invisible", "twins"])
def test_odd_images_train(case):
    net, count = decoder(), {"nobody": 0, "more than steps": 9, "invisible": 1, "twins": 2}[case]
    targets = people(count)
    if case == "invisible":
        targets = SequenceTargets(targets.maps * 0, targets.weights)
    if case == "twins":
        targets.maps[1] = targets.maps[0]
    found, _ = chunks_of(net, [targets, people(1)], 2, most_steps=4)
    assert 1 <= len(found) <= 2
    for losses in found:
        sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def build(paper_config, *options, config=CONFIG):
    return build_model(paper_config(config, [*TINY, *options]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SEQUENCE.LOOP", "4"], "MODEL.SEQUENCE.LOOP is 4"),
        (["MODEL.SEQUENCE.RULE_UNDER", "c"], "MODEL.SEQUENCE.RULE_UNDER is 'c'"),
        (["MODEL.SEQUENCE.LSTM1.WIDTH", "6"], "WIDTH 6 cannot be halved 2 times"),
        (["MODEL.SEQUENCE.STRIDE", "6"], "MODEL.SEQUENCE.STRIDE is 6"),
        (["MODEL.SEQUENCE.T", "0"], "MODEL.SEQUENCE.T is 0"),
        (["MODEL.SEQUENCE.FEATURES", "none"], "MODEL.SEQUENCE.FEATURES is 'none'"),
        (["MODEL.SEQUENCE.TAG_CHANNELS", "some"], "TAG_CHANNELS is 'some'"),
        (["MODEL.SEQUENCE.SCORE", "x"], "MODEL.SEQUENCE.SCORE is 'x'"),
        (["MODEL.SEQUENCE.MAX_ITERATIONS", "0"], "MAX_ITERATIONS"),
        (["MODEL.TRAIN_PARTS", "['tags']"], "MODEL.TRAIN_PARTS"),
        (["MODEL.SEQUENCE.OMEGA_TEST", "1.5"], "MODEL.SEQUENCE.OMEGA_TEST is 1.5"),
        (["TEST.MULTISCALE", "True"], "set TEST.REFINE True"),
        (["MODEL.SEQUENCE.PROJECT", "-1"], "MODEL.SEQUENCE.PROJECT is -1"),
        (["MODEL.SEQUENCE.CONTEXT", "-1"], "MODEL.SEQUENCE.CONTEXT is -1"),
        (
            ["MODEL.SEQUENCE.ORDER", "random", "MODEL.SEQUENCE.LSTM2.ENABLED", "False"],
            "ORDER is 'random': that is the order of LSTM2's people",
        ),
    ],
)
def test_impossible_keys_are_named(paper_config, options, message):
    with pytest.raises(ValueError, match=message):
        build(paper_config, *options)


def test_channels_of_the_paper(paper_config):
    cfg = paper_config(CONFIG)
    shapes = {f"hg{i}": ShapeSpec(channels=68, stride=4) for i in range(1, 5)}
    head = AssociativeEmbeddingHead(cfg, shapes)
    for which, channels in (("supervised", 136), ("free", 136), ("all", 272)):
        reader = TagReader(head, shapes, which)
        features = {name: torch.rand(1, 68, 4, 4) for name in shapes}
        seen = reader(features)
        assert reader.channels == seen.features.shape[1] == channels
        assert torch.equal(seen.tags, features["hg4"][:, 17:34])
    free = TagReader(head, shapes, "free")(features).features
    assert torch.equal(free[:, :34], features["hg1"][:, 34:])
    net = PartSequenceDecoder(cfg, 136)
    assert net.lstm1.gates[0].in_channels == 153 + 128
    assert net.lstm1.widths == (128, 64, 32) and net.lstm2.widths == (64, 32)


def test_frozen_base_stays_and_its_norms_too(paper_config):
    options = ["MODEL.SEQUENCE.LSTM1.WIDTH", "16", "MODEL.SEQUENCE.MAX_ITERATIONS", "2"]
    net = build_model(paper_config("UnifiedAssociation/quick_crowd.yaml", options)).train()
    assert not net.backbone.training and not net.keypoint_head.training and net.decoder.training
    before = {n: t.clone() for n, t in net.state_dict().items()}
    sum(net([an_image(48, 64)]).values()).backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    after = net.state_dict()
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    assert changed and all(n.startswith("features.norm.running") or "tracked" in n for n in changed)
    # Both bases satisfy one interface.
    other = build(paper_config)
    for model in (net, other):
        images = model.preprocess_image([an_image(48, 64)]).tensor
        seen = model.read_base(images)
        assert seen.features.shape[1] == model.reader.channels
        assert seen.features.shape[-1] == images.shape[-1] // model.reader.stride


def test_targets_are_one_map_a_joint_and_what_is_ignored_has_no_weight(paper_config):
    net = build(paper_config, "MODEL.SEQUENCE.STRIDE", "8")
    x = an_image(64, 64, 3)
    x["instances"].gt_keypoints.tensor[1, :, 2] = 0  # a person without visible joints
    x["instances"].gt_keypoints.tensor[0, 5, 2] = 0
    x["crowd_boxes"] = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    x["ignore_mask"][3, 4], x["ignore_mask"][8, 8] = 1, 2
    (targets,) = net.make_targets([x], (8, 8))
    assert targets.maps.shape == (2, 17, 8, 8) and targets.unknown == 2
    assert targets.maps[0, 5].abs().sum() == 0
    px, py, _ = x["instances"].gt_keypoints.tensor[2, 3].tolist()
    rows, columns = (torch.arange(8) + 0.5) * 8, (torch.arange(8) + 0.5) * 8
    gaussian = torch.exp(-((columns - px) ** 2 + (rows[:, None] - py) ** 2) / (2 * 8.0**2))
    gaussian[gaussian < 0.01] = 0
    torch.testing.assert_close(targets.maps[1, 3], gaussian, atol=1e-5, rtol=1e-4)
    keep = torch.ones(8, 8)
    keep[1, 2] = 0
    assert torch.equal(targets.weights[0, 0], keep)


def test_it_learns_two_people_and_to_stop(paper_config):
    """Overfits one image of two people: two poses, each of one of them."""
    options = ["MODEL.SEQUENCE.LSTM2.ENABLED", "False", "MODEL.SEQUENCE.FREEZE_BASE", "False"]
    options += ["MODEL.SEQUENCE.HEATMAP_WEIGHT", "30.0", "MODEL.SEQUENCE.STRIDE", "8"]
    options += ["MODEL.HOURGLASS.STACKS", "1", "MODEL.HOURGLASS.ORDER", "2"]
    options += ["MODEL.SEQUENCE.COORDINATES", "True", "MODEL.SEQUENCE.LSTM1.LAYERS", "1"]
    net = build(paper_config, *options)
    x = an_image()
    truth = x["instances"].gt_keypoints.tensor
    truth[:, :, 0], truth[0, :, 1], truth[1, :, 1] = torch.linspace(8, 56, 17), 16.0, 48.0
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(180):
        for losses in net.train().training_chunks([x]):
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    found = net.eval()([x])[0]["instances"].pred_keypoints
    assert len(found) == 2
    found = found[found[:, :, 1].mean(1).argsort()]
    gaps = (found[..., :2] - truth[..., :2]).abs()
    assert gaps.mean() < 4 and gaps[..., 1].amax() < 16
