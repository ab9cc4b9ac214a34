"""
More samples overfit less
=========================

Chapter 3: with all samples the two accuracies are closer than with few.
"""

from backprop_gpu.nielsen import figures

ax = figures.overfitting_full("digits")

# %%
# And with L2 regularisation:

ax = figures.regularized_full("digits")
