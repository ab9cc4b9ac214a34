"""
Hyperband with Optuna
=====================

With ``trials=`` an Optuna sampler draws the settings, and a pruner ends what is behind in mid-
training.
"""

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from backprop_gpu import datasets, sweep

optuna.logging.set_verbosity(optuna.logging.ERROR)
data = datasets.load()
result = sweep(
    data.X,
    data.y,
    grid={
        "sizes": [[64, 30, 10]],
        "learning_rate": FloatDistribution(1e-2, 10, log=True),
        "batch_size": IntDistribution(8, 64, step=8),
    },
    cost="binary_cross_entropy",
    trials=27,
    sampler=optuna.samplers.RandomSampler(seed=0),
    pruner=optuna.pruners.HyperbandPruner(1, 27, 3),
    epochs=27,
    validation_data=(data.X_val, data.y_val),
    seed=0,
)
result.plot()

# %%
# The best:
print(result.rows[0])
