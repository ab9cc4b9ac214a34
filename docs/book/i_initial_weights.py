"""
Initial weights
===============

Chapter 3: weights of N(0, 1) saturate neurons with many inputs. Of N(0, 1/n_in), n_in being the
number of inputs, they start better, and learn faster.
"""

from backprop_gpu.nielsen import figures

axes = figures.weight_initialization("digits")
