"""The programs of Nielsen's *Neural Networks and Deep Learning*, an epoch as one engine call.

>>> from backprop_gpu.nielsen import network, network2
>>> net = network.Network([784, 30, 10])
>>> net.SGD(training_data, 30, 10, 3.0, test_data=test_data)  # doctest: +SKIP

`network` is the module of chapters 1 and 2, `network2` that of chapter 3, `network3` that of
chapter 6, and `mnist_loader` reads their data. `expand_mnist` and `figures` are commands, too.
``docs/nielsen.md`` says what is the same and what is not.
"""

from . import mnist_loader, network, network2, network3

__all__ = ["mnist_loader", "network", "network2", "network3"]
