"""
A first network
===============

Handwritten digits, six lines, a second.
"""

from backprop_gpu import Network, datasets

X, y = datasets.digits()
X = X / 16
net = Network([64, 30, 10], cost="binary_cross_entropy", seed=1)
history = net.fit(
    X[:1400],
    y[:1400],
    epochs=30,
    batch_size=10,
    learning_rate=0.5,
    validation_data=(X[1400:], y[1400:]),
)
history.plot()

# %%
# What ran, and why:

print(net.plan)

# %%
# Of rows that it has not seen it knows
print(f"{net.accuracy(X[1400:], y[1400:]):.1%}")
