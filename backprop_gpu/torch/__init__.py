"""PyTorch's models as ours and ours as PyTorch's, and our equations as a layer of PyTorch's::

    from_torch, to_torch    a module as a `Network`, and back as an nn.Sequential: the same numbers
    MLP                     an nn.Sequential whose forward pass and gradients are one function, the
                            notes' equations
    TorchCommunicator       one training on the processes that torchrun has started

`docs/torch.md` tells what is the same and what differs. Only this package imports PyTorch
(``pip install 'backprop_gpu[torch]'``).

PyTorch differentiates C itself, whose gradient with respect to the outputs is
∂C/∂a = ∇_a C_x / m for a mean over m samples. δ is here ∂C/∂z, the notes' δ divided by m, so
that BP3 and BP4 are sums over the samples where the notes have means.
"""

# ruff: noqa: E402
from ..imports import optional

optional("torch", "torch", __name__)

from .conversion import from_torch, to_torch
from .mlp import MLP
from .modules import ExponentialModule, UsersActivation
from .ranks import TorchCommunicator

__all__ = ["MLP", "TorchCommunicator", "from_torch", "to_torch"]

#: What torch.save has written before calls them so.
_Exponential, _UsersActivation = ExponentialModule, UsersActivation
