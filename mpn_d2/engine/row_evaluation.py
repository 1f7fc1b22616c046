"""Several configs over the same networks, evaluated in one pass over the images.

Rows of a table of inference differ in what they do with views of an image, not in the networks:
what one of them has looked at, the others need not look at again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from mpn_d2.engine.inference_model import build_inference_model, load_trained_model
from mpn_d2.engine.trainer import PoseTrainer

# Keys that change nothing in a network or in what it sees of one view.
_AROUND = ("TTA", "ENSEMBLE", "REFINE", "OKS_NMS", "DATASETS", "OUTPUT_DIR")


class SharedNetworks:
    """Loads networks once for all configs that mean the same one, and makes them remember what they
    gave for the inputs since the last `forget`."""

    def __init__(self) -> None:
        self._networks: dict[tuple[str, str], nn.Module] = {}
        self._memory: dict[tuple, object] = {}

    def load(self, cfg: CfgNode, weights: str) -> nn.Module:
        """As `load_trained_model`."""
        bare = cfg.clone()
        bare.defrost()
        for key in _AROUND:
            del bare[key]
        known = (bare.dump(), weights)
        if known not in self._networks:
            network = load_trained_model(cfg, weights)
            number = len(self._networks)
            for method in ("look", "forward"):
                if hasattr(network, method):
                    setattr(network, method, self._remembering(number, method, network))
            self._networks[known] = network
        return self._networks[known]

    def forget(self) -> None:
        self._memory.clear()

    def _remembering(self, number: int, name: str, network: nn.Module) -> Callable:
        """A method of a network on lists of inputs, which runs on those alone that are new."""
        method = getattr(network, name)

        def remembering(batched_inputs: list[dict]) -> list:
            keys = [(number, name, *_identity(x)) for x in batched_inputs]
            new = {k: x for k, x in zip(keys, batched_inputs, strict=True) if k not in self._memory}
            if new:
                self._memory |= zip(new, method(list(new.values())), strict=True)
            found = [self._memory[key] for key in keys]
            # Results are dictionaries that the rows go on to change.
            return [dict(x) if isinstance(x, dict) else x for x in found]

        return remembering


def _identity(sample: dict) -> tuple:
    image = sample["image"].contiguous()
    digest = hashlib.blake2b(image.numpy()).digest()
    return digest, tuple(image.shape), sample.get("height"), sample.get("width")


def evaluate_rows(rows: Mapping[str, CfgNode]) -> dict[str, dict]:
    """The results that `stages.evaluate` gives for each config with its MODEL.WEIGHTS.

    Args:
        rows: configs by name, all with one DATASETS.TEST, on the CPU or one GPU.

    Returns:
        {name: {dataset: {task: metrics}}}.

    Raises:
        ValueError: configs of different datasets, or one that `build_inference_model` refuses.
    """
    datasets = {tuple(cfg.DATASETS.TEST) for cfg in rows.values()}
    if len(datasets) != 1:
        raise ValueError(f"rows of one table need one DATASETS.TEST, these have {sorted(datasets)}")
    networks = SharedNetworks()
    model = _Rows(
        networks,
        {
            name: build_inference_model(cfg, cfg.MODEL.WEIGHTS, load=networks.load, wrap=True)
            for name, cfg in rows.items()
        },
    )
    some = next(iter(rows.values()))
    results: dict[str, dict] = {name: {} for name in rows}
    for dataset in datasets.pop():
        evaluator = _RowEvaluator(
            {name: PoseTrainer.build_evaluator(cfg, dataset) for name, cfg in rows.items()}
        )
        loader = PoseTrainer.build_test_loader(some, dataset, full_size=True)
        for name, found in inference_on_dataset(model, loader, evaluator).items():
            results[name][dataset] = found
    return results


class _Rows(nn.Module):
    """All rows' models; returns {row: results of the images}."""

    def __init__(self, networks: SharedNetworks, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = networks
        self.models = dict(models)

    def forward(self, batched_inputs: list[dict]) -> dict[str, list[dict]]:
        with torch.no_grad():
            results = {name: model(batched_inputs) for name, model in self.models.items()}
        self.networks.forget()
        return results


class _RowEvaluator(DatasetEvaluator):
    """Hands each row's results to its own evaluator."""

    def __init__(self, evaluators: Mapping[str, DatasetEvaluator]) -> None:
        self.evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: dict[str, list[dict]]) -> None:
        for name, evaluator in self.evaluators.items():
            evaluator.process(inputs, outputs[name])

    def evaluate(self) -> dict[str, dict]:
        return {name: evaluator.evaluate() or {} for name, evaluator in self.evaluators.items()}
