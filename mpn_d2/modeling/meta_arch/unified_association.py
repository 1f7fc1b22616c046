"""Unified part detection and association: a recurrent decoder writes one person after the other.

Spec of unified association (arXiv 1904.11864). Read top to bottom: forward -> losses of the
sequence, or inference -> people. The base network (stacked hourglasses with tags, or pyramids with
a keypoint subnet) keeps the names of its own state, so that its checkpoint is a MODEL.WEIGHTS.
Letters: N images, P people, K keypoint types, H x W cells of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.codecs.subcell import SUBCELLS
from mpn_d2.codecs.tag_grouping import fill_missing_joints
from mpn_d2.modeling.heads.bottom_up_features import BottomUpMaps, BottomUpReader, build_bottom_up
from mpn_d2.modeling.heads.feature_input import FeatureInput
from mpn_d2.modeling.heads.fixed_people import PeopleDecoder, build_decoder
from mpn_d2.modeling.heads.heatmap_head import pad_and_stack
from mpn_d2.modeling.meta_arch.bottom_up_poses import (
    instances_of_poses,
    look_again,
    view_scales,
)
from mpn_d2.modeling.meta_arch.common import (
    final_size,
    finish_instances,
    group_by_padded_size,
    in_groups,
    require_training_fields,
)
from mpn_d2.modeling.meta_arch.sequence_inference import (
    SCORES,
    WrittenPeople,
    read_people,
    score_people,
    write_people,
)
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
    steps_of_curriculum,
)
from mpn_d2.structures.skeleton import get_skeleton

PART = "sequence"


@META_ARCH_REGISTRY.register()
class RecurrentAssociation(nn.Module):
    """A base network, the decoder's input made of its maps, and the decoder.

    Training works in chunks of steps: `training_chunks`, which the training loop drives. `forward`
    gives the losses of all steps at once (exact gradients).
    """

    # It reads TEST.REFINE, TEST.FLIP and TEST.MULTISCALE.
    refines_by_tags = True

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        keypoint_head: nn.Module,
        reader: BottomUpReader,
        features: FeatureInput,
        decoder: PeopleDecoder,
        rules: SequenceRules,
        train_parts: Sequence[str],
        flip_indices: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        freeze_base: bool = True,
        chunk: int | None = 8,
        curriculum: int = 0,
        sigma: float = 8.0,
        cut: float = 0.01,
        peak_weight: float = 0.0,
        most_people: int = 30,
        omega_test: float = 0.2689,
        subcell: str = "quarter",
        score: str = "joints",
        refine: bool = False,
        flip: bool = False,
        multiscale: bool = False,
    ) -> None:
        """
        Args:
            backbone, keypoint_head, reader: of the base network, see `build_bottom_up`.
            features: makes the decoder's input.
            decoder: writes the people.
            rules: of training.
            train_parts: "sequence" alone.
            flip_indices: K indices, see Skeleton.
            pixel_mean, pixel_std: one number a channel.
            freeze_base: the base gets no gradients, its norms stay as they are.
            chunk: steps between two backward passes; None: all of an image.
            curriculum: see `steps_of_curriculum`.
            sigma: of the Gaussians, network-input pixels.
            cut: smaller values of the Gaussians are 0.
            peak_weight: see MODEL.LOSS.PEAK_WEIGHT.
            most_people: steps at test time.
            omega_test: stop threshold at test time.
            subcell: "quarter" or "parabola".
            score: of a pose, "joints", "stop" or "product".
            refine: missing joints are looked for by tags.
            flip, multiscale: in what views of the image, see `look_again`.

        Raises:
            ValueError: values that are not possible; names the key.
        """
        super().__init__()
        if list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: the recurrent decoder has one part, "
                f"{PART} (--stage joint)"
            )
        for key, value, known in (("SUBCELL", subcell, SUBCELLS), ("SCORE", score, SCORES)):
            if value not in known:
                raise ValueError(
                    f"MODEL.SEQUENCE.{key} is {value!r}; choose one of {', '.join(known)}"
                )
        if chunk is not None and chunk < 1:
            raise ValueError(f"MODEL.SEQUENCE.T is {chunk}: at least 1 step is needed")
        steps_of_curriculum(curriculum)
        if not 0 <= omega_test <= 1:
            raise ValueError(f"MODEL.SEQUENCE.OMEGA_TEST is {omega_test}: 0 to 1 is needed")
        if (multiscale or flip) and not refine:
            raise ValueError(
                f"TEST.{'MULTISCALE' if multiscale else 'FLIP'} is True, but the recurrent decoder "
                "takes other views only to fill in missing joints: set TEST.REFINE True, too"
            )
        self.backbone, self.keypoint_head, self.reader = backbone, keypoint_head, reader
        self.features, self.decoder = features, decoder
        self.rules, self.training_steps = rules, SequenceTraining(decoder, rules)
        self.train_parts = tuple(train_parts)
        self.flip_indices = tuple(flip_indices)
        self.freeze_base, self.chunk, self.curriculum = freeze_base, chunk, curriculum
        self.stride = reader.stride * features.shrink
        self.sigma, self.cut, self.peak_weight = sigma, cut, peak_weight
        self.most_people, self.omega_test = most_people, omega_test
        self.subcell, self.score = subcell, score
        self.refine, self.scales = refine, view_scales(flip=flip, multiscale=multiscale)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if freeze_base:
            for module in (backbone, keypoint_head):
                module.requires_grad_(False)
        self.train()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        keys = cfg.MODEL.SEQUENCE
        backbone = build_backbone(cfg)
        head, reader = build_bottom_up(cfg, backbone.output_shape())
        if keys.STRIDE < reader.stride or keys.STRIDE % reader.stride:
            raise ValueError(
                f"MODEL.SEQUENCE.STRIDE is {keys.STRIDE}: a multiple of the base's "
                f"{reader.stride} is needed"
            )
        if cfg.TEST.REFINE and keys.FEATURES != "tags":
            raise ValueError(
                "TEST.REFINE looks for joints by tags, which MODEL.SEQUENCE.FEATURES "
                f"{keys.FEATURES!r} has none of: set it to False, and REFINE.CONFIG to a "
                "single-person network"
            )
        features = FeatureInput(
            reader.channels,
            shrink=keys.STRIDE // reader.stride,
            norm=keys.FEATURE_NORM,
            project=keys.PROJECT,
            context=keys.CONTEXT,
            context_norm=keys.CONTEXT_NORM,
            coordinates=keys.COORDINATES,
        )
        skeleton = get_skeleton(cfg.MODEL.SKELETON)
        return {
            "backbone": backbone,
            "keypoint_head": head,
            "reader": reader,
            "features": features,
            "decoder": build_decoder(cfg, features.out_channels),
            "rules": SequenceRules(
                omega=keys.OMEGA,
                tau=keys.TAU,
                under=keys.RULE_UNDER,
                over=keys.RULE_OVER,
                loss_on=keys.LOSS_ON,
                normalize=keys.NORMALIZE,
                unannotated=keys.UNANNOTATED,
                order=keys.ORDER,
                heatmap_weight=keys.HEATMAP_WEIGHT,
                stop_weight=keys.STOP_WEIGHT,
                most_steps=min(keys.MAX_ITERATIONS, keys.HARD_CUT or keys.MAX_ITERATIONS),
            ),
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "flip_indices": skeleton.flip_indices,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "freeze_base": keys.FREEZE_BASE,
            "chunk": None if keys.EXACT_SGD else keys.T,
            "curriculum": keys.CURRICULUM,
            "sigma": cfg.MODEL.TARGET.SIGMA,
            "cut": cfg.MODEL.TARGET.CUT,
            "peak_weight": cfg.MODEL.LOSS.PEAK_WEIGHT,
            "most_people": keys.MAX_ITERATIONS,
            "omega_test": keys.OMEGA_TEST,
            "subcell": keys.SUBCELL,
            "score": keys.SCORE,
            "refine": cfg.TEST.REFINE,
            "flip": cfg.TEST.FLIP,
            "multiscale": cfg.TEST.MULTISCALE,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """Of network inputs."""
        return math.lcm(max(self.backbone.size_divisibility, 1), self.stride * self.decoder.coarse)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """What trains, and the base."""
        return {
            PART: [self.features, self.decoder],
            "base": [self.backbone, self.keypoint_head],
        }

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """Frozen parts that a training needs trained weights for."""
        return ("base",) if self.freeze_base else ()

    def train(self, mode: bool = True) -> RecurrentAssociation:
        """A frozen base stays in evaluation mode."""
        super().train(mode)
        if self.freeze_base:
            self.backbone.eval()
            self.keypoint_head.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses while training, people otherwise.

        Args:
            batched_inputs: as PoseDatasetMapper makes them.

        Returns:
            Training: {"loss_sequence_...": scalar} of all steps. Otherwise per image {"instances"}
            in pixels of the file, see `instances_of_poses`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        return next(self._chunks(batched_inputs, None))

    def training_chunks(self, batched_inputs: list[dict]) -> Iterator[dict[str, torch.Tensor]]:
        """Losses of `chunk` steps each; send them backward before asking for the next."""
        return self._chunks(batched_inputs, self.chunk)

    def _chunks(
        self, batched_inputs: list[dict], chunk: int | None
    ) -> Iterator[dict[str, torch.Tensor]]:
        require_training_fields(batched_inputs)
        images = self.preprocess_image(batched_inputs).tensor
        frozen = self.read_base(images) if self.freeze_base else None
        first = True

        def features() -> torch.Tensor:
            nonlocal first
            seen = self.read_base(images) if frozen is None else frozen
            if first:
                first = False
                return self.decoder_input(seen)
            # A batch counts once in the running statistics.
            norm = self.features.norm
            was_training = norm is not None and norm.training
            if was_training:
                norm.eval()
            try:
                return self.decoder_input(seen)
            finally:
                if was_training:
                    norm.train()

        size = tuple(side // self.stride for side in images.shape[-2:])
        targets = self.make_targets(batched_inputs, size)
        most_steps = steps_of_curriculum(self.curriculum)
        yield from self.training_steps.chunks(features, targets, chunk, most_steps)

    @torch.no_grad()
    def make_targets(
        self, batched_inputs: list[dict], size: tuple[int, int]
    ) -> list[SequenceTargets]:
        """Maps of everybody with a labelled joint, at the decoder's `size` (H, W) in cells."""
        found = []
        for x in batched_inputs:
            keypoints = x["instances"].gt_keypoints.tensor.to(self.device)
            known = (keypoints[..., 2] > 0).any(dim=1)
            count = keypoints.shape[1]
            maps = torch.zeros((0, count, *size), device=self.device)
            if known.any():
                people = [person[None] for person in keypoints[known]]
                maps = encode_heatmaps(people, count, size, self.stride, self.sigma, self.cut)
            # Ignored where any of the mask's cells is.
            ignored = x["ignore_mask"].to(self.device) == 1
            shrink = self.features.shrink
            fine = (size[0] * shrink, size[1] * shrink)
            ignored = pad_and_stack([ignored.float()], fine)
            keep = 1 - nn.functional.max_pool2d(ignored, shrink)
            weights = keep * (1 + self.peak_weight * maps) if self.peak_weight else keep
            unknown = int((~known).sum()) + len(x["crowd_boxes"])
            found.append(SequenceTargets(maps, weights, unknown))
        return found

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised images, padded to the size divisibility."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.size_divisibility)

    def read_base(self, images: torch.Tensor) -> BottomUpMaps:
        """What the base sees in normalised, padded images (N, 3, h, w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_base):
            seen = self.reader(self.backbone(images))
        # The decoder adds up over many steps: not in the base's half precision.
        seen.features = seen.features.float()
        return seen

    def decoder_input(self, seen: BottomUpMaps) -> torch.Tensor:
        """(N, C, H, W) of what the base sees."""
        return self.decoder.join(self.features(seen.features), seen.heatmaps, self.features.shrink)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """See `forward`; an image scores the same alone and in any batch (design 7.2)."""
        groups = group_by_padded_size([x["image"] for x in batched_inputs], self.size_divisibility)
        return in_groups(self._people_of_one_size, groups, batched_inputs)

    @torch.no_grad()
    def written(self, images: torch.Tensor) -> tuple[list[WrittenPeople], BottomUpMaps]:
        """What the decoder writes for padded, normalised images (N, 3, h, w); the base's maps."""
        seen = self.read_base(images)
        people = write_people(
            self.decoder,
            self.decoder_input(seen),
            omega=self.omega_test,
            most=self.most_people,
            order=self.rules.order,
            tau=self.rules.tau,
        )
        return people, seen

    def _people_of_one_size(self, batched_inputs: list[dict]) -> list[dict]:
        images = self.preprocess_image(batched_inputs)
        people, seen = self.written(images.tensor)
        look, step = self.read_base, self.size_divisibility
        heatmaps, tags = look_again(look, images.tensor, seen, step, self.flip_indices, self.scales)
        results = []
        for i, (x, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            size = (int(size[0]), int(size[1]))
            poses = read_people(
                people[i], self.stride, size, tau=self.rules.tau, subcell=self.subcell
            )
            scores = score_people(poses, people[i].stop_scores, self.score)
            if self.refine:
                poses = self._filled(poses, heatmaps[i], tags[i], size)
            found = instances_of_poses(poses, scores, size, self.stride)
            results.append({"instances": finish_instances(found, *final_size(x))})
        return results

    def _filled(
        self,
        poses: torch.Tensor,
        heatmaps: torch.Tensor,
        tags: torch.Tensor,
        size: tuple[int, int],
    ) -> torch.Tensor:
        """Poses with missing joints looked for in the base's maps, inside the image alone."""
        stride = self.reader.stride
        rows, columns = (slice(-(-side // stride)) for side in size)
        filled = fill_missing_joints(
            poses, heatmaps[..., rows, columns], tags[..., rows, columns], stride
        )
        limits = filled.new_tensor([size[1], size[0]])
        filled[..., :2] = torch.minimum(filled[..., :2], limits)
        return filled
