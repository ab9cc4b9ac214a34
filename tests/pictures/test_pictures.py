"""What is drawn is what the data say; Axes that are given are those that come back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from backprop_gpu import (
    DeltaNorms,
    EarlyStopping,
    GradientReport,
    History,
    Network,
    Population,
    SweepResult,
    pictures,
    sweep,
)
from backprop_gpu.gradient_check import Nudge
from backprop_gpu.pictures import axes as styles
from backprop_gpu.planning import H200, choose_plan
from backprop_gpu.planning.explanation import explain
from backprop_gpu.planning.plan import Choice, Run

matplotlib.use("Agg")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 16)).astype("f4")
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
FIT: dict[str, Any] = {"epochs": 4, "batch_size": 10, "learning_rate": 0.5}


@pytest.fixture(autouse=True)
def _no_figure_stays() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    pyplot.close("all")


def given(count: int = 1) -> Any:
    """Axes that pyplot does not know."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    found = figure.subplots(1, count, squeeze=False)[0]
    return found[0] if count == 1 else found


def rendered(drawn: Any) -> list[Axes]:
    """The Axes, of a figure that could be drawn."""
    several = list(drawn) if isinstance(drawn, np.ndarray) else [drawn]
    assert all(isinstance(each, Axes) for each in several)
    several[0].figure.canvas.draw()
    return several


def network(sizes: tuple[int, ...] = (16, 6, 3), **options: Any) -> Network:
    return Network(sizes, backend="numpy", seed=1, **options)


def trained() -> tuple[Network, History]:
    net = network(cost="binary_cross_entropy")
    return net, net.fit(X, Y, validation_data=(X, Y), callbacks=[EarlyStopping()], **FIT)


def result(**grid: Any) -> SweepResult:
    return sweep(
        X, Y, grid=grid, sizes=[16, 4, 3], validation_data=(X, Y), seed=0, progress=False,
        backend="numpy", **{k: v for k, v in FIT.items() if k not in grid},
    )  # fmt: skip


# -- what all have in common --------------------------------------------------------------


@cache
def everything() -> list[tuple[str, int, Any]]:
    """The name of each method, how many Axes it needs, and the method."""
    net, history = trained()
    population = Population([16, 4, 3], members=3, seed=0, backend="numpy")
    norms = DeltaNorms()
    population.fit(X, Y, callbacks=[norms], **FIT)
    swept = result(learning_rate=[0.1, 1.0], l2=[0.0, 0.1])
    return [
        ("Network.plot()", 1, net.plot),
        ("Network.plot()", 2, lambda ax: net.plot(ax, image_shape=False)),
        ("Network.plot_confusion()", 1, lambda ax: net.plot_confusion(X, Y, ax)),
        ("History.plot()", 2, history.plot),
        ("History.plot()", 1, History([1.0, 0.5]).plot),
        ("Plan.plot()", 1, net.plan.plot),
        ("Explanation.plot()", 1, net.explain(batch_size=10).plot),
        ("SweepResult.plot()", 1, lambda ax: swept.plot("parallel", ax)),
        ("SweepResult.plot()", 1, lambda ax: swept.plot("heatmap", ax)),
        ("Population.plot()", 1, population.plot),
        ("GradientReport.plot()", 2, net.check_gradients(X[:5], Y[:5]).plot),
        ("DeltaNorms.plot()", 1, norms.of(population.members[1]).plot),
    ]


def test_axes_in_are_axes_out_and_pyplot_does_not_hear_of_them() -> None:
    for name, count, plot in everything():
        ax = given(count)
        drawn = plot(ax)
        assert list(np.atleast_1d(drawn)) == list(np.atleast_1d(ax)), name
        assert isinstance(drawn, np.ndarray) == (count > 1), name
        several = list(np.atleast_1d(drawn))
        assert all(each.has_data() for each in several), name
        assert not pyplot.get_fignums(), name


