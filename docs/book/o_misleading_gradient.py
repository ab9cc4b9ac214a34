"""
A gradient that misleads
========================

Chapter 5: from nearly everywhere on the sides of this valley the steepest way down leads across it,
and not to its lowest point.
"""

from backprop_gpu.nielsen import figures

ax = figures.misleading_gradient()

# %%
# Gradients are perpendicular to its contours:

ax = figures.misleading_gradient_contours()
