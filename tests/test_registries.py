"""A formula stands once a language: every table's keys are the registry's, or a reason is named."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import pytest

import kernel_cases
from backprop_gpu import activations, costs, cpu, kernel_checks, optimizers
from backprop_gpu.cuda import catalogue, compiler
from backprop_gpu.estimators import checks, perceptron
from backprop_gpu.kernels.numba_cuda import activations as numba_activations
from backprop_gpu.kernels.numba_cuda import costs as numba_costs
from backprop_gpu.kernels.numba_cuda import update as numba_update
from backprop_gpu.nielsen import network2

SIGMAS = {name for name in activations.names() if activations.get(name).builtin}
ELEMENTWISE = {name for name in SIGMAS if activations.get(name).elementwise}
COSTS = {name for name in costs.names() if costs.get(name).builtin}
RULES = {optimizers.get(name).rule for name in optimizers.names()}


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def structs(file: str) -> set[str]:
    """Those of a CUDA header that are no templates, but for their own constants."""
    text = (compiler.folder() / file).read_text()
    return set(re.findall(r"^(?:template <class CONSTANTS> )?struct (\w+)", text, re.M))


def same(table: Iterable[str], registry: set[str], but: dict[str, str] | None = None) -> None:
    """`but` are the names that only one of them has, with the reason."""
    assert set(table) ^ registry == set(but or {})


def test_activations() -> None:
    same(structs("activations.cuh") - {"User"}, {camel(name) for name in ELEMENTWISE})
    same(numba_activations.ELEMENTWISE, ELEMENTWISE)
    same(cpu.ACTIVATIONS, SIGMAS)
    ours = {perceptron.OUR_NAMES.get(name, name) for name in checks.ACTIVATIONS}
    but = {
        "sigmoid": "an alias: scikit-learn calls it logistic",
        "exponential": "of the poisson loss's output, which the loss chooses",
        "softmax": "of a classifier's output, which the task chooses",
    }
    same(ours, SIGMAS, {name: why for name, why in but.items() if name not in ours})


def test_costs() -> None:
    kernels = {costs.get(name).kernel for name in COSTS}
    same(structs("costs.cuh") - {"SumOverOutputs"}, kernels)
    same({*numba_costs.COSTS, *numba_costs.OF_ROWS}, kernels)
    same(cpu.COSTS, kernels)
    assert set(network2.ENGINE_NAMES.values()) == {"quadratic", "binary_cross_entropy"}


def test_rules() -> None:
    same(structs("rules.cuh"), set(catalogue.RULES.values()))
    same(catalogue.RULES, RULES)
    same(cpu.RULES, RULES)
    text = inspect.getsource(numba_update)
    for rule in RULES:
        assert re.search(rf"\b{rule}\b", text), rule
    for tried in (kernel_cases.OPTIMIZERS, kernel_checks.OPTIMIZERS):
        assert {optimizer.rule for optimizer in tried.values()} == RULES


def test_pytorchs_modules() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from backprop_gpu.torch import equations, modules

    none = {"exponential": "PyTorch has no module for it: `modules.ExponentialModule` is ours"}
    same(modules.MODULES, SIGMAS, none)
    same(modules.SIGMAS.values(), SIGMAS)
    same(modules.FUNCTIONS.values(), SIGMAS, {"identity": "PyTorch has no function for it"})
    same(equations.SIGMA_OPERATIONS, SIGMAS)
