"""
A sweep over shapes and rates
=============================

``sweep`` makes populations of a grid and returns a table, best first.
"""

from backprop_gpu import datasets, sweep

X, y = datasets.digits()
X = X / 16
result = sweep(
    X[:1400],
    y[:1400],
    grid={
        "sizes": [[64, 10], [64, 30, 10], [64, 100, 10]],
        "learning_rate": [0.03, 0.1, 0.3, 1.0, 3.0],
    },
    cost="binary_cross_entropy",
    epochs=8,
    batch_size=10,
    validation_data=(X[1400:], y[1400:]),
    seed=0,
)
result.plot()

# %%
# The table:
result
