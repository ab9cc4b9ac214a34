"""
What a layer has learned
========================

The weights that lead to a neuron of the first layer are an image of the input. Before training
they are noise; after it, strokes, and their absence.
"""

import matplotlib.pyplot as plt

from backprop_gpu import Network, datasets

X, y = datasets.digits()
net = Network([64, 16, 10], cost="binary_cross_entropy", seed=3)
net.plot()
plt.show()

net.fit(X / 16, y, epochs=60, batch_size=10, learning_rate=0.5)
net.plot()
plt.show()
