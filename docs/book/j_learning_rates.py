"""
Three learning rates
====================

Chapter 3: with too small an η the cost falls slowly, with too large a one it jumps about.
"""

from backprop_gpu.nielsen import figures

ax = figures.multiple_eta("digits")
