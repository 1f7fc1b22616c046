"""Config files before they are merged: nothing in them is executed, fetched or without end.

Detectron2 merges YAML with tags that run Python (`!!python/object/apply`), fetches a `_BASE_` from
the network, and writes out what aliases repeat.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

# The largest config of ours has 200 lines; saved ones, with every key, 12 kB.
MOST_BYTES = 1 << 20
# Values of a file once its aliases are written out.
MOST_VALUES = 100_000
# Files that a config is made of: each names as many bases as it likes, which are read each time.
MOST_FILES = 100


def merge_config_file(cfg: CfgNode, config_file: str) -> None:
    """Merges a YAML file and those that its `_BASE_` names into a config, in place.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files that are no YAML of plain values; names the file.
        KeyError, AssertionError, TypeError, AttributeError, ValueError: of Detectron2, about keys.
    """
    if not os.path.exists(config_file):
        raise FileNotFoundError(f"config file {config_file} not found")
    check_config_file(config_file, [])
    cfg.merge_from_file(config_file, allow_unsafe=False)


def check_config_file(config_file: str, read: list[str], leads_here: tuple[str, ...] = ()) -> None:
    """ValueError unless the file, and those that its _BASE_ names, are plain and small.

    Args:
        config_file: path.
        read: files read so far, one entry each time; added to.
        leads_here: real paths of the files whose _BASE_ led to it.
    """
    path = os.path.realpath(config_file)
    if path in leads_here:
        raise ValueError(f"{config_file}: its _BASE_ leads back to itself")
    read.append(config_file)
    if len(read) > MOST_FILES:
        raise ValueError(f"{read[0]}: made of more than {MOST_FILES} files by _BASE_")
    content = _read(config_file)
    if not isinstance(content, dict):
        raise ValueError(f"{config_file}: it is not a config of KEY: VALUE lines")
    bases = content.get(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{config_file}: _BASE_ {base!r:.80} is not the path of a file")
        check_config_file(_base_path(config_file, base), read, (*leads_here, path))


def _base_path(config_file: str, base: str) -> str:
    """As Detectron2 finds it: relative to the file that names it."""
    if "://" in base:
        raise ValueError(
            f"{config_file}: _BASE_ {base!r:.120} is not a file on this machine: save it beside "
            "the config"
        )
    found = os.path.join(os.path.dirname(config_file), os.path.expanduser(base))
    if not os.path.exists(found):
        raise ValueError(f"{config_file}: _BASE_ {base!r:.120}, which is {found}, not found")
    return found


def _read(config_file: str) -> Any:
    if not os.path.isfile(config_file):
        raise ValueError(f"{config_file}: it is no regular file")
    if os.path.getsize(config_file) > MOST_BYTES:
        raise ValueError(f"{config_file}: a config of more than {MOST_BYTES} bytes is none")
    try:
        content = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        reason = " ".join(str(error.problem).split())[:120]
        raise ValueError(
            f"{config_file}: only plain values are read, not {reason}"
            if "python/" not in reason
            else f"{config_file}: tags that run Python are not read: {reason}"
        ) from error
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{config_file}{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{config_file}: it is no YAML text ({reason})") from error
    except RecursionError as error:
        raise ValueError(f"{config_file}: its values are nested too deep") from error
    if _values_in(content, {}) > MOST_VALUES:
        raise ValueError(
            f"{config_file}: more than {MOST_VALUES} values, or an alias within itself"
        )
    return content


def _values_in(content: Any, seen: dict[int, int]) -> int:
    """Values that lists and dictionaries hold, each alias counted as often as it is named."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in seen:
        # An alias within itself has no end; nothing is larger than this.
        seen[id(content)] = MOST_VALUES + 1
        inner = content.values() if isinstance(content, dict) else content
        seen[id(content)] = 1 + sum(_values_in(value, seen) for value in inner)
    return seen[id(content)]
