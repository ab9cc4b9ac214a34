"""
A first network
===============

Handwritten digits, six lines, a second.
"""

from backprop_gpu import Network, datasets

data = datasets.load()  # 1,797 handwritten digits of 8×8 pixels
held = data.X_val, data.y_val
net = Network([64, 30, 10], cost="binary_cross_entropy", seed=1)
history = net.fit(data.X, data.y, epochs=30, batch_size=10, learning_rate=0.5, validation_data=held)
history.plot()

# %%
# What ran, and why:

print(net.plan)

# %%
# Of rows that it has not seen it knows
print(f"{net.accuracy(*held):.1%}")
