"""Which parameters and arrays an estimator takes."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.utils import check_array

from .. import activations, arrays, engines, validation
from ..precision import FRACTION_BITS

try:
    from sklearn.utils._param_validation import InvalidParameterError
except ImportError:  # a scikit-learn that has moved it: it is private

    class InvalidParameterError(ValueError, TypeError):  # type: ignore[no-redef]
        """An estimator's parameter has a value that means nothing."""


STOCHASTIC = ("sgd", "adam")
#: scikit-learn's hidden activations, in its order.
THEIRS = ("identity", "logistic", "tanh", "relu")
#: Of ours those that scikit-learn knows by another name, or for outputs alone.
_OTHERS = ("sigmoid", "exponential", "softmax")
ACTIVATIONS = THEIRS + tuple(
    name
    for name in activations.names()
    if name not in THEIRS + _OTHERS and activations.get(name).builtin
)


def a_name(*names: str) -> tuple[Any, str]:
    """(whether a value is one of the names, what is expected)."""
    listed = ", ".join(repr(name) for name in sorted(names))
    return (lambda value: isinstance(value, str) and value in names), f"a str among {{{listed}}}"


def a_number(kind: Any, span: str, *others: Any) -> tuple[Any, str]:
    """A number of a kind in a span such as "[0, inf)", or one of the others."""
    what = "an int" if kind is Integral else "a float"

    def is_valid(value: Any) -> bool:
        if isinstance(value, str) or value is None:
            return value in others
        if any(isinstance(other, float) and value == other for other in others):
            return True
        if not isinstance(value, kind) or isinstance(value, (bool, np.bool_)):
            return False
        return validation.is_within(value, span)

    expected = " or ".join([f"{what} in the range {span}", *map(repr, others)])
    return is_valid, expected


def is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def is_activation(value: Any) -> bool:
    if isinstance(value, str):
        return value in ACTIVATIONS
    return isinstance(value, (list, tuple)) and all(name in ACTIVATIONS for name in value)


#: Parameter -> whether a value is valid, and what is.
RULES: dict[str, tuple[Any, str]] = {
    "hidden_layer_sizes": (
        lambda value: isinstance(value, Integral) or validation.is_ordered(value),
        "an array-like or an int in the range [1, inf)",
    ),
    "activation": (
        is_activation,
        f"one of {{{', '.join(map(repr, ACTIVATIONS))}}}, or a list of them",
    ),
    "solver": a_name("lbfgs", *STOCHASTIC),
    "alpha": a_number(Real, "[0, inf)"),
    "batch_size": a_number(Integral, "[1, inf)", "auto"),
    "learning_rate": a_name("constant", "invscaling", "adaptive"),
    "learning_rate_init": a_number(Real, "(0, inf)"),
    "power_t": a_number(Real, "[0, inf)"),
    "max_iter": a_number(Integral, "[1, inf)"),
    "shuffle": (is_flag, "a bool"),
    "tol": a_number(Real, "[0, inf)"),
    "verbose": (
        lambda value: is_flag(value) or (isinstance(value, int | np.integer) and value >= 0),
        "a bool or an int in the range [0, inf)",
    ),
    "warm_start": (is_flag, "a bool"),
    "momentum": a_number(Real, "[0, 1]"),
    "nesterovs_momentum": (is_flag, "a bool"),
    "early_stopping": (is_flag, "a bool"),
    "validation_fraction": a_number(Real, "[0, 1)"),
    "beta_1": a_number(Real, "[0, 1)"),
    "beta_2": a_number(Real, "[0, 1)"),
    "epsilon": a_number(Real, "(0, inf)"),
    "n_iter_no_change": a_number(Integral, "[1, inf)", np.inf),
    "max_fun": a_number(Integral, "[1, inf)"),
    "backend": a_name("auto", "numpy", "cuda", "numba_cuda"),
    "dropout": a_number(Real, "[0, 1)"),
    "mixup": a_number(Real, "[0, inf)"),
    "max_norm": a_number(Real, "(0, inf)", None),
    "gradient_noise": a_number(Real, "[0, inf)"),
    "weight_average": (
        lambda value: value is None or (isinstance(value, str) and value in ("ema", "swa")),
        "None or a str among {'ema', 'swa'}",
    ),
    "clip_norm": a_number(Real, "(0, inf)", None),
    "clip_value": a_number(Real, "(0, inf)", None),
    "engine": a_name("auto", *engines.NAMES),
    "precision": (
        lambda value: value is None or (isinstance(value, str) and value in FRACTION_BITS),
        f"None or a str among {{{', '.join(map(repr, FRACTION_BITS))}}}",
    ),
}


def invalid(estimator: str, name: str, expected: str, value: Any) -> ValueError:
    error: ValueError = InvalidParameterError(
        f"The {name!r} parameter of {estimator} must be {expected}. Got "
        f"{validation.shown(value)} instead."
    )
    return error


def are_plain_rows(estimator: Any, X: Any, reset: bool) -> bool:
    """Whether scikit-learn's `validate_data` would pass X on as it is, which takes it longer.

    So it does a finite array of float64 or float32, of as many columns as the estimator knows, if
    these have no names.
    """
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in (np.float64, np.float32)
        and X.shape[0] > 0
        and X.shape[1] == (X.shape[1] if reset else getattr(estimator, "n_features_in_", 0)) > 0
        and not hasattr(estimator, "feature_names_in_")
        and validation.all_finite(X)
    )


def plain_labels(y: Any, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(the labels in y, in order; which of them each row has), for a vector of integers or strings.

    None for whatever scikit-learn has to look at.
    """
    if type(y) is not np.ndarray or y.shape != (rows,) or y.dtype.kind not in "iubU":
        return None
    return np.unique(y, return_inverse=True)


def check_weights(sample_weight: Any, X: Any) -> np.ndarray:
    """A weight per row of X, in its dtype, from an array or one number for all."""
    rows = X.shape[0]
    if isinstance(sample_weight, Real):
        return np.full(rows, sample_weight, X.dtype)
    weights: np.ndarray = check_array(
        sample_weight, ensure_2d=False, dtype=X.dtype, input_name="sample_weight"
    )
    if weights.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {weights.ndim}D array.")
    if len(weights) != rows:
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(rows,)}!")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def _comes_back(array: Any) -> bool:
    """Whether results go where an array is: on a device, or under scikit-learn's dispatch."""
    return not isinstance(array, np.ndarray) and (
        hasattr(array, "__cuda_array_interface__")
        or (bool(get_config()["array_api_dispatch"]) and arrays.is_array(array))
    )


def host(name: str, array: Any) -> Any:
    """NumPy's array of one whose results go where it is; anything else as it is.

    Without its dispatch scikit-learn's checks make their own of other libraries' arrays.
    """
    return arrays.to_numpy(name, array) if _comes_back(array) else array


def as_given(result: Any, X: Any) -> Any:
    """The result where X is, if it goes there and is numeric: labels that are texts do not."""
    return arrays.as_given(result, X) if _comes_back(X) else result
