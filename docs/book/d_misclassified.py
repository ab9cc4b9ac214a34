"""
What a network gets wrong
=========================

Chapter 1: images of the test data that a trained network takes for another digit. Below each
are its label and the network's answer. In chapter 6 they are those of a better network.
"""

from backprop_gpu.nielsen import figures

ax = figures.misclassified("digits")
