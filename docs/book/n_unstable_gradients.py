"""
Unstable gradients
==================

Chapter 5: ∂C/∂b of the first six neurons of two hidden layers, before any training. The second
layer's are larger: it would learn faster.
"""

from backprop_gpu.nielsen import figures

ax = figures.initial_gradient("digits")

# %%
# During training the first layer is the slowest for nearly all of the time, and the more hidden
# layers there are the slower it is beside the last.

axes = figures.training_speed("digits")
