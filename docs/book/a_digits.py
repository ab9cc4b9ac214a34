"""
Handwritten digits
==================

Chapter 1 begins with what is to be recognised: the first hundred images of the training data.
"""

from backprop_gpu.nielsen import figures

ax = figures.hundred_digits("digits")

# %%
# Six of them in a row are what somebody may write, and one of them what the network is given.

ax = figures.six_digits("digits")

# %%
ax = figures.first_digit("digits")

# %%
# A hidden neuron may look for a part of a 0. Where all four parts are, there is one.

axes = figures.features("digits")