def test_without_axes_there_is_a_new_figure_of_pyplots_with_room_for_all() -> None:
    for name, count, plot in everything():
        several = rendered(plot(None))
        assert len(several) == count, name
        assert len(pyplot.get_fignums()) == 1, name
        figure = pyplot.gcf()
        assert several[0].figure is figure, name
        inner, outer = figure.get_tightbbox(), figure.bbox_inches
        assert inner.x0 >= -0.01, name
        assert inner.y0 >= -0.01, name
        assert inner.x1 <= outer.width + 0.01, name
        assert inner.y1 <= outer.height + 0.01, name
        pyplot.close("all")


@pytest.mark.parametrize(
    ("count", "wrong", "error"),
    [
        (1, "axes", TypeError),
        (1, 3, TypeError),
        (1, [1, 2], TypeError),
        (1, [], ValueError),
        (2, "one", ValueError),
        (1, "two", ValueError),
    ],
)
def test_other_axes_are_refused(count: int, wrong: Any, error: type[Exception]) -> None:
    if wrong in ("one", "two"):
        wrong = given(1 if wrong == "one" else 2)
        wrong = wrong if isinstance(wrong, np.ndarray) else [wrong]
    net = network()
    with pytest.raises(error, match=r"^Network.plot\(\): ax must be "):
        net.plot(wrong, image_shape=None if count == 1 else False)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = everything()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name, _, plot in found:
        with pytest.raises(ImportError, match=r"backprop_gpu\[plot\]") as caught:
            plot(None)
        assert str(caught.value).startswith(f"{name}: the package matplotlib is not installed")


def test_without_scikit_learn_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.metrics", raising=False)
    with pytest.raises(ImportError, match=r"Network.plot_confusion.*backprop_gpu\[sklearn\]"):
        network().plot_confusion(X, Y)
    assert not pyplot.get_fignums()


def test_colours_can_be_read_on_white_and_on_black() -> None:
    def brightness(colour: Any) -> float:
        c = np.array(to_rgb(colour))
        return float(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
            @ (0.2126, 0.7152, 0.0722)
        )

    scale = styles.by_value()
    named = (styles.BLUE, styles.VERMILLION, styles.GREEN, styles.PURPLE, styles.GREY)
    for colour in [*named, *(scale(x)[:3] for x in np.linspace(0, 1, 11))]:
        light = brightness(colour)
        assert 1.05 / (light + 0.05) >= 3.0, colour
        assert (light + 0.05) / (brightness("#0a0a0a") + 0.05) >= 3.0, colour


# -- networks ---------------------------------------------------------------------------------


def test_images_are_the_rows_of_w() -> None:
    net = network((16, 6, 3))
    ax = net.plot(given(), neurons=5)
    sheet = ax.images[0].get_array()
    w = net.weights[0]
    assert sheet.shape == (8, 12)
    for j in range(5):
        top, left = 4 * (j // 3), 4 * (j % 3)
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 4], w[j].reshape(4, 4))
    assert sheet[4:, 8:].mask.all()
    assert ax.images[0].get_clim() == (-np.abs(w[:5]).max(), np.abs(w[:5]).max())
    assert "5 of 6" in ax.get_title()


def test_heat_maps_are_w_and_b() -> None:
    net = network((5, 4, 3))
    net.biases = [np.arange(4.0), [-9.0, 0.0, 1.0]]
    for ax, w, b in zip(net.plot(given(2)), net.weights, net.biases, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), w)
        np.testing.assert_array_equal(ax.images[1].get_array()[:, 0], b)
        assert ax.images[0].get_clim() == ax.images[1].get_clim() == (-9.0, 9.0)


