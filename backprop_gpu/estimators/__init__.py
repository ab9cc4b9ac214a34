"""scikit-learn's multi-layer perceptrons, trained by this library."""

from .mlp import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
