"""`nielsen.network3`: the book's layers, by its equations in float64, its lines and its errors."""
# ruff: noqa: NPY002 - the book draws from NumPy's global generator

from __future__ import annotations

import gzip
import threading
import warnings

import numpy as np
import pytest

from backprop_gpu import philox
from backprop_gpu.nielsen import expand_mnist, network3
from backprop_gpu.nielsen.network3 import (
    ConvPoolLayer,
    FullyConnectedLayer,
    Network,
    ReLU,
    SoftmaxLayer,
    linear,
    sigmoid,
    tanh,
)
from book_pickle import book_pickle
from machine import without_the_library

SIZES = 6, 9, 8, 4
M = 5
SIGMAS = [sigmoid, tanh, ReLU, linear]


def data(n=23, seed=0):
    """Classes that can be told apart, so that accuracies say something."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, SIZES[-1], n)
    centres = np.random.default_rng(99).standard_normal((SIZES[-1], SIZES[0]))
    return (centres[y] + 0.3 * rng.standard_normal((n, SIZES[0]))).astype(np.float32), y


def three():
    return data(23), data(12, 1), data(16, 2)


def made(sigmas=(sigmoid, tanh), rates=(0.0, 0.0, 0.0), seed=1, **settings):
    np.random.seed(seed)
    n = SIZES
    return Network(
        [
            FullyConnectedLayer(n[0], n[1], sigmas[0], rates[0]),
            FullyConnectedLayer(n[1], n[2], sigmas[1], rates[1]),
            SoftmaxLayer(n[2], n[3], rates[2]),
        ],
        M,
        **{"backend": "numpy", **settings},
    )


def slope(sigma, z):
    return {
        sigmoid: lambda: sigmoid(z) * (1 - sigmoid(z)),
        tanh: lambda: 1 - np.tanh(z) ** 2,
        ReLU: lambda: (z > 0) * 1.0,
        linear: lambda: np.ones_like(z),
    }[sigma]()


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def forward(net, w, b, x):
    """What the book computes where nothing is trained: inputs times 1 - p."""
    for layer, w_l, b_l in zip(net.layers, w, b, strict=True):
        z = (1 - layer.p_dropout) * (x @ w_l) + b_l
        x = layer.activation_fn(z) if isinstance(layer, FullyConnectedLayer) else softmax(z)
    return x


def by_hand(net, training, epochs, eta, lmbda):
    """The book's training in float64, with masks of our generator: w, b and accuracies."""
    w = [layer.w.astype(np.float64) for layer in net.layers]
    b = [layer.b.astype(np.float64) for layer in net.layers]
    X, y = training
    rates = [layer.p_dropout for layer in net.layers]
    generator, steps = np.random.default_rng(0), len(X) // M
    X, y = X[: steps * M], y[: steps * M]
    for _ in range(epochs):
        draws = None
        if any(rates[1:]):
            key = int(generator.integers(2**64, dtype=np.uint64))
            draws = philox.Draws(tuple(rates[1:]), (key,))
        kept = np.ones(X.shape)
        if rates[0]:
            kept = generator.random(X.shape, np.float32) >= rates[0]
        for step in range(steps):
            rows = slice(step * M, (step + 1) * M)
            inputs, zs = [X[rows].astype(np.float64) * kept[rows]], []
            for l, layer in enumerate(net.layers):
                if l and draws is not None:  # left out, or as it was
                    n = layer.n_in
                    inputs[-1] = inputs[-1] * (philox.factors(draws, l, step, M, n) > 0)
                zs.append(inputs[-1] @ w[l] + b[l])
                last = l == len(net.layers) - 1
                inputs.append(softmax(zs[-1]) if last else layer.activation_fn(zs[-1]))
            delta = (inputs[-1] - np.eye(SIZES[-1])[y[rows]]) / M
            for l in reversed(range(len(w))):
                nabla_w, nabla_b = inputs[l].T @ delta, delta.sum(axis=0)
                if l:
                    back = delta @ w[l].T
                    if draws is not None:
                        back *= philox.factors(draws, l, step, M, SIZES[l]) > 0
                    delta = back * slope(net.layers[l - 1].activation_fn, zs[l - 1])
                w[l] = w[l] - eta * (nabla_w + lmbda / steps * w[l])
                b[l] = b[l] - eta * nabla_b
    return w, b


