"""What a study of Optuna's takes: its trials as populations, and one by one.

    python -m backprop_gpu.benchmarks.bench_optuna [--rounds 5] [--trials 81] [--epochs 81]
    python -m backprop_gpu.benchmarks.bench_optuna --picture docs/optuna.png

    sweep      `sweep` with `trials=`: populations that members leave in mid-training, by default of
               all trials, since a RandomSampler learns nothing
    at_once    the same with so many trials at once, whose places the next ones take
    optuna     `study.optimize` with an objective that builds a `Network` and fits it with a
               callback that reports and prunes
    n_jobs     the same objective, in so many of Optuna's threads

All try the same settings, of learning rate, batch size and momentum, on the digits that
scikit-learn ships with: a RandomSampler of one seed draws them, and Hyperband prunes them. Sides
take turns; shown are medians over the rounds: seconds, how many times faster than `optuna` in the
same round, how many times less processor time, and how many times faster an epoch. A pruner judges
by what it has heard of by then, so sides train different numbers of epochs. What a trial reports
must be equal on all sides, as far as they train it. With --picture nothing is timed: it draws the
trials of `sweep`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from .measure import settle


class StudyProblem:
    """A study's data and search space."""

    def __init__(
        self, trials: int, epochs: int, hidden: Sequence[int], batches: Sequence[int], prune: bool
    ) -> None:
        import optuna
        from sklearn.datasets import load_digits

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        X, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(X))
        X, y = (X[order] / 16).astype(np.float32), y[order]
        self.X, self.y, self.validation = X[:1437], y[:1437], (X[1437:], y[1437:])
        self.trials, self.epochs, self.prune = trials, epochs, prune
        self.sizes = [64, *hidden, 10]
        kinds = optuna.distributions
        self.grid = {
            "learning_rate": kinds.FloatDistribution(1e-3, 10.0, log=True),
            "batch_size": kinds.CategoricalDistribution(list(batches)),
            "momentum": kinds.FloatDistribution(0.0, 0.95),
        }

    def study(self) -> Any:
        import optuna

        pruner: Any = optuna.pruners.NopPruner()
        if self.prune:
            pruner = optuna.pruners.HyperbandPruner(1, self.epochs, 3)
        # Hyperband goes by the name which bracket a trial is of.
        return optuna.create_study(
            study_name="digits", direction="maximize", sampler=optuna.samplers.RandomSampler(0),
            pruner=pruner,
        )  # fmt: skip

    def as_sweep(self, at_once: int | None = None) -> Any:
        from .. import sweep

        study = self.study()
        sweep(
            self.X, self.y, grid=self.grid, trials=self.trials, study=study, sizes=self.sizes,
            epochs=self.epochs, cost="binary_cross_entropy", validation_data=self.validation,
            seed=0, progress=False, backend="numpy", at_once=at_once,
        )  # fmt: skip
        return study

    def one_by_one(self, jobs: int) -> Any:
        import optuna

        from .. import SGD, Network

        def objective(trial: Any) -> float:
            values = {key: trial._suggest(key, each) for key, each in self.grid.items()}  # noqa: SLF001

            def after(network: Any, history: Any) -> None:
                trial.report(history.val_accuracy[-1], len(history) - 1)
                if self.prune and trial.should_prune():
                    raise optuna.TrialPruned

            network = Network(self.sizes, cost="binary_cross_entropy", seed=0, backend="numpy")
            history = network.fit(
                self.X, self.y, epochs=self.epochs, batch_size=values["batch_size"],
                learning_rate=values["learning_rate"], validation_data=self.validation,
                optimizer=SGD(momentum=values["momentum"]), callbacks=[after],
            )  # fmt: skip
            return history.val_accuracy[-1]

        study = self.study()
        study.optimize(objective, self.trials, n_jobs=jobs, catch=(FloatingPointError,))
        return study


def epochs_of(study: Any) -> int:
    """That all trials have trained."""
    return sum(len(trial.intermediate_values) for trial in study.trials)


def differing(study: Any, other: Any) -> int:
    """Trials of the same setting whose values differ in an epoch that both have trained."""
    return sum(
        a.params == b.params
        and any(
            a.intermediate_values[step] != b.intermediate_values[step]
            for step in a.intermediate_values.keys() & b.intermediate_values.keys()
        )
        for a, b in zip(study.trials, other.trials, strict=True)
    )


