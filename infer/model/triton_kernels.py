"""What stands between matrix products on an accelerator, in Triton: attention, residual sum and LayerNorm.

There these steps are bound by memory, not by arithmetic: each kernel here reads its input once and writes its output
once, where torch's own operations take several passes and copies. Triton comes with torch's builds for CUDA and ROCm;
it compiles with the machine's C compiler and keeps what it compiled in TRITON_CACHE_DIR. Only
infer.model.attention and pointwise import this module, and try each kernel before it is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from infer.model.attention import Segment

LONGEST = 128
"""Tokens of a pixel: its logits have to fit the registers of one program."""
_ROWS = 4
"""Of LayerNorm, a program."""


@triton.jit(do_not_specialize=["start", "length", "log_stride"])  # type: ignore[untyped-decorator]  # Triton has no types
def _attend(  # type: ignore[no-untyped-def]  # as above
    qkv,
    out,
    log,
    q_norm,
    k_norm,
    start,
    length,
    log_stride,
    epsilon: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG: tl.constexpr,
    NORMS: tl.constexpr,
):
    pixel, head = tl.program_id(0), tl.program_id(1)
    row, channel = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    inside = row < length
    token = (start + pixel * length + row).to(tl.int64)
    place = qkv + token[:, None] * (3 * WIDTH) + head * SIZE + channel[None, :]
    q = tl.load(place, mask=inside[:, None], other=0.0)
    k = tl.load(place + WIDTH, mask=inside[:, None], other=0.0)
    v = tl.load(place + 2 * WIDTH, mask=inside[:, None], other=0.0)
    if NORMS:
        wide_q, wide_k = q.to(tl.float32), k.to(tl.float32)
        wide_q *= tl.rsqrt(tl.sum(wide_q * wide_q, 1) / SIZE + epsilon)[:, None]
        wide_k *= tl.rsqrt(tl.sum(wide_k * wide_k, 1) / SIZE + epsilon)[:, None]
        q = (wide_q * tl.load(q_norm + channel).to(tl.float32)[None, :]).to(v.dtype)
        k = (wide_k * tl.load(k_norm + channel).to(tl.float32)[None, :]).to(v.dtype)
    logits = tl.dot(q, tl.trans(k))
    if LOG:
        logits += tl.load(log + pixel * log_stride + row, mask=inside, other=0.0)[None, :]
    logits = tl.where(inside[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    mixed = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
    place = out + token[:, None] * WIDTH + head * SIZE + channel[None, :]
    tl.store(place, mixed.to(v.dtype), mask=inside[:, None])


def attend_run(
    qkv_nd: torch.Tensor,
    out_nd: torch.Tensor,
    run: Segment,
    heads: int,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
) -> None:
    """Mix the values of a run's tokens, at most LONGEST a pixel, into their rows of `out_nd`.

    Args:
        qkv_nd: (N, 3d) queries (scaled), keys, values in bfloat16.
        out_nd: (N, d).
        run: which rows, and the log multiplicities of keys.
        heads: of d / heads channels, a power of two of at least 16.
        norms: weights of the RMSNorm on queries and on keys, or None.
        epsilon: of that norm.
    """
    width = out_nd.shape[1]
    log = run.log_multiplicity
    block = max(16, triton.next_power_of_2(run.length))
    _attend[(run.pixels, heads)](
        qkv_nd,
        out_nd,
        qkv_nd if log is None else log.contiguous(),
        qkv_nd if norms is None else norms[0],
        qkv_nd if norms is None else norms[1],
        run.start,
        run.length,
        run.length if log is not None and log.ndim == 2 else 0,
        epsilon,
        width,
        width // heads,
        block,
        log is not None,
        norms is not None,
        num_warps=2 if block <= 32 else 4,
    )


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # as above
def _add_norm(  # type: ignore[no-untyped-def]  # as above
    x,
    residual,
    weight,
    bias,
    out,
    rows,
    epsilon: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    across = channel < WIDTH
    inside = (row < rows)[:, None] & across[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + channel[None, :]
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(across[None, :], total - (tl.sum(total, 1) / WIDTH)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + epsilon)
    gain = tl.load(weight + channel, mask=across, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=across, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


def add_norm(
    x_nd: torch.Tensor, residual_nd: torch.Tensor, weight_d: torch.Tensor, bias_d: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """LayerNorm(x + residual) over the last axis of contiguous (N, d)."""
    rows, width = x_nd.shape
    out_nd = torch.empty_like(x_nd)
    block = triton.next_power_of_2(width)
    _add_norm[(triton.cdiv(rows, _ROWS),)](
        x_nd, residual_nd, weight_d, bias_d, out_nd, rows, epsilon, width, block, _ROWS, num_warps=4
    )
    return out_nd
