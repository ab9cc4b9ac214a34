"""
Dropout
=======

Chapters 3 and 6: without dropout the network soon knows its few training samples by heart, and
learns no more. With it validation accuracy goes up and down, and ends higher.
"""

from backprop_gpu.nielsen import figures

ax = figures.dropout("digits")
