"""Training one network of a job: steps, average, and a state that it resumes from bit for bit."""

from __future__ import annotations

import io
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from infer.contract import EXIT_FAILED, FormatError, SmaltiError, atomic_file, write_bytes
from infer.contract.segment import SegmentJob, SegmentNetwork, network_files
from infer.pretrain.ema import Average
from infer.pretrain.loop import learning_rate, parameter_groups
from infer.pretrain.processes import Execution
from infer.pretrain.state import saved_bytes
from infer.progress import say
from infer.segment.chips import Chips, Labels
from infer.segment.network import UNet, arrays
from infer.torch_file import read_torch

_KIND = "smalti/segment-state"
_AVERAGED = 0.99
_DECAY = 0.02
_CLIP = 1.0
_LOSSES = 0.1
"""Part of the steps whose loss is told."""


class _Loss(nn.Module):
    """Scores and loss in one module, which DistributedDataParallel can wrap."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, chips: Chips) -> torch.Tensor:
        """Mean over chips of the mean cross-entropy of a chip's labelled pixels."""
        scores = self.network(chips.x_bchw).float()
        losses = -(chips.share_bkhw * torch.log_softmax(scores, dim=1)).sum(dim=(1, 2, 3))
        return losses.mean()


class Training:
    """One network; `run` takes it from where it is to the end, or to `stop`."""

    def __init__(self, folder: Path, job: SegmentJob, name: str, execution: Execution) -> None:
        """Build everything and take up a state that is there.

        Raises:
            SmaltiError: if the labels or the state are damaged.
        """
        self.folder, self.job, self.name, self.execution = folder, job, name, execution
        self.recipe = job.recipe
        if self.recipe.batch % execution.place.world:
            raise SmaltiError(
                f"[segment] batch = {self.recipe.batch}: must be a multiple of the {execution.place.world} processes"
            )
        self.labels = Labels(folder, job, name)
        torch.manual_seed(self.recipe.seed)
        self.network = UNet(job.dim, self.recipe.width, len(job.codes)).to(execution.device)
        self.average = Average(self.network, _AVERAGED)
        groups = parameter_groups(self.network, _DECAY)
        self.optimiser = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.losses: list[float] = []
        self._resume()
        loss: nn.Module = _Loss(self.network)
        if execution.place.world > 1:
            loss = DistributedDataParallel(
                loss, device_ids=[execution.device] if execution.device.type == "cuda" else None
            )
        self._loss = loss

    @property
    def _state(self) -> Path:
        return network_files(self.folder, self.name)[2]

    def _resume(self) -> None:
        if not self._state.exists():
            return
        remedy = "delete it to begin this network anew"
        state = read_torch(self._state, remedy)
        try:
            if state["format"] != _KIND or state["job"] != self._key or state["name"] != self.name:
                raise ValueError("of another training")
            self.network.load_state_dict(state["network"])
            self.average.module.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.losses = int(state["step"]), [float(value) for value in state["losses"]]
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise FormatError(f"{self._state}: not the state of this training ({reason}): {remedy}") from error

    @property
    def _key(self) -> str:
        return str(self.job.inputs["job"])

    def save(self) -> None:
        """Write the state (first process only); a kill leaves the one before."""
        if self.execution.place.rank != 0:
            return
        content = {
            "format": _KIND,
            "job": self._key,
            "name": self.name,
            "step": self.step,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_file(self._state) as temporary:
            temporary.write_bytes(saved_bytes(content))

    def _train_on(self, chips: Chips) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        kind = self.execution.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            loss: torch.Tensor = self._loss(chips.to(self.execution.device))
        value = loss.detach().clone()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.optimiser.step()
        self.average.update(self.network, self.step)
        if self.execution.place.world > 1:
            dist.all_reduce(value)
            value /= self.execution.place.world
        told = float(value)
        if not math.isfinite(told):
            raise SmaltiError(
                f"{self.folder}: the loss of {self.name} is not finite at step {self.step}: lower [segment] "
                "learning_rate",
                exit_code=EXIT_FAILED,
            )
        self.losses = [*self.losses, told][-max(1, round(_LOSSES * self.recipe.steps)) :]
        self.step += 1

    def run(self, stop: threading.Event) -> bool:
        """Train to the end and export; False if it was stopped before, its state saved."""
        tenth = max(1, self.recipe.steps // 10)
        for chips in self.labels.stream(self.step, self.execution.place):
            self._train_on(chips)
            if self.execution.asked_to_stop(stop):
                self.save()
                return False
            if self.step % tenth == 0 and self.execution.place.rank == 0:
                say(f"segment: {self.name}: step {self.step}/{self.recipe.steps}, loss {np.mean(self.losses):.3f}")
            if self.step % self.execution.save_every == 0 and self.step < self.recipe.steps:
                self.save()
        if self.execution.place.rank == 0:
            self._export()
        return True

    def _export(self) -> None:
        manifest, path, state = network_files(self.folder, self.name)
        average: Any = self.average.module
        content = {**arrays(average), "mean_c": self.labels.mean_c, "scale_c": self.labels.scale_c}
        buffer = io.BytesIO()
        np.savez(buffer, **{**content, "classes_": np.array(self.job.codes, dtype=np.int64)})
        write_bytes(path, buffer.getvalue())
        about = SegmentNetwork(loss=float(np.mean(self.losses)), device=self.execution.device.type)
        about.write(manifest, inputs={"job": self._key, "network": self.name}, files=[path])
        state.unlink(missing_ok=True)
