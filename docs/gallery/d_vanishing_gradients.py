"""
Vanishing gradients
===================

In a deep sigmoid network the first layers learn last: BP2 multiplies by σ' ≤ 1/4 at each layer,
and δ fades on its way back. ``DeltaNorms`` keeps the size of δ in each layer, epoch by epoch.
"""

import matplotlib.pyplot as plt

from backprop_gpu import DeltaNorms, Network, datasets

data = datasets.load()
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axis, activation in zip(axes, ("sigmoid", "relu")):
    net = Network(
        [64, 30, 30, 30, 30, 10],
        activation=[activation] * 4 + ["softmax"],
        cost="categorical_cross_entropy",
        seed=1,
    )
    norms = DeltaNorms(data.X[:200], data.y[:200])
    net.fit(data.X, data.y, epochs=20, batch_size=10, learning_rate=0.05, callbacks=[norms])
    norms.plot(axis)
    axis.set_title(activation)
plt.show()
