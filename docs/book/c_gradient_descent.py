"""
Gradient descent
================

Chapter 1: a ball rolls down a valley to its lowest point, and so does gradient descent.
"""

from backprop_gpu.nielsen import figures

ax = figures.valley()

# %%
# Other functions have many minima, and the one that is found need not be the lowest.

ax = figures.false_minima()
