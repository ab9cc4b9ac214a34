"""
Dropout, max-norm and L2 against overfitting
============================================

A wide network on few rows learns them by heart. Members of one population are each held back in another way, and all
train at once.
"""

import matplotlib.pyplot as plt

from backprop_gpu import Population, datasets
from backprop_gpu.optimizers import SGD

X, y = datasets.digits()
X = X / 16
ways = {
    "nothing": {},
    "L2": {"l2": 1e-3},
    "max-norm": {"max_norm": 2.0},
    "dropout": {"dropout": 0.5},
}
population = Population([64, 400, 10], members=len(ways), activation=["relu", "softmax"],
                        cost="categorical_cross_entropy", seed=0)
histories = population.fit(
    X[:300],
    y[:300],
    epochs=80,
    batch_size=10,
    learning_rate=0.05,
    dropout=[way.get("dropout", 0.0) for way in ways.values()],
    optimizer=[
        SGD(**{k: v for k, v in way.items() if k != "dropout"}) for way in ways.values()
    ],
    validation_data=(X[300:], y[300:]),
)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, history in zip(ways, histories):
    axes[0].plot(history.val_loss, label=name)
    axes[1].plot(history.val_accuracy, label=name)
axes[0].set(xlabel="epoch", ylabel="validation loss")
axes[1].set(xlabel="epoch", ylabel="validation accuracy", ylim=(0.85, 0.97))
axes[1].legend(frameon=False)
plt.show()
