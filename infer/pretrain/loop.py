"""The training loop: schedule, steps, records, and states that resume bit for bit."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from infer.contract import EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, FormatError, SmaltiError
from infer.model import Network
from infer.model.network import student_architecture
from infer.pretrain.batches import Batch, stream, watched_views
from infer.pretrain.check import health, steadiness
from infer.pretrain.ema import Average
from infer.pretrain.frame import months_frame
from infer.pretrain.objective import Distilled, Teacher, Twins
from infer.pretrain.options import Recipe
from infer.pretrain.processes import Execution
from infer.pretrain.state import (
    Folder,
    claim,
    export,
    load_state,
    read_metrics,
    save_state,
    state_content,
    write_metrics,
)
from infer.pretrain.tiles import Reader, TileSet, draw_pairs, months_of
from infer.pretrain.views import View
from infer.progress import say

_LAST_RATE = 0.02
"""Part of the learning rate that is left at the end."""
FRAME_TILES, FRAME_PIXELS = 128, 128
"""How many tiles the frame of the months is made from (with replacement), and pixels of each."""
FRAME_STEP = 2**31 + 1
"""Stands for the step in the seed of these pixels."""


@dataclass(frozen=True)
class RecordedExecution(Execution):
    """One that keeps metrics."""

    record_every: int = 50
    """Steps between lines of metrics. (The lines change with it, the weights do not.)"""
    label: str = "student trained by smalti"


class Schedule(Protocol):
    """What the rate of a step depends on."""

    @property
    def learning_rate(self) -> float:
        """After the warm-up."""

    @property
    def warmup(self) -> int:
        """Steps of it."""

    @property
    def steps(self) -> int:
        """In all."""


def learning_rate(recipe: Schedule, step: int) -> float:
    """Rate of step `step` (from 0): a linear warm-up, then half a cosine."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def parameter_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (biases and norms) without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def frame_of(reader: Reader, recipe: Recipe) -> torch.Tensor | None:
    """(144, D) what the months of these tiles ask of the embedding; None if months are not read."""
    if not reader.monthly:
        return None
    ones, twos = [], []
    for group in range(FRAME_TILES):
        rng = np.random.default_rng([recipe.seed, FRAME_STEP, group])
        pairs = draw_pairs(reader.tiles, FRAME_PIXELS, recipe.reach, rng)
        tile = reader.tiles.tiles[pairs.number]
        ones.append(months_of(tile, pairs.one))
        twos.append(months_of(tile, pairs.two))
    one, two = (np.stack(months).astype(np.float64) for months in (ones, twos))
    rng = np.random.default_rng([recipe.seed, FRAME_STEP])
    return torch.from_numpy(months_frame(one, two, recipe.shape.repr_dim, recipe.monthly_power, rng))


