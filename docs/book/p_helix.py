"""
A limit of principal components
===============================

Points about a helix lie near a curve, and near no plane: principal components do not find it. It is
among the programs of the book's figures, and in no chapter.
"""

from backprop_gpu.nielsen import figures

axes = figures.pca_limitations()
