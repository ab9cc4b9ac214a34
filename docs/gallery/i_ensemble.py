"""
An ensemble knows what it does not know
=======================================

Members of an ensemble agree where there are data and part where there are none. They are one
population, trained at once.
"""

import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import EnsembleRegressor

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-3, -1, 150), rng.uniform(1, 3, 150)])
y = np.sin(2 * x) + 0.1 * rng.normal(size=x.size)
ensemble = EnsembleRegressor(
    n_members=24, hidden_layer_sizes=(40, 40), activation="tanh", max_iter=400,
    learning_rate_init=0.003, n_iter_no_change=400, random_state=0,
)  # fmt: skip
ensemble.fit(x[:, None], y)

grid = np.linspace(-4, 4, 200)
mean, deviation = ensemble.predict(grid[:, None]), ensemble.predict_std(grid[:, None])
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(x, y, ".", color="gray", label="data")
axis.plot(grid, mean, label="mean of the members")
axis.fill_between(
    grid, mean - 2 * deviation, mean + 2 * deviation, alpha=0.3, label="± 2 deviations"
)
axis.set(xlabel="x", ylabel="y")
axis.legend(frameon=False)
plt.show()
