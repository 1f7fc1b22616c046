"""Import order of the package (design section 2) and names that shared files may not use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mpn_d2"

# What each layer may import of the package, besides itself.
ALLOWED = {
    "structures": set(),
    "codecs": {"structures"},
    "layers": {"structures"},
    "data": {"structures", "codecs", "layers", "utils"},
    "modeling": {"structures", "codecs", "layers", "utils"},
    "utils": {"structures", "codecs", "layers"},
    "evaluation": {"structures", "codecs", "layers", "data", "modeling", "utils"},
    "engine": {
        "structures",
        "codecs",
        "layers",
        "data",
        "modeling",
        "evaluation",
        "utils",
        "config",
        "config_files",
    },
    "export": {
        "structures",
        "codecs",
        "layers",
        "data",
        "modeling",
        "evaluation",
        "utils",
        "engine",
        "config",
        "config_files",
    },
    "convert": {"structures", "utils"},
    "cli": {"data", "engine", "utils", "config", "config_files"},
    "config": {
        "config_source",
        "engine_keys",
        "inference_keys",
        "rcnn_keys",
        "regression_keys",
        "sequence_keys",
        "speed_keys",
    },
    "config_files": {"config"},
    "config_source": set(),
    "doctor": set(),
    "engine_keys": set(),
    "inference_keys": set(),
    "rcnn_keys": set(),
    "regression_keys": set(),
    "sequence_keys": set(),
    "speed_keys": set(),
}
SYSTEMS = {
    "multiposenet": "MultiPoseNet",
    "pose_regression": "PoseRegression",
    "unified_association": "UnifiedAssociation",
}


def package_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            pytest.fail(f"{path}: relative import; write mpn_d2.... in full")
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {n for n in names if n.startswith("mpn_d2.")}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_lower_layers_do_not_import_higher_ones():
    seen = set()
    for path in sources():
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        seen.add(layer)
        for name in package_imports(path):
            target = name.split(".")[1]
            if target in ALLOWED:
                assert target == layer or target in ALLOWED[layer], f"{path} imports {name}"
    assert set(ALLOWED) <= seen | {"utils", "layers"}


def test_codecs_and_structures_have_no_modules_and_no_config():
    for folder in ("codecs", "structures"):
        for path in (PACKAGE / folder).glob("*.py"):
            text = path.read_text()
            assert "nn.Module" not in text, path
            assert not re.search(r"\bcfg\b", text), path


def test_systems_do_not_import_one_another_and_shared_files_name_none():
    for path in sources():
        relative = path.relative_to(PACKAGE)
        if relative.parts[:2] == ("modeling", "meta_arch"):
            own = path.stem
            for name in package_imports(path):
                other = name.split(".")[-1]
                # A system may be in several files of its name.
                same = own.startswith(other) or own == "__init__"
                assert other not in SYSTEMS or same, f"{path}: {name}"
        else:
            code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
            for system in SYSTEMS.values():
                assert system not in code, f"{path} names {system}"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and len(body) > 1:
                del body[0]
    return tree


def test_no_literal_keypoint_count_outside_the_skeleton():
    for path in sources():
        if path.name == "skeleton.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in (17, 18)), (
                f"{path}:{node.lineno} has a literal {node.value}"
            )


def test_files_stay_small():
    root = PACKAGE.parent
    for path in [*sources(), *(root / "tools").glob("*.py"), root / "train_net.py"]:
        assert len(path.read_text().splitlines()) <= 400, path