class Training:
    """One training in one folder; `run` takes it from where it is to the end, or to `stop`."""

    def __init__(
        self, folder: Folder, recipe: Recipe, tiles: TileSet, execution: RecordedExecution, teacher: Teacher | None
    ) -> None:
        """Build everything and take up a state that is there.

        Raises:
            SmaltiError: if the folder belongs to another recipe, or its state is damaged.
        """
        self.folder, self.recipe, self.tiles, self.execution, self.teacher = folder, recipe, tiles, execution, teacher
        if execution.place.rank == 0:
            claim(folder, recipe, tiles)
        self.reader = Reader(tiles, execution.device, monthly=teacher is None and recipe.monthly_weight > 0)
        torch.manual_seed(recipe.seed)
        student = Network(student_architecture(recipe.published_args()))
        if teacher is None:
            objective: nn.Module = Twins(student, recipe, frame_of(self.reader, recipe))
        else:
            objective = Distilled(student, recipe, teacher.dim)
        self.objective: nn.Module = objective.to(execution.device)
        self.student = student
        self.average = Average(student, recipe.ema)
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.objective, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            fused=execution.device.type == "cuda",
        )
        self.step, self._loss_count = 0, 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=execution.device)
        self._resume()
        self.records = read_metrics(folder, self.step) if execution.place.rank == 0 else []
        self._watched = watched_views(self.reader, recipe)
        if execution.place.world > 1:
            ids = [execution.device] if execution.device.type == "cuda" else None
            self._step_module: nn.Module = DistributedDataParallel(self.objective, device_ids=ids)
        else:
            self._step_module = self.objective

    # --- state ----------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        state = load_state(self.folder)
        if state is None:
            return
        try:
            self.objective.load_state_dict(state["objective"])
            self.average.module.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self._loss_count = int(state["step"]), int(state["loss_count"])
            self._loss_sum.fill_(float(state["loss_sum"]))
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise FormatError(
                f"{self.folder.state}: not the state of this training ({reason}): delete it to start from the beginning"
            ) from error

    def save(self) -> None:
        """Write state, metrics and plot (first process only)."""
        self._check()
        if self.execution.place.rank != 0:
            return
        write_metrics(self.folder, self.records)
        content = state_content(
            step=self.step,
            loss_sum=float(self._loss_sum),
            loss_count=self._loss_count,
            objective=self.objective.state_dict(),
            average=self.average.module.state_dict(),
            optimiser=self.optimiser.state_dict(),
        )
        save_state(self.folder, content)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _forward(self, batch: Batch) -> torch.Tensor:
        device = self.execution.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            loss: torch.Tensor = self._step_module(batch.view, batch.prefix, batch.target)
        return loss

    def _train_on(self, batch: Batch) -> torch.Tensor:
        """One step; returns the gradient's norm. Nothing waits for an accelerator here."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        loss = self._forward(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.average.update(self.student, self.step)
        self._loss_sum += loss.detach()
        self._loss_count += 1
        self.step += 1
        return norm

    def _check(self) -> None:
        """The sum of losses shows any that was not finite, before a state or a record is written of it."""
        if not math.isfinite(float(self._loss_sum)):
            raise SmaltiError(
                f"{self.folder.root}: the loss is not finite at step {self.step - 1} or some steps before: "
                "lower --learning-rate (the last state is kept)",
                exit_code=EXIT_FAILED,
            )

    @torch.no_grad()
    def _embed(self, view: View) -> torch.Tensor:
        out: torch.Tensor = self.average.module(*view.batches())
        return out.cpu()

    def _record(self, norm: torch.Tensor) -> None:
        self._check()
        if self.execution.place.rank != 0:
            return
        whole, part = (self._embed(view) for view in self._watched)
        state = health(whole)
        plain, centred = steadiness(whole, part)
        record = {
            "step": self.step,
            "loss": float(self._loss_sum) / max(1, self._loss_count),
            "learning_rate": learning_rate(self.recipe, self.step - 1),
            "gradient_norm": float(norm),
            "effective_rank": state.effective_rank,
            "spread_min": state.spread_min,
            "spread_median": state.spread_median,
            "cosine": plain,
            "cosine_centred": centred,
        }
        self.records.append(record)
        say(
            f"pretrain: step {self.step}/{self.recipe.steps}  loss {record['loss']:.4f}  "
            f"rank {state.effective_rank:.1f}  spread {state.spread_min:.3f}..{state.spread_median:.3f}  "
            f"cosine {plain:.4f} (centred {centred:.3f})" + ("  COLLAPSED" if state.collapsed else "")
        )
        self._loss_sum.zero_()
        self._loss_count = 0

    def run(self, stop: threading.Event) -> int:
        """Train to the end, save and export.

        Returns:
            EXIT_OK, or EXIT_TRY_AGAIN when `stop` was set (the state is saved).

        Raises:
            SmaltiError: if the loss is not finite or the embeddings have collapsed.
        """
        target = self.teacher
        for _, batch in stream(self.reader, self.recipe, self.step, self.execution.place, target):
            norm = self._train_on(batch)
            if self.step % self.execution.record_every == 0 or self.step == self.recipe.steps:
                self._record(norm)
            if self.execution.asked_to_stop(stop):
                self.save()
                say(f"pretrain: stopped at step {self.step}: the same command goes on from there")
                return EXIT_TRY_AGAIN
            if self.step % self.execution.save_every == 0 or self.step == self.recipe.steps:
                self.save()
        self._finish()
        return EXIT_OK

    def _finish(self) -> None:
        if self.execution.place.rank != 0:
            return
        if health(self._embed(self._watched[0])).collapsed:
            raise SmaltiError(
                f"{self.folder.root}: the embeddings have collapsed, nothing is exported: see curve.svg, "
                "train longer or lower --learning-rate",
                exit_code=EXIT_FAILED,
            )
        write_metrics(self.folder, self.records)
        export(self.folder, self.average.module, self.recipe, self.tiles, self.execution.label)
        say(f"pretrain: wrote {self.folder.student}")
