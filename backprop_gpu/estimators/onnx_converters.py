"""The estimators in skl2onnx, which `backprop_gpu.estimators` registers once that is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx._parse import parse_sklearn
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from skl2onnx.common.utils_classifier import get_label_classes
from skl2onnx.proto import onnx_proto
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from .. import onnx_nodes
from .ensembles import EnsembleClassifier, EnsembleRegressor
from .mlp import MLPClassifier, MLPRegressor
from .perceptron import activation_of

_TENSOR = onnx_proto.TensorProto
_TYPES = {
    np.dtype(np.float32): _TENSOR.FLOAT,
    np.dtype(np.float64): _TENSOR.DOUBLE,
    np.dtype(np.int64): _TENSOR.INT64,
}


class _Writer:
    """Adds nodes to a container of skl2onnx's."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container
        self.opset: int = container.target_opset_any_domain("")

    def constant(self, value: np.ndarray) -> str:
        name: str = self._scope.get_unique_variable_name("constant")
        kind, content = _TYPES.get(value.dtype, _TENSOR.STRING), value.ravel()
        texts = kind == _TENSOR.STRING
        self._container.add_initializer(
            name, kind, value.shape, [str(text).encode() for text in content] if texts else content
        )
        return name

    def node(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name: str = out or self._scope.get_unique_variable_name(kind)
        self._container.add_node(
            kind,
            list(inputs),
            name,
            name=self._scope.get_unique_operator_name(kind),
            **attributes,
        )
        return name


def _is_double(operator: Any) -> bool:
    return isinstance(operator.inputs[0].type, DoubleTensorType)


def _outputs(operator: Any, graph: _Writer) -> tuple[str, np.dtype[Any]]:
    """a^L, or of a regressor what it predicts, and its dtype, which is that of the input."""
    estimator = operator.raw_operator
    dtype = np.dtype(np.float64 if _is_double(operator) else np.float32)
    x = graph.node("Cast", operator.inputs[0].full_name, to=_TYPES[dtype])
    ensemble = isinstance(estimator, (EnsembleClassifier, EnsembleRegressor))
    if ensemble:
        population = estimator.population_
        sound = [i for i in range(len(population)) if i not in population.failed]
        members = [population.members[i] for i in sound]
        layers = range(len(population.sizes) - 1)
        weights = [np.stack([member.weights[l] for member in members]) for l in layers]
        biases = [np.stack([member.biases[l] for member in members]) for l in layers]
        names = [sigma.name for sigma in population.model.activations]
        cost = population.cost
    else:
        problem = estimator._problem  # noqa: SLF001
        weights = [coefs.T for coefs in estimator.coefs_]
        biases = list(estimator.intercepts_)
        names = [activation_of(name).name for name in problem.names]
        cost = None if isinstance(estimator, MLPClassifier) else estimator._cost  # noqa: SLF001
    if isinstance(estimator, (MLPRegressor, EnsembleRegressor)):
        # The outputs that predict: means, or medians among other quantiles.
        last = weights[-1].shape[-2]
        columns = cost.predictions(np.arange(last)[np.newaxis])[0]
        weights[-1], biases[-1] = weights[-1][..., columns, :], biases[-1][..., columns]
    weights = [w.astype(dtype) for w in weights]
    biases = [b.astype(dtype) for b in biases]
    make = onnx_nodes.layers_of_members if ensemble else onnx_nodes.layers
    return make(graph, x, weights, biases, names), dtype


def _is_multilabel(estimator: Any) -> bool:
    binarizer = getattr(estimator, "_label_binarizer", None)
    return binarizer is not None and binarizer.y_type_.startswith("multilabel")


def _labels(operator: Any) -> np.ndarray:
    """The classes as ONNX can give them: int64, or texts in an array of objects."""
    estimator = operator.raw_operator
    classes = np.asarray(get_label_classes(operator.scope_inst, estimator))
    if len(classes) < 2:
        raise ValueError(f"{type(estimator).__name__} has learnt one class: ONNX needs two")
    if classes.dtype.kind in "biuf":
        whole = classes.astype(np.int64)
        if (whole == classes).all():
            return whole
    elif all(isinstance(label, str) for label in classes.tolist()):
        return classes.astype(object)
    raise ValueError(
        f"classes_ of {type(estimator).__name__} must be whole numbers or texts for ONNX, got "
        f"{classes[:3].tolist()}"
    )


def calculate_classifier_shapes(operator: Any) -> None:
    """The types of label and probabilities."""
    check_is_fitted(operator.raw_operator)
    rows, labels = operator.inputs[0].get_first_dimension(), _labels(operator)
    kind = StringTensorType if labels.dtype == object else Int64TensorType
    several = _is_multilabel(operator.raw_operator)
    operator.outputs[0].set_type(kind([rows, len(labels)] if several else [rows]))
    kind = DoubleTensorType if _is_double(operator) else FloatTensorType
    operator.outputs[1].set_type(kind([rows, len(labels)]))


def calculate_regressor_shapes(operator: Any) -> None:
    """The type of the prediction."""
    check_is_fitted(operator.raw_operator)
    kind = DoubleTensorType if _is_double(operator) else FloatTensorType
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].set_type(kind([rows, operator.raw_operator.n_outputs_]))


def convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    """Label and probabilities, as `predict` and `predict_proba` give them."""
    graph, labels = _Writer(scope, container), _labels(operator)
    label, probabilities = (output.full_name for output in operator.outputs)
    a, dtype = _outputs(operator, graph)
    if operator.raw_operator.n_outputs_ == 1:
        other = graph.node("Sub", graph.constant(np.ones(1, dtype)), a)
        graph.node("Concat", other, a, out=probabilities, axis=1)
    else:
        graph.node("Identity", a, out=probabilities)
    if _is_multilabel(operator.raw_operator):
        above = graph.node("Greater", a, graph.constant(np.full(1, 0.5, dtype)))
        graph.node("Cast", above, out=label, to=_TENSOR.INT64)
        return
    best = graph.node("ArgMax", probabilities, axis=1, keepdims=0)
    graph.node("Gather", graph.constant(labels), best, out=label, axis=0)


def convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    """What `predict` gives, (N, outputs)."""
    graph = _Writer(scope, container)
    a, _ = _outputs(operator, graph)
    graph.node("Identity", a, out=operator.outputs[0].full_name)


def parse_search(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """A search is the best estimator that it has found."""
    check_is_fitted(model, "best_estimator_")
    options = scope.get_options(model, {})
    if options:
        scope.add_options(id(model.best_estimator_), options)
    return parse_sklearn(scope, model.best_estimator_, inputs, custom_parsers=custom_parsers)


def _never(*_: Any) -> None:
    raise AssertionError("a search is parsed to its best estimator")


def calculate_search_shapes(operator: Any) -> None:
    _never()


def convert_search(scope: Any, operator: Any, container: Any) -> None:
    _never()


def register(*kinds: Any) -> None:
    """Make skl2onnx know classes of classifiers, regressors and searches."""
    for kind in kinds:
        alias = f"BackpropGpu{kind.__name__}"
        if issubclass(kind, ClassifierMixin):
            update_registered_converter(
                kind,
                alias,
                calculate_classifier_shapes,
                convert_classifier,
                options={
                    "zipmap": [True, False, "columns"],
                    "nocl": [True, False],
                    "output_class_labels": [False, True],
                },
            )
        elif issubclass(kind, RegressorMixin):
            update_registered_converter(kind, alias, calculate_regressor_shapes, convert_regressor)
        else:
            update_registered_converter(
                kind,
                alias,
                calculate_search_shapes,
                convert_search,
                parser=parse_search,
                options="passthrough",
            )
