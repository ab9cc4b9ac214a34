"""
Artificially expanded data
==========================

Chapter 3: an image that is turned a little is still the same digit, and its pixels are others.
"""

from backprop_gpu.nielsen import figures

axes = figures.rotated_digit("digits")

# %%
# Displaced by one pixel up, down, left and right, 200 samples are 1,000. Trained for as many steps,
# the network is slower at first. Of 24 × 24 pixels that were 8 × 8 there is little to gain by it.

axes = figures.expanded_mnist("digits")
