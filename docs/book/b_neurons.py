"""
Neurons
=======

A perceptron steps (chapter 1), and a sigmoid neuron does so smoothly: a small change of a weight
then changes its output a little. Tanh and rectified linear neurons come later in the book.
"""

from backprop_gpu.nielsen import figures

axes = figures.activation_functions()
