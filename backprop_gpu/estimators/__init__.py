"""scikit-learn's multi-layer perceptrons, trained by this library, their ensembles and searches."""

# ruff: noqa: E402

import warnings
from types import ModuleType

from ..imports import optional, when_imported

optional("sklearn", "sklearn", __name__)

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


def announce(*kinds: type) -> None:
    """Make skl2onnx know classes of estimators, those below or subclasses, once it is imported."""

    def tell(skl2onnx: ModuleType) -> None:
        try:
            from . import onnx_converters

            onnx_converters.register(*kinds)
        except Exception as error:  # it is somebody else's import that must not fail
            version = getattr(skl2onnx, "__version__", "")
            warnings.warn(
                f"skl2onnx {version} does not know the estimators of backprop_gpu: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    when_imported("skl2onnx", tell)


announce(EnsembleClassifier, EnsembleRegressor, MLPClassifier, MLPRegressor, PopulationSearchCV)
log_as_scikit_learn(
    (EnsembleClassifier, EnsembleRegressor, MLPClassifier, MLPRegressor, PopulationSearchCV),
    searches=(PopulationSearchCV,),
)
