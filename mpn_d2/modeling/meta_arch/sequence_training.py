"""Within-image batching: losses of a recurrent decoder, chunk by chunk of its steps.

Paper section 3.2.1 and algorithm 1 (spec of unified association, section 6): after every T steps
the maps are matched to the people not yet matched, losses are taken, and the states go on by value
alone. Letters: N images, T steps, Z annotated people of an image, K keypoint types, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils.events import get_event_storage, has_event_storage

from mpn_d2.layers.conv_lstm import LSTMState, detached, of_images
from mpn_d2.modeling.heads.fixed_people import PeopleDecoder
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.heads.people_order import ORDERS, order_people
from mpn_d2.modeling.sequence_losses import (
    RULES,
    match_people,
    pair_costs,
    sequence_heatmap_loss,
    stop_loss,
    takes_part,
)

LOSSES_ON = ("both", "lstm2")
NORMALIZERS = ("pixels", "sum")
UNANNOTATED = ("absent", "ignore")


@dataclass(frozen=True)
class SequenceRules:
    """Keys of MODEL.SEQUENCE by their names in lower case; see mpn_d2/sequence_keys.py.

    `most_steps` is the least of MAX_ITERATIONS and HARD_CUT.

    Raises:
        ValueError: a value that is not possible; names the key.
    """

    omega: float = 0.2689
    tau: float = 0.015
    under: str = "a"
    over: str = "a"
    loss_on: str = "both"
    normalize: str = "pixels"
    unannotated: str = "absent"
    order: str = "learned"
    heatmap_weight: float = 1.0
    stop_weight: float = 1.0
    most_steps: int = 30

    def __post_init__(self) -> None:
        for key, value, known in (
            ("RULE_UNDER", self.under, RULES),
            ("RULE_OVER", self.over, RULES),
            ("LOSS_ON", self.loss_on, LOSSES_ON),
            ("NORMALIZE", self.normalize, NORMALIZERS),
            ("UNANNOTATED", self.unannotated, UNANNOTATED),
            ("ORDER", self.order, ORDERS),
        ):
            if value not in known:
                raise ValueError(
                    f"MODEL.SEQUENCE.{key} is {value!r}; choose one of {', '.join(known)}"
                )
        if not 0 <= self.omega < 1:
            raise ValueError(f"MODEL.SEQUENCE.OMEGA is {self.omega}: 0 to below 1 is needed")
        if self.most_steps < 1:
            raise ValueError("MODEL.SEQUENCE.MAX_ITERATIONS and HARD_CUT: 1 or more is needed")


@dataclass
class SequenceTargets:
    """Of one image.

    Attributes:
        maps: (Z, K, H, W) Gaussians of everybody who has a labelled joint.
        weights: (1 or Z, 1 or K, H, W) of the cells, 0 where nothing is known.
        unknown: number of people and crowds of whom no joint is known.
    """

    maps: torch.Tensor
    weights: torch.Tensor
    unknown: int = 0


@dataclass
class ImageProgress:
    """How far an image is.

    Attributes:
        targets: of the image.
        free: steps beyond the annotated people that may be somebody or not.
        most_steps: that are made at most.
        steps: made so far.
        found: zhat, steps before the first whose score was below omega; None while there is none.
        remaining: people who were not matched yet.
        written: (step, person) of those who were, the image's first step being 1.
    """

    targets: SequenceTargets
    free: int
    most_steps: int
    steps: int = 0
    found: int | None = None
    remaining: list[int] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)

    @property
    def people(self) -> int:
        """z."""
        return len(self.targets.maps)

    @property
    def done(self) -> bool:
        """Whether the decoder stopped and every stop target was supervised."""
        if self.steps >= self.most_steps:
            return True
        return self.found is not None and self.steps > max(self.found, self.people + self.free)

    def see(self, score: float, omega: float) -> None:
        """Takes the stop score of one more step."""
        if self.found is None and score < omega:
            self.found = self.steps
        self.steps += 1


class SequenceTraining:
    """Losses of a batch in chunks of `chunk` steps."""

    def __init__(self, decoder: PeopleDecoder, rules: SequenceRules) -> None:
        """
        Raises:
            ValueError: a loss on LSTM2 alone, or an order of its people, without LSTM2.
        """
        if rules.loss_on == "lstm2" and decoder.lstm2 is None:
            raise ValueError("MODEL.SEQUENCE.LOSS_ON is 'lstm2', but LSTM2.ENABLED is False")
        if rules.order != "learned" and decoder.lstm2 is None:
            raise ValueError(
                f"MODEL.SEQUENCE.ORDER is {rules.order!r}: that is the order of LSTM2's people, "
                "but LSTM2.ENABLED is False"
            )
        self.decoder, self.rules = decoder, rules

    def chunks(
        self,
        features: Callable[[], torch.Tensor],
        targets: list[SequenceTargets],
        chunk: int | None,
        most_steps: int | None = None,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Losses of one chunk after the other, each to be sent backward before the next is asked.

        Args:
            features: gives (N, C, H, W), anew for every chunk: its graph is gone with the chunk's.
            targets: of the N images.
            chunk: steps; None: all in one.
            most_steps: of an image with annotated people, if that is less than the rules say.

        Yields:
            {"loss_sequence_heatmap", "loss_sequence_stop" and, with LSTM2,
            "loss_sequence_refined": scalar}, shares of the mean over the N images.
        """
        images = [self._begin(of_image, most_steps) for of_image in targets]
        active = list(range(len(images)))
        state1 = state2 = None
        while active:
            seen = features()
            index = torch.tensor(active, device=seen.device)
            seen = self.decoder.look(seen[index])
            if state1 is None:
                state1 = self.decoder.start(self.decoder.lstm1, seen)
                if self.decoder.lstm2 is not None:
                    state2 = self.decoder.start(self.decoder.lstm2, seen)
            of_active = [images[i] for i in active]
            steps, state1 = self._write(seen, state1, of_active, chunk)
            losses, state2 = self._losses(seen, steps, state2, of_active)
            yield {name: loss / len(images) for name, loss in losses.items()}
            going_on = [place for place, i in enumerate(active) if not images[i].done]
            active = [active[place] for place in going_on]
            kept = torch.tensor(going_on, dtype=torch.long, device=seen.device)
            state1 = of_images(detached(state1), kept)
            if state2 is not None:
                state2 = of_images(detached(state2), kept)

    def _begin(self, targets: SequenceTargets, most_steps: int | None = None) -> ImageProgress:
        most = self.rules.most_steps
        # Images of nobody teach to stop, from the start.
        if most_steps is not None and len(targets.maps):
            most = min(most, most_steps)
        free = targets.unknown if self.rules.unannotated == "ignore" else 0
        people = list(range(len(targets.maps)))
        return ImageProgress(targets, free, most, remaining=people)

    def _write(
        self,
        seen: torch.Tensor,
        state: LSTMState,
        images: list[ImageProgress],
        chunk: int | None,
    ) -> tuple[_Steps, LSTMState]:
        """Runs LSTM1 until the chunk is full or every image done."""
        maps: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        lengths = [0] * len(images)
        first = images[0].steps
        while not all(image.done for image in images) and len(maps) != chunk:
            written, logit, state = self.decoder.write(seen, state, first + len(maps))
            maps.append(written)
            logits.append(logit.float())
            scores = logits[-1].detach().sigmoid().tolist()
            for place, image in enumerate(images):
                # Steps of an image that is done while others go on count nowhere.
                if not image.done:
                    image.see(scores[place], self.rules.omega)
                    lengths[place] += 1
        steps = _Steps(torch.stack(maps, 1), torch.stack(logits, 1), first, lengths)
        return steps, state

    def _losses(
        self,
        seen: torch.Tensor,
        steps: _Steps,
        state2: LSTMState | None,
        images: list[ImageProgress],
    ) -> tuple[dict[str, torch.Tensor], LSTMState | None]:
        nothing = steps.maps.sum() * 0
        heatmap, stop, refined = [nothing], [nothing], [nothing]
        states2 = []
        for place, image in enumerate(images):
            maps, logits = steps.maps[place], steps.logits[place, : steps.lengths[place]]
            stop.append(self._stop_loss(logits, steps.first, image))
            pairs = self._match(maps, logits, steps, place, image)
            own2 = None
            if state2 is not None:
                own2 = of_images(state2, torch.tensor([place], device=seen.device))
            if pairs:
                chosen, targets = maps[[t for t, _ in pairs]], [z for _, z in pairs]
                if self.rules.loss_on == "both":
                    heatmap.append(self._heatmap_loss(chosen, targets, image))
                if own2 is not None:
                    scores = logits[[t for t, _ in pairs]]
                    order = order_people(self.rules.order, chosen, scores, self.rules.tau)
                    decoder: Any = self.decoder  # one that has LSTM2
                    again, own2 = rewrite(decoder, seen[place : place + 1], chosen[order], own2)
                    refined.append(self._heatmap_loss(again, [targets[i] for i in order], image))
            states2.append(own2)
        losses = {
            "loss_sequence_heatmap": self.rules.heatmap_weight * torch.stack(heatmap).sum(),
            "loss_sequence_stop": self.rules.stop_weight * torch.stack(stop).sum(),
        }
        if state2 is not None:
            # Weights of a network that nobody was handed to stay in the graph, for DDP.
            parameters = [*self.decoder.lstm2.parameters(), *self.decoder.maps2.parameters()]
            untouched: Any = sum(p.sum() for p in parameters)
            refined.append(untouched * 0)
            losses["loss_sequence_refined"] = self.rules.heatmap_weight * torch.stack(refined).sum()
            layers = zip(*states2, strict=True)
            pairs_of_layers = [zip(*layer, strict=True) for layer in layers]
            state2 = [(torch.cat(hidden), torch.cat(cell)) for hidden, cell in pairs_of_layers]
        return losses, state2

    def _stop_loss(self, logits: torch.Tensor, first: int, image: ImageProgress) -> torch.Tensor:
        numbers = torch.arange(first + 1, first + len(logits) + 1, device=logits.device)
        targets = (numbers <= image.people).to(logits)
        counts = (numbers <= image.people) | (numbers > image.people + image.free)
        return stop_loss(logits, targets, counts)

    def _match(
        self,
        maps: torch.Tensor,
        logits: torch.Tensor,
        steps: _Steps,
        place: int,
        image: ImageProgress,
    ) -> list[tuple[int, int]]:
        """(step of the chunk, person) of who is matched now; they are then no more remaining."""
        numbers = torch.arange(steps.first + 1, steps.first + len(logits) + 1, device=logits.device)
        last = image.steps if image.found is None else image.found
        part = takes_part(
            logits.detach().sigmoid(),
            numbers,
            numbers <= last,
            image.people + image.free,
            self.rules.omega,
            under=self.rules.under,
            over=self.rules.over,
        )
        chosen = torch.nonzero(part)[:, 0].tolist()
        if not chosen or not image.remaining:
            return []
        with torch.no_grad():
            costs = pair_costs(maps[chosen], image.targets.maps[image.remaining])
        pairs = [(chosen[t], image.remaining[z]) for t, z in match_people(costs)]
        gone = {person for _, person in pairs}
        image.remaining = [person for person in image.remaining if person not in gone]
        image.written += [(steps.first + t + 1, person) for t, person in pairs]
        return pairs

    def _heatmap_loss(
        self, maps: torch.Tensor, people: list[int], image: ImageProgress
    ) -> torch.Tensor:
        weights = image.targets.weights
        weights = weights[people] if len(weights) == image.people else weights
        per_cell = self.rules.normalize == "pixels"
        return sequence_heatmap_loss(maps, image.targets.maps[people], weights, per_cell=per_cell)


