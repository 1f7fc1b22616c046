"""Plugin of mypy (pyproject.toml): what an nn.Module holds is of any type.

PyTorch declares that every attribute which its `Module` looks up at run time (submodules, buffers,
parameters, what other classes' constructors assigned) is "Tensor | Module". That is no more than a
guess: half of the findings over this package were of it, and none was a mistake. Attributes that a
class of ours declares keep their types.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Instance, Type, TypeOfAny, UnionType, get_proper_type

_MODULE = "torch.nn.modules.module.Module"
_GUESS = {"torch._tensor.Tensor", _MODULE}


class ModulesPlugin(Plugin):
    """Answers for `Module.__getattr__` alone: other attributes come with the type they declare."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _any_if_guessed if fullname.startswith(f"{_MODULE}.") else None


def _any_if_guessed(context: AttributeContext) -> Type:
    """Any in the place of "Tensor | Module"."""
    found = get_proper_type(context.default_attr_type)
    if isinstance(found, UnionType):
        items = [get_proper_type(item) for item in found.items]
        if {item.type.fullname for item in items if isinstance(item, Instance)} == _GUESS:
            return AnyType(TypeOfAny.special_form)
    return found


def plugin(version: str) -> type[Plugin]:
    """mypy's entry; any version will do."""
    return ModulesPlugin
