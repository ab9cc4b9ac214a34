"""
The demon checks the gradients
==============================

``check_gradients`` nudges every z, and weights and biases, by a little, and compares what C does
with what backpropagation says. Do it once for an activation or a cost of your own.
"""

import numpy as np

from backprop_gpu import Activation, Network, datasets

X, y = datasets.digits()
swish = Activation(
    "swish2",
    lambda z: z / (1 + np.exp(-2 * z)),
    lambda z: 1 / (1 + np.exp(-2 * z)) * (1 + 2 * z / (1 + np.exp(2 * z))),
)
net = Network(
    [64, 20, 12, 10], activation=[swish, swish, "softmax"], cost="categorical_cross_entropy", seed=1
)
report = net.check_gradients(X[:30] / 16, y[:30])
print(report)

# %%
# Each neuron's error, and how large its δ is:
report.plot()

# %%
# A derivative that is wrong by a hundredth is found at once.
wrong = Activation("wrong", swish.function, lambda z: 1.01 * swish.derivative(z))
net = Network(
    [64, 20, 12, 10], activation=[wrong, wrong, "softmax"], cost="categorical_cross_entropy", seed=1
)
print(net.check_gradients(X[:30] / 16, y[:30]))
