"""From the tokens of a pixel to one vector: softmax over time, with or without a GRU before the scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from infer.model.attention import Segment, TokenBatch
from infer.model.linear import NORM_EPSILON, Linear


def _weighted(scores_pu: torch.Tensor, tokens_pud: torch.Tensor) -> torch.Tensor:
    """(P, d) mean of the tokens under softmax(scores), summed in float32."""
    weights_pu = torch.softmax(scores_pu.float(), dim=1).to(tokens_pud.dtype)
    return torch.bmm(weights_pu[:, None, :], tokens_pud)[:, 0].float()


class SoftmaxPool(nn.Module):
    """Scores by one Linear(d, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = Linear(width, 1)

    def forward(self, x_nd: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 from packed tokens (N, d)."""
        scores_n = self.query(x_nd)[:, 0].float()
        out_pd = torch.empty(batch.pixels, x_nd.shape[1], device=x_nd.device)
        for run in batch.segments:
            scores_pu = scores_n[run.start : run.stop].view(run.pixels, run.length)
            if run.log_multiplicity is not None:
                scores_pu = scores_pu + run.log_multiplicity
            tokens_pud = x_nd[run.start : run.stop].view(run.pixels, run.length, -1)
            out_pd[run.first : run.first + run.pixels] = _weighted(scores_pu, tokens_pud)
        return out_pd


class HandCell(nn.Module):
    """The parameters of the GRU that v1.1 and v1.0 QAT bring with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for gate in "rzh":
            self.add_module(f"W_i{gate}", nn.Linear(width, width, bias=False))
            self.add_module(f"W_h{gate}", nn.Linear(width, width, bias=False))
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.zeros(width)))


class GruPool(nn.Module):
    """Scores from the states of a GRU that walks the whole sequence, repeats and all.

    "hand": h~ = tanh(W x + b + U (r * h)), h' = (1 - z) h + z h~, then a LayerNorm on the states (v1.1, v1.0 QAT);
    "torch": h~ = tanh(W x + b + r * (U h + c)), h' = (1 - z) h~ + z h, as nn.GRU, no LayerNorm (v1.0).
    """

    layer_norm: nn.LayerNorm
    """Of "hand"."""
    inputs: Linear
    """(3d, d): reset, update, candidate. This and the next two are there once folded."""
    gates: Linear
    """(2d, d) on the state: reset, update."""
    candidate: Linear
    """(d, d) on the state."""

    def __init__(self, width: int, kind: Literal["hand", "torch"]) -> None:
        super().__init__()
        self.kind = kind
        self.query = Linear(width, 1)
        self.temporal_context: nn.Module = (
            nn.GRU(width, width) if kind == "torch" else nn.ModuleDict({"gru_cell": HandCell(width)})
        )
        if kind == "hand":
            self.layer_norm = nn.LayerNorm(width, NORM_EPSILON)

    def fold(self) -> None:
        """Stack the GRU's parameters for good into three products, which take no gradients."""
        held = {name.removeprefix("gru_cell."): value for name, value in self.temporal_context.state_dict().items()}
        width = self.query.in_features
        if self.kind == "torch":
            weight, bias = held["weight_hh_l0"], held["bias_hh_l0"]
            self.inputs = Linear.of(held["weight_ih_l0"], held["bias_ih_l0"])
            self.gates = Linear.of(weight[: 2 * width], bias[: 2 * width])
            self.candidate = Linear.of(weight[2 * width :], bias[2 * width :])
        else:
            into, on_state = (torch.cat([held[f"W_{x}{gate}.weight"] for gate in "rzh"]) for x in "ih")
            self.inputs = Linear.of(into, torch.cat([held[f"b_{gate}"] for gate in "rzh"]))
            self.gates = Linear.of(on_state[: 2 * width], torch.zeros(2 * width))
            self.candidate = Linear.of(on_state[2 * width :], torch.zeros(width))
        del self.temporal_context

    def _step(self, into_pd: torch.Tensor, h_pd: torch.Tensor) -> torch.Tensor:
        width = h_pd.shape[1]
        gates = torch.sigmoid(into_pd[:, : 2 * width] + self.gates(h_pd))
        r, z = gates[:, :width], gates[:, width:]
        if self.kind == "hand":
            new = torch.tanh(into_pd[:, 2 * width :] + self.candidate(r * h_pd))
            return h_pd + z * (new - h_pd)
        new = torch.tanh(into_pd[:, 2 * width :] + r * self.candidate(h_pd))
        return new + z * (h_pd - new)

    def _scores(self, into_puk: torch.Tensor, expand: torch.Tensor) -> torch.Tensor:
        """(P, B) scores of the expanded sequence; inputs are projected once per distinct token."""
        pixels = into_puk.shape[0]
        h_pd = into_puk.new_zeros(pixels, into_puk.shape[2] // 3)
        rows = torch.arange(pixels, device=into_puk.device)
        scores = []
        for step in range(expand.shape[-1]):
            now = into_puk[:, expand[step]] if expand.ndim == 1 else into_puk[rows, expand[:, step]]
            h_pd = self._step(now, h_pd)
            scores.append(self.query(self.layer_norm(h_pd) if self.kind == "hand" else h_pd)[:, 0].float())
        return torch.stack(scores, dim=1)

    def _run(self, x_nd: torch.Tensor, into_nk: torch.Tensor, run: Segment) -> torch.Tensor:
        if run.expand is None:
            raise ValueError("a GRU pooling needs the expanded sequence")
        tokens_pud = x_nd[run.start : run.stop].view(run.pixels, run.length, -1)
        into_puk = into_nk[run.start : run.stop].view(run.pixels, run.length, -1)
        weights_pb = torch.softmax(self._scores(into_puk, run.expand), dim=1)
        positions_pb = run.expand.expand(run.pixels, -1)
        weights_pu = weights_pb.new_zeros(run.pixels, run.length).scatter_add_(1, positions_pb, weights_pb)
        return torch.bmm(weights_pu[:, None, :].to(x_nd.dtype), tokens_pud)[:, 0].float()

    def forward(self, x_nd: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 from packed tokens (N, d)."""
        into_nk = self.inputs(x_nd)
        return torch.cat([self._run(x_nd, into_nk, run) for run in batch.segments])
