"""What is trained, by name, with its operations and least bytes by the formulas of `planning`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .. import planning

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Workload:
    """Networks of one shape, trained with mini-batches of one size.

    With ``classes`` the hidden layers are sigmoids and the output a softmax with categorical
    cross-entropy, as of a classifier; without, relu and identity with quadratic cost. All is
    float32.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    classes: bool
    members: int = 1

    @property
    def weights(self) -> int:
        return sum(k * n for k, n in pairwise(self.sizes))

    @property
    def parameters(self) -> int:
        return self.weights + sum(self.sizes[1:])

    @property
    def activations(self) -> list[str]:
        """Names, of layers 1 … L."""
        hidden, output = ("sigmoid", "softmax") if self.classes else ("relu", "identity")
        return [hidden] * (len(self.sizes) - 2) + [output]

    @property
    def cost(self) -> str:
        return "categorical_cross_entropy" if self.classes else "quadratic"

    @property
    def learning_rate(self) -> float:
        """η, the same for every library, so that parameters can be compared one by one.

        With relu and quadratic cost training diverges from a few times 1 / n on, n neurons wide.
        """
        return 0.1 if self.classes else 1.0 / max(self.sizes)

    @property
    def flops(self) -> int:
        """Floating-point operations of a step, those of its products."""
        return self.members * planning.step_flops(self.sizes, self.batch)

    def least_bytes(self, on_chip: int, itemsize: int = 4) -> int:
        """Bytes that a step moves at least where the chip keeps ``on_chip`` bytes.

        Networks need not take their steps together: one that fits by itself stays for an epoch.
        """
        return self.members * planning.least_bytes(self.sizes, self.batch, itemsize, on_chip)

    def __str__(self) -> str:
        shape = f"{list(self.sizes)} batch {self.batch}"
        return f"{shape}, {self.members} networks" if self.members > 1 else shape


_NIELSEN = Workload("nielsen", (784, 30, 10), 10, classes=True)
_FIELD = Workload("field", (32, 64, 64, 64, 64, 16), 1 << 14, classes=False)

#: By the name that ``bench --workload`` takes; more than one where time is shown as a curve.
WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "nielsen": (_NIELSEN,),
    "classic": (Workload("classic", (784, 128, 128, 10), 128, classes=True),),
    "tabular": (Workload("tabular", (64, 512, 512, 512, 1), 1024, classes=False),),
    "field": (
        *(replace(_FIELD, batch=1 << power) for power in (14, 16, 18)),
        replace(_FIELD, sizes=(32, 128, 128, 128, 128, 16)),
    ),
    "wide": (Workload("wide", (4096,) * 5, 8192, classes=False),),
    "population": tuple(
        replace(_NIELSEN, name="population", members=members) for members in (1, 8, 132, 1024)
    ),
}


@dataclass(frozen=True)
class ProblemInstance:
    """A workload with its data: everything a library needs to train, and nothing of its own.

    X (rows, n_0) and Y (rows, n_L) are random. ``order`` (steps, batch) names the rows of every
    step. ``weights[l]`` is (members, n_{l+1}, n_l), ``biases[l]`` (members, n_{l+1}).
    """

    workload: Workload
    X: np.ndarray
    Y: np.ndarray
    order: np.ndarray
    weights: Arrays
    biases: Arrays
    learning_rate: float

    @property
    def steps(self) -> int:
        return len(self.order)


def problem(workload: Workload, steps: int, seed: int = 0) -> ProblemInstance:
    """Random data for a number of steps; rows are drawn anew once all have been used."""
    rng = np.random.default_rng(seed)
    rows = workload.batch * min(steps, max(2, 10_000 // workload.batch))
    X = rng.random((rows, workload.sizes[0]), np.float32)
    if workload.classes:
        labels = rng.integers(0, workload.sizes[-1], rows)
        Y = np.eye(workload.sizes[-1], dtype=np.float32)[labels]
    else:
        Y = rng.standard_normal((rows, workload.sizes[-1]), np.float32)
    epochs = -(-steps * workload.batch // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    order = order[: steps * workload.batch].reshape(steps, workload.batch)
    gain = 1.0 if workload.classes else 2.0  # He's, for relu
    weights, biases = [], []
    for k, n in pairwise(workload.sizes):
        w = rng.standard_normal((workload.members, n, k), np.float32)
        weights.append(w * np.float32((gain / k) ** 0.5))
        biases.append(0.1 * rng.standard_normal((workload.members, n), np.float32))
    return ProblemInstance(workload, X, Y, order, weights, biases, workload.learning_rate)
