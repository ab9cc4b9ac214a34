"""scikit-learn's multi-layer perceptrons, trained by this library, their ensembles and searches."""

from .autologging import log_as_scikit_learn
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

log_as_scikit_learn(
    (EnsembleClassifier, EnsembleRegressor, MLPClassifier, MLPRegressor, PopulationSearchCV),
    searches=(PopulationSearchCV,),
)
