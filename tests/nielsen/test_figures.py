"""`nielsen.experiments` and `nielsen.figures`: what the book's figures show, in small."""
# ruff: noqa: NPY002 - the book draws from NumPy's global generator

from __future__ import annotations

import inspect
import random
import subprocess
import sys
import threading

import numpy as np
import pytest

from backprop_gpu.nielsen import experiments, figures, mnist_loader, network2


@pytest.fixture(autouse=True)
def without_a_screen(monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.delenv(mnist_loader.VARIABLE, raising=False)
    from matplotlib import pyplot

    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def data():
    with pytest.warns(UserWarning, match="not MNIST"):
        return experiments.images("digits")


@pytest.fixture(scope="module")
def few(data):
    """Enough to draw."""
    return experiments.Images(
        data.first(120), *((X[:40], y[:40]) for X, y in (data.validation, data.test))
    )


def test_digits_are_enlarged(data):
    assert data.inputs == 24 * 24
    with pytest.warns(UserWarning, match="not MNIST"):
        (X, _), *_ = mnist_loader.load_data("digits")
    image = data.training[0][0].reshape(24, 24)
    np.testing.assert_array_equal(image[1::3, 2::3].ravel(), X[0])
    np.testing.assert_array_equal(image[::3, ::3], image[2::3, 2::3])


# -- what they show ---------------------------------------------------------------------------


def test_a_neuron_learns_slowly_with_the_quadratic_cost_from_a_bad_start():
    numbers = experiments.learning_slowdown()
    outputs = {
        name: [np.array(curve["output"]) for curve in numbers[name]]
        for name in ("quadratic", "cross-entropy")
    }
    for curves in outputs.values():
        assert [len(curve) for curve in curves] == [301, 301]
        # The book's 0.82 and 0.98 before it learns.
        np.testing.assert_allclose([curve[0] for curve in curves], [0.82, 0.98], atol=0.005)
    good, bad = outputs["quadratic"]
    np.testing.assert_allclose([good[-1], bad[-1]], [0.09, 0.20], atol=0.005)  # the book's too
    first = {name: [c[0] - c[10] for c in curves] for name, curves in outputs.items()}
    assert first["quadratic"][1] < 0.15 * first["quadratic"][0]
    # ∂C/∂w = a - y against (a - y) σ'(z): the first step of the bad start is 1 / σ' as long.
    a = bad[0]
    ratio = (first["cross-entropy"][1] / 0.005) / (first["quadratic"][1] / 0.15)
    assert 0.5 / (a * (1 - a)) < ratio < 1.5 / (a * (1 - a))


def test_the_neuron_by_hand():
    w, b, costs = 0.6, 0.9, []
    for _ in range(21):
        a = 1 / (1 + np.exp(-(w + b)))
        costs.append(a**2 / 2)
        w, b = w - 0.15 * a * a * (1 - a), b - 0.15 * a * a * (1 - a)
    found = experiments.learning_slowdown(20)["quadratic"][0]["cost"]
    np.testing.assert_allclose(found, costs, rtol=1e-12)


def test_regularisation_narrows_the_gap(data):
    plain = experiments.overfitting(data, 50)
    better = experiments.regularized(data, 50)
    assert plain["size"] == better["size"] == 300
    for numbers in (plain, better):
        assert len(numbers["test_cost"]) == len(numbers["training_accuracy"]) == 50
    assert plain["training_accuracy"][-1] > 99.0  # it has learnt these by heart,
    assert plain["test_accuracy"][-1] < 95.0  # and others less well
    lowest = int(np.argmin(plain["test_cost"]))
    assert plain["training_cost"][-1] < plain["training_cost"][lowest]
    assert better["test_accuracy"][-1] > plain["test_accuracy"][-1]


def test_more_data_are_better(data):
    numbers = experiments.more_data(data, 4, sizes=(50, 200, 1200))
    assert np.all(np.diff(numbers["network"]) > 0)
    assert np.all(np.diff(numbers["svm"]) > 0)


def test_narrow_weights_learn_faster(data):
    curves = experiments.weight_initialization(data, 4, hidden=(30,))["30"]
    assert np.all(np.array(curves["new"]) > curves["old"])


def test_one_learning_rate_is_better_than_a_small_one_and_than_a_large_one(data):
    small, right, large = experiments.multiple_eta(data, 6).values()
    assert right[-1] < min(small[-1], large[-1])
    assert np.all(np.diff(small) < 0)  # slow but steady
    assert not np.all(np.diff(large) < 0)


def test_earlier_layers_learn_more_slowly(data):
    before = experiments.initial_gradient(data)
    assert before["norms"][0] < 0.5 * before["norms"][1]
    assert [len(g) for g in before["gradients"]] == [6, 6]
    for count, norms in experiments.training_speed(data, 3, layers=(2, 4)).items():
        assert np.shape(norms) == (3, int(count))
        assert np.all(np.diff(norms, axis=1) > 0)
    norms = experiments.backprop_magnitude_nabla(data)["norms"]
    assert np.shape(norms) == (3, 4)
    assert np.all(np.diff(norms, axis=1) > 0)


def test_gradients_are_those_of_backprop(data):
    with experiments.seeded(experiments.SEED):
        net = network2.Network([data.inputs, 30, 30, 10])
    pairs = mnist_loader.columns(data.first(1000))
    gradient = sum(net.backprop(x, y)[0][0] for x, y in pairs) / 1000
    found = experiments.initial_gradient(data)
    np.testing.assert_allclose(found["norms"][0], np.linalg.norm(gradient), rtol=1e-9)


def test_expanded_and_dropped_out(data):
    numbers = experiments.expanded_mnist(data, 50)
    assert [len(numbers[name]) for name in ("as they are", "expanded")] == [10, 10]
    assert len(numbers["displaced"]) == 4
    assert numbers["expanded"][-1] > 85
    curves = experiments.dropout(data, 25)
    plain, dropped = (np.array(curves[rate]["validation"]) for rate in ("0.0", "0.5"))
    assert plain[:5].mean() > dropped[:5].mean()  # dropout is slower at first
    assert dropped[-1] > 90


def test_misclassified(data):
    numbers = experiments.misclassified(data, 3, most=5)
    assert 50 < numbers["accuracy"] < 100
    assert len(numbers["images"]) == 5
    assert all(a != b for a, b in zip(numbers["labels"], numbers["predictions"], strict=True))


# -- data, seeds ------------------------------------------------------------------------------


def test_seeds_repeat_and_leave_the_generators_alone(few):
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    one = experiments.overfitting(few, 2)
    assert (np.random.rand(), random.random()) == expected
    assert experiments.overfitting(few, 2) == one
    assert experiments.overfitting(few, 2, seed=5) != one


def test_nothing_is_printed(few, capsys):
    experiments.overfitting(few, 2)
    experiments.dropout(few, 2)
    experiments.misclassified(few, 1)
    assert capsys.readouterr().out == ""


def test_data_that_are_none(tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="not MNIST"):
        assert len(experiments.images(None).training[0]) == 1200
    with pytest.raises(FileNotFoundError):
        experiments.images("not there")
    monkeypatch.setenv(mnist_loader.VARIABLE, "not there")
    with pytest.raises(FileNotFoundError):
        experiments.images(None)
    for nonsense in (3, [], [1, 2, 3], [few.training] * 2):
        with pytest.raises(TypeError, match="three pairs"):
            experiments.images(nonsense)
    X, y = few.training
    for wrong in ((X, y[:-1]), (X[:, :9], y), (X[0], y), (X[:0], y[:0])):
        with pytest.raises(ValueError, match="three pairs"):
            experiments.images([few.training, few.validation, wrong])
    oblong = experiments.Images(*((X[:, :570], y) for X, y in (few.training,) * 3))
    for function in (figures.first_digit, figures.features, experiments.misclassified):
        with pytest.raises(ValueError, match="squares"):
            function(oblong)
    for epochs in (0, -1, 1.5, "many"):
        with pytest.raises((TypeError, ValueError), match="epochs"):
            figures.overfitting(few, epochs)
    with pytest.raises((TypeError, ValueError), match="seed"):
        figures.overfitting(few, 1, seed=-1)
    with pytest.raises(ValueError, match="a size"):
        experiments.more_data(few, 1, sizes=[10**6])


# -- figures ----------------------------------------------------------------------------------


def axes_of(drawn):
    return list(drawn) if isinstance(drawn, np.ndarray) else [drawn]


@pytest.mark.parametrize("name", figures.ALL)
def test_every_figure_is_drawn_into_new_axes_and_into_given_ones(name, few):
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    function = figures.ALL[name]
    parameters = inspect.signature(function).parameters
    arguments = [few] if name in figures.OF_DATA else []
    settings = {"epochs": 2} if "epochs" in parameters else {}
    assert tuple(parameters) in {
        ("data", "epochs", "seed", "ax"), ("data", "seed", "ax"), ("data", "ax"),
        ("epochs", "ax"), ("ax",),
    }  # fmt: skip
    assert ("data" in parameters) == (name in figures.OF_DATA)
    drawn = axes_of(function(*arguments, **settings))
    described = f"ax : sequence of {len(drawn)} Axes" if len(drawn) > 1 else "ax : Axes"
    if drawn[0].name != "rectilinear":
        described += f" with projection={drawn[0].name!r}"
    assert f"{described}, optional" in function.__doc__
    assert all(isinstance(each, Axes) for each in drawn)
    for each in drawn:
        assert each.lines or each.images or each.collections or each.patches or each.texts
    drawn[0].figure.canvas.draw()
    count = len(pyplot.get_fignums())
    figure = pyplot.figure()
    given = [
        figure.add_subplot(1, len(drawn), k + 1, projection=each.name)
        for k, each in enumerate(drawn)
    ]
    again = axes_of(function(*arguments, **settings, ax=given if len(given) > 1 else given[0]))
    assert again == given
    assert len(pyplot.get_fignums()) == count + 1
    with pytest.raises(TypeError, match=f"figures.{name}"):
        function(*arguments, **settings, ax="axes")
    if drawn[0].name != "rectilinear":
        with pytest.raises(TypeError, match=f"projection='{drawn[0].name}'"):
            function(ax=[pyplot.figure().subplots() for _ in drawn])
    wanted = f"{len(drawn)} Axes" if len(drawn) > 1 else "one Axes"
    with pytest.raises(ValueError, match=f"ax must be {wanted}"):
        function(*arguments, **settings, ax=[*given, given[0]])


def test_curves_are_the_numbers(few):
    numbers = experiments.multiple_eta(few, 2)
    ax = figures.multiple_eta(few, 2)
    for line, costs in zip(ax.lines, numbers.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), costs)


