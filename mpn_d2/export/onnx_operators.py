"""Operators that PyTorch's tracing exporter lacks, as ONNX ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.onnx import symbolic_helper

# The first in which ScatterND adds and RoiAlign knows cells' centres: most runtimes have it.
OPSET = 16
_INT64 = 7


@contextlib.contextmanager
def further_operators() -> Iterator[None]:
    """Inside, `torch.onnx.export(dynamo=False)` knows them, too."""
    operators = {
        "aten::sort": _sort,
        "aten::index_add": _index_add,
        "aten::index_copy": _index_copy,
    }
    for name, symbolic in operators.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in operators:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)


def _sort(g, values, *arguments):
    """sort(values, dim, descending) and sort(values, stable, dim, descending).

    TopK is stable: of equal values it names the smaller index first.
    """
    *_, dim, descending = [symbolic_helper._maybe_get_const(x, "i") for x in arguments]
    shape = g.op("Shape", values)
    length = g.op("Gather", shape, g.op("Constant", value_t=torch.tensor([dim])), axis_i=0)
    return g.op("TopK", values, length, axis_i=dim, largest_i=int(descending), outputs=2)


def _index_add(g, values, dim, index, source, alpha=None):
    """index_add along the first axis; ScatterND sums where an index comes twice."""
    _check_first_axis("index_add", dim)
    return g.op("ScatterND", values, _rows(g, index), source, reduction_s="add")


def _index_copy(g, values, dim, index, source):
    """index_copy along the first axis."""
    _check_first_axis("index_copy", dim)
    return g.op("ScatterND", values, _rows(g, index), source)


def _rows(g, index):
    """(E,) to (E, 1), one coordinate an entry."""
    axis = g.op("Constant", value_t=torch.tensor([1]))
    return g.op("Unsqueeze", g.op("Cast", index, to_i=_INT64), axis)


def _check_first_axis(name: str, dim) -> None:
    if symbolic_helper._maybe_get_const(dim, "i") != 0:
        raise NotImplementedError(f"{name} along another axis than the first")
