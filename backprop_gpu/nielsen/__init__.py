"""The two trainers of Nielsen's *Neural Networks and Deep Learning*, an epoch as one engine call.

>>> from backprop_gpu.nielsen import network, network2
>>> net = network.Network([784, 30, 10])
>>> net.SGD(training_data, 30, 10, 3.0, test_data=test_data)  # doctest: +SKIP

`network` is the module of chapters 1 and 2, `network2` that of chapter 3. ``docs/nielsen.md`` says
what is the same and what is not.
"""

from . import network, network2

__all__ = ["network", "network2"]