@pytest.mark.parametrize(
    ("inputs", "shape", "found"),
    [
        (784, None, (28, 28)), (16, None, (4, 4)), (9, None, None), (20, None, None),
        (16, (2, 8), (2, 8)), (6, [2, 3], (2, 3)), (784, False, None),
    ],
)  # fmt: skip
def test_what_is_an_image(inputs: int, shape: Any, found: Any) -> None:
    assert pictures.networks.image_shape(shape, inputs) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_shape": (3, 5)}, ValueError, "15 pixels, and there are 16 inputs"),
        ({"image_shape": (4, 4, 1)}, TypeError, r"image_shape must be \(height, width\)"),
        ({"image_shape": True}, TypeError, "image_shape must be"),
        ({"image_shape": 4}, TypeError, "image_shape must be"),
        ({"image_shape": (-4, -4)}, ValueError, r"image_shape\[0\]"),
        ({"image_shape": (2.0, 8)}, TypeError, r"image_shape\[0\]"),
        ({"neurons": 0}, ValueError, "neurons"),
        ({"neurons": 2.5}, TypeError, "neurons"),
    ],
)
def test_images_that_cannot_be(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        network().plot(**options)
    assert not pyplot.get_fignums()


def test_weights_that_are_no_numbers_stay_blank() -> None:
    w = np.array([[1.0, np.nan, -2.0, np.inf] * 4])
    ax = pictures.weights(given(), [w], [np.zeros(1)])
    np.testing.assert_array_equal(ax.images[0].get_array().mask.ravel(), ~np.isfinite(w[0]))
    assert ax.images[0].get_clim() == (-2.0, 2.0)
    rendered(pictures.weights(given(), [np.zeros((3, 2))], [np.zeros(3)]))


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_confusion_is_scikit_learns(normalize: str | None) -> None:
    from sklearn.metrics import confusion_matrix

    net, _ = trained()
    predicted = net.predict(X).argmax(axis=1)
    expected = confusion_matrix(Y, predicted, normalize=normalize)
    for labels in (Y, np.eye(3)[Y]):
        ax = net.plot_confusion(X, labels, given(), normalize=normalize)
        np.testing.assert_allclose(ax.images[0].get_array(), expected)


def test_confusion_shows_classes_that_no_row_has_and_those_of_one_output() -> None:
    assert network((16, 4)).plot_confusion(X, Y, given()).images[0].get_array().shape == (4, 4)
    net = network((16, 1))
    rows = net.plot_confusion(X, Y > 0, given()).images[0].get_array()
    expected = (net.predict(X)[:, 0] >= 0.5) == (Y > 0)
    assert np.trace(rows) == expected.sum()


def test_confusion_refuses_what_it_cannot_show() -> None:
    net = network()
    for wrong, message in ((Y[:-1], "y must have shape"), (Y + 1.5, "whole"), (Y - 1, "y")):
        with pytest.raises(ValueError, match=message):
            net.plot_confusion(X, wrong)
    with pytest.raises(ValueError, match="normalize"):
        net.plot_confusion(X, Y, normalize="rows")
    loud = network(activation="relu")
    loud.weights = [np.full((6, 16), 3e38), np.array([[1, -1, 1, -1, 1, -1]] * 3) * 3e38]
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="rows are NaN, first of row 0"):
        loud.plot_confusion(np.ones((2, 16)), [0, 1])
    assert not pyplot.get_fignums()


def test_scikit_learns_own_display_takes_our_estimators() -> None:
    from sklearn.metrics import ConfusionMatrixDisplay

    from backprop_gpu import EnsembleClassifier, MLPClassifier

    for estimator in (
        MLPClassifier((4,), max_iter=2, tol=1e9),
        EnsembleClassifier(2, (4,), max_iter=2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(X, Y)
        shown = ConfusionMatrixDisplay.from_estimator(estimator, X, Y, ax=given())
        assert shown.confusion_matrix.sum() == len(X)


# -- histories -----------------------------------------------------------------------------


def test_a_history_draws_its_values() -> None:
    history = History([3.0, 2.0, 1.0], [3.5, 2.5, 2.75], [0.25, 0.75, 0.5], restored=1)
    loss, accuracy = history.plot(given(2))
    training, validation, kept = loss.lines
    np.testing.assert_array_equal(training.get_xydata().T, [(1, 2, 3), history.loss])
    np.testing.assert_array_equal(validation.get_ydata(), history.val_loss)
    assert list(kept.get_xdata()) == [2, 2]
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), history.val_accuracy)
    texts = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert texts[0] == "accuracy: 0.7500 after epoch 2"
    assert loss.get_ylim()[0] == 0.0


