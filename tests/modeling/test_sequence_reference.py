"""Training of the recurrent decoder against algorithm 1 written out, image by image.

The reference below knows no batch: each image has its own loop over all steps, its own states and
its own list of people, who are matched by trying every way. Losses and gradients of every chunk
must be those of the sum over the images.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import NamedTuple

import pytest
import torch
from test_recurrent_association import build
from test_tags import an_image

from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
)

K = 3
SIZE = (4, 5)
FEATURES = 5
NAMES = ("loss_sequence_heatmap", "loss_sequence_stop", "loss_sequence_refined")


def cut(state):
    """The values alone."""
    return [(h.detach().clone(), c.detach().clone()) for h, c in state]


def write_one(lstm, head, passes, features, maps, state):
    """One person: the maps of the last pass, each pass being fed with those of the one before."""
    for _ in range(passes):
        state = lstm(torch.cat([features, maps], dim=1), state)
        maps = head(state[-1][0])
    return maps, state


def slow_order(order: str, chosen: list, scores: list[float], tau: float) -> list[int]:
    def centre(maps):
        where = []
        for joint in maps.tolist():
            highest = max(max(row) for row in joint)
            if highest >= tau:
                y = next(y for y, row in enumerate(joint) if highest in row)
                where.append((joint[y].index(highest), y))
        if not where:
            return (1, 0.0, 0.0)
        return (0, *(sum(place[axis] for place in where) / len(where) for axis in (0, 1)))

    keys = {
        "learned": lambda i: i,
        "inverse": lambda i: -i,
        "confidence": lambda i: -scores[i],
        "canonical": lambda i: centre(chosen[i]),
    }
    return sorted(range(len(chosen)), key=keys[order])


def cheapest_pairs(written: list, candidates: list[int], truth: torch.Tensor, left: list[int]):
    """(step, person) of the cheapest of all ways to pair as many as possible."""

    def cost(t, z):
        return sum((a - b).square().sum().sqrt().item() for a, b in zip(written[t], truth[z]))

    costs = {(t, z): cost(t, z) for t in candidates for z in left}
    count = min(len(candidates), len(left))
    ways = (
        list(zip(steps, people))
        for steps in itertools.combinations(candidates, count)
        for people in itertools.permutations(left, count)
    )
    return min(ways, key=lambda way: sum(costs[pair] for pair in way))


def slow_image(net, features, plan: list[float], targets, rules, chunk: int | None) -> list:
    """(heatmap loss, stop loss, refined loss) of each chunk of one image, without weights.

    Args:
        net: decoder whose first pass is fed with zeros.
        features: (1, C, H, W).
        plan: what is added to the stop head's logit at each step; the last counts for all later.
        targets: of the image.
        rules: of training.
        chunk: T; None: all steps.
    """
    size, passes = tuple(features.shape[-2:]), max(net.loop, 1)
    people, every = len(targets.maps), chunk or rules.most_steps
    free = targets.unknown if rules.unannotated == "ignore" else 0
    written, logits = [], []
    state = net.lstm1.zero_state(1, size, features.device)
    for step in range(rules.most_steps):
        if step % every == 0:
            state = cut(state)
        nothing = torch.zeros(1, net.num_keypoints, *size)
        maps, state = write_one(net.lstm1, net.maps1, passes, features, nothing, state)
        written.append(maps[0])
        maxima = torch.cat([h.amax(dim=(2, 3)) for h, _ in state], dim=1)
        logits.append(net.stop(maxima)[0, 0] + plan[min(step, len(plan) - 1)])
    scores = [logit.sigmoid() for logit in logits]
    low = [t for t, score in enumerate(scores) if score < rules.omega]
    found = low[0] if low else rules.most_steps
    length = min(max(found, people + free) + 1, rules.most_steps)

    def distance(maps, z):
        weights = targets.weights[z if len(targets.weights) > 1 else 0]
        total = (weights * (maps - targets.maps[z]) ** 2).sum()
        return total / (size[0] * size[1]) if rules.normalize == "pixels" else total

    def is_candidate(t):
        if t < people + free:
            return rules.under == "b" or scores[t] >= rules.omega
        return rules.over == "b" and t < found

    chunks, left = [], list(range(people))
    if net.lstm2 is not None:
        state = net.lstm2.zero_state(1, size, features.device)
    for first in range(0, length, every):
        steps = range(first, min(first + every, length))
        heatmap = stop = refined = torch.zeros(())
        for t in steps:
            if t < people:
                stop = stop - scores[t].log()
            elif t >= people + free:
                stop = stop - (1 - scores[t]).log()
        candidates = [t for t in steps if is_candidate(t)]
        pairs = cheapest_pairs(written, candidates, targets.maps, left)
        left = [z for z in left if z not in [person for _, person in pairs]]
        if rules.loss_on == "both":
            heatmap = sum((distance(written[t], z) for t, z in pairs), heatmap)
        if net.lstm2 is not None:
            state = cut(state)
            chosen = [written[t] for t, _ in pairs]
            stops = [scores[t].item() for t, _ in pairs]
            again = passes if net.second_feedback else 1
            for i in slow_order(rules.order, chosen, stops, rules.tau):
                maps = chosen[i][None]
                maps, state = write_one(net.lstm2, net.maps2, again, features, maps, state)
                refined = refined + distance(maps[0], pairs[i][1])
        chunks.append((heatmap, stop, refined))
    return chunks


def slow_chunks(net, features, plans, targets, rules, chunk) -> list[dict[str, torch.Tensor]]:
    """Losses of each chunk: means over the images, 0 from an image that has ended."""
    of_images = [
        slow_image(net, features[i : i + 1], plans[i], targets[i], rules, chunk)
        for i in range(len(targets))
    ]
    weights = (rules.heatmap_weight, rules.stop_weight, rules.heatmap_weight)
    names = NAMES if net.lstm2 is not None else NAMES[:2]
    found = []
    for parts in itertools.zip_longest(*of_images, fillvalue=(torch.zeros(()),) * 3):
        sums = [sum(losses) / len(targets) for losses in zip(*parts)]
        found.append({name: w * x for name, w, x in zip(names, weights, sums)})
    return found


def assert_same(found, wanted, leaves) -> None:
    """Each chunk's losses, and their gradients at the leaves."""
    for fast, slow in zip(found, wanted, strict=True):
        assert list(fast) == list(slow)
        for name in fast:
            torch.testing.assert_close(fast[name], slow[name], rtol=1e-4, atol=1e-5, msg=name)
        for leaf in leaves:
            leaf.grad = None
        # Backward at once, as the training loop does: the next chunk needs no more of the graph.
        sum(fast.values()).backward()
        got = [leaf.grad for leaf in leaves]
        total = sum(slow.values())
        gradients = [None] * len(leaves)
        # Steps that are free of any loss may fill a chunk.
        if total.requires_grad:
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        for leaf, fast_one, slow_one in zip(leaves, got, gradients):
            zero = torch.zeros_like(leaf)
            a, b = (zero if x is None else x for x in (fast_one, slow_one))
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Planned(PartSequenceDecoder):
    """Stop scores near those of a plan, so that a case says when its images end.

    The first feature of an image is its number in the batch.
    """

    plans: list[list[float]]

    def look(self, features):
        return torch.cat([super().look(features), features[:, :1]], dim=1)

    def write(self, seen, state, step):
        maps, logits, state = super().write(seen[:, :-1], state, step)
        plans = [self.plans[int(number)] for number in seen[:, -1, 0, 0]]
        moved = logits.new_tensor([plan[min(step, len(plan) - 1)] for plan in plans])
        return maps, logits + moved, state

    def write_again(self, seen, maps, state):
        return super().write_again(seen[:, :-1], maps, state)