@pytest.fixture(params=["layered", "resident"])
def engine(request, monkeypatch):
    """The engine that "auto" takes, with the compiled library and without it."""
    if request.param == "layered":
        without_the_library(monkeypatch)
    return request.param


RATES = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.25), (0.4, 0.0, 0.0), (0.3, 0.2, 0.5)]


@pytest.mark.parametrize(
    ("rates", "dtype"), [*((rates, "float64") for rates in RATES), (RATES[-1], "float32")], ids=str
)
def test_the_books_equations(engine, rates, dtype, capsys):
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    for sigmas in ((sigmoid, tanh), (ReLU, sigmoid), (tanh, linear), (linear, ReLU)):
        training, held, test = three()
        net = made(sigmas, rates, dtype=dtype)
        w, b = by_hand(net, training, 4, 0.2, 0.1)
        accuracies = net.SGD(training, 4, M, 0.2, held, test, lmbda=0.1)
        for layer, its_w, its_b in zip(net.layers, w, b, strict=True):
            assert (layer.w.dtype, layer.b.dtype) == (dtype, dtype)
            np.testing.assert_allclose(layer.w, its_w, rtol=0, atol=tolerance)
            np.testing.assert_allclose(layer.b, its_b, rtol=0, atol=tolerance)
        X, y = (array[:10] for array in held)  # two mini-batches are full
        right = forward(net, w, b, X).argmax(axis=1) == y
        assert accuracies[-1] == pytest.approx(right.mean())
        expected = forward(net, w, b, test[0][10:15]).argmax(axis=1)
        np.testing.assert_array_equal(net.test_mb_predictions(2), expected)
    capsys.readouterr()


def test_dropout_is_compiled_where_the_library_is(capsys):
    net = made((sigmoid, ReLU), (0.1, 0.5, 0.5))
    training = tuple(np.repeat(array, 40, axis=0) for array in data())
    net.SGD(training, 30, M, 0.1, *three()[1:])
    assert net.plan.engine == "resident", net.plan
    capsys.readouterr()


def test_initial_weights_are_the_books_for_the_same_seed():
    net = made(seed=5)
    np.random.seed(5)
    for layer in net.layers[:-1]:
        n, k = layer.n_in, layer.n_out
        w = np.random.normal(loc=0.0, scale=np.sqrt(1.0 / k), size=(n, k))
        b = np.random.normal(loc=0.0, scale=1.0, size=(k,))
        np.testing.assert_array_equal(layer.w, w.astype(np.float32))
        np.testing.assert_array_equal(layer.b, b.astype(np.float32))
    assert not net.layers[-1].w.any()
    assert not net.layers[-1].b.any()
    assert len(net.params) == 6


def test_inputs_that_are_dropped_out_count_for_less_in_predictions(capsys):
    layer = SoftmaxLayer(2, 2, p_dropout=0.5)
    layer.w, layer.b = np.eye(2), np.array([0.6, 0.0])
    net = Network([layer], 1)
    rows = np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([0, 1])
    net.SGD(rows, 0, 1, 0.1, rows, rows)
    # z = x/2 + b: 0.6 and 0.5, then 0.6 and 1.5.
    assert [int(net.test_mb_predictions(i)[0]) for i in range(2)] == [0, 1]
    assert net.accuracy(rows) == 1.0
    capsys.readouterr()


