"""Saved ensembles: a safetensors file with w1, b1, …, wL, bL of all members, one behind the other.

w^l is (members, n_l, n_{l-1}) and b^l (members, n_l). The header says, as JSON, what kind of
estimator it is, its parameters, classes and names of features.
"""

from __future__ import annotations

import json
from numbers import Integral, Real
from typing import Any

import numpy as np

from .. import activations, costs, model_file, validation
from ..model import Model
from ..population import Population

#: Where the header holds the description.
FORMAT = "backprop_gpu.ensemble"
VERSION = 1

#: Of classes, and whether a value of JSON is one.
_NUMBERS = {
    **{f"{sign}int{bits}": (int,) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (float, int) for bits in (16, 32, 64)},
    "bool": (bool,),
}


def save(path: Any, estimator: Any) -> None:
    """Write a fitted ensemble, the whole file or none of it.

    Raises
    ------
    ValueError
        For classes that are neither numbers nor texts.
    """
    population: Population = estimator.population_
    model, layout = population.model, population.model.layout
    sound = [i for i in range(len(population)) if i not in population.failed]
    views = [layout.views(model.read(population.members[i].parameters)) for i in sound]
    tensors = {}
    for l in range(len(layout.sizes) - 1):
        tensors[f"w{l + 1}"] = np.stack([weights[l] for weights, _ in views])
        tensors[f"b{l + 1}"] = np.stack([biases[l] for _, biases in views])
    parameters = {name: _plain(value) for name, value in estimator.get_params(deep=False).items()}
    features = getattr(estimator, "feature_names_in_", None)
    score = getattr(estimator, "oob_score_", None)
    description = {
        "version": VERSION,
        "estimator": type(estimator).__name__,
        "members": len(sound),
        "sizes": model.sizes,
        "activations": [each.name for each in model.activations],
        "cost": model.cost.name,
        "dtype": model.dtype.name,
        "precision": model.precision,
        "outputs": estimator.n_outputs_,
        "epochs": [int(estimator.n_iter_[i]) for i in sound],
        "score": score,
        "features": None if features is None else list(map(str, features)),
        "parameters": {name: value for name, (kept, value) in parameters.items() if kept},
    }
    if hasattr(estimator, "classes_"):
        description["classes"] = _described(estimator.classes_)
    model_file.write(path, tensors, {FORMAT: json.dumps(description)})


def _plain(value: Any) -> tuple[bool, Any]:
    """(whether JSON can hold a parameter, and as what)."""
    if value is None or isinstance(value, (bool, str)):
        return True, value
    if isinstance(value, costs.BuiltinCost):
        return True, value.name
    if isinstance(value, np.bool_):
        return True, bool(value)
    if isinstance(value, Integral):
        return True, int(value)
    if isinstance(value, Real):
        return True, float(value)
    if isinstance(value, (list, tuple)):
        found = [_plain(item) for item in value]
        return all(kept for kept, _ in found), [item for _, item in found]
    return False, None


def _described(classes: np.ndarray) -> dict[str, Any]:
    """Classes as JSON holds them."""
    name = classes.dtype.name
    if name in _NUMBERS:
        return {"dtype": name, "labels": classes.tolist()}
    labels = [str(label) if isinstance(label, str) else label for label in classes.tolist()]
    if not all(type(label) in (str, int, float, bool) for label in labels):
        raise ValueError(
            f"classes_ of dtype {classes.dtype} cannot be saved: labels must be numbers or texts"
        )
    return {"dtype": "str" if classes.dtype.kind == "U" else "object", "labels": labels}


def load(path: Any, kind: type[Any], backend: str) -> Any:
    """The ensemble of a kind in a file, every part checked before anything is made of it.

    Raises
    ------
    FileNotFoundError
    ValueError
        Naming the file, and what is wrong with it.
    """
    with model_file.opened(path, "file of an ensemble") as file:
        description = _read_description(file, kind)
        try:
            estimator, model = _made(description, kind, backend, len(file.keys()))
            members = validation.integer("members", description["members"], 1)
            fitted = _fitted(description, model, members, hasattr(estimator, "predict_proba"))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"damaged description: {error!r}") from error
        shapes = {
            name: (members, *shape) for name, shape in model_file.shapes_of(model.layout).items()
        }
        if set(file.keys()) != set(shapes):
            raise ValueError(f"it should hold w and b of {len(shapes) // 2} layers, and no more")
        tensors = model_file.read_tensors(file, shapes, model.dtype)
        for name, tensor in tensors.items():
            validation.numbers(name, tensor, model.dtype)  # no NaN
    rows = np.empty((members, model.layout.length), model.dtype)
    layers = range(1, len(model.sizes))
    for i, row in enumerate(rows):
        weights, biases = ([tensors[f"{kind}{l}"][i] for l in layers] for kind in "wb")
        row[...] = model.layout.flat(weights, biases, model.dtype)
    generators = [np.random.default_rng() for _ in range(members)]
    fitted["population_"] = population = Population.of_share(model, rows, generators)
    fitted["plan_"] = str(population.plan)
    vars(estimator).update(fitted)
    return estimator


