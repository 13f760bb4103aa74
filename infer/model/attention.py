"""Softmax attention among the tokens of each pixel, by the kernels that suit the device, and the batches it works on.

A batch is packed without padding, in runs of pixels of equal length.

Sequences are short (a season has 20 to 70 dates) and many. "batched": two batched products with a float32 softmax in
between, the fastest on CPUs. "packed": our own kernel, which reads and writes the packed tokens as they lie. "bias":
torch's scaled_dot_product_attention with log multiplicities as an additive mask. "fused": the same with them in two
extra channels of queries and keys, which lets the flash kernels in, and yet took three times as long on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from infer.model.linear import agrees

QK_EPSILON = 1e-6
Kernel = Literal["batched", "packed", "bias", "fused"]
_LENGTHS = (5, 30, 50, 100)
"""Of the example: one for each size that the packed kernel is compiled for."""


@dataclass(frozen=True)
class Segment:
    """`pixels` consecutive pixels of `length` tokens each, starting at token `start` and pixel `first` of the batch."""

    start: int
    first: int
    pixels: int
    length: int
    log_multiplicity: torch.Tensor | None
    """Natural log of how often each token counts: (U,) for all pixels, or (P, U); float32; None when all count once."""
    expand: torch.Tensor | None = None
    """The full sequence as positions among a pixel's tokens, (B,) or (P, B) int64; for recurrent poolings only."""

    @property
    def stop(self) -> int:
        """One past its last token."""
        return self.start + self.pixels * self.length


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of one modality."""

    values_nc: torch.Tensor
    """(N, C) standardised bands, float32; rows beyond the last segment are padding (zeros)."""
    days_n: torch.Tensor
    """(N,) day of year, int64."""
    segments: tuple[Segment, ...]
    pixels: int
    """Number of pixels, the sum over the segments."""


@cache
def kernel_for(device: torch.device, dtype: torch.dtype, size: int, training: bool = False) -> Kernel:
    """Which kernel a device gets for heads of some size; fixed, so that a device gives the same bits every time."""
    if device.type in ("cpu", "mps"):
        return "batched"
    plain: Kernel = "bias" if device.type == "cuda" and not torch.version.hip else "fused"
    # In float32 the products of small blocks are slower in our kernel than in torch's.
    # It has no gradients.
    suits = device.type == "cuda" and dtype == torch.bfloat16 and size in (16, 32, 64, 128) and not training
    return "packed" if suits and _packed_works(device, dtype, size) else plain


def _packed_works(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether the packed kernel gives what torch's own operations give, for all its sizes, with and without norms."""
    try:
        from infer.model import triton_kernels  # noqa: F401  # attend imports it again
    except ImportError:
        return False
    generator = torch.Generator().manual_seed(0)
    segments: list[Segment] = []
    for length in _LENGTHS:
        log = torch.log(1 + torch.rand(length, generator=generator)).to(device)
        segments.append(Segment(segments[-1].stop if segments else 0, 3 * len(segments), 3, length, log))
    qkv = (torch.randn(segments[-1].stop + 2, 6 * size, generator=generator) / size**0.25).to(device, dtype)
    some = torch.rand(size, generator=generator).to(device, dtype)
    return all(
        agrees(
            lambda norms=norms: attend(qkv, segments, 2, norms, "packed"),  # type: ignore[misc]  # bound now
            lambda norms=norms: attend(qkv, segments, 2, norms, "batched"),  # type: ignore[misc]  # bound now
        )
        for norms in (None, (some, some))
    )


def attend(
    qkv_nd: torch.Tensor,
    segments: Sequence[Segment],
    heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Mix the values of every pixel's tokens.

    Args:
        qkv_nd: (N, 3d) queries (scaled already), keys, values; rows beyond the last segment are padding.
        segments: runs of pixels of equal length; a token's log multiplicity is added to its logits as a key.
        heads: number of heads; d is divided among them.
        norms: weights (d / heads,) of the RMSNorm on queries and on keys, or None.
        kernel: to override the device's.

    Returns:
        (N, d) in the precision of `qkv_nd`; zero in the padding.
    """
    width = qkv_nd.shape[1] // 3
    kernel = kernel or kernel_for(qkv_nd.device, qkv_nd.dtype, width // heads, torch.is_grad_enabled())
    out_nd = qkv_nd.new_empty(qkv_nd.shape[0], width)
    out_nd[segments[-1].stop :] = 0
    for run in segments:
        if kernel == "packed":
            from infer.model.triton_kernels import LONGEST, attend_run

            if run.length <= LONGEST:
                attend_run(qkv_nd, out_nd, run, heads, norms, QK_EPSILON)
                continue
        shape = (run.pixels, run.length, 3, heads, width // heads)
        qkv = qkv_nd[run.start : run.stop].view(shape).permute(2, 0, 3, 1, 4)
        if norms is not None:
            q, k, v = qkv
            q = F.rms_norm(q, norms[0].shape, norms[0], QK_EPSILON)
            k = F.rms_norm(k, norms[1].shape, norms[1], QK_EPSILON)
        elif kernel == "batched":
            q, k, v = qkv.contiguous()
        else:
            q, k, v = qkv
        mixed = _KERNELS[kernel](q, k, v, run.log_multiplicity)
        out_nd[run.start : run.stop].view(run.pixels, run.length, heads, -1).copy_(mixed.transpose(1, 2))
    return out_nd


def _batched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log: torch.Tensor | None) -> torch.Tensor:
    pixels, heads, length, size = q.shape
    flat = (pixels * heads, length, size)
    q, k, v = (x.reshape(flat) for x in (q, k, v))
    if log is None:
        logits = torch.bmm(q, k.transpose(1, 2))
    else:
        bias = log.to(q.dtype).reshape(-1, 1, 1, length).expand(pixels, heads, 1, length).reshape(-1, 1, length)
        logits = torch.baddbmm(bias, q, k.transpose(1, 2))
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(v.dtype)
    return torch.bmm(weights, v).view(pixels, heads, length, size)


def _bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log: torch.Tensor | None) -> torch.Tensor:
    mask = None if log is None else log.to(q.dtype).reshape(-1, 1, 1, q.shape[2])
    if mask is not None:
        mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log: torch.Tensor | None) -> torch.Tensor:
    if log is None:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    size = q.shape[3]
    wanted = log.reshape(-1, 1, log.shape[-1], 1)
    high = wanted.to(q.dtype)
    low = (wanted - high.float()).to(q.dtype)  # what the first channel loses in bfloat16
    ones = q.new_ones(1, 1, 1, 1).expand(*q.shape[:3], 2)
    extra = torch.cat([high, low], dim=-1).expand(*k.shape[:3], 2)
    pad = -(size + 2) % 8  # the flash kernels want a multiple of eight channels, the same in all three
    q = F.pad(torch.cat([q, ones], dim=-1), (0, pad))
    k = F.pad(torch.cat([k, extra], dim=-1), (0, pad))
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 2 + pad)), scale=1.0)[..., :size]


_KERNELS = {"batched": _batched, "packed": _bias, "bias": _bias, "fused": _fused}
"""What takes a run's queries, keys and values, (P, heads, U, d / heads) each; "packed" leaves long runs to torch."""
