"""Whether a peer trains what it is asked to: its parameters after a few steps, beside float64's."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..workloads import Arrays, ProblemInstance, Workload, problem
from . import DeviceType, Peer

#: What a peer may disagree by. Of float32 about 1e-6 is seen, of TF32 3e-4 and more.
BOUND = 1e-4

#: Floating-point operations that the reference may take, about a second of a CPU core or two.
OPERATIONS = 2e10
#: Nearer to 0 than this, z may have another sign in float32.
KINK = 1e-5


def disagreement(peer: Peer, workload: Workload, device: DeviceType, steps: int = 5) -> float:
    """How far a peer's parameters are from a float64 reference after a few steps.

    The network is the workload's own, all its members and every parameter. The batch is too,
    unless the reference would take more than `OPERATIONS`: then it has as few rows as it can
    afford, and what a library chooses by the batch, such as its kernels, may be another choice.

    Returns
    -------
    float
        Of every array of weights or biases the largest difference over the largest change that
        training made to it, and of these the worst; infinity where there is a NaN. Each step may
        round a parameter to the nearest float32: that much is no difference.
    """
    given, expected = _reference(workload, steps)
    trainer = peer.start(given, device)
    trainer.run()
    weights, biases = trainer.parameters()
    worst = 0.0
    for found, right, start in zip(
        weights + biases, expected, given.weights + given.biases, strict=True
    ):
        if found.shape != start.shape or found.dtype != start.dtype:
            raise ValueError(f"{peer.label}: {found.dtype}{found.shape} for {start.shape}")
        rounding = steps * 0.5 * np.spacing(np.maximum(abs(found), abs(start)))
        error = np.maximum(abs(found - right) - rounding, 0.0).max() / abs(right - start).max()
        worst = max(worst, float(error) if np.isfinite(error) else math.inf)
    return worst


def bound(peer: Peer) -> float:
    """What this one may disagree by: its own ``bound`` where it rounds more than float32 does."""
    return float(getattr(peer, "bound", BOUND))


def affordable(workload: Workload, steps: int) -> Workload:
    """With so few rows that the reference takes no more than `OPERATIONS`."""
    a_row = workload.flops / workload.batch
    return replace(workload, batch=max(1, min(workload.batch, int(OPERATIONS / (steps * a_row)))))


@lru_cache(maxsize=1)  # the next peer has the same workload
def _reference(workload: Workload, steps: int) -> tuple[ProblemInstance, Arrays]:
    """A problem, and all weights, then all biases, after its steps.

    A row for which a relu's z is close to 0 gives way to another row of the batch: its slope is 0
    or 1 by the last bit of a sum, and libraries may rightly differ.
    """
    given = problem(affordable(workload, steps), steps)
    weights = [w.astype(np.float64) for w in given.weights]
    biases = [b.astype(np.float64) for b in given.biases]
    order = given.order.copy()
    for rows in order:
        x, y = given.X[rows].astype(np.float64), given.Y[rows].astype(np.float64)
        if not workload.classes:
            kept = np.flatnonzero(_far_from_kinks(weights, biases, x))
            again = np.resize(kept, len(rows))
            rows[:], x, y = rows[again], x[again], y[again]
        for member in range(workload.members):
            ws, bs = [w[member] for w in weights], [b[member] for b in biases]
            _step(ws, bs, x, y, workload.classes, given.learning_rate)
    return replace(given, order=order), weights + biases


def _far_from_kinks(weights: Arrays, biases: Arrays, x: np.ndarray) -> np.ndarray:
    far = np.ones(len(x), bool)
    for ws, bs in zip(zip(*weights, strict=True), zip(*biases, strict=True), strict=True):
        a = x
        for w, b in zip(ws[:-1], bs[:-1], strict=True):
            z = a @ w.T + b
            far &= abs(z).min(axis=1) > KINK
            a = z.clip(min=0.0)
    return far


def _step(ws: Arrays, bs: Arrays, x: np.ndarray, y: np.ndarray, classes: bool, eta: float) -> None:
    """A step of one network, in place, by the chain rule from z to z."""
    inputs, slopes = [x], []
    for w, b in zip(ws[:-1], bs[:-1], strict=True):
        z = inputs[-1] @ w.T + b
        a = np.exp(-np.logaddexp(0.0, -z)) if classes else z.clip(min=0.0)
        slopes.append(a * np.exp(-np.logaddexp(0.0, z)) if classes else np.heaviside(z, 0.0))
        inputs.append(a)
    z = inputs[-1] @ ws[-1].T + bs[-1]
    if classes:  # C = log Σ e^z - yᵀz, else ½‖z - y‖²
        z = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    delta = (z - y) / len(x)
    for w, b in zip(reversed(ws), reversed(bs), strict=True):
        gradient, of_bias = delta.T @ inputs.pop(), delta.sum(axis=0)
        if slopes:
            delta = delta @ w * slopes.pop()
        w -= eta * gradient
        b -= eta * of_bias
