"""
Dropout, max-norm and L2 against overfitting
============================================

A wide network learns its rows by heart, mistakes included: here a third of the labels are wrong.
Members of one population are each held back in another way, and all train at once.
"""

import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import Population, datasets
from backprop_gpu.optimizers import SGD

data = datasets.load()
rng = np.random.default_rng(0)
X, y = data.X, data.y.copy()
wrong = rng.random(len(y)) < 1 / 3
y[wrong] = rng.integers(0, 10, wrong.sum())
ways = {
    "nothing": {},
    "L2": {"l2": 0.01},
    "max-norm": {"max_norm": 0.7},
    "dropout": {"dropout": 0.5},
}
population = Population(
    [64, 300, 10],
    members=len(ways),
    activation=["relu", "softmax"],
    cost="categorical_cross_entropy",
    seed=0,
)
histories = population.fit(
    X,
    y,
    epochs=100,
    batch_size=20,
    learning_rate=0.2,
    dropout=[way.get("dropout", 0.0) for way in ways.values()],
    optimizer=[SGD(**{k: v for k, v in way.items() if k != "dropout"}) for way in ways.values()],
    validation_data=(data.X_val, data.y_val),
)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, history in zip(ways, histories):
    axes[0].plot(history.val_loss, label=name)
    axes[1].plot(history.val_accuracy, label=name)
axes[0].set(xlabel="epoch", ylabel="validation loss")
axes[1].set(xlabel="epoch", ylabel="validation accuracy", ylim=(0.7, 1.0))
axes[1].legend(frameon=False)
plt.show()