def test_what_it_prints(capsys):
    X, y = data()
    training = np.tile(X, (150, 1)), np.tile(y, 150)  # 690 mini-batches
    accuracies = made().SGD(training, 3, M, 0.5, *three()[1:])
    lines = iter(capsys.readouterr().out.splitlines())
    best, test = 0.0, None
    for epoch, accuracy in enumerate(accuracies):
        if epoch in (0, 1, 2):  # iterations 0, 1000 and 2000
            number = 1000 * epoch
            if 690 * epoch <= number < 690 * (epoch + 1):
                assert next(lines) == f"Training mini-batch number {number}"
        assert next(lines) == f"Epoch {epoch}: validation accuracy {accuracy:.2%}"
        if accuracy >= best:
            best, at = accuracy, 690 * (epoch + 1) - 1
            assert next(lines) == "This is the best validation accuracy to date."
            line = next(lines)
            assert line.startswith("The corresponding test accuracy is ")
            test = line.removeprefix("The corresponding test accuracy is ")
    assert next(lines) == "Finished training network."
    assert next(lines) == f"Best validation accuracy of {best:.2%} obtained at iteration {at}"
    assert next(lines) == f"Corresponding test accuracy of {test}"
    assert not list(lines)
    assert best > 0.9


def test_a_second_training_goes_on_with_what_layers_hold(capsys):
    training, held, test = three()
    one, two = made(), made()
    one.SGD(training, 3, M, 0.3, held, test)
    two.SGD(training, 1, M, 0.3, held, test)
    two.SGD(training, 2.0, M, 0.3, held, test)
    for a, b in zip(one.params, two.params, strict=True):
        np.testing.assert_array_equal(a, b)
    two.layers[0].w = np.zeros_like(two.layers[0].w)
    two.SGD(training, 0, M, 0.3, held, test)
    assert not two.layers[0].w.any()
    capsys.readouterr()


def test_the_callers_data_stay_as_they_are(capsys):
    training, held, test = three()
    before = training[0].copy()
    made(rates=(0.5, 0.5, 0.5)).SGD(training, 2, M, 0.3, held, test)
    np.testing.assert_array_equal(training[0], before)
    capsys.readouterr()


def test_load_data_shared(tmp_path):
    given = [(X[:, :4], y) for X, y in three()]
    given = [((np.clip(X, 0, 0.9) * 256 // 1 / 256).astype("f4"), y) for X, y in given]
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(book_pickle(given)))
    expand_mnist.write(tmp_path / "expanded.npz", [expand_mnist.expand(given[0]), *given[1:]])
    shared = network3.load_data_shared(path)
    assert type(shared) is list
    assert [network3.size(part) for part in shared] == [23, 12, 16]
    assert [(X.dtype, y.dtype) for X, y in shared] == [(np.float32, np.int32)] * 3
    np.testing.assert_array_equal(shared[1][0], given[1][0])
    assert network3.size(network3.load_data_shared(tmp_path / "expanded.npz")[0]) == 5 * 23


def test_convolution_is_said_not_to_be_there():
    with pytest.raises(NotImplementedError, match=r"no convolution.*torch\.nn\.Conv2d"):
        ConvPoolLayer(image_shape=(10, 1, 28, 28), filter_shape=(20, 1, 5, 5), poolsize=(2, 2))


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (lambda: FullyConnectedLayer(0, 3), ValueError, "n_in"),
        (lambda: FullyConnectedLayer(3, 2.5), TypeError, "n_out"),
        (lambda: FullyConnectedLayer(3, 2, p_dropout=1.0), ValueError, "p_dropout"),
        (lambda: FullyConnectedLayer(3, 2, p_dropout=float("nan")), ValueError, "p_dropout"),
        (lambda: FullyConnectedLayer(3, 2, "sigmoid"), TypeError, "activation_fn"),
        (lambda: FullyConnectedLayer(3, 2, [1, 2]), TypeError, "activation_fn"),
        (lambda: SoftmaxLayer(3, 1), ValueError, "n_out"),
        (lambda: Network([], M), ValueError, "layers must not be empty"),
        (lambda: Network(None, M), TypeError, "layers"),
        (lambda: Network([FullyConnectedLayer(3, 2)], M), TypeError, "must be a SoftmaxLayer"),
        (lambda: Network([SoftmaxLayer(3, 2)] * 2, M), TypeError, "be a FullyConnectedLayer"),
        (
            lambda: Network([FullyConnectedLayer(3, 4), SoftmaxLayer(5, 2)], M),
            ValueError,
            "n_in=5.*n_out=4",
        ),
        (lambda: Network([SoftmaxLayer(3, 2)], 0), ValueError, "mini_batch_size"),
        (lambda: Network([SoftmaxLayer(3, 2)], M, backend="tpu"), ValueError, "backend"),
    ],
)
def test_layers_that_do_not_fit(make, error, why):
    state = np.random.get_state()[2]
    with pytest.raises(error, match=why):
        make()
    assert np.random.get_state()[2] == state or "Network" in str(make.__code__.co_names)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"mini_batch_size": 4}, ValueError, "mini_batch_size"),
        ({"epochs": -1}, ValueError, "epochs"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"eta": float("inf")}, ValueError, "eta"),
        ({"lmbda": -1}, ValueError, "lmbda"),
        ({"training_data": None}, TypeError, "training_data"),
        ({"test_data": None}, TypeError, "test_data"),
        ({"validation_data": (np.zeros((9, 5)), np.zeros(9))}, ValueError, "validation_data"),
        ({"training_data": (np.zeros((9, 6)), np.full(9, 4))}, ValueError, "training_data"),
        ({"training_data": (np.zeros((4, 6)), np.zeros(4))}, ValueError, "fill a mini-batch"),
        ({"training_data": (np.full((9, 6), np.nan), np.zeros(9))}, ValueError, "training_data"),
        ({"training_data": (np.zeros((9, 6)), np.zeros(8))}, ValueError, "training_data"),
    ],
)
def test_trainings_that_do_not_fit(change, error, why):
    training, held, test = three()
    given = {
        "training_data": training, "epochs": 1, "mini_batch_size": M, "eta": 0.1,
        "validation_data": held, "test_data": test, **change,
    }  # fmt: skip
    net = made()
    before = [array.copy() for array in net.params]
    with pytest.raises(error, match=why):
        net.SGD(**given)
    for old, new in zip(before, net.params, strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="before the first SGD"):
        net.test_mb_predictions(0)