def test_one_axes_has_a_twin_for_the_accuracy() -> None:
    ax = given()
    first, twin = History([3.0, 2.0], [3.5, 2.5], [0.25, 0.75]).plot(ax)
    assert first is ax
    assert twin.figure is ax.figure
    np.testing.assert_array_equal(twin.lines[0].get_ydata(), [0.25, 0.75])
    texts = [text.get_text() for text in twin.get_legend().get_texts()]
    assert len(texts) == 3
    assert ax.get_legend() is None


def test_histories_of_less() -> None:
    nan = float("nan")
    for history, lines in (
        (History([1.0]), 1),
        (History([2.0, 1.0], [3.0, 2.0]), 2),
        (History([2.0, 1.0], [3.0, 2.0], [nan, nan]), 2),
        (History([-2.0, nan], [float("inf")], averaged=True), 2),
    ):
        ax = history.plot(given())
        rendered(ax)
        assert len(ax.lines) == lines
    assert ax.get_ylim()[0] == -2.0
    assert "average" in ax.get_legend().get_title().get_text()


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match=r"History.plot\(\): the history is empty"):
        History().plot()
    with pytest.raises(ValueError, match="there is no epoch yet"):
        DeltaNorms().plot()
    with pytest.raises(ValueError, match="not been trained"):
        Population([2, 1], members=2, backend="numpy").plot()
    with pytest.raises(ValueError, match="histories are empty"):
        pictures.members(None, [[], []], 0, "loss")
    with pytest.raises(ValueError, match="no loss is a finite number"):
        pictures.members(None, [[np.nan]], 0, "loss")
    assert not pyplot.get_fignums()


# -- populations ---------------------------------------------------------------------------


@pytest.mark.parametrize("members", [3, 12])
def test_a_population_draws_where_its_curves_lie(members: int) -> None:
    population = Population([16, 4, 3], members=members, seed=0, backend="numpy")
    epochs = [4] * (members - 1) + [2]
    rates = np.geomspace(0.1, 3, members)
    population.fit(X, Y, validation_data=(X, Y), **FIT | {"epochs": epochs, "learning_rate": rates})
    for metric in (None, "loss", "val_accuracy"):
        ax = population.plot(given(), metric=metric)
        curves = [getattr(each.history, metric or "val_loss") for each in population.members]
        at_end = [curve[3] for curve in curves[:-1]]
        q = (10, 50, 90) if members >= 10 else (0, 50, 100)
        low, middle, high = np.percentile(at_end, q)
        band = ax.collections[0].get_paths()[0].vertices
        last = band[band[:, 0] == 4, 1]
        np.testing.assert_allclose([last.min(), last.max()], [low, high])
        assert ax.lines[0].get_ydata()[-1] == middle
        best = population.best(metric=metric)
        np.testing.assert_array_equal(
            ax.lines[1].get_ydata(), getattr(best.history, metric or "val_loss")
        )
        assert f"{members} networks" in ax.get_title()
        assert "as long as they train" in ax.get_legend().get_texts()[0].get_text()


