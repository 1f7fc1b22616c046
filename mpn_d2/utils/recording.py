"""Whether what is computed is being recorded, as a trace, a compiled graph or an ONNX file."""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Whether a tracer or compiler records what is computed: it must not depend on the values."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
