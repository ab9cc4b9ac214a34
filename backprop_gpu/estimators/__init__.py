"""scikit-learn's multi-layer perceptrons, trained by this library, their ensembles and searches."""

from .ensembles import EnsembleClassifier, EnsembleRegressor
from .mlp import MLPClassifier, MLPRegressor
from .search import PopulationSearchCV

__all__ = [
    "EnsembleClassifier",
    "EnsembleRegressor",
    "MLPClassifier",
    "MLPRegressor",
    "PopulationSearchCV",
]