class Image(NamedTuple):
    """People and, step by step, the stop scores in tenths; the last digit is that of all later."""

    people: int
    tenths: str
    unknown: int = 0


# 1 is below omega, 5 and more are above; see the lengths asserted below.
BATCHES = {
    "first ends first": [Image(1, "91"), Image(3, "57971"), Image(2, "591")],
    "fewer found": [Image(3, "191"), Image(4, "5191579")],
    "more found": [Image(0, "91"), Image(1, "5971"), Image(2, "579791")],
    "more people than steps": [Image(1, "91"), Image(7, "57957"), Image(6, "91759")],
    "unannotated people": [Image(0, "1"), Image(2, "5791", 1), Image(1, "91", 2)],
}
LENGTHS = {
    "first ends first": [2, 5, 3],
    "fewer found": [4, 5],
    "more found": [2, 4, 5],
    "more people than steps": [2, 5, 5],
}
CHOICES = {
    "order": ("learned", "inverse", "confidence", "canonical"),
    "loss_on": ("both", "lstm2"),
    "normalize": ("pixels", "sum"),
    "unannotated": ("absent", "ignore"),
    "heatmap_weight": (1.0, 4.0),
    "stop_weight": (1.0, 0.5),
}


def cases() -> list:
    """Every batch with every chunk and rule of miscounting, the loop and the other rules drawn."""
    draw, found = random.Random(0), []
    grid = itertools.product(BATCHES.items(), (1, 2, None), "ab", "ab")
    for (name, batch), chunk, under, over in grid:
        loop = draw.choice((0, 2))
        drawn = {key: draw.choice(values) for key, values in CHOICES.items()}
        told = "-".join(str(value) for value in (chunk, under + over, loop, *drawn.values()))
        rules = {"under": under, "over": over, **drawn}
        found.append(pytest.param(batch, loop, chunk, rules, id=f"{name}-{told}"))
    return found


