"""Checkpoints: written whole or not at all, read as data, checked against the model."""

from __future__ import annotations

import os
import urllib.error
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.modeling.assembly.weights import (
    PREFIX,
    filled_names,
    filled_settings,
    why_unreadable,
)
from mpn_d2.modeling.weight_settings import Settings, check_settings, check_table, settings_of
from mpn_d2.utils.files import naming, write_text_atomically
from mpn_d2.utils.safe_files import (
    KERAS,
    READ_ERRORS,
    check_tensor,
    read_pickle,
    read_torch,
)

_PARTIAL = ".partial-"
_ASIDE = ".aside-"
# File beside the checkpoints that names the last one (fvcore's name).
TAG = "last_checkpoint"
_MOST_NAMED = 12
_COUNTERS = "num_batches_tracked"


class PoseCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, safe reads and a check of what was loaded.

    `strict` raises when the model's and the file's keys or shapes differ (evaluation, resuming,
    handing weights from stage to stage). Otherwise what fits is loaded and the rest is listed,
    as for ImageNet weights; a file of which nothing fits is an error either way.

    An assembler that MODEL.ASSEMBLER.WEIGHTS filled keeps its weights where the file has none of it
    or those of another one: ours takes the place of a trained network's PRN.

    Settings that loaded weights carry (modeling/weight_settings.py) go on into what is saved: a
    network trained from converted weights needs them, too.

    Attributes:
        not_loaded: names in the model's state that the last load left as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        strict: bool = False,
        while_saving: Callable[[], AbstractContextManager] = nullcontext,
        **kwargs,
    ):
        """
        Args:
            model, save_dir, kwargs: as Detectron2's checkpointer.
            cfg: the model's config, which files that carry settings must agree with
                (modeling/weight_settings.py).
            strict: see above.
            while_saving: inside it the model holds the weights to save.
        """
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self._cfg = cfg
        self._while_saving = while_saving
        self.not_loaded = set(self.model.state_dict()) - filled_names(self.model)
        self._settings: Settings = filled_settings(self.model)

    def save(self, name: str, **kwargs: Any) -> None:
        self._write(_PARTIAL, name, kwargs)

    def save_aside(self, name: str, **kwargs: Any) -> None:
        """As `save`, but last_checkpoint keeps naming the file to resume from."""
        self._write(_ASIDE, name, kwargs)

    def _write(self, prefix: str, name: str, content: dict[str, Any]) -> None:
        """Writes the file under another name, then `tag_last_checkpoint` gives it its own.

        Raises:
            OSError: it cannot be written, for lack of space above all; nothing of it is left, as
                it would keep the disk full.
        """
        if self._settings:
            content = {**content, "settings": self._settings}
        folder = Path(self.save_dir)
        try:
            with self._while_saving(), naming(folder / f"{name}.pth"):
                super().save(f"{prefix}{name}", **content)
        except BaseException:
            (folder / f"{prefix}{name}.pth").unlink(missing_ok=True)
            raise

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        folder = Path(self.save_dir)
        if last_filename_basename.startswith(_ASIDE):
            final = last_filename_basename.removeprefix(_ASIDE)
            os.replace(folder / last_filename_basename, folder / final)
            return
        final = last_filename_basename.removeprefix(_PARTIAL)
        if final != last_filename_basename:
            os.replace(folder / last_filename_basename, folder / final)
        write_text_atomically(folder / TAG, final)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a file, `detectron2://` or `https://` address.

        Args:
            path: see above; "" loads nothing.
            checkpointables: names of what else to load; None: all that this checkpointer has,
                which the file must have then, as when a training is resumed.

        Returns:
            What else is in the file.

        Raises:
            FileNotFoundError: no such file, or no network for an address.
            ValueError: not a checkpoint, or it does not fit the model or the rest; names the keys.
        """
        if not path:
            return super().load(path, checkpointables)
        self._source = path
        try:
            local = self.path_manager.get_local_path(path.split("?")[0])
        except (OSError, urllib.error.URLError) as error:
            raise FileNotFoundError(
                f"could not fetch the weights {path} ({error}): fetch the file on a machine with "
                "network access and give its path as MODEL.WEIGHTS, or train from scratch with "
                "MODEL.WEIGHTS ''"
            ) from error
        if not os.path.isfile(local):
            raise FileNotFoundError(f"weights {path} not found: check MODEL.WEIGHTS")
        try:
            rest = super().load(path, [])
        finally:
            # Detectron2 leaves it behind after an error, and then refuses the next file.
            self._parsed_url_during_load = None
        for key in self.checkpointables if checkpointables is None else checkpointables:
            self._load_state(key, rest)
        return rest

    def _load_state(self, key: str, content: dict[str, Any]) -> None:
        """Loads one of `checkpointables` and takes it out of a file's content."""
        try:
            if key not in content:
                raise ValueError("the file has none")
            state = content.pop(key)
            _check_state(state)
            self.checkpointables[key].load_state_dict(state)
        except READ_ERRORS as error:
            reason = f"no {error}" if isinstance(error, KeyError) else why_unreadable(error)
            raise ValueError(
                f"{self._source}: the state of its {key!r} cannot be resumed from ({reason}): "
                "resume from a whole checkpoint of the same config, or begin anew without --resume "
                "from its weights (MODEL.WEIGHTS)"
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        suffix = Path(filename).suffix.lower()
        if suffix in KERAS:
            raise ValueError(
                f"{filename} is a file of Keras or HDF5: convert it first "
                "(tools/convert_checkpoint.py)"
            )
        try:
            if suffix == ".pkl":
                data = self._load_pickle(filename)
            elif suffix == ".pyth":
                data = self._load_pycls(filename)
            else:
                data = super()._load_file(filename)
            _check_weights(data["model"])
            return data
        except READ_ERRORS as error:
            raise _unreadable(filename, error) from error

    def _torch_load(self, f: str) -> Any:
        loaded = read_torch(f)
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__} instead of named tensors")
        return loaded

    def _load_pycls(self, filename: str) -> dict[str, Any]:
        data = self._torch_load(filename)
        if not isinstance(data.get("model_state"), dict):
            raise ValueError("a .pyth file (pycls) keeps its weights in 'model_state'")
        weights = {k: v for k, v in data["model_state"].items() if not k.endswith(_COUNTERS)}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        with self.path_manager.open(filename, "rb") as f:
            data = read_pickle(f.read())
        if not isinstance(data, dict):
            raise ValueError(f"it holds a {type(data).__name__} instead of named arrays")
        if "model" in data and "__author__" in data:
            return data
        data = data.get("blobs", data)
        weights = {k: v for k, v in data.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        kept = self._set_aside_other_assembler(checkpoint["model"])
        settings = self._checked_settings(checkpoint)
        try:
            incompatible = super()._load_model(checkpoint)
        except READ_ERRORS as error:  # weights of Caffe2 are matched by their names and shapes
            raise ValueError(
                f"checkpoint {self._source} does not fit the model: {why_unreadable(error)}"
            ) from error
        missing = [name for name in incompatible.missing_keys if name not in kept]
        incompatible = incompatible._replace(missing_keys=missing)
        wrong = [f"{k} is {a} in the file, {b} here" for k, a, b in incompatible.incorrect_shapes]
        if self.strict:
            problems = []
            if incompatible.missing_keys:
                problems.append(f"missing: {some_names(incompatible.missing_keys)}")
            if incompatible.unexpected_keys:
                problems.append(f"unknown: {some_names(incompatible.unexpected_keys)}")
            if wrong:
                problems.append(f"other shape: {some_names(wrong)}")
            if problems:
                raise ValueError(
                    f"checkpoint {self._source} does not fit this config ({'; '.join(problems)}): "
                    "use the config that it was trained with"
                )
        parameters = {name for name, _ in self.model.named_parameters()}
        unset = {*incompatible.missing_keys, *(k for k, _, _ in incompatible.incorrect_shapes)}
        self.not_loaded = unset
        loaded = self.model.state_dict().keys() - unset - kept
        self._settings = settings_of(settings, loaded)
        if kept:
            self._settings |= filled_settings(self.model)
        if wrong and not self.strict:
            self.logger.warning(
                "%s is of another skeleton or architecture: %d tensors were loaded, these begin "
                "anew: %s",
                self._source,
                len(self.model.state_dict()) - len(unset),
                "; ".join(wrong),
            )
        if parameters and unset.issuperset(parameters - kept):
            raise ValueError(
                f"nothing in {self._source} fits the model: the file has "
                f"{some_names(wrong or incompatible.unexpected_keys)}; "
                f"the model has {some_names(sorted(parameters))}"
            )
        return incompatible

    def _checked_settings(self, checkpoint: dict[str, Any]) -> Settings:
        """Those of a file, which agree with the config if there is one; {} if it has none."""
        settings = checkpoint.get("settings")
        if settings is None:
            return {}
        check_table(settings, self._source)
        if self._cfg is None:
            self.logger.warning("%s: its settings are not checked, no config", self._source)
            return settings
        names = checkpoint["model"].keys() & self.model.state_dict().keys()
        check_settings(settings, names, self._cfg, self._source)
        return settings

    def _set_aside_other_assembler(self, weights: dict[str, Any]) -> set[str]:
        """Names of the model's assembler if it stays as it is; weights of another are removed."""
        names = filled_names(self.model)
        state = self.model.state_dict()
        ours = {name: tuple(state[name].shape) for name in names}
        theirs = {n: tuple(v.shape) for n, v in weights.items() if n.startswith(PREFIX)}
        if not names or theirs == ours:
            return set()
        for name in theirs:
            del weights[name]
        if theirs:
            self.logger.warning(
                "%s holds another assembler: that of MODEL.ASSEMBLER.WEIGHTS %s stays",
                self._source,
                self.model.assembler.weights_name,
            )
        return names


def read_progress(path: str) -> dict[str, Any]:
    """How far the training was that wrote a checkpoint, without reading its tensors.

    Returns:
        {"iteration": last finished iteration from 0, -1 if the file does not tell;
        "train_parts": MODEL.TRAIN_PARTS, None if the file does not tell}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} not found, which {TAG} beside it names")
    try:
        data = read_torch(path, mmap=True)
        return {
            "iteration": int(data.get("iteration", -1)),
            "train_parts": data.get("trainer", {}).get("train_parts"),
        }
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The named tensors of a .pth checkpoint of ours, on the CPU; the rest of it is not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint.
    """
    return _read_ours(path)["model"]


def read_settings(path: str) -> dict[str, dict[str, object]]:
    """The settings of a .pth checkpoint (modeling/weight_settings.py); {} where it has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint.
    """
    return _read_ours(path).get("settings") or {}


def _read_ours(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} not found")
    try:
        data = read_torch(path, mmap=True)
        _check_weights(data["model"])
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error
    check_table(data.get("settings") or {}, path)
    return data


def _check_weights(weights: Any) -> None:
    if not isinstance(weights, dict):
        raise ValueError(f"its 'model' is a {type(weights).__name__} instead of named tensors")
    if not weights:
        raise ValueError("it holds no tensors")
    for name, value in weights.items():
        check_tensor(name, value)


def _check_state(state: Any) -> None:
    """Raises a ValueError for a state that an object takes and fails with later."""
    if not isinstance(state, dict):
        raise ValueError(f"it is a {type(state).__name__} instead of a dict")
    iteration = state.get("iteration", 0)
    if type(iteration) is not int or iteration < 0:
        what = str(iteration) if type(iteration) is int else f"a {type(iteration).__name__}"
        raise ValueError(f"its 'iteration' is {what} instead of a number from 0")


def _unreadable(filename: str, error: Exception) -> ValueError:
    return ValueError(f"{filename} is not a checkpoint that can be read: {why_unreadable(error)}")


def some_names(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
