"""scikit-learn's multi-layer perceptrons, trained by this library, their ensembles and searches."""

# ruff: noqa: E402

from ..imports import optional

optional("sklearn", "sklearn", __name__)

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
