"""From the tokens of a pixel to one vector: softmax over time, with or without a GRU before the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from infer.model.batch import Segment, TokenBatch
from infer.model.layers import Norm
from infer.model.linear import Linear
from infer.model.state import StateReader


def _weighted(scores_pu: torch.Tensor, tokens_pud: torch.Tensor) -> torch.Tensor:
    """(P, d) mean of the tokens under softmax(scores), summed in float32."""
    weights_pu = torch.softmax(scores_pu.float(), dim=1).to(tokens_pud.dtype)
    return torch.bmm(weights_pu[:, None, :], tokens_pud)[:, 0].float()


@dataclass(frozen=True)
class SoftmaxPool:
    """Scores by one Linear(d, 1)."""

    query: Linear

    @classmethod
    def read(cls, state: StateReader, prefix: str, width: int) -> SoftmaxPool:
        """Take `prefix.query`."""
        return cls(Linear.read(state, f"{prefix}.query", 1, width))

    def to(self, device: torch.device, dtype: torch.dtype) -> SoftmaxPool:
        """The same on a device in a precision."""
        return SoftmaxPool(self.query.to(device, dtype))

    def __call__(self, x_nd: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
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


@dataclass(frozen=True)
class GruPool:
    """Scores from the states of a GRU that walks the whole sequence, repeats and all.

    "hand": h~ = tanh(W x + b + U (r * h)), h' = (1 - z) h + z h~, then a LayerNorm on the states (v1.1, v1.0 QAT);
    "torch": h~ = tanh(W x + b + r * (U h + c)), h' = (1 - z) h~ + z h, as nn.GRU, no LayerNorm (v1.0).
    """

    kind: Literal["hand", "torch"]
    inputs: Linear
    """(3d, d): reset, update, candidate."""
    gates: Linear
    """(2d, d) on the state: reset, update."""
    candidate: Linear
    """(d, d) on the state."""
    query: Linear
    norm: Norm | None

    @classmethod
    def read(cls, state: StateReader, prefix: str, width: int, kind: Literal["hand", "torch"]) -> GruPool:
        """Take the GRU's, the norm's and the query's parameters."""
        context = f"{prefix}.temporal_context"
        query = Linear.read(state, f"{prefix}.query", 1, width)
        if kind == "torch":
            weight_ih = state.take(f"{context}.weight_ih_l0", 3 * width, width)
            weight_hh = state.take(f"{context}.weight_hh_l0", 3 * width, width)
            bias_ih = state.take(f"{context}.bias_ih_l0", 3 * width)
            bias_hh = state.take(f"{context}.bias_hh_l0", 3 * width)
            gates = Linear(weight_hh[: 2 * width], bias_hh[: 2 * width])
            candidate = Linear(weight_hh[2 * width :], bias_hh[2 * width :])
            return cls(kind, Linear(weight_ih, bias_ih), gates, candidate, query, None)
        cell = f"{context}.gru_cell"
        into = torch.cat([state.take(f"{cell}.W_i{g}.weight", width, width) for g in "rzh"])
        bias = torch.cat([state.take(f"{cell}.b_{g}", width) for g in "rzh"])
        hidden = [state.take(f"{cell}.W_h{g}.weight", width, width) for g in "rzh"]
        gates = Linear(torch.cat(hidden[:2]), torch.zeros(2 * width))
        candidate = Linear(hidden[2], torch.zeros(width))
        return cls(kind, Linear(into, bias), gates, candidate, query, Norm.read(state, f"{prefix}.layer_norm", width))

    def to(self, device: torch.device, dtype: torch.dtype) -> GruPool:
        """The same on a device in a precision."""
        return GruPool(
            self.kind,
            self.inputs.to(device, dtype),
            self.gates.to(device, dtype),
            self.candidate.to(device, dtype),
            self.query.to(device, dtype),
            None if self.norm is None else self.norm.to(device, dtype),
        )

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
            scores.append(self.query(h_pd if self.norm is None else self.norm(h_pd))[:, 0].float())
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

    def __call__(self, x_nd: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """(P, d) float32 from packed tokens (N, d)."""
        into_nk = self.inputs(x_nd)
        return torch.cat([self._run(x_nd, into_nk, run) for run in batch.segments])
