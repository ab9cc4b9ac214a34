"""Every public name is in docs/reference.toml, has numpydoc's sections, and its examples run."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import warnings
from typing import Any

import pytest

import public_names

numpydoc = pytest.importorskip("numpydoc.validate", reason="numpydoc is not installed")

#: What numpydoc asks for and is left out, with the reason.
LEFT_OUT = {
    "GL01": "text starts on the line of the opening quotes, which numpydoc takes from 1.11 on",
    "ES01": "a summary may say it all",
    "SA01": "text refers to others where it speaks of them",
    "EX01": "but of `SHOWN`",
}
#: What must have an example.
SHOWN = {
    "backprop_gpu.Network", "backprop_gpu.Population", "backprop_gpu.sweep",
    "backprop_gpu.cross_validate", "backprop_gpu.MLPClassifier", "backprop_gpu.MLPRegressor",
    "backprop_gpu.EnsembleClassifier", "backprop_gpu.EnsembleRegressor",
    "backprop_gpu.PopulationSearchCV", "backprop_gpu.Checkpoint", "backprop_gpu.EarlyStopping",
    "backprop_gpu.Activation", "backprop_gpu.Cost", "backprop_gpu.planning.Plan",
    "backprop_gpu.torch.MLP",
} | {name for name in public_names.NAMES if name.startswith("backprop_gpu.equations.")}  # fmt: skip


def found(name: str) -> Any:
    """The object, where what it needs is installed."""
    if name.startswith("backprop_gpu.torch"):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    return public_names.find(name)


# -- the list -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", public_names.MODULES)
def test_every_name_of_a_public_module_is_listed_once(module: str) -> None:
    if module == "backprop_gpu.torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    # A class that several modules have is listed where users import it from.
    elsewhere = [
        public_names.find(name)
        for name in public_names.NAMES
        if not name.startswith(("backprop_gpu.torch.", f"{module}."))
    ]
    listed = [*public_names.NAMES, *public_names.INTERNAL]
    for attribute in public_names.offered(module):
        name = f"{module}.{attribute}"
        places = listed.count(name)
        places += any(public_names.find(name) is value for value in elsewhere)
        assert places == 1, f"{name} is {places} times in docs/reference.toml, and not once"


@pytest.mark.parametrize("name", [*public_names.NAMES, *public_names.INTERNAL])
def test_what_is_listed_is_there(name: str) -> None:
    found(name)
    module, _, attribute = name.rpartition(".")
    assert attribute in public_names.offered(module), f"{module} does not offer {attribute}"


# -- docstrings -----------------------------------------------------------------------------------


@functools.cache
def errors_of(owner: Any, member: str = "") -> list[str]:
    """What numpydoc finds wrong with a docstring, but for what is left out."""
    value = getattr(owner, member) if member else owner
    found = numpydoc.validate(numpydoc.get_doc_object(value))["errors"]
    return [
        f"{code} {text}"
        for code, text in found
        if code not in LEFT_OUT and not is_excused(value, code, text)
    ]


def is_excused(value: Any, code: str, text: str) -> bool:
    if code == "PR01":
        # A dataclass's own fields; and a Protocol is not called.
        missing = ast.literal_eval(text.removeprefix("Parameters ").removesuffix(" not documented"))
        return all(name.startswith("_") for name in missing) or getattr(
            value, "_is_protocol", False
        )
    if code == "PR03":
        # Those that are given by name alone may come in the order of their importance.
        parameters = inspect.signature(value).parameters.values()
        ordered = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
        described = text.partition("Documented: ")[2].removesuffix(".")
        names = ast.literal_eval(described)
        return [name for name in names if name in ordered] == ordered
    return False


@pytest.mark.parametrize("name", public_names.NAMES)
def test_numpydoc_finds_nothing_wrong(name: str) -> None:
    value = found(name)
    wrong = {name: errors_of(value)}
    if inspect.isclass(value):
        for member, owner in public_names.members(value).items():
            wrong[f"{name}.{member}"] = errors_of(owner, member)
    wrong = {each: errors for each, errors in wrong.items() if errors}
    assert not wrong, "\n".join(f"{each}: {'; '.join(wrong[each])}" for each in wrong)


# -- examples -------------------------------------------------------------------------------------


def run(name: str, docstring: str | None) -> int:
    """Run what a docstring shows, and return how much that was."""
    # With nothing from the module, as a reader would.
    test = doctest.DocTestParser().get_doctest(docstring or "", {}, name, name, 0)
    text: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = doctest.DocTestRunner(verbose=False).run(test, out=text.append)
    assert result.failed == 0, "".join(text)
    return result.attempted


@pytest.mark.parametrize("name", public_names.NAMES)
def test_examples(name: str) -> None:
    value = found(name)
    attempted = run(name, value.__doc__)
    assert attempted or name not in SHOWN, f"{name} has no example"
    if inspect.isclass(value):
        for member, owner in public_names.members(value).items():
            run(f"{name}.{member}", getattr(owner, member).__doc__)


@pytest.mark.parametrize("name", ["backprop_gpu.nielsen", *public_names.MODULES])
def test_examples_of_a_module(name: str) -> None:
    if name == "backprop_gpu.torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    run(name, importlib.import_module(name).__doc__)
