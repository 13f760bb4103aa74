"""What a student is trained towards: the losses, the module around it for one step, and a teacher to distil.

Losses: Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230) tile by tile; what embeddings miss of their pixels' months;
the cosine of distillation. Student, projector and loss are one module, which DistributedDataParallel can wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.distributed.nn.functional import all_reduce

from infer.contract import Tile
from infer.contract.monthly import MONTHLY_DIM
from infer.device import Device
from infer.engine import Engine
from infer.model import Network
from infer.pretrain.options import Recipe
from infer.pretrain.tiles import cut
from infer.pretrain.views import View
from infer.weights import check_source, load_checkpoint


def standardised(z: torch.Tensor, groups: int) -> torch.Tensor:
    """(P, D) to (groups, P / groups, D) with mean 0 and variance 1 within each of the equal runs of rows."""
    z = z.float().view(groups, -1, z.shape[1])
    var, mean = torch.var_mean(z, dim=1, keepdim=True, correction=0)
    return (z - mean) * (var + 1e-4).rsqrt()


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value


def barlow_twins(
    one: torch.Tensor,
    two: torch.Tensor,
    weight: float,
    groups: int = 1,
    average: Callable[[torch.Tensor], torch.Tensor] = _unchanged,
) -> torch.Tensor:
    """Cross-correlation of two views (P, D) pulled to the identity; the sum over its elements divided by D.

    Args:
        one: first view.
        two: second view, row by row of pixels that should look alike.
        weight: of the off-diagonal elements.
        groups: equal runs of rows (tiles) that are standardised each by itself, so that what sets whole tiles apart
            (season, sun, sensor) earns nothing.
        average: mean of the correlation matrix over processes.
    """
    a, b = standardised(one, groups), standardised(two, groups)
    cross = average(torch.einsum("gpi,gpj->ij", a, b) / one.shape[0])
    diagonal = torch.diagonal(cross)
    on = (diagonal - 1).square().sum()
    off = cross.square().sum() - diagonal.square().sum()
    return (on + weight * off) / one.shape[1]


def missed(
    told_pd: torch.Tensor,
    wanted_pd: torch.Tensor,
    groups: int,
    average: Callable[[torch.Tensor], torch.Tensor] = _unchanged,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squares by which `told` misses `wanted` (P, D): among the rows of each tile, and of whole tiles.

    Within a tile both are taken from their means: what sets whole tiles apart (season, sun, sensor) need not be told.
    The second is how far the tiles' mean rows of `told` lie apart: what it costs to tell it all the same.
    """
    left = (wanted_pd - told_pd.float()).view(groups, -1, told_pd.shape[1])
    mean = told_pd.float().view(groups, -1, told_pd.shape[1]).mean(dim=1)
    apart = mean - average(mean.mean(dim=0))
    return (left - left.mean(dim=1, keepdim=True)).square().mean(), apart.square().mean()


def cosine_distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the rows of two (P, D), averaged."""
    return 1 - F.cosine_similarity(one.float(), two.float(), dim=1).mean()


class GroupNorm(nn.Module):
    """Batch normalisation within each tile's pixels: no running statistics, the same for any number of processes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: torch.Tensor, groups: int) -> torch.Tensor:
        """(P, D) to (P, D)."""
        z_gpd = z.float().view(groups, -1, z.shape[1])
        var, mean = torch.var_mean(z_gpd, dim=1, keepdim=True, correction=0)
        out: torch.Tensor = ((z_gpd - mean) * (var + 1e-5).rsqrt()).view_as(z) * self.weight + self.bias
        return out


