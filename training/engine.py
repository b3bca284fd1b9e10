"""Devices, precision and processes, through Lightning Fabric; and the random state of a run."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch import nn

from errors import OptionError
from training.machine import keep_freed_memory

STEP = "SLURM_STEP_NUM_TASKS"  # how many processes srun has started; not set where it has started none
FABRIC_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class Autocast(MixedPrecision):
    """Mixed precision whose batches stay in float32.

    Fabric's own rounds all that goes into a task to the low precision, measured depth among it: in bfloat16 by up to
    0.4 %, 2 cm at 5 m. Autocast rounds what a layer multiplies, and nothing else.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch as it is."""
        return data


def create_fabric(args: argparse.Namespace, *, rests: bool = False) -> Fabric:
    """Start the processes that the flags (or torchrun, or SLURM) ask for, and return this one's Fabric.

    On a CPU they keep the memory that they free (:func:`training.machine.keep_freed_memory`).

    Args:
        args: the flags of ``training.options``.
        rests: some networks of the task get no gradient in some phases.

    Raises:
        OptionError: the flags do not fit each other, or the processes that torchrun or SLURM started.
    """
    use_cuda = torch.cuda.is_available() and getattr(args, "device", None) != "cpu"
    device = "cuda" if use_cuda else "cpu"
    if not use_cuda:
        keep_freed_memory()
    asked = getattr(args, "num_nodes", None)  # None: of a script that is one process
    nodes = asked or 1
    devices = find_devices(args.gpu_ids if use_cuda else None, asked, use_cuda=use_cuda)
    processes = (devices if isinstance(devices, int) else len(devices)) * nodes
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the script says itself what it runs on
    precision: Any = FABRIC_PRECISION[resolve_precision(args.precision, device)]
    mixed = precision != FABRIC_PRECISION["32"]
    try:
        fabric = Fabric(
            accelerator=device,
            devices=devices,
            num_nodes=nodes,
            strategy="auto" if processes == 1 else "ddp_find_unused_parameters_true" if rests else "ddp",
            precision=None if mixed else precision,
            plugins=Autocast(precision, device) if mixed else None,
        )
        environment: Any = getattr(fabric.strategy, "cluster_environment", None)
        managed = processes > 1 and isinstance(environment, SLURMEnvironment)  # it starts none, and waits for all
        if managed:
            environment.validate_settings(processes // nodes, nodes)
    except (ValueError, RuntimeError) as error:  # of a SLURM job that has other nodes or tasks
        raise OptionError(f"--num_nodes {nodes}, {processes // nodes} process(es) on each: {error}") from error
    if nodes > 1 and type(environment) is LightningEnvironment and "MASTER_ADDR" not in os.environ:
        raise OptionError(  # it would wait for them for ever
            f"--num_nodes {nodes}: nobody has told this process of the other machines; start the script by torchrun or "
            "srun on each (docs/SEVERAL_GPUS.md)"
        )
    if managed and processes != (tasks := environment.world_size() if STEP in os.environ else 1):
        raise OptionError(
            f"the flags ask for {processes} processes, and SLURM has started {tasks}: in a job of that many tasks "
            "(--ntasks-per-node), start the script by srun"
        )
    fabric.launch()
    if getattr(args, "sync_bn", False) and (device == "cpu" or processes == 1):
        raise OptionError("--sync_bn: batch norm is shared between several GPUs, and this run is of one device")
    if getattr(args, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not getattr(args, "deterministic", False)
    return fabric


def find_devices(gpu_ids: list[int] | None, nodes: int | None, *, use_cuda: bool) -> list[int] | int:
    """Return the GPUs of this machine's processes, or how many processes it has.

    ``--gpu_ids 0,1`` starts one process per GPU. Under torchrun there are as many as torchrun started: Fabric on its
    own would make every process a rank 0, and all would write the same files.

    Args:
        gpu_ids: of the flags.
        nodes: likewise; None of a script that is one process.
        use_cuda: whether there are GPUs to use.

    Raises:
        OptionError: torchrun or SLURM started others than the flags ask for: each would train alone, or wait for ever.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # torchrun's
    world, tasks = int(os.environ.get("WORLD_SIZE", local)), int(os.environ.get(STEP, 1))
    if nodes is None:
        if max(world if local else 1, tasks) > 1:
            raise OptionError("this script is one process: start it once, without torchrun or srun")
        nodes = 1
    if local:
        if world != local * nodes:
            raise OptionError(
                f"--num_nodes {nodes}: torchrun started {world} processes, {local} of them on this machine"
                + (f"; give --num_nodes {world // local}" if world % local == 0 else ", where each has as many")
            )
        if gpu_ids and len(gpu_ids) != local:
            raise OptionError(
                f"--gpu_ids {','.join(map(str, gpu_ids))}: torchrun started {local} process(es) on this machine; name "
                "as many GPUs"
            )
        return gpu_ids or local
    devices: list[int] | int = (gpu_ids or [0]) if use_cuda else 1
    processes = (devices if isinstance(devices, int) else len(devices)) * nodes
    if tasks > 1 and tasks != processes:
        raise OptionError(
            f"srun started {tasks} tasks, and the flags ask for {processes} process(es): give --num_nodes, and one of "
            "--gpu_ids for each task of a machine"
        )
    return devices


def synchronize_batch_norm(task: nn.Module) -> nn.Module:
    """Let the networks that train share the statistics of a batch over all processes (CUDA alone); return ``task``.

    Without it, each process normalises by its own share of the batch, as in ``DistributedDataParallel`` itself.
    """
    for name, module in task.named_children():
        if any(parameter.requires_grad for parameter in module.parameters()):
            setattr(task, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    return task


def resolve_precision(precision: str, device: str | None = None) -> str:
    """Turn ``auto`` into bf16 where the hardware multiplies it, else into 32.

    GPUs from Ampere on, CPUs with AMX (3 to 5 times as fast) or AVX512-BF16: there a training step of the audio student
    was 1.5, of the RGB teacher 1.5, of the U-Net baseline 1.2 times as fast.

    Args:
        precision: one of ``training.options.PRECISIONS``.
        device: ``cuda`` or ``cpu``; None is a GPU where there is one.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available() and device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "32"


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Set the random state of one epoch (0: the weights) of one process.

    It belongs to the epoch, not to the process, so that a resumed run draws what the unbroken one would have drawn.
    """
    torch.manual_seed(((seed * 1_000_003 + epoch) * 1_009 + rank) % 2**63)


def seed_weights(seed: int) -> None:
    """Set the random state under which a script draws its models' weights: the same in every process."""
    seed_epoch(seed, 0)
