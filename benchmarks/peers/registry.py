"""The peers by name, in the order that tables show them."""

from __future__ import annotations

from . import Peer
from .cupy_plain import PlainCuPy
from .drop_ins import OurEstimators, OurModule
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
#: Timed where they are asked for by name.
DROP_INS: dict[str, Peer] = {peer.name: peer for peer in (OurEstimators(), OurModule())}


def get(name: str) -> Peer:
    """The peer of that name.

    Raises
    ------
    ValueError
        For an unknown name, listing the known ones.
    """
    known = PEERS | DROP_INS
    if name not in known:
        raise ValueError(f"unknown peer {name!r}; known: {', '.join(known)}")
    return known[name]
