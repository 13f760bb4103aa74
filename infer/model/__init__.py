"""The network families, built from a checkpoint and run on packed tokens."""

from infer.model.architecture import Architecture, BackboneShape, read_architecture
from infer.model.attention import Segment, TokenBatch
from infer.model.network import Modality, Network, build_network, uniform_batch

__all__ = [
    "Architecture",
    "BackboneShape",
    "Modality",
    "Network",
    "Segment",
    "TokenBatch",
    "build_network",
    "read_architecture",
    "uniform_batch",
]
