"""Several processes, on one machine or more: starting or joining them, sharing a model.

One process drives one GPU; on machines without GPUs the processes share the cores and talk by
gloo. See docs/distributed.md.
"""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from collections.abc import Callable

import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from torch import nn

from mpn_d2.engine.cli import quiet_logging
from mpn_d2.utils.parents import is_orphan

# What torchrun tells each process that it starts.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_TORCHRUN = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")


def run_in_processes(main: Callable[[Namespace], None], args: Namespace) -> None:
    """Calls main(args) in every process: those of torchrun, or --num-gpus new ones.

    Args:
        main: function of a module, so that other processes can import it.
        args: with Detectron2's num_gpus, num_machines, machine_rank and dist_url.

    Raises:
        ValueError: more processes than this machine has GPUs, or without any, cores; an
            environment that describes several processes in part or wrongly.
    """
    if _started_by_torchrun(args):
        _join_torchrun()
        main(args)
        _leave_group()
        return
    check_processes(args.num_gpus)
    launch(
        _main_of_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(main, args),
    )


def check_processes(count: int) -> None:
    """Raises a ValueError if this machine has fewer GPUs, or without any fewer cores."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    # Two are allowed anywhere: to try out what more than one process does.
    most = gpus or max(cores, 2)
    if count > most and count > 1:
        also = "" if gpus else f" and {cores} CPU cores"
        raise ValueError(
            f"--num-gpus {count}, but PyTorch sees {gpus} GPUs{also} here: give --num-gpus "
            f"{most} or less"
        )


def _main_of_process(main: Callable[[Namespace], None], args: Namespace) -> None:
    # PyTorch has the kernel interrupt it when its parent ends; a parent that ended before that,
    # while this process imported, would leave a training behind.
    if is_orphan():
        os._exit(1)
    _share_cores()
    with quiet_logging():
        main(args)
    _leave_group()


def _leave_group() -> None:
    """Ends the threads of the process group while Python can still wait for them.

    Models in cycles of references hold the group; a thread of it that wants Python's lock while
    the interpreter ends aborts a process that has done its work.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        comm.synchronize()
        torch.distributed.destroy_process_group()


def _started_by_torchrun(args: Namespace) -> bool:
    """Whether the environment describes this process as one of torchrun's; see run_in_processes."""
    launched = args.num_gpus > 1 or args.num_machines > 1
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if not missing and launched:
        raise ValueError(
            "started by torchrun, which says how many processes and machines there are: "
            "leave out --num-gpus and --num-machines"
        )
    if missing and not launched and os.environ.get("WORLD_SIZE", "1") != "1":
        # Each process would train alone and write over the others' files.
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} not set: start "
            "with torchrun or --num-gpus, or unset WORLD_SIZE"
        )
    return not missing


def _torchrun_numbers() -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; a ValueError if they contradict."""
    found = {name: os.environ[name] for name in _NUMBERS}
    if all(value.isdecimal() for value in found.values()):
        rank, world, local_rank, local_world = map(int, found.values())
        if rank < world and local_rank < local_world and world % local_world == 0:
            return rank, world, local_rank, local_world
    raise ValueError(
        f"{', '.join(f'{name}={value}' for name, value in found.items())} do not fit together: "
        "start with torchrun, or unset them"
    )


def _join_torchrun() -> None:
    """Joins the process group that the environment describes, as Detectron2's launch does."""
    _, world, local_rank, local_world = _torchrun_numbers()
    gpus = torch.cuda.device_count()
    if gpus and local_world > gpus:
        raise ValueError(
            f"torchrun --nproc_per_node {local_world}, but PyTorch sees {gpus} GPUs here: start "
            f"{gpus} processes a machine or less"
        )
    if gpus:
        torch.cuda.set_device(local_rank)
    if world == 1:
        return
    torch.distributed.init_process_group("nccl" if gpus else "gloo", init_method="env://")
    comm.create_local_process_group(local_world)
    _share_cores()
    comm.synchronize()


def _share_cores() -> None:
    """Processes without GPUs get equal shares of the threads that each would start alone."""
    local = comm.get_local_size()
    if local > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(torch.get_num_threads() // local, 1))


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
