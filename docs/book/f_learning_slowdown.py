"""
A neuron that learns slowly
===========================

Chapter 3: one sigmoid neuron is to turn 1 into 0. From a bad start (right) it hardly learns at
first with the quadratic cost (above), since σ' is small there. With the cross-entropy (below) the
cost falls at once, and faster from the bad start than from the good one.
"""

from backprop_gpu.nielsen import figures

axes = figures.learning_slowdown()