def test_the_command(tmp_path, capsys):
    with pytest.warns(UserWarning, match="not MNIST"):
        assert (
            figures.main(["first_digit", "valley", "--data", "digits", "--out", str(tmp_path)]) == 0
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first_digit.png", "valley.png"]
    assert (tmp_path / "valley.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert figures.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(figures.ALL)
    for wrong in (["nonsense", "--out", "x"], ["valley"]):
        with pytest.raises(SystemExit):
            figures.main(wrong)
    where = str(tmp_path / "valley.png")  # a file, no folder
    assert figures.main(["valley", "--out", where]) == 1
    assert figures.main(["first_digit", "--data", "nowhere", "--out", str(tmp_path)]) == 1
    assert "no data at nowhere" in capsys.readouterr().err


def test_the_module_is_a_command_and_imports_no_matplotlib():
    code = (
        "import sys; from backprop_gpu.nielsen import figures; figures.main(['--list']); "
        "print('matplotlib' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.splitlines()[-1] == "False"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"figures\.valley.*backprop_gpu\[plot\]"):
        figures.valley()


def test_two_threads_draw(few):
    """Axes of their own; numbers are drawn from NumPy's global generator, as in the book."""
    from matplotlib.figure import Figure

    errors = []

    def draw():
        try:
            figures.misleading_gradient_contours(Figure().subplots())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
