"""
Sixteen learning rates at once
==============================

Networks of one shape are a population: they train together, on all cores or in one launch, and
each gets the bits it would get alone. So a scan over learning rates costs little more than one
training.
"""

import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import Population, datasets

data = datasets.load()
rates = np.geomspace(0.01, 30, 16)
population = Population([64, 30, 10], members=16, cost="binary_cross_entropy", seed=0)
histories = population.fit(
    data.X, data.y, epochs=10, batch_size=10, learning_rate=rates,
    validation_data=(data.X_val, data.y_val),
)  # fmt: skip
population.plot()

# %%
# By rate:
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.semilogx(rates, [history.final("val_accuracy") for history in histories], "o-")
axis.set(xlabel="learning rate η", ylabel="validation accuracy after 10 epochs")
plt.show()
