"""
Gradients, layer by layer
=========================

Chapter 2: in a deep network the gradient of the weights is the smaller, the further a layer is from
the output, whichever mini-batch is asked.
"""

from backprop_gpu.nielsen import figures

ax = figures.backprop_magnitude_nabla("digits")
