"""Moving tensors from foreign names to ours, with an account of every name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

State = Mapping[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
# Parts of our networks, as they begin in state names.
BOTTOM_UP = "backbone.bottom_up."
KEYPOINT_FPN = "backbone.keypoint_fpn."
PERSON_FPN = "backbone.person_fpn."
KEYPOINT_HEAD = "keypoint_head."
PERSON_HEAD = "head."
ASSEMBLER = "assembler."

_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"
# What tensors of another shape than is expected raise.
SHAPE_ERRORS = (LookupError, RuntimeError, ArithmeticError, TypeError, ValueError)


@dataclass
class Converted:
    """What a converter makes of a state.

    Attributes:
        weights: our names to tensors.
        settings: config keys that the weights were trained under, by part
            (modeling/weight_settings.py).
        unused: names that belong to the source and have no place in our networks.
        unknown: names that the source should not have.
        missing: names that the source should have.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class Moving:
    """Takes tensors out of a state one by one; what is asked for and not there is noted.

    Args:
        state: of the source, left as it is.
    """

    def __init__(self, state: State) -> None:
        self._left = dict(state)
        self._done = Converted()

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """Those not yet taken."""
        return list(self._left)

    def shape(self, name: str) -> torch.Size:
        """Of a tensor not yet taken."""
        return self._left[name].shape

    def tensor(self, name: str) -> torch.Tensor:
        """One not yet taken, which stays so."""
        return self._left[name]

    def take(self, old: str) -> torch.Tensor | None:
        """A tensor that is used up; None, and noted as missing, where there is none."""
        tensor = self._left.pop(old, None)
        if tensor is None:
            self._done.missing.append(old)
        return tensor

    def move(self, old: str, new: str, change: Change | None = None) -> None:
        """One tensor, changed on the way.

        Raises:
            ValueError: one that cannot be changed so; names it and its shape.
        """
        tensor = self.take(old)
        if tensor is None:
            return
        try:
            self._done.weights[new] = change(tensor) if change else tensor
        except SHAPE_ERRORS as error:
            raise other_shape(old, tensor, error) from error

    def layer(self, old: str, new: str, change: Change | None = None) -> None:
        """Weight and bias of a layer; a change of output channels is one of both."""
        for name in ("weight", "bias"):
            self.move(f"{old}.{name}", f"{new}.{name}", change)

    def norm(self, old: str, new: str) -> None:
        """A batch norm. Old PyTorch has no counter, which nothing reads in evaluation: 0 then.

        Raises:
            ValueError: the counter is no single number.
        """
        for name in _NORM:
            self.move(f"{old}.{name}", f"{new}.{name}")
        counter = self._left.pop(f"{old}.{_COUNTER}", torch.tensor(0))
        if counter.numel() != 1:
            raise other_shape(f"{old}.{_COUNTER}", counter, "a counter is one number")
        self._done.weights[f"{new}.{_COUNTER}"] = counter.to(torch.int64).reshape(())

    def put(self, new: str, tensor: torch.Tensor) -> None:
        """A tensor that was taken and changed."""
        self._done.weights[new] = tensor

    def drop(self, *prefixes: str) -> None:
        """Names of the source that our networks have no place for."""
        for name in [n for n in self._left if n.startswith(prefixes)]:
            del self._left[name]
            self._done.unused.append(name)

    def finish(self, settings: dict[str, dict[str, object]]) -> Converted:
        """All of it; what was not taken is unknown. Half precision becomes single."""
        done = self._done
        done.settings = settings
        done.unknown = sorted(self._left)
        done.weights = {
            name: (value.float() if value.is_floating_point() else value).contiguous()
            for name, value in done.weights.items()
        }
        return done


def other_shape(name: str, tensor: torch.Tensor, why: object) -> ValueError:
    """The error for a tensor of another shape than its source has."""
    reason = str(why).splitlines()[0] if str(why) else type(why).__name__
    return ValueError(f"its {name} has the shape {tuple(tensor.shape)}: {reason}")
