"""The peers by name, in the order that tables show them."""

from __future__ import annotations

from . import Peer
from .cupy_plain import PlainCuPy
from .jax_scan import JaxScan
from .ours import Ours
from .plain_numpy import PlainNumPy
from .scikit_learn import ScikitLearn
from .tiny_cuda_nn import TinyCudaNN
from .torch_compile import TorchCompile
from .torch_eager import TorchEager
from .torch_graph import TorchGraph, TorchGraphTF32

_ALL: tuple[Peer, ...] = (
    Ours(),
    PlainNumPy(),
    ScikitLearn(),
    TorchEager(),
    TorchCompile(),
    TorchGraph(),
    TorchGraphTF32(),
    JaxScan(),
    PlainCuPy(),
    TinyCudaNN(),
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in _ALL}


def get(name: str) -> Peer:
    """The peer of that name.

    Raises
    ------
    ValueError
        For an unknown name, listing the known ones.
    """
    if name not in PEERS:
        raise ValueError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")
    return PEERS[name]
