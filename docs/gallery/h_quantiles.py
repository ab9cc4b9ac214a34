"""
Quantiles, and noise that grows
===============================

The mean is half of the story. With the pinball loss of three quantiles a network learns a band;
with a Gaussian's likelihood, a mean and a deviation.
"""

import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import Network
from backprop_gpu.costs import Quantile

rng = np.random.default_rng(0)
x = rng.uniform(-3, 3, 2000)
y = np.sin(2 * x) + rng.normal(size=2000) * 0.1 * np.exp(0.5 * x)
grid = np.linspace(-3, 3, 200)

how = {"epochs": 60, "batch_size": 50, "learning_rate": 0.005, "optimizer": "adam"}
band = Network(
    [1, 64, 64, 3], activation=["tanh", "tanh", "identity"], cost=Quantile((0.1, 0.5, 0.9)), seed=0
)
band.fit(x[:, None], y, **how)
gaussian = Network(
    [1, 64, 64, 2], activation=["tanh", "tanh", "identity"], cost="gaussian_nll", seed=0
)
gaussian.fit(x[:, None], y, **how)

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axis in axes:
    axis.plot(x, y, ".", markersize=2, color="gray", alpha=0.5)
    axis.set_xlabel("x")
low, middle, high = band.predict(grid[:, None]).T
axes[0].fill_between(grid, low, high, alpha=0.3)
axes[0].plot(grid, middle)
axes[0].set(title="quantiles 0.1, 0.5 and 0.9", ylabel="y")
mean, log_variance = gaussian.predict(grid[:, None]).T
deviation = np.exp(log_variance / 2)
axes[1].fill_between(grid, mean - deviation, mean + deviation, alpha=0.3, color="#d1602b")
axes[1].plot(grid, mean, color="#d1602b")
axes[1].set(title="mean ± deviation")
plt.show()
