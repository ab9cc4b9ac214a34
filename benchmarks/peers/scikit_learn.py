"""scikit-learn's MLPClassifier and MLPRegressor: plain SGD without a penalty, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..workloads import Arrays, ProblemInstance, Workload
from . import DeviceType, absent, cpu_only


class ScikitLearn:
    name = "sklearn"
    label = "scikit-learn"

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        return cpu_only(device) or absent("sklearn", "scikit-learn")

    def start(self, problem: ProblemInstance, device: DeviceType) -> ScikitLearnTrainer:
        return ScikitLearnTrainer(problem)


class ScikitLearnTrainer:
    """All steps are one call of `partial_fit`, which is one pass over the rows.

    The rows are laid out in the order of the steps beforehand, also where that repeats some: this
    spares scikit-learn the shuffling, and the copying of every mini-batch.
    """

    def __init__(self, problem: ProblemInstance) -> None:
        workload = problem.workload
        rows = problem.order.ravel()
        self.X, self.y = problem.X[rows], problem.Y[rows]
        if workload.classes:
            self.y = self.y.argmax(axis=1)
        elif workload.sizes[-1] == 1:
            self.y = self.y[:, 0]
        # Many networks are trained one after another.
        self.models = [self._model(problem, member) for member in range(workload.members)]

    def _model(self, problem: ProblemInstance, member: int) -> Any:
        workload, m = problem.workload, problem.workload.batch
        model = self.new_model(
            workload.classes,
            hidden_layer_sizes=workload.sizes[1:-1],
            activation="logistic" if workload.classes else "relu",
            solver="sgd",
            alpha=0.0,
            batch_size=m,
            learning_rate="constant",
            learning_rate_init=problem.learning_rate,
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=False,
            random_state=0,
        )
        # A first step makes the attributes, which then take the problem's parameters.
        classes = {"classes": np.arange(workload.sizes[-1])} if workload.classes else {}
        model.partial_fit(self.X[:m], self.y[:m], **classes)
        model.coefs_ = [w[member].T.copy() for w in problem.weights]
        model.intercepts_ = [b[member].copy() for b in problem.biases]
        return model

    def new_model(self, classes: bool, **settings: Any) -> Any:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        return (MLPClassifier if classes else MLPRegressor)(**settings)

    def run(self) -> None:
        from sklearn import config_context

        with config_context(assume_finite=True):
            for model in self.models:
                model.partial_fit(self.X, self.y)

    def parameters(self) -> tuple[Arrays, Arrays]:
        coefs = zip(*(model.coefs_ for model in self.models), strict=True)
        intercepts = zip(*(model.intercepts_ for model in self.models), strict=True)
        return (
            [np.stack([w.T for w in layer]) for layer in coefs],
            [np.stack(layer) for layer in intercepts],
        )
