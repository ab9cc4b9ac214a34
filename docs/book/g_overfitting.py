"""
Overfitting
===========

Chapter 3: with few samples the network learns these by heart: all are right in the end, and the
cost of them goes on falling, while what it makes of test data no longer improves.
"""

from backprop_gpu.nielsen import figures

axes = figures.overfitting("digits")

# %%
# With L2 regularisation it gets more of the test data right, and their cost keeps falling.

axes = figures.regularized("digits")