def draw(study: Any, path: str) -> None:
    """Validation accuracy of every trial by epoch, and by learning rate at its end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    pale, dark, best = "#b9cce0", "#1f5fa8", "#d1602b"
    trials = [trial for trial in study.trials if trial.intermediate_values]
    ended = [trial for trial in trials if trial.state.name == "PRUNED"]
    whole = [trial for trial in trials if trial.state.name == "COMPLETE"]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
    kinds = (
        (ended, pale, 0.9, f"pruned, {len(ended)} trials"),
        (whole, dark, 1.5, f"trained to the end, {len(whole)}"),
        ([study.best_trial], best, 2.2, "the best"),
    )
    for some, color, width, label in kinds:
        for number, trial in enumerate(some):
            epochs = [step + 1 for step in trial.intermediate_values]  # steps count from 0
            values = list(trial.intermediate_values.values())
            shown = label if number == 0 else None
            axes[0].plot(epochs, values, color=color, linewidth=width, label=shown)
            if color == pale:
                axes[0].plot(epochs[-1], values[-1], ".", color="#7f9fc0", markersize=4)
            axes[1].plot(
                trial.params["learning_rate"], values[-1], "o", color=color,
                markersize=3 + 1.5 * len(values) ** 0.4,
            )  # fmt: skip
    for axis in axes:
        axis.set_xscale("log")
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    last = max(map(len, (trial.intermediate_values for trial in trials)))
    rungs = [3**i + 1 for i in range(10) if 3**i + 1 < last]  # of steps 1, 3, 9, …
    axes[0].set_xticks([1, *rungs, last])
    axes[0].xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:g}"))
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].set(xlabel="epoch", ylabel="validation accuracy", title="while they train")
    axes[0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.12))
    axes[1].set(xlabel="learning rate", title="where they end; larger: after more epochs")
    figure.savefig(path, dpi=110)


def _ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time and print; 1 if trials of ours differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=81)
    parser.add_argument("--epochs", type=int, default=81)
    parser.add_argument("--hidden", type=int, nargs="*", default=[30])
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--jobs", type=int, nargs="*", default=[2], help="besides one")
    parser.add_argument("--at-once", type=int, nargs="*", default=[8])
    parser.add_argument("--no-pruner", action="store_true", help="train every trial to its end")
    parser.add_argument("--picture", metavar="FILE", help="draw the trials, and time nothing")
    args = parser.parse_args(argv)
    problem = StudyProblem(args.trials, args.epochs, args.hidden, args.batches, not args.no_pruner)
    if args.picture:
        draw(problem.as_sweep(), args.picture)
        return 0
    named: dict[str, Callable[[], Any]] = {"sweep": problem.as_sweep}
    for count in args.at_once:
        named[f"sweep, at_once={count}"] = lambda count=count: problem.as_sweep(count)  # type: ignore[misc]
    for count in (1, *args.jobs):
        name = "optuna" if count == 1 else f"optuna, n_jobs={count}"
        named[name] = lambda count=count: problem.one_by_one(count)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in named}
    cpu: dict[str, list[float]] = {name: [] for name in named}
    studies: dict[str, list[Any]] = {name: [] for name in named}
    for number in range(args.rounds):
        for name in list(named)[:: 1 if number % 2 == 0 else -1]:
            settle()
            begin, used = time.perf_counter(), time.process_time()
            studies[name].append(named[name]())
            seconds[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - used)
    epochs = {name: [epochs_of(study) for study in studies[name]] for name in named}
    print(f"{'':<20}{'seconds':>9}{'faster':>8}{'cpu':>7}{'epochs':>8}{'an epoch':>10}{'best':>8}")
    wrong = 0
    for name in named:
        faster = _ratios(seconds["optuna"], seconds[name])
        an_epoch = median(_ratios(faster, _ratios(epochs["optuna"], epochs[name])))
        differ = differing(studies["optuna"][0], studies[name][0])
        wrong |= differ > 0
        print(
            f"{name:<20}{median(seconds[name]):>9.2f}{median(faster):>8.2f}"
            f"{median(_ratios(cpu['optuna'], cpu[name])):>7.2f}{median(epochs[name]):>8.0f}"
            f"{an_epoch:>10.2f}{studies[name][0].best_value:>8.4f}"
            + f"  {differ} TRIALS DIFFER"
            * bool(differ)
        )
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