def _read_description(file: Any, kind: type[Any]) -> dict[str, Any]:
    metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise ValueError("a safetensors file, but not an ensemble saved by backprop_gpu")
    try:
        description = json.loads(metadata[FORMAT])
        version, name = description["version"], description["estimator"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"damaged description: {error!r}") from error
    if type(version) is not int or version != VERSION:
        raise ValueError(f"format version {version!r}; this backprop_gpu reads version {VERSION}")
    if name != kind.__name__:
        raise ValueError(f"it holds an {name!r}, and no {kind.__name__}")
    found: dict[str, Any] = description
    return found


def _made(
    description: dict[str, Any], kind: type[Any], backend: str, tensors: int
) -> tuple[Any, Model]:
    """An estimator of the saved parameters, and the model of what it has learnt."""
    if not isinstance(description["parameters"], dict):
        raise TypeError("parameters must be an object")
    parameters = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["parameters"].items()
    }
    estimator = kind(**parameters)
    estimator.check_parameters()
    sizes, names = description["sizes"], description["activations"]
    # Counted before anything is done for each layer: a short text can claim a million of them.
    if not isinstance(sizes, list) or not isinstance(names, list):
        raise TypeError("sizes and activations must be lists")
    if 2 * (len(sizes) - 1) != tensors or len(names) != len(sizes) - 1:
        raise ValueError(f"{len(sizes)} sizes, {len(names)} activations and {tensors} tensors")
    known = {name for name in activations.names() if activations.get(name).builtin}
    if not known.issuperset(names) or not isinstance(description["cost"], str):
        raise ValueError("activations and cost must be known names")
    cost = costs.get(description["cost"])
    if not cost.builtin:
        raise ValueError("activations and cost must be known names")
    return estimator, Model(
        sizes,
        activation=names,
        cost=cost,
        dtype=description["dtype"],
        precision=description["precision"],
        backend=backend,
    )


def _fitted(
    description: dict[str, Any], model: Model, members: int, classifies: bool
) -> dict[str, Any]:
    """The attributes besides the population."""
    inputs, last = model.sizes[0], model.sizes[-1]
    outputs = validation.integer("outputs", description["outputs"], 1)
    if last != model.cost.outputs_of(outputs):
        raise ValueError(f"{outputs} outputs of a network that has {last}")
    epochs = description["epochs"]
    if not isinstance(epochs, list) or len(epochs) != members:
        raise ValueError(f"epochs must be {members} numbers")
    found: dict[str, Any] = {
        "n_features_in_": inputs,
        "n_outputs_": outputs,
        "n_iter_": np.array([validation.integer("epochs", each, 0) for each in epochs]),
    }
    features = description["features"]
    if features is not None:
        if not isinstance(features, list) or len(features) != inputs or (
            not all(isinstance(each, str) for each in features)
        ):  # fmt: skip
            raise ValueError(f"features must be {inputs} texts")
        found["feature_names_in_"] = np.array(features, object)
    if description["score"] is not None:
        if type(description["score"]) is not float:
            raise TypeError("score must be a number")
        found["oob_score_"] = description["score"]
    if classifies:
        found["classes_"] = _classes(description["classes"], 2 if last == 1 else last)
    return found


def _classes(described: Any, count: int) -> np.ndarray:
    name, labels = described["dtype"], described["labels"]
    allowed = (str, int, float, bool) if name == "object" else _NUMBERS.get(name, (str,))
    if not isinstance(labels, list) or any(type(label) not in allowed for label in labels):
        raise TypeError(f"classes must be a list of labels of dtype {name!r}")
    if name not in (*_NUMBERS, "str", "object"):
        raise TypeError(f"unknown dtype of classes {name!r}")
    classes = np.array(labels, object if name == "object" else np.dtype(name))
    if len(classes) != count or len(np.unique(classes)) != count:
        raise ValueError(f"classes must be {count} different labels")
    return classes