def a_batch(batch: list[Image], **options):
    """A decoder with this plan, features, and targets with holes in their weights."""
    net = Planned(
        **{
            "in_channels": FEATURES,
            "num_keypoints": K,
            "widths": (4, 2),
            "second_widths": (4, 2),
            "noise": 0.0,
            **options,
        }
    )
    # Maps of different people that differ, scores that do not leave their side of omega.
    for head in (net.maps1, net.maps2):
        if head is not None:
            torch.nn.init.normal_(head.weight, std=0.5)
    torch.nn.init.uniform_(net.stop.weight, -0.1, 0.1)
    torch.nn.init.zeros_(net.stop.bias)
    shares = [[int(digit) / 10 for digit in image.tenths] for image in batch]
    net.plans = [[math.log(p / (1 - p)) for p in of_image] for of_image in shares]
    features = 3 * torch.randn(len(batch), FEATURES, *SIZE)
    features[:, 0] = torch.arange(float(len(batch)))[:, None, None]
    targets = []
    for i, image in enumerate(batch):
        # Of both signs: people near to 0 would be matched to the first steps, whose state is small.
        maps = 2 * torch.randn(image.people, K, *SIZE)
        weights = (torch.rand(1, 1, *SIZE) > 0.3).float()
        # Of every second image each cell of each person has its own, as with PEAK_WEIGHT.
        weights = weights * (1 + maps.abs()) if i % 2 else weights
        targets.append(SequenceTargets(maps, weights, image.unknown))
    return net, features.requires_grad_(), targets


@pytest.mark.parametrize(("batch", "loop", "chunk", "rules"), cases())
def test_chunks_equal_algorithm_1_written_out(batch, loop, chunk, rules):
    net, features, targets = a_batch(batch, loop=loop)
    rules = SequenceRules(most_steps=5, tau=0.3, **rules)
    wanted = slow_chunks(net, features, net.plans, targets, rules, chunk)
    found = SequenceTraining(net, rules).chunks(lambda: features, targets, chunk)
    assert_same(found, wanted, [features, *net.parameters()])


@pytest.mark.parametrize("batch", BATCHES.values(), ids=list(BATCHES))
@pytest.mark.parametrize("options", [{"second_widths": ()}, {"second_feedback": False}])
def test_without_lstm2_and_without_its_feedback(batch, options):
    net, features, targets = a_batch(batch, loop=2, **options)
    rules = SequenceRules(most_steps=5)
    wanted = slow_chunks(net, features, net.plans, targets, rules, 2)
    found = SequenceTraining(net, rules).chunks(lambda: features, targets, 2)
    assert_same(found, wanted, [features, *net.parameters()])


@pytest.mark.parametrize("name", LENGTHS)
def test_cases_are_what_their_names_say(name):
    """The first image ends before the others, and so on: with T = 1 a chunk is a step."""
    net, features, targets = a_batch(BATCHES[name], loop=0)
    rules = SequenceRules(most_steps=5)
    of_images = [
        slow_image(net, features[i : i + 1], net.plans[i], targets[i], rules, 1)
        for i in range(len(targets))
    ]
    assert [len(chunks) for chunks in of_images] == LENGTHS[name]