@dataclass
class _Steps:
    """What LSTM1 wrote in a chunk: maps (n, T, K, H, W), logits (n, T); `first` steps were before.

    `lengths`: steps of each image that count.
    """

    maps: torch.Tensor
    logits: torch.Tensor
    first: int
    lengths: list[int]


def steps_of_curriculum(period: int) -> int | None:
    """How many people of an image are learned in this iteration; None for all.

    One at first, who may be any: matching then rewards whoever is written best, and the decoder
    settles on whom to begin with. Where all are asked for from the start, every step learns the
    mean of all people, and stays with it for long. (RSIS goes further by the epoch.)

    Args:
        period: iterations after which it is one more; 0: all from the start, as outside of a
            training loop.

    Raises:
        ValueError: below 0; names the key.
    """
    if period < 0:
        raise ValueError(f"MODEL.SEQUENCE.CURRICULUM is {period}: 0 or more is needed")
    if period == 0 or not has_event_storage():
        return None
    return 1 + get_event_storage().iter // period


def rewrite(
    decoder: PartSequenceDecoder, seen: torch.Tensor, maps: torch.Tensor, state: LSTMState
) -> tuple[torch.Tensor, LSTMState]:
    """LSTM2 on the people of one image, one after the other.

    Args:
        decoder: with LSTM2.
        seen: (1, G, H, W), see PartSequenceDecoder.look.
        maps: (P, K, H, W) of LSTM1, at least one, in the order that LSTM2 gets them.
        state: of LSTM2.

    Returns:
        (P, K, H, W) in that order, and the new state.
    """
    found = []
    for person in maps:
        again, state = decoder.write_again(seen, person[None], state)
        found.append(again[0])
    return torch.stack(found), state
