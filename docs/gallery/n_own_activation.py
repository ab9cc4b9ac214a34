"""
An activation of your own
=========================

Written in Python, compiled into the CUDA kernels and, where Numba is installed, into the CPU
engine: ``net.plan`` says whether it was.
"""

import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import Activation, Network

sine = Activation("sine", lambda z: np.sin(z), lambda z: np.cos(z))
rng = np.random.default_rng(0)
x = rng.uniform(-10, 10, (2000, 1))
y = np.sin(3 * x) * np.exp(-0.1 * x**2)
grid = np.linspace(-10, 10, 500)[:, None]

figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
axis.plot(
    grid,
    np.sin(3 * grid) * np.exp(-0.1 * grid**2),
    color="gray",
    linewidth=4,
    alpha=0.4,
    label="to learn",
)
for activation in (sine, "tanh"):
    net = Network([1, 64, 64, 1], activation=[activation, activation, "identity"], seed=0)
    net.fit(x, y, epochs=100, batch_size=20, learning_rate=0.002, optimizer="adam")
    axis.plot(grid, net.predict(grid), label=net.activations[0].name)
axis.set(xlabel="x", ylabel="y")
axis.legend(frameon=False)
plt.show()

print(net.plan)
