"""scikit-learn's multi-layer perceptrons, trained by this library, and searches over them."""

from .mlp import MLPClassifier, MLPRegressor
from .search import PopulationSearchCV

__all__ = ["MLPClassifier", "MLPRegressor", "PopulationSearchCV"]
