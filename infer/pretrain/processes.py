"""Which device, and which process of how many: alone, or among those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from infer.contract import SmaltiError
from infer.pretrain.batches import Place


def choose(name: str) -> torch.device:
    """The device; under torchrun each process takes the accelerator of its local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise SmaltiError("--device cuda: torch sees no accelerator here: use --device cpu")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    if name != "cpu":
        raise SmaltiError(f"--device {name}: expected auto, cpu or cuda")
    return torch.device("cpu")


@contextmanager
def processes(device: torch.device) -> Iterator[Place]:
    """This process's place among those that torchrun started; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
