"""Config keys that weights were trained under and that their shapes do not show.

Converted checkpoints carry them (`settings`), by the first letters of the names that they belong
to: {"backbone.bottom_up.": {"INPUT.FORMAT": "RGB", ...}, ...}. Weights under other settings load
without a word and predict nonsense (design 7.19).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from detectron2.config import CfgNode

# Anchor sizes are rounded to four places in configs.
_TOLERANCE = 1e-4

Settings = Mapping[str, Mapping[str, object]]


def check_settings(settings: Settings, names: Iterable[str], cfg: CfgNode, source: str) -> None:
    """Raises a ValueError that names every key in which a config differs from weights.

    Args:
        settings: of the weights, see above.
        names: of the weights that are to be loaded; settings of other ones do not count.
        cfg: the config of the model.
        source: the file, for the message.
    """
    check_table(settings, source)
    names = list(names)
    wrong = {}
    for prefix, values in settings.items():
        if any(name.startswith(prefix) for name in names):
            for key, needed in values.items():
                if not _same(_value(cfg, key), needed):
                    wrong[key] = needed
    if wrong:
        found = "; ".join(f"{key} is {_value(cfg, key)!r}" for key in wrong)
        options = " ".join(f'{key} "{needed}"' for key, needed in wrong.items())
        raise ValueError(
            f"weights {source} were trained under other settings than this config's ({found}): "
            f"give {options}"
        )


def check_table(settings: object, source: str) -> None:
    """Raises a ValueError that names the file where its settings are no `Settings`."""
    if not isinstance(settings, Mapping) or not all(
        isinstance(x, Mapping) for x in settings.values()
    ):
        raise ValueError(f"{source}: its 'settings' are no table of config keys")


def settings_of(settings: Settings, names: Iterable[str]) -> dict[str, Mapping[str, object]]:
    """The part of settings that belongs to weights of these names."""
    names = list(names)
    return {k: v for k, v in settings.items() if any(name.startswith(k) for name in names)}


def _value(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg.get(name) if isinstance(cfg, Mapping) else None
    return cfg


def _same(found: object, needed: object) -> bool:
    if isinstance(needed, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(needed)
            and all(map(_same, found, needed))
        )
    if isinstance(needed, float | int) and not isinstance(needed, bool):
        return isinstance(found, float | int) and math.isclose(found, needed, rel_tol=_TOLERANCE)
    return found == needed
