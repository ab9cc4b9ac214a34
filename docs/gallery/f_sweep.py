"""
A sweep over shapes and rates
=============================

``sweep`` makes populations of a grid and returns a table, best first.
"""

from backprop_gpu import datasets, sweep

data = datasets.load()
result = sweep(
    data.X,
    data.y,
    grid={
        "sizes": [[64, 10], [64, 30, 10], [64, 100, 10]],
        "learning_rate": [0.03, 0.1, 0.3, 1.0, 3.0],
    },
    cost="binary_cross_entropy",
    epochs=8,
    batch_size=10,
    validation_data=(data.X_val, data.y_val),
    seed=0,
)
result.plot()

# %%
# The table:
result
