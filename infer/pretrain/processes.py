"""How a training is carried out: on which device, as which process of how many, alone or under torchrun."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Execution:
    """How a training is carried out: what does not change its result (but by rounding, the number of processes)."""

    device: torch.device
    place: Place = field(default_factory=Place)
    save_every: int = 500
    """Steps between states."""

    def asked_to_stop(self, stop: threading.Event) -> bool:
        """Whether any process was asked to: they all have to stop at the same step."""
        if self.place.world == 1:
            return stop.is_set()
        flag = torch.tensor([float(stop.is_set())], device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item() > 0)


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
