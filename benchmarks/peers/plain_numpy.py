"""The equations as a loop over mini-batches of NumPy arrays, or of CuPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..workloads import Arrays, ProblemInstance, Workload
from . import DeviceType, cpu_only

Array = Any


class PlainNumPy:
    name = "numpy"
    label = "plain NumPy"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        return cpu_only(device)

    def start(self, problem: ProblemInstance, device: DeviceType) -> PlainTrainer:
        return PlainTrainer(problem, np)


class PlainTrainer:
    """``xp`` is the module of the arrays. Many networks are one more axis, in front."""

    def __init__(self, problem: ProblemInstance, xp: Any) -> None:
        self.xp, self.problem = xp, problem
        self.X, self.Y, self.order = map(xp.asarray, (problem.X, problem.Y, problem.order))
        one = problem.workload.members == 1
        self.weights = [xp.array(w[0] if one else w) for w in problem.weights]
        self.biases = [xp.array(b[0] if one else b) for b in problem.biases]

    def run(self) -> None:
        for rows in self.order:
            self.step(self.X[rows], self.Y[rows])

    def step(self, x: Array, y: Array) -> None:
        a = [x]
        for w, b in zip(self.weights, self.biases, strict=True):
            z = a[-1] @ w.swapaxes(-1, -2) + b[..., None, :]
            a.append(self.hidden(z) if len(a) < len(self.weights) else self.output(z))
        # Both pairs of output and cost have this error, here of the mean over the rows.
        delta = (a[-1] - y) / len(x)
        for l in range(len(self.weights) - 1, -1, -1):
            w, b = self.weights[l], self.biases[l]
            dw, db = delta.swapaxes(-1, -2) @ a[l], delta.sum(axis=-2)
            if l:
                delta = delta @ w * self.derivative(a[l])
            w -= self.problem.learning_rate * dw
            b -= self.problem.learning_rate * db

    def hidden(self, z: Array) -> Array:
        if self.problem.workload.classes:
            return 1 / (1 + self.xp.exp(-z))
        return self.xp.maximum(z, 0)

    def derivative(self, a: Array) -> Array:
        return a * (1 - a) if self.problem.workload.classes else a > 0

    def output(self, z: Array) -> Array:
        if not self.problem.workload.classes:
            return z
        e = self.xp.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def parameters(self) -> tuple[Arrays, Arrays]:
        weights, biases = self.problem.weights, self.problem.biases
        return (
            [self.to_numpy(w).reshape(s.shape) for w, s in zip(self.weights, weights, strict=True)],
            [self.to_numpy(b).reshape(s.shape) for b, s in zip(self.biases, biases, strict=True)],
        )

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.array(array)
