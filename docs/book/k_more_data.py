"""
The worth of more data
======================

Chapter 3: accuracy by the number of training samples, also on a logarithmic scale, and beside a
support vector machine's. Which of two is better may depend on how much data there is.
"""

from backprop_gpu.nielsen import figures

axes = figures.more_data("digits")
