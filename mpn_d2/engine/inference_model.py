"""The model that a config means at test time: network, views, ensemble, refinement, suppression.

`build_inference_model` gives the bare network where the config asks for nothing more, else a
PoseInference around it. Spec section 10; config keys TTA, ENSEMBLE, REFINE, OKS_NMS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.fast import check_speed, speed_up
from mpn_d2.engine.inference_checks import check_ranges, check_system, warn_of_idle_keys
from mpn_d2.engine.rcnn_checks import RCNN, check_rcnn_inference, gives_masks
from mpn_d2.engine.refine import build_refiner, check_refinement
from mpn_d2.engine.size_groups import same_in_any_batch
from mpn_d2.engine.suppression import PoseSuppression
from mpn_d2.engine.tta import Look, merge_looks, pool_people
from mpn_d2.engine.views import View, Viewer, ViewPlan, build_view_plan
from mpn_d2.evaluation import check_evaluation_config
from mpn_d2.modeling.assembly.weights import filled_names, has_weights
from mpn_d2.modeling.meta_arch.common import finish_instances
from mpn_d2.structures.skeleton import get_skeleton

FUSIONS = ("maps", "poses")
BOXES = ("merged", "base")


def build_inference_model(
    cfg: CfgNode,
    weights: str,
    *,
    load: Callable[[CfgNode, str], nn.Module] | None = None,
    wrap: bool = False,
) -> nn.Module:
    """The model of a config with its weights, in evaluation mode, as it predicts.

    Args:
        cfg: of any system of mpn_d2; left as it is.
        weights: checkpoint of its network, which must fit whole; "" where the network needs none.
        load: gives a config's network with its weights, `load_trained_model` or what works like it.
        wrap: give a PoseInference, which takes images in full size, even for one plain pass.

    Raises:
        FileNotFoundError: no such weights or config file of a member.
        ValueError: weights that do not fit, keys that cannot go together; names them.
    """
    check_inference_config(cfg)
    load = load or load_trained_model
    model = load(cfg, weights)
    if not (wrap or wraps(cfg)):
        return model
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    return PoseInference(
        viewers=[Viewer.from_config(cfg, model), *build_members(cfg, load)],
        plan=build_view_plan(cfg),
        fusion=cfg.TTA.FUSION,
        boxes=cfg.TTA.BOXES,
        map_scale=cfg.TTA.MAP_SCALE,
        most_people=cfg.TEST.DETECTIONS_PER_IMAGE,
        flip_indices=skeleton.flip_indices,
        suppression=PoseSuppression(cfg.OKS_NMS.MODE, cfg.OKS_NMS.THRESH, skeleton.sigmas),
        refiner=build_refiner(cfg),
    ).eval()


def wraps(cfg: CfgNode) -> bool:
    """Whether the config asks for more than one plain pass of its network."""
    return (
        cfg.TTA.ENABLED
        or bool(cfg.ENSEMBLE.CONFIGS)
        or bool(cfg.REFINE.CONFIG)
        or cfg.OKS_NMS.MODE != "none"
    )


def check_inference_config(cfg: CfgNode) -> None:
    """Raises a ValueError that names the keys of inference that cannot be meant so; warns of those
    that do nothing."""
    for key, value, known in (
        ("TTA.FUSION", cfg.TTA.FUSION, FUSIONS),
        ("TTA.BOXES", cfg.TTA.BOXES, BOXES),
    ):
        if value not in known:
            raise ValueError(f"{key} is {value!r}; choose one of {', '.join(known)}")
    if not 0 <= cfg.TTA.MAP_SCALE <= 8:
        raise ValueError(f"TTA.MAP_SCALE is {cfg.TTA.MAP_SCALE}: 0 (by itself) to 8 is needed")
    check_speed(cfg)
    PoseSuppression(cfg.OKS_NMS.MODE, cfg.OKS_NMS.THRESH, ())
    build_view_plan(cfg)
    check_refinement(cfg)
    check_rcnn_inference(cfg)
    if wraps(cfg) and cfg.MODEL.META_ARCHITECTURE == RCNN and not cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "MODEL.KEYPOINT_ON is False, but TTA, ENSEMBLE, REFINE and OKS_NMS compare poses: "
            "switch them off, or keypoints on"
        )
    if wraps(cfg) and cfg.SINGLE_PERSON.ENABLED:
        raise ValueError(
            "SINGLE_PERSON.ENABLED is True: TTA, ENSEMBLE, REFINE and OKS_NMS are for networks of "
            "whole images, which name this config as their REFINE.CONFIG: switch them off"
        )
    if cfg.REFINE.WEIGHTS and not cfg.REFINE.CONFIG:
        raise ValueError("REFINE.WEIGHTS is given without REFINE.CONFIG: give the config, too")
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is Detectron2's augmentation of boxes, which knows no keypoints: "
            "set TTA.ENABLED True instead (TTA.SCALES, TTA.FLIP, TTA.CROPS)"
        )
    for key, names in cfg.ENSEMBLE.items():
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"ENSEMBLE.{key} is {list(names)}: names of files are needed")
    if len(cfg.ENSEMBLE.CONFIGS) != len(cfg.ENSEMBLE.WEIGHTS):
        raise ValueError(
            f"ENSEMBLE.CONFIGS names {len(cfg.ENSEMBLE.CONFIGS)} models and ENSEMBLE.WEIGHTS "
            f"{len(cfg.ENSEMBLE.WEIGHTS)}: one checkpoint a config is needed"
        )
    pooled = cfg.TTA.FUSION == "poses" and (cfg.TTA.ENABLED or cfg.ENSEMBLE.CONFIGS)
    if pooled and cfg.OKS_NMS.MODE == "none":
        raise ValueError(
            "TTA.FUSION poses pools the people of all views, each person many times: set "
            "OKS_NMS.MODE hard or soft"
        )
    if wraps(cfg) and cfg.EVAL.ERROR_BUDGET:
        raise ValueError(
            "EVAL.ERROR_BUDGET wants one plain pass: switch TTA, ENSEMBLE, REFINE and OKS_NMS off"
        )
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        if (wraps(cfg) or cfg.EVAL.ERROR_BUDGET) and cfg.EVAL[key] != "pred":
            raise ValueError(
                f"EVAL.{key} is {cfg.EVAL[key]!r}: annotations take the place of predictions in a "
                "plain pass alone: switch TTA, ENSEMBLE, REFINE, OKS_NMS and EVAL.ERROR_BUDGET off"
            )
    check_ranges(cfg)
    check_evaluation_config(cfg)
    check_system(cfg)
    warn_of_idle_keys(cfg)


def check_inference_files(cfg: CfgNode) -> None:
    """Raises an error that names the key of a config or checkpoint that is not there.

    Addresses (http://, detectron2://) are not looked up.
    """
    named = [("ENSEMBLE", *pair) for pair in zip(cfg.ENSEMBLE.CONFIGS, cfg.ENSEMBLE.WEIGHTS)]
    if cfg.REFINE.CONFIG:
        named.append(("REFINE", cfg.REFINE.CONFIG, cfg.REFINE.WEIGHTS))
    for key, config, weights in named:
        try:
            config_file(config)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}: {error}") from error
        if not weights:
            raise ValueError(f"{key}: no weights for {config}: give its checkpoint")
        if "://" not in weights and not Path(weights).is_file():
            raise FileNotFoundError(f"{key}: no such checkpoint: {weights}")


def build_members(
    cfg: CfgNode, load: Callable[[CfgNode, str], nn.Module] | None = None
) -> list[Viewer]:
    """The further models of ENSEMBLE, on the device of the first; `load` as in the function above.

    Raises:
        ValueError, FileNotFoundError: a config or checkpoint of a member, or one of another
            skeleton.
    """
    members = []
    for path, weights in zip(cfg.ENSEMBLE.CONFIGS, cfg.ENSEMBLE.WEIGHTS, strict=True):
        try:
            member = load_config(config_file(path), ["MODEL.DEVICE", cfg.MODEL.DEVICE])
            member.SPEED = cfg.SPEED.clone()
            names = [get_skeleton(c.MODEL.SKELETON).keypoint_names for c in (cfg, member)]
            if names[0] != names[1]:
                raise ValueError(
                    f"its MODEL.SKELETON {member.MODEL.SKELETON} has other keypoints than "
                    f"{cfg.MODEL.SKELETON}"
                )
            for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
                if member.EVAL[key] != "pred":
                    raise ValueError(
                        f"its EVAL.{key} is {member.EVAL[key]!r}: a network that predicts all by "
                        "itself is needed"
                    )
            if "segm" in cfg.EVAL.TASKS and not gives_masks(member):
                raise ValueError(
                    f"it gives no masks of people one by one, but EVAL.TASKS is "
                    f"{list(cfg.EVAL.TASKS)}: leave segm out"
                )
            if not weights:
                raise ValueError("its entry of ENSEMBLE.WEIGHTS is empty: give its checkpoint")
            model = (load or load_trained_model)(member, weights)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"ENSEMBLE member {path}: {error}") from error
        members.append(Viewer.from_config(member, model))
    return members


def load_trained_model(cfg: CfgNode, weights: str) -> nn.Module:
    """The network of a config in evaluation mode, filled whole by a checkpoint, as SPEED.MODE says.

    Raises:
        ValueError: no weights for a network that needs some, or weights that do not fit.
        FileNotFoundError: no such checkpoint.
    """
    model = build_pose_model(cfg.clone())
    # Evidence without weights (max, identity) by itself is complete as it is.
    if has_weights(model):
        if weights:
            PoseCheckpointer(model, cfg=cfg, strict=True).load(weights)
        elif filled_names(model) < set(model.state_dict()):
            raise ValueError(
                "nothing to evaluate: give MODEL.WEIGHTS, or an OUTPUT_DIR that holds a checkpoint"
            )
    return same_in_any_batch(speed_up(model, cfg))


class PoseInference(nn.Module):
    """Any of our models with several views, further models, refinement and suppression of repeats.

    `model([{"image": (3, H, W) uint8, "height", "width"}, ...])` returns what the bare model does.
    Images come in their full size (`full_size_input`; smaller ones work, with less to see in large
    views), in the colour order of the first model.
    """

    full_size_input = True

    def __init__(
        self,
        *,
        viewers: Sequence[Viewer],
        plan: ViewPlan,
        flip_indices: Sequence[int],
        suppression: PoseSuppression,
        fusion: str = "maps",
        boxes: str = "merged",
        map_scale: float = 0.0,
        most_people: int = 100,
        refiner: nn.Module | None = None,
    ) -> None:
        """
        Args:
            viewers: the models, the main one first; it decides how people are assembled.
            plan: views of every image.
            flip_indices: K indices, see Skeleton.
            suppression: of repeated poses in the end.
            fusion: "maps" or "poses", see TTA.FUSION; "maps" needs models that tell what they
                `look` at apart from the people they assemble.
            boxes: "merged" or "base", see TTA.BOXES.
            map_scale: see TTA.MAP_SCALE.
            most_people: per image.
            refiner: takes images and their Instances, gives Instances; None for no refinement.

        Raises:
            ValueError: a model that cannot be merged so.
        """
        super().__init__()
        self.models = nn.ModuleList([v.model for v in viewers])
        self.viewers = list(viewers)
        self.plan = plan
        self.fusion, self.boxes, self.map_scale = fusion, boxes, map_scale
        self.most_people = most_people
        self.flip_indices = tuple(flip_indices)
        self.suppression = suppression
        self.refiner = refiner
        self.is_plain = len(self.viewers) == 1 and plan == ViewPlan()
        dense = all(hasattr(model, "look") for model in self.models)
        if not self.is_plain and fusion == "maps" and not dense:
            raise ValueError(
                "TTA.FUSION maps averages heatmaps, which not all of these models have: set "
                "TTA.FUSION poses and OKS_NMS.MODE hard"
            )

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Results per image, see the bare model's; an image's do not depend on the others."""
        if self.is_plain:
            results = self._plain(batched_inputs)
        else:
            look = self._merge_maps if self.fusion == "maps" else self._pool_poses
            results = [look(x["image"]) for x in batched_inputs]
        people = [r["instances"] for r in results]
        if self.refiner is not None:
            people = self.refiner([x["image"] for x in batched_inputs], people)
        for result, found in zip(results, people, strict=True):
            result["instances"] = self.suppression(found)[: self.most_people]
        return [
            _to_size(result, x.get("height"), x.get("width"))
            for result, x in zip(results, batched_inputs, strict=True)
        ]

    def _plain(self, batched_inputs: list[dict]) -> list[dict]:
        images = [x["image"] for x in batched_inputs]
        main = self.viewers[0]
        whole = [View((0, 0, image.shape[2], image.shape[1])) for image in images]
        return main.model(
            [
                main.network_input(image, main.image_format, view)
                for image, view in zip(images, whole, strict=True)
            ]
        )

    def _batches(self, size: tuple[int, int]) -> list[list[View]]:
        """The views of an image of (height, width), as many at a time as go best together."""
        groups = self.plan.views(size)
        if next(self.models[0].parameters(), torch.empty(0)).is_cuda:
            return groups
        # A CPU has nothing from batches, and moves more memory.
        return [[view] for group in groups for view in group]

    def _merge_maps(self, image: torch.Tensor) -> dict:
        """One image's people from the mean maps of all views and models."""
        main, size = self.viewers[0], (image.shape[-2], image.shape[-1])
        looks: list[Look] = []
        for viewer in self.viewers:
            for views in self._batches(size):
                inputs = [viewer.network_input(image, main.image_format, v) for v in views]
                looks += map(Look, views, viewer.model.look(inputs))
        evidence = merge_looks(
            looks,
            size,
            flip_indices=self.flip_indices,
            boxes=self.boxes,
            suppression=main.model.box_suppression,
            most_boxes=self.most_people,
            map_scale=self.map_scale,
        )
        # With mirrored views, nothing may prefer a side (design 7.15).
        mirror = self.flip_indices if self.plan.flip else None
        return main.model.assemble_people([evidence], [size], mirror)[0]

    def _pool_poses(self, image: torch.Tensor) -> dict:
        """Everybody whom any view or model finds."""
        main, size = self.viewers[0], (image.shape[-2], image.shape[-1])
        results: list[tuple[View, dict]] = []
        for viewer in self.viewers:
            for views in self._batches(size):
                inputs = [viewer.network_input(image, main.image_format, v) for v in views]
                results += zip(views, viewer.model(inputs), strict=True)
        return pool_people(results, size, self.flip_indices)


def _to_size(result: dict, height: int | None, width: int | None) -> dict:
    """A result in pixels of another (height, width) than the image's, where one is wanted."""
    people: Instances = result["instances"]
    size = (height or people.image_size[0], width or people.image_size[1])
    if size == people.image_size:
        return result
    scaled = {**result, "instances": _scaled(people, size)}
    if "sem_seg" in result:
        scaled["sem_seg"] = F.interpolate(result["sem_seg"][None], size, mode="bilinear")[0]
    return scaled


def _scaled(people: Instances, size: tuple[int, int]) -> Instances:
    """People of an image, their masks too, in pixels of another (height, width)."""
    if not people.has("pred_masks"):
        return finish_instances(people, *size)
    # Detectron2 scales masks of boxes, not those of images.
    others = Instances(people.image_size, **people.get_fields())
    others.remove("pred_masks")
    others.place = torch.arange(len(people), device=people.scores.device)
    scaled = finish_instances(others, *size)
    masks = people.pred_masks[scaled.place][:, None].float()
    scaled.pred_masks = F.interpolate(masks, size, mode="bilinear")[:, 0] > 0.5
    scaled.remove("place")
    return scaled
