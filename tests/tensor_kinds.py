"""Tensors that are no plain arrays of numbers, as a hostile or foreign checkpoint may hold them."""

from __future__ import annotations

import torch


def tensors_of_other_kinds(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """(rows, columns) each, by what a message calls them."""
    zeros = torch.zeros(rows, columns)
    return {
        "meta": torch.zeros(rows, columns, device="meta"),
        "torch.sparse_coo": zeros.to_sparse(),
        "torch.sparse_csr": torch.eye(rows, columns).to_sparse_csr(),
        "torch.qint8": torch.quantize_per_tensor(zeros, 0.1, 0, torch.qint8),
        "torch.complex64": zeros.to(torch.complex64),
    }