def test_every_choice_of_the_rules_was_drawn():
    drawn = [case.values[3] for case in cases()]
    for key, values in CHOICES.items():
        assert {rules[key] for rules in drawn} == set(values), key


def test_confidence_is_the_score_of_the_step_that_was_matched():
    """The first step is left out (rule a): places among the matched are no places of steps."""
    net, features, targets = a_batch([Image(1, "91"), Image(4, "19571")], loop=0)
    rules = SequenceRules(most_steps=5, order="confidence")
    wanted = slow_chunks(net, features, net.plans, targets, rules, None)
    found = list(SequenceTraining(net, rules).chunks(lambda: features, targets, None))
    learned = SequenceTraining(net, SequenceRules(most_steps=5))
    (other,) = learned.chunks(lambda: features, targets, None)
    refined = "loss_sequence_refined"
    assert abs(other[refined].item() / found[0][refined].item() - 1) > 1e-3
    assert_same(found, wanted, [features, *net.parameters()])


# None of them is the default.
KEYS = {
    "OMEGA": 0.4,
    "TAU": 0.2,
    "LOSS_ON": "lstm2",
    "NORMALIZE": "sum",
    "UNANNOTATED": "ignore",
    "ORDER": "inverse",
    "HEATMAP_WEIGHT": 2.5,
    "STOP_WEIGHT": 0.25,
}


@pytest.mark.parametrize(("under", "over"), [("b", "a"), ("a", "b")])
def test_every_rule_comes_from_the_config(paper_config, under, over):
    keys = {**KEYS, "RULE_UNDER": under, "RULE_OVER": over, "HARD_CUT": 4}
    options = [str(x) for key, value in keys.items() for x in (f"MODEL.SEQUENCE.{key}", value)]
    fields = {key.lower(): value for key, value in KEYS.items()}
    wanted = SequenceRules(under=under, over=over, most_steps=4, **fields)
    net = build(paper_config, *options)
    assert net.rules == net.training_steps.rules == wanted
    assert build(paper_config).rules == SequenceRules(most_steps=6)  # MAX_ITERATIONS of TINY


@pytest.mark.parametrize("bias", [-2.0, 2.0], ids=["fewer found", "more found"])
@pytest.mark.parametrize(
    ("keys", "rules"),
    [
        ({"RULE_UNDER": "b", "NORMALIZE": "sum"}, {"under": "b", "normalize": "sum"}),
        ({"RULE_OVER": "b", "HEATMAP_WEIGHT": 3.0}, {"over": "b", "heatmap_weight": 3.0}),
    ],
    ids=["under and sum", "over and weight"],
)
def test_whole_network_of_a_config_equals_algorithm_1(paper_config, keys, rules, bias):
    """Images, crowd masks and the keys of a config in, losses of chunks of two steps out."""
    keys = {**keys, "T": 2, "NOISE": 0.0, "FEATURE_NORM": False, "STRIDE": 8, "LSTM1.WIDTH": 8}
    options = [str(x) for key, value in keys.items() for x in (f"MODEL.SEQUENCE.{key}", value)]
    options += ["MODEL.HOURGLASS.STACKS", "1", "MODEL.SEQUENCE.MAX_ITERATIONS", "4"]
    net = build(paper_config, *options)
    torch.nn.init.normal_(net.decoder.maps1.weight, std=0.5)
    torch.nn.init.constant_(net.decoder.stop.bias, bias)
    batch = [an_image(people=1), an_image(people=3)]
    batch[1]["ignore_mask"][:, 8:] = 1
    images = net.preprocess_image(batch).tensor
    features = net.decoder_input(net.read_base(images)).detach()
    targets = net.make_targets(batch, tuple(features.shape[-2:]))
    assert targets[1].weights.mean() == 0.5
    rules = SequenceRules(most_steps=4, **rules)
    wanted = slow_chunks(net.decoder, features, [[0.0], [0.0]], targets, rules, 2)
    assert len(wanted) == 2
    assert_same(net.training_chunks(batch), wanted, list(net.decoder.parameters()))