def test_members_that_failed_are_left_out() -> None:
    population = Population([16, 4, 3], members=3, activation="relu", seed=0, backend="numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population.fit(X, Y, **FIT | {"learning_rate": [0.01, 1e30, 0.02]})
    assert list(population.failed) == [1]
    assert population.plot(given()).get_title() == "2 networks, 1 that failed left out"
    with pytest.raises(ValueError, match="needs a fit with validation_data"):
        population.plot(metric="val_loss")


# -- plans and explanations ----------------------------------------------------------------


def on_a_gpu(**options: Any) -> Any:
    sizes, run = (64, 512, 512, 10), Run(50_000, 30, 1024, engine="layered")
    plan = choose_plan(sizes, "float32", Choice("cuda", "asked for"), H200, run, **options)
    return plan, explain(sizes, 1024, np.dtype("float32"), plan, H200)


def test_a_plan_draws_what_is_predicted_of_its_products() -> None:
    plan, explanation = on_a_gpu()
    ax = plan.plot(given())
    drawn = [bar.get_width() for bar in ax.patches]
    predicted = dict(plan.products)
    labels = [text.get_text().partition(":")[0] for text in ax.get_yticklabels()]
    assert sorted(labels) == sorted(predicted)
    np.testing.assert_allclose(drawn, [1e6 * predicted[label].seconds for label in labels])
    assert "µs" in ax.get_xlabel()
    ax = explanation.plot(given())
    rendered(ax)
    bars, least = (container.patches for container in ax.containers)
    for work, bar, bound in zip(explanation.work, bars, least, strict=True):
        seconds = max(work.flops / H200.peak_rate(4, "float32"), work.bytes / H200.bandwidth)
        assert bound.get_width() == pytest.approx(1e6 * seconds)
        if work.label in predicted:
            assert bar.get_width() == pytest.approx(1e6 * predicted[work.label].seconds)
        else:
            assert np.isnan(bar.get_width())
    label = explanation.work[0].label
    share = explanation.least(explanation.work[0]) / predicted[label].seconds
    assert f"{share:.0%}" in [text.get_text() for text in ax.texts]


def test_a_plan_without_times_draws_operations() -> None:
    net, _ = trained()
    ax = net.plan.plot(given())
    widths = [bar.get_width() for bar in ax.patches]
    work = replace(net.explain(batch_size=10), rates=None)
    np.testing.assert_allclose(widths, [each.flops / 1e6 for each in work.work])
    assert "times are not known" in ax.get_xlabel()
    ax = work.plot(given())
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], widths)
    assert "rates of this machine are not known" in ax.get_title(loc="left")


def test_the_share_of_the_floor_is_told() -> None:
    _, explanation = on_a_gpu()
    measured = replace(explanation, measured=2.0 * explanation.floor, measured_when="2026-01-01")
    assert "50% of the floor" in measured.plot(given()).get_title(loc="left")


def test_a_plan_of_no_training_is_refused() -> None:
    with pytest.raises(ValueError, match="no training is planned"):
        network().plan.plot()


# -- sweeps --------------------------------------------------------------------------------


def test_a_heat_map_is_the_table() -> None:
    found = result(learning_rate=[1.0, 0.1, 0.5], l2=[0.1, 0.0])
    ax = found.plot(ax=given())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "0.5", "1"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "0.1"]
    table = ax.images[0].get_array()
    for row in found:
        column = [0.1, 0.5, 1.0].index(row["learning_rate"])
        assert table[[0.0, 0.1].index(row["l2"]), column] == pytest.approx(row["val_accuracy"])


def rows_of(*rows: dict[str, Any], metric: str = "loss") -> SweepResult:
    """A result without trained networks."""
    filled = [{"loss": 1.0, "failed": None} | row for row in rows]
    networks = [network((2, 1)) for _ in rows]
    for net, row in zip(networks, filled, strict=True):
        net.history = History([row["loss"]])
    return SweepResult(filled, networks, metric)