class Projector(nn.Module):
    """What the loss looks at during training and nothing keeps afterwards."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden, bias=False)
        self.norm = GroupNorm(hidden)
        self.last = nn.Linear(hidden, hidden, bias=False)

    def forward(self, z: torch.Tensor, groups: int) -> torch.Tensor:
        """(P, out) to (P, hidden); rows in `groups` equal runs, one a tile and view."""
        out: torch.Tensor = self.last(torch.relu(self.norm(self.first(z), groups)))
        return out


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The average over all processes, through which gradients flow; the value itself without torchrun."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    summed: torch.Tensor = all_reduce(value)  # type: ignore[no-untyped-call]  # torch publishes no type for it
    return summed / dist.get_world_size()


class Twins(nn.Module):
    """What the pixels' months were like in the whole season, in a frame with a number for each of the embedding's; and
    Barlow Twins on the projected embeddings, on one random prefix and, if wanted, on the embedding itself.
    """

    frame_fd: torch.Tensor
    """(144, D) from months to what the embedding's numbers should be (`infer.pretrain.frame`)."""

    def __init__(self, student: Network, recipe: Recipe, frame_fd: torch.Tensor | None = None) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        width = student.architecture.output
        self.projector = Projector(width, recipe.projector)
        self.register_buffer("frame_fd", torch.zeros(MONTHLY_DIM, width) if frame_fd is None else frame_fd)

    def forward(self, view: View, prefix: int, months_pf: torch.Tensor | None) -> torch.Tensor:
        """Loss of a batch.

        Args:
            view: first views of this process's pixels, then second views, tile by tile.
            prefix: how much of the embedding the Matryoshka term sees.
            months_pf: (2P, 144) what the pixels' months were like.
        """
        z: torch.Tensor = self.student(*view.batches())
        recipe = self.recipe
        loss = z.new_zeros(())
        if recipe.twins_weight > 0:
            loss = loss + recipe.twins_weight * self._all_twins(z, prefix)
        if months_pf is not None:
            wanted = months_pf @ self.frame_fd
            terms = missed(z, wanted, 2 * self._groups(), average=mean_over_processes)
            within, whole = (mean_over_processes(term) for term in terms)  # so that what is recorded is of all
            loss = loss + recipe.monthly_weight * (within + recipe.offset_weight * whole)
        return loss

    def _groups(self) -> int:
        """This process's tiles."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return self.recipe.groups // world

    def _all_twins(self, z: torch.Tensor, prefix: int) -> torch.Tensor:
        recipe = self.recipe
        loss = self._twins(z, project=True)
        if recipe.prefix_weight > 0:
            cut = z * (torch.arange(z.shape[1], device=z.device) < prefix)
            loss = loss + recipe.prefix_weight * self._twins(cut, project=True)
        if recipe.direct_weight > 0:
            loss = loss + recipe.direct_weight * self._twins(z, project=False)
        return loss

    def _twins(self, z: torch.Tensor, *, project: bool) -> torch.Tensor:
        groups = self._groups()
        seen = self.projector(z, 2 * groups) if project else z
        one, two = seen.chunk(2)
        weight = self.recipe.redundancy if project else self.recipe.direct_redundancy
        return barlow_twins(one, two, weight, groups, average=mean_over_processes)


class Distilled(nn.Module):
    """Cosine distance to a teacher's embeddings on every prefix.

    A teacher of the student's length is matched number by number (prefix to prefix); one of another length through a
    linear map from each prefix, which is dropped afterwards.
    """

    def __init__(self, student: Network, recipe: Recipe, teacher_dim: int) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        same = teacher_dim == student.architecture.output
        maps = [] if same else [nn.Linear(size, teacher_dim) for size in recipe.prefixes]
        self.maps = nn.ModuleList(maps)

    def forward(self, view: View, _prefix: int, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch against (P, E) embeddings of the teacher; every prefix counts."""
        z = self.student(*view.batches())
        parts = []
        for place, size in enumerate(self.recipe.prefixes):
            if len(self.maps):
                parts.append(cosine_distance(self.maps[place](z[:, :size]), target))
            else:
                parts.append(cosine_distance(z[:, :size], target[:, :size]))
        return torch.stack(parts).mean()


class Teacher:
    """Embeds pixels with a published model of any family that the engine runs."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Load a checkpoint.

        Raises:
            SmaltiError: if it is not a checkpoint that smalti knows.
        """
        self.checkpoint = load_checkpoint(path)
        threads = torch.get_num_threads()
        self._engine = Engine(self.checkpoint, Device(device, "float32", 1))
        torch.set_num_threads(threads)  # the engine takes one thread a worker; training goes on with its own
        self.dim = self._engine.architecture.saved

    def __call__(self, tile: Tile, position_p: NDArray[np.int64]) -> torch.Tensor:
        """(P, E) float32 embeddings of the pixels at flat positions of a tile."""
        check_source(self.checkpoint, tile.name, tile.manifest.data_source)
        result = self._engine.embed(cut(tile, position_p))
        return torch.from_numpy(np.ascontiguousarray(result.values_hwc[0]))
