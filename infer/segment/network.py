"""The U-Net: two poolings, GroupNorm, nothing that depends on more than its own chip. Its arrays are those of
`infer.contract.segment.shapes`, in which it is kept and applied without torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from infer.contract.segment import BLOCKS

_GROUP = 8
"""Channels that are normalised together."""


class Block(nn.Module):
    """A convolution of 3 x 3 pixels, GroupNorm and ReLU."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(out // _GROUP, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, into, h, w) -> (B, out, h, w)."""
        result: torch.Tensor = functional.relu(self.norm(self.conv(x)))
        return result


def halved(x: torch.Tensor) -> torch.Tensor:
    """Means of 2 x 2 pixels. By reshaping, whose gradient is the same on every device each time."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Each pixel four times."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h, 1, w, 1).expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


class UNet(nn.Module):
    """Embeddings and where they are (B, C + 1, h, w) -> scores of classes (B, K, h, w); h and w are multiples of 4."""

    def __init__(self, dim: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(dim + 1, width, 1)
        self.down0 = Block(width, width)
        self.down1 = Block(width, 2 * width)
        self.down2 = Block(2 * width, 2 * width)
        self.up1 = Block(4 * width, 2 * width)
        self.up0 = Block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of every pixel; without softmax."""
        whole = self.down0(functional.relu(self.stem(x)))
        half = self.down1(halved(whole))
        quarter = self.down2(halved(half))
        half = self.up1(torch.cat([doubled(quarter), half], dim=1))
        whole = self.up0(torch.cat([doubled(half), whole], dim=1))
        result: torch.Tensor = self.head(whole)
        return result


def arrays(network: UNet) -> dict[str, NDArray[np.float32]]:
    """The arrays of a network as they are kept."""

    def plain(value: torch.Tensor) -> NDArray[np.float32]:
        result: NDArray[np.float32] = np.ascontiguousarray(value.detach().float().cpu().numpy())
        return result

    found = {"stem_w": plain(network.stem.weight[:, :, 0, 0].T), "stem_b": plain(_bias(network.stem))}
    for name in BLOCKS:
        block = getattr(network, name)
        found[f"{name}_w"] = plain(block.conv.weight.permute(2, 3, 1, 0))
        found[f"{name}_g"], found[f"{name}_b"] = plain(block.norm.weight), plain(block.norm.bias)
    return {**found, "head_w": plain(network.head.weight[:, :, 0, 0].T), "head_b": plain(_bias(network.head))}


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None, "both 1 x 1 convolutions have one"
    return layer.bias