def test_cells_are_means_of_what_was_neither_pruned_nor_failed() -> None:
    found = rows_of(
        {"l1": 1, "l2": 1, "seed": 0, "loss": 1.0},
        {"l1": 1, "l2": 1, "seed": 1, "loss": 2.0},
        {"l1": 1, "l2": 1, "seed": 2, "loss": 9.0, "pruned": True},
        {"l1": 2, "l2": 1, "seed": 0, "loss": float("nan"), "failed": "NaN"},
        {"l1": 2, "l2": 2, "seed": 0, "loss": 9.0, "pruned": True},
    )
    ax = found.plot(ax=given())
    table = ax.images[0].get_array()
    assert table[0, 0] == 1.5
    assert table.mask.tolist() == [[False, True], [True, True]]
    assert [text.get_text() for text in ax.texts] == ["1.5", "failed", "", "pruned"]
    assert ax.get_title() == "mean of up to 2 networks"


def lines_of(ax: Axes, number: int) -> np.ndarray:
    return np.array(ax.collections[number].get_segments())


def test_parallel_coordinates_are_the_rows() -> None:
    found = rows_of(
        {"learning_rate": 0.01, "batch_size": 10, "optimizer": "sgd", "loss": 3.0},
        {"learning_rate": 1.0, "batch_size": 20, "optimizer": "adam", "loss": 1.0},
        {"learning_rate": 0.1, "batch_size": 15, "optimizer": "sgd", "loss": 2.0},
    )
    ax = found.plot(ax=given())
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "learning_rate", "batch_size", "optimizer", "loss",
    ]  # fmt: skip
    lines = lines_of(ax, 0)  # the best on top
    np.testing.assert_allclose(lines[:, :, 0], [[0, 1, 2, 3]] * 3)
    np.testing.assert_allclose(
        lines[:, :, 1], [[0, 0, 0, 1], [0.5, 0.5, 0, 0.5], [1, 1, 1, 0]], atol=1e-12
    )
    np.testing.assert_array_equal(ax.collections[0].get_array(), [3.0, 2.0, 1.0])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 1, 1, 0], atol=1e-12)


def test_pruned_and_failed_rows_are_grey() -> None:
    found = rows_of(
        {"learning_rate": 1, "loss": 3.0},
        {"learning_rate": 2, "loss": 1.0, "pruned": True},
        {"learning_rate": 3, "loss": float("nan"), "failed": "NaN"},
        {"loss": 2.0},
    )
    ax = found.plot(ax=given())
    pruned, failed, sound = ax.collections
    for each, label in ((pruned, "1 pruned"), (failed, "1 failed")):
        assert to_rgb(each.get_color()[0]) == to_rgb(styles.GREY)
        assert each.get_label() == label
    assert lines_of(ax, 1)[0, -1, 1] < 0  # no number
    assert len(sound.get_segments()) == 2
    missing = lines_of(ax, 2)[1]
    assert missing[0, 1] < 0
    rendered(ax)


def test_trials_are_drawn() -> None:
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    class EverySecond(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return bool(trial.number % 2)

    grid: dict[str, Any] = {
        "learning_rate": optuna.distributions.FloatDistribution(0.01, 1, log=True),
        "l2": optuna.distributions.FloatDistribution(0, 1),
    }
    found = sweep(
        X, Y, grid=grid, sizes=[16, 4, 3], trials=8, backend="numpy", seed=0, epochs=3,
        batch_size=10, progress=False, at_once=8, metric="loss",
        pruner=EverySecond(),
    )  # fmt: skip
    pruned = sum(row["pruned"] for row in found)
    assert pruned == 4
    ax = found.plot(ax=given())  # of two settings, but no table
    assert ax.collections[0].get_label() == f"{pruned} pruned"
    assert len(lines_of(ax, 1)) == 8 - pruned
    assert found.plot("heatmap", given()).images


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "pie"}, ValueError, "unknown kind 'pie'"),
        ({"kind": "heatmap"}, ValueError, "shows two settings, and here there are"),
        ({"settings": ["l3"]}, ValueError, "unknown settings 'l3'"),
        ({"settings": "l2"}, TypeError, "settings must be names"),
        ({"settings": []}, ValueError, "settings is empty"),
        ({"settings": ["loss"]}, ValueError, "unknown settings"),
    ],
)
def test_plots_of_a_sweep_that_cannot_be(options: Any, error: Any, message: str) -> None:
    found = rows_of(*({"l1": i, "l2": -i, "beta1": i} for i in range(3)))
    with pytest.raises(error, match=message):
        found.plot(**options)
    assert not pyplot.get_fignums()


