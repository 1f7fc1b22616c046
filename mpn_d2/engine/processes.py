"""Several processes, on one machine or more: joining them, sharing a model among them."""

from __future__ import annotations

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import nn


def share_among_processes(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel if there are several processes.

    Buffers stay each process's own while training, see `broadcast_buffers`.
    """
    gpu = next(model.parameters()).is_cuda
    devices = [comm.get_local_rank()] if gpu and comm.get_world_size() > 1 else None
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices)


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the main process's buffers, which are those that are saved.

    Running statistics of batch norm differ, each process having seen images of its own.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