def test_weights_that_do_not_fit():
    net = made()
    net.layers[1].b = np.zeros(3)
    with pytest.raises(ValueError, match=r"layers\[1\]\.b must have shape \(8,\)"):
        net.SGD(three()[0], 1, M, 0.1, *three()[1:])


def test_a_training_that_diverges_leaves_the_epoch_before(capsys):
    net = made((linear, linear))
    training, held, test = three()
    net.SGD(training, 1, M, 0.1, held, test)
    before = [array.copy() for array in net.params]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match="NaN or infinite in epoch"):
            net.SGD(training, 50, M, 1e30, held, test)
    for array in net.params:
        assert np.isfinite(array).all()
    assert len(before) == len(net.params)
    with pytest.raises(ValueError, match="i must be"):
        net.test_mb_predictions(3)
    capsys.readouterr()


def test_it_is_trained_by_one(capsys):
    training, held, test = three()
    errors, asked = [], []

    class Nosy(Network):
        def _say(self, text):
            if not asked:
                asked.append(text)
                thread = threading.Thread(target=second)
                thread.start()
                thread.join()

    net = made()
    net.__class__ = Nosy

    def second():
        try:
            net.SGD(training, 1, M, 0.1, held, test)
        except RuntimeError as error:
            errors.append(str(error))

    net.SGD(training, 1, M, 0.1, held, test)
    assert "is being trained" in errors[0]
    capsys.readouterr()


@pytest.mark.gpu
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("backend", ["cuda", "numba_cuda"])
def test_on_a_device(rates, backend, capsys):
    training, held, test = three()
    nets = [made((sigmoid, ReLU), rates, backend=each) for each in ("numpy", backend)]
    found = [net.SGD(training, 3, M, 0.2, held, test, lmbda=0.1) for net in nets]
    assert found[0] == found[1]
    for one, other in zip(nets[0].params, nets[1].params, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    capsys.readouterr()