def test_what_varies() -> None:
    with pytest.raises(ValueError, match="no setting varies"):
        rows_of({"l1": 1}, {"l1": 1}).plot()
    ax = rows_of({"l1": 1, "seed": 0}, {"l1": 1, "seed": 1}).plot(ax=given())
    assert ax.get_xticklabels()[0].get_text() == "seed"
    many = rows_of(*({"l1": i, "l2": i % 2} for i in range(41)))
    with pytest.raises(ValueError, match="l1 has 41 values, and a heat map room for 40"):
        many.plot("heatmap")
    assert not pyplot.get_fignums()


def test_texts_are_no_formulas() -> None:
    found = rows_of(
        {"activation": "$\\bad", "l1": True, "seed": 10**400},
        {"activation": "<b>$x$\n" * 9, "l1": np.float64("nan"), "seed": 1},
        {"activation": None, "l1": [1, 2], "seed": np.int64(3)},
        {"activation": "日本語", "l1": 1e-300, "seed": 2},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of the font
        rendered(found.plot("parallel", given(), settings=["activation", "l1", "seed"]))
        rendered(found.plot("heatmap", given(), settings=["activation", "l1"]))


# -- the demon and δ -----------------------------------------------------------------------


def test_the_demons_report_has_every_neuron() -> None:
    net = network((16, 6, 3), dtype="float64")
    report = net.check_gradients(X[:7], Y[:7])
    deltas = [b for _, b in net.gradients(X[:7], Y[:7], per_sample=True)]
    assert [len(each) for each in report.errors] == [6, 3]
    for found, each in zip(report.deltas, deltas, strict=True):
        np.testing.assert_allclose(found, np.abs(each).mean(axis=0), rtol=1e-10)
    assert max(each.max() for each in report.errors) == report.worst_neuron.error
    upper, lower = report.plot(given(2))
    for ax, values in ((upper, report.deltas), (lower, report.errors)):
        for points, layer in zip(ax.collections, values, strict=True):
            np.testing.assert_allclose(points.get_offsets()[:, 1], layer)
        assert ax.get_yscale() == "log"
    assert lower.lines[0].get_ydata()[0] == report.tolerance


def test_dead_neurons_and_infinite_errors_are_at_the_edges() -> None:
    deltas, errors = (np.array([0.0, 1e-3]),), (np.array([1e-9, np.inf]),)
    upper, lower = rendered(pictures.gradient_report(given(2), deltas, errors, 1e-5))
    (x, zero), (_, small) = (
        each.get_offsets()[0] for each in (upper.collections[1], upper.collections[0])
    )
    assert zero < small == 1e-3
    assert x < 1.0
    assert lower.collections[1].get_offsets()[0][1] > 1e-9


def test_a_report_made_by_hand_has_no_picture() -> None:
    nudge = Nudge("z", 1.0, 1.0, 0.0)
    report = GradientReport(nudge, nudge, nudge, 3, 1e-5)
    assert report == GradientReport(nudge, nudge, nudge, 3, 1e-5)
    with pytest.raises(ValueError, match="no figures of single neurons"):
        report.plot()


@pytest.mark.parametrize("depth", [3, 12])
def test_norms_are_drawn_layer_by_layer(depth: int) -> None:
    norms = np.geomspace(1e-30, 1.0, 4 * depth).reshape(4, depth)
    norms[2, 1] = 0.0
    ax = pictures.delta_norms(given(), norms)
    rendered(ax)
    assert ax.get_yscale() == "log"
    assert len(ax.lines) == depth
    for line, column in zip(ax.lines, norms.T, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.where(column == 0, np.nan, column))
    assert (ax.get_legend() is None) == (depth > 8)
