"""Every kind of bad input: the exception's type, what it says, and that nothing has changed."""

from __future__ import annotations

import contextlib
import copy
import functools
import unittest.mock
import warnings

import numpy as np
import pytest

from backprop_gpu import Activation, Callback, Network, backends, costs, validation
from backprop_gpu.training.settings import check_data

ROWS = 6
GOOD = {"epochs": 2, "batch_size": 2, "learning_rate": 0.1}


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 3)), rng.uniform(0, 1, (ROWS, 2))


def network(**settings):
    return Network([3, 4, 2], **({"backend": "numpy", "seed": 1} | settings))


def state(net):
    """Everything that a `fit` changes."""
    return (
        [array.tobytes() for array in (*net.weights, *net.biases)],
        net.history,
        net.plan,
        copy.deepcopy(net.generator).random(),
    )


def refuse_fit(kind, message, X=None, Y=None, net=None, **changes):
    good_X, good_Y = data()
    X, Y = good_X if X is None else X, good_Y if Y is None else Y
    net = network() if net is None else net
    before = state(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match=message):
            net.fit(X, Y, **(GOOD | changes))
    assert state(net) == before


def with_value(array, value):
    array = array.copy()
    array[2, 1] = value
    return array


# -- data that does not fit -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((ROWS, 4)), r"X does not fit layer 0: expected shape \(n, 3\), got \(6, 4\)"),
        (np.ones((ROWS, 0)), r"X does not fit layer 0: expected shape \(n, 3\), got \(6, 0\)"),
        (np.ones(3), r"X must have shape \(n, 3\), got \(3,\).*X.reshape\(1, -1\)"),
        (np.ones((ROWS, 3, 1)), r"X must have shape \(n, 3\), got \(6, 3, 1\)"),
        (np.float64(1.0), r"X must have shape \(n, 3\)"),
        (np.ones((0, 3)), "X is empty"),
        ([], r"X must have shape|X is empty"),
        (np.ones((ROWS + 1, 3)), "X has 7 rows but Y has 6"),
        (np.full((ROWS, 3), np.nan), r"X contains NaN or infinity, first at index \(0, 0\)"),
        (with_value(np.ones((ROWS, 3)), np.inf), r"X contains NaN or infinity.*\(2, 1\)"),
        (with_value(np.ones((ROWS, 3)), -np.inf), r"X contains NaN or infinity.*\(2, 1\)"),
        (with_value(np.ones((ROWS, 3)), 1e300), r"X .*\(2, 1\)"),  # beyond float32
        ([[1, 2, 3], [4, 5]], "^X "),
    ],
)
def test_X_that_does_not_fit(X, message):
    refuse_fit(ValueError, message, X=X)
    for method in ("loss", "gradients", "check_gradients"):
        with pytest.raises(ValueError, match=message):
            getattr(network(), method)(X, data()[1])
    if "rows but" not in message:
        with pytest.raises(ValueError, match=message):
            network().predict(X)
        with pytest.raises(ValueError, match=message):
            network().accuracy(X, np.zeros(ROWS, int))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((ROWS, 3), "1"), "X must hold real numbers, got dtype <U1"),
        (np.ones((ROWS, 3), complex), "X must hold real numbers, got dtype complex128"),
        (
            np.ones((ROWS, 3), object),
            r"X must hold real numbers, got dtype object.*astype\(float\)",
        ),
        (np.ones((ROWS, 3), "M8[s]"), "X must hold real numbers, got dtype datetime64"),
        ([[None] * 3] * ROWS, "X must hold real numbers, got dtype object"),
        ((row for row in np.ones((ROWS, 3))), "X must hold real numbers, got dtype object"),
        ({"a": 1}, "X must hold real numbers"),
    ],
)
def test_X_of_the_wrong_type(X, message):
    refuse_fit(TypeError, message, X=X)


def test_masked_arrays():
    masked = np.ma.masked_less(data()[0], 0.0)
    refuse_fit(TypeError, "^X is a masked array", X=masked)
    refuse_fit(TypeError, "^Y is a masked array", Y=np.ma.ones((ROWS, 2)))


def test_numbers_beyond_float32():
    X = with_value(np.ones((ROWS, 3)), 1e39)
    refuse_fit(ValueError, r"X does not fit float32: 1e\+39 at index \(2, 1\)", X=X)
    network(dtype="float64").predict(X)


def test_missing_data():
    with pytest.raises(TypeError, match="X must hold real numbers"):
        network().predict(None)
    with pytest.raises(TypeError, match="Y must hold real numbers"):
        network().loss(data()[0], None)


def test_sparse_matrices():
    from scipy.sparse import coo_array, csr_array, csr_matrix

    refuse_fit(TypeError, r"Y is a sparse matrix; pass Y.toarray\(\)", Y=csr_matrix(np.eye(6, 2)))
    for X, kind, message in (
        (csr_matrix(np.eye(6, 4)), ValueError, r"X does not fit layer 0: expected shape \(n, 3\)"),
        (csr_array((0, 3)), ValueError, "X is empty"),
        (coo_array(np.ones(3)), ValueError, r"one sample is X.reshape\(1, -1\)"),
        (csr_array(np.eye(6, 3) * np.nan), ValueError, "X.data contains NaN or infinity"),
        (csr_array(np.eye(6, 3) * 1e39), ValueError, "X.data does not fit float32"),
        (csr_array(np.eye(6, 3) * 1j), TypeError, "X.data must hold real numbers"),
    ):
        refuse_fit(kind, message, X=X)
        with pytest.raises(kind, match=message):
            network().predict(X)


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (np.ones((ROWS, 3)), r"Y does not fit the output layer: expected shape \(n, 2\).*\(6, 3\)"),
        (np.ones((ROWS, 1)), r"Y does not fit the output layer: expected shape \(n, 2\).*\(6, 1\)"),
        (np.ones(ROWS), r"expected shape \(n, 2\) or integer labels.*\(6,\) of dtype float64"),
        (np.ones((ROWS, 2, 1)), r"Y does not fit the output layer"),
        (np.ones((ROWS - 1, 2)), "X has 6 rows but Y has 5"),
        (np.zeros(ROWS + 1, int), "X has 6 rows but Y has 7"),
        (np.ones((0, 2)), "Y"),
        ([], "Y"),
        (with_value(np.ones((ROWS, 2)), np.inf), r"Y contains infinity.*\(2, 1\)"),
        ([0, 1, 2, 0, 1, 0], r"Y holds labels from 0 to 2; with 2 outputs.*\[0, 1\]"),
        ([0, 1, -1, 0, 1, 0], r"Y holds labels from -1 to 1; with 2 outputs.*\[0, 1\]"),
        (np.full(ROWS, 2**63 + 5, np.uint64), "Y holds labels from 9223372036854775813"),
    ],
)
def test_Y_that_does_not_fit(Y, message):
    refuse_fit(ValueError, message, Y=Y)
    refuse_fit(ValueError, message.replace("X has 6 rows but", ""), validation_data=(data()[0], Y))


@pytest.mark.parametrize("dtype", [object, complex, str])
def test_Y_of_the_wrong_type(dtype):
    refuse_fit(TypeError, "Y must hold real numbers", Y=np.ones((ROWS, 2)).astype(dtype))
    refuse_fit(TypeError, "Y must hold real numbers", Y=np.zeros(ROWS, int).astype(dtype))


@pytest.mark.parametrize(
    ("cost", "activation", "Y", "message"),
    [
        ("binary_cross_entropy", "sigmoid", [[0.5, 1.5]], r"needs Y in \[0, 1\], got .*1.5\]"),
        ("binary_cross_entropy", "sigmoid", [[-0.5, 0.5]], r"needs Y in \[0, 1\], got .*-0.5,"),
        (
            "categorical_cross_entropy",
            "softmax",
            [[0.5, 0.4]],
            "sum to 1 or to be all NaN, row 0 sums to 0.9",
        ),
        ("categorical_cross_entropy", "softmax", [[1.5, -0.5]], r"needs Y in \[0, 1\]"),
        ("poisson", "exponential", [[1.0, -1.0]], r"needs Y in \[0, inf\]"),
    ],
)
def test_Y_outside_of_the_costs_domain(cost, activation, Y, message):
    net = network(cost=cost, activation=["tanh", activation])
    refuse_fit(ValueError, message, Y=np.repeat(Y, ROWS, axis=0), net=net)


def test_labels_that_have_no_single_meaning():
    net = network(cost="poisson", activation="exponential")
    refuse_fit(ValueError, "labels, which have no single meaning", Y=[0, 1, 0, 1, 0, 1], net=net)
    wide = costs.Cost("wide", lambda a, y: (a - y).sum(axis=1), lambda a, y: a * 0 + 1)
    refuse_fit(
        ValueError, "no single meaning for cost 'wide'", Y=[0, 1] * 3, net=network(cost=wide)
    )


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, 1, 2, 0, 0, 0], ValueError, r"labels from 0 to 2"),
        ([0, 1, -1, 0, 0, 0], ValueError, r"labels from -1 to 1"),
        ([0, 1], ValueError, r"labels must have shape \(6,\) or \(6, 2\), got \(2,\)"),
        (np.zeros((ROWS, 3), int), ValueError, r"\(6, 3\)"),
        (0, ValueError, r"labels must have shape"),
        (np.full((ROWS, 2), np.nan), ValueError, r"shape \(n, 2\) must be one-hot.*row 0 is not"),
        (with_value(np.eye(2)[[0] * ROWS], np.nan), ValueError, "row 2 is not"),
        (with_value(np.eye(2)[[0] * ROWS], 1), ValueError, "row 2 is not"),
        (np.zeros((ROWS, 2)), ValueError, "row 0 is not"),
        (np.full((ROWS, 2), 0.5), ValueError, "row 0 is not: pass class numbers"),
        ([0.5] * ROWS, ValueError, "whole class numbers"),
        ([np.nan] * ROWS, ValueError, "whole class numbers"),
        ([1e300] * ROWS, ValueError, "labels"),
        (["a"] * ROWS, TypeError, "class numbers, got dtype <U1"),
        ([None] * ROWS, TypeError, "class numbers, got dtype object"),
    ],
)
def test_labels_of_accuracy(labels, kind, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match=message):
            network().accuracy(data()[0], labels)


# -- arrays that must simply work ------------------------------------------------------------


class Frame:
    """What a data frame looks like to NumPy."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
        lambda x: x[::-1].copy()[::-1],
        read_only,
        lambda x: x.tolist(),
        lambda x: tuple(map(tuple, x)),
        Frame,
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: x.view(np.matrix),
    ],
    ids=[
        "fortran", "strided", "reversed", "read-only", "lists", "tuples", "frame", "big-endian",
        "long double", "matrix",
    ],
)  # fmt: skip
def test_any_array_will_do(form):
    X, Y = data()
    expected, net = network(), network()
    given = form(X), form(Y)
    for n, (x, y) in ((expected, (X, Y)), (net, given)):
        n.fit(x, y, validation_data=(x, y), **GOOD)
    assert state(net)[0] == state(expected)[0]
    np.testing.assert_array_equal(net.predict(given[0]), expected.predict(X))
    assert type(net.predict(given[0])) is np.ndarray
    assert net.loss(*given) == expected.loss(X, Y)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float16"])
def test_numbers_of_any_width(dtype):
    X = (np.arange(ROWS * 3) % 5).reshape(ROWS, 3).astype(dtype)
    np.testing.assert_array_equal(network().predict(X), network().predict(X.astype(float)))


def test_bytes_are_checked_as_numbers_are():
    X, Y = (np.arange(ROWS * 3) * 9 % 256).reshape(ROWS, 3).astype("uint8"), data()[1]
    for bad, message in (
        (X[0], r"X must have shape \(n, 3\), got \(3,\); one sample"),
        (X[:, :2], r"expected shape \(n, 3\), got \(6, 2\)"),
        (X[:0], r"X is empty: shape \(0, 3\)"),
        (X[:-1], "X has 5 rows but Y has 6"),
    ):
        with pytest.raises(ValueError, match=message):
            network().fit(bad, Y, **GOOD)
    nets = network(), network()
    for net, given in zip(nets, (X[::-1], X[::-1].astype(float)), strict=True):
        net.fit(given, Y, validation_data=(given, Y), **GOOD)
    assert state(nets[0])[0] == state(nets[1])[0]
    net, numbers = nets[0], X.astype(float)
    given = check_data(net.model, X, Y, (X, Y))
    assert given.X.dtype == np.uint8  # and nowhere else
    assert given.validation[0].dtype == net.model.check_data(X, Y)[0].dtype == net.dtype
    assert validation.inputs(X, 3, net.dtype).dtype == net.dtype
    assert net.loss(X, Y) == net.loss(numbers, Y)
    for got, expected in zip(net.gradients(X, Y), net.gradients(numbers, Y), strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
    assert net.check_gradients(X, Y).error == net.check_gradients(numbers, Y).error


def test_data_is_left_alone():
    for dtype in ("float32", "float64"):
        X, Y = (array.astype(dtype) for array in data())
        kept = X.copy(), Y.copy()
        net = network(dtype=dtype)
        net.fit(X, Y, **GOOD)
        net.gradients(X, Y)
        net.check_gradients(X, Y)
        out = net.predict(X)
        np.testing.assert_array_equal(X, kept[0])
        np.testing.assert_array_equal(Y, kept[1])
        out[...] = 0.0  # an array of one's own
        assert net.predict(X).any()


def hooks(**functions):
    callback = Callback()
    vars(callback).update(functions)
    return callback


async def later(network, history):
    return True


# -- arguments of fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, r"batch_size must be in \[1, 6\], got 0"),
        ({"batch_size": -1}, ValueError, r"batch_size must be in \[1, 6\], got -1"),
        ({"batch_size": ROWS + 1}, ValueError, r"batch_size must be in \[1, 6\], got 7"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got 2.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer, got None"),
        ({"epochs": 0}, ValueError, "epochs must be >= 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got 1.5"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be finite and >= 0, got -0.1"),
        ({"learning_rate": np.nan}, ValueError, "learning_rate must be finite.*nan"),
        ({"learning_rate": np.inf}, ValueError, "learning_rate must be finite.*inf"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number or a callable"),
        ({"learning_rate": True}, TypeError, "learning_rate must be a number or a callable"),
        ({"learning_rate": None}, TypeError, "learning_rate must be a number or a callable"),
        ({"learning_rate": lambda t: 1.0 - t}, ValueError, "got -0.3.* at t = 1.33"),
        ({"learning_rate": lambda t: t[:2]}, ValueError, r"one rate a time.*\(3,\).*\(2,\)"),
        ({"learning_rate": lambda t: t * np.nan}, ValueError, "learning_rate.*nan at t = 0"),
        ({"optimizer": "sdg"}, ValueError, "unknown optimizer 'sdg'; known: sgd, momentum, nest"),
        ({"optimizer": None}, TypeError, "optimizer must be a name or an Optimizer"),
        ({"validation_data": 3}, TypeError, r"validation_data must be a pair \(X, Y\)"),
        ({"validation_data": (1, 2, 3)}, TypeError, r"validation_data must be a pair \(X, Y\)"),
        ({"validation_data": (np.ones((2, 4)), [0, 1])}, ValueError, "validation X does not fit"),
        ({"validation_data": (np.ones((2, 3)), [0, 2])}, ValueError, "validation Y holds labels"),
        (
            {"validation_data": (np.full((2, 3), np.nan), [0, 1])},
            ValueError,
            "validation X contains NaN",
        ),
        ({"callbacks": [3]}, TypeError, "callbacks must be Callback objects or functions, got 3"),
        ({"callbacks": [Callback]}, TypeError, "callbacks must be Callback objects"),
        ({"callbacks": None}, TypeError, "callbacks|iterable"),
        ({"callbacks": Callback()}, TypeError, "callbacks|iterable"),
        ({"callbacks": lambda n, h: None}, TypeError, "callbacks|iterable"),
        (
            {"callbacks": [lambda n: None]},
            TypeError,
            r"function \(network, history\), but it takes",
        ),
        ({"callbacks": [lambda n, h, x: None]}, TypeError, "missing a required argument: 'x'"),
        ({"callbacks": [[].append]}, TypeError, r"must be a function \(network, history\)"),
        ({"callbacks": [later]}, TypeError, "not a coroutine or generator"),
        ({"callbacks": [hooks(on_epoch_end=lambda n: None)]}, TypeError, "on_epoch_end of callb"),
        ({"callbacks": [hooks(on_batch_end=lambda n: None)]}, TypeError, r"\(network, batch\)"),
        ({"callbacks": [hooks(on_fit_start=lambda: None)]}, TypeError, r"\(network\)"),
        ({"callbacks": [hooks(on_fit_end=lambda n: None)]}, TypeError, r"\(network, history\)"),
        ({"callbacks": [hooks(check_fit=lambda: None)]}, TypeError, r"\(validation_data\)"),
        ({"callbacks": [hooks(on_fit_end=3)]}, TypeError, "on_fit_end .* a function.*, got 3"),
        ({"callbacks": np.array(3)}, TypeError, "callbacks must be a list of Callbacks"),
        ({"engine": np.array(["layered", "x"])}, ValueError, r"unknown engine array\("),
        ({"epochs": np.timedelta64(3, "s")}, TypeError, "epochs must be an integer, got np.time"),
        ({"learning_rate": np.timedelta64(3)}, TypeError, "learning_rate must be a number or a c"),
        ({"progress": "x"}, TypeError, "progress must be True or False, got 'x'"),
        ({"progress": 1}, TypeError, "progress must be True or False, got 1"),
        ({"epochs": 10**400}, ValueError, r"epochs must be in .*got an integer of 1329 bits"),
        ({"epochs": 10**5000}, ValueError, r"epochs must be in .*got an integer of 16610 bits"),
        ({"batch_size": 10**5000}, ValueError, r"batch_size must be in \[1, 6\], got an integer"),
        ({"learning_rate": 10**400}, ValueError, "learning_rate must be finite.* 1329 bits"),
        ({"learning_rate": lambda t: 1j}, TypeError, "must return real numbers, got .* complex128"),
        ({"learning_rate": lambda t: t + 0j}, TypeError, "real numbers, got dtype complex128"),
        ({"learning_rate": lambda t: t < 1}, TypeError, "real numbers, got dtype bool"),
        ({"learning_rate": lambda t: "1"}, TypeError, "real numbers, got dtype <U1"),
        ({"learning_rate": lambda t: [0.1][9]}, ValueError, "learning_rate failed: IndexError"),
    ],
)
def test_arguments_of_fit(changes, kind, message):
    refuse_fit(kind, message, **changes)


@pytest.mark.parametrize(
    "callback",
    [
        lambda *anything: None,
        lambda network, history, more=3: None,
        functools.partial(lambda a, network, history: None, 1),
        max,  # of no known signature
        hooks(on_epoch_end=lambda network, history: None),
        unittest.mock.Mock(return_value=False),
    ],
)
def test_callbacks_that_can_be_called(callback):
    with contextlib.suppress(TypeError):  # max, when it is called
        assert len(network().fit(*data(), **(GOOD | {"callbacks": [callback]}))) == 2


def test_the_rows_of_validation_data_are_named():
    refuse_fit(
        ValueError,
        "validation X has 2 rows but validation Y has 3",
        validation_data=(np.ones((2, 3)), np.ones((3, 2))),
    )


def test_a_schedule_for_one_time_only():
    """`if t < 5` is the first thing that many write."""
    refuse_fit(ValueError, "learning_rate", learning_rate=lambda t: 0.1 if t < 5 else 0.01)


def test_the_cost_cannot_be_replaced():
    with pytest.raises(AttributeError, match="cost"):
        network().cost = "poisson"


def test_a_good_fit_after_bad_ones_has_the_same_bits():
    X, Y = data()
    net, fresh = network(), network()
    for changes in ({"batch_size": 0}, {"optimizer": "x"}, {"validation_data": 3}):
        with pytest.raises((ValueError, TypeError)):
            net.fit(X, Y, **(GOOD | changes))
    net.fit(X, Y, **GOOD)
    fresh.fit(X, Y, **GOOD)
    assert state(net)[0] == state(fresh)[0]


# -- arguments of Network -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "kind", "message"),
    [
        ([3], ValueError, "input and an output layer, got .*3"),
        ([], ValueError, "input and an output layer"),
        ((n for n in [3]), ValueError, r"input and an output layer, got .*3"),
        ([3, 0], ValueError, "sizes must be >= 1, got 0"),
        ([3, -2], ValueError, "sizes must be >= 1, got -2"),
        ([3, 2.0], TypeError, "sizes must be an integer, got 2.0"),
        ([3, True], TypeError, "sizes must be an integer, got True"),
        ([3, "2"], TypeError, "sizes must be an integer, got '2'"),
        ("32", TypeError, "sizes must be a sequence of layer sizes, got '32'"),
        (3, TypeError, "sizes must be a sequence of layer sizes, got 3"),
        (None, TypeError, "sizes must be a sequence of layer sizes, got None"),
        ({3, 2}, TypeError, r"sizes must be a sequence of layer sizes, got \{"),
        ({3: 1, 2: 1}, TypeError, "sizes must be a sequence of layer sizes, got {3: 1, 2: 1}"),
        ({3: 1, 2: 1}.keys(), TypeError, "sizes must be a sequence of layer sizes"),
        (np.array(3), TypeError, r"sizes must be a sequence of layer sizes, got array\(3\)"),
        (list, TypeError, "sizes must be a sequence of layer sizes, got <class 'list'>"),
        ([3, 10**400], ValueError, "sizes must be in .* got an integer of 1329 bits"),
        ([3, 10**12, 10**12], MemoryError, r"sizes \(3, 1000.*needs 11,175,870,895,441,622.0 GiB"),
        ([10**7, 10**8], MemoryError, r"sizes \(10000000, 100000000\) needs 11,175,872.0 GiB"),
    ],
)
def test_sizes(sizes, kind, message):
    with pytest.raises(kind, match=message):
        Network(sizes, backend="numpy")


@pytest.mark.parametrize("seed", [10**400, 2**64, np.int64(3)])
def test_a_seed_may_be_of_any_size(seed):
    nets = network(seed=seed), network(seed=int(seed))
    assert state(nets[0])[0] == state(nets[1])[0]


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((1, 0), r"range of activation 'own' must be \(low, high\), low < high, got \(1, 0\)"),
        ((1, 1), "low < high"),
        ((0, np.nan), "low < high"),
        ((0, 1, 2), "low < high"),
        ("01", "low < high"),
        (1, "low < high"),
        ((True, 2), "low < high"),
    ],
)
def test_the_range_of_an_activation(interval, message):
    with pytest.raises(ValueError, match=message):
        Activation("own", np.tanh, lambda z: 1 - np.tanh(z) ** 2, range=interval)
    Activation("own", np.tanh, lambda z: 1 - np.tanh(z) ** 2, range=(-1, np.inf))


@pytest.mark.parametrize("sizes", [(3, 2), np.array([3, 2]), (n for n in (3, 2)), range(3, 1, -1)])
def test_any_sequence_of_sizes_will_do(sizes):
    net = Network(sizes, backend="numpy")
    assert net.sizes == (3, 2)
    assert all(type(n) is int for n in net.sizes)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"activation": "relo"},
            ValueError,
            "unknown activation 'relo'; known: sigmoid, tanh",
        ),
        ({"activation": ["relu"]}, ValueError, "one for each of the 2 layers.*got 1"),
        ({"activation": ["relu"] * 3}, ValueError, "one for each of the 2 layers.*got 3"),
        ({"activation": "softmax"}, ValueError, "output layer only.*'sigmoid', 'softmax'"),
        ({"activation": ["softmax", "relu"]}, ValueError, "output layer only, not layer 1"),
        ({"activation": 3}, TypeError, "activation must be a name, an Activation or one per layer"),
        ({"activation": [3, 3]}, TypeError, "activation must be a name or an Activation, got 3"),
        ({"activation": None}, TypeError, "activation must be a name"),
        ({"activation": {"relu", "tanh"}}, TypeError, "activation must be a name"),
        ({"activation": {"relu": 1, "tanh": 2}}, TypeError, "activation must be a name"),
        ({"cost": "mse"}, ValueError, "unknown cost 'mse'; known: quadratic, binary_cross_ent"),
        ({"cost": None}, TypeError, "cost must be a name or a Cost, got None"),
        ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64', got 'float16'"),
        ({"dtype": "int32"}, ValueError, "dtype must be 'float32' or 'float64', got 'int32'"),
        ({"dtype": "floaty"}, ValueError, "dtype must be 'float32' or 'float64', got 'floaty'"),
        ({"dtype": ">f4"}, ValueError, "dtype must be 'float32' or 'float64', got '>f4'"),
        ({"dtype": None}, ValueError, "dtype must be 'float32' or 'float64', got None"),
        ({"dtype": 3}, ValueError, "dtype must be 'float32' or 'float64', got 3"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'; known: auto, numpy, cuda, numba"),
        ({"backend": None}, ValueError, "unknown backend None"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"seed": "1"}, TypeError, "seed must be an integer, got '1'"),
        (
            {"initial_weights": "zero"},
            ValueError,
            "unknown initial_weights 'zero'; .*xavier",
        ),
        ({"initial_weights": "zero"}, ValueError, "auto"),
        ({"initial_weights": np.array([3, 4])}, ValueError, r"unknown initial_weights array\("),
        ({"backend": np.array([3, 4])}, ValueError, r"unknown backend array\("),
        ({"seed": np.timedelta64(3)}, TypeError, "seed must be an integer"),
    ],
)
def test_settings_of_a_network(settings, kind, message):
    with pytest.raises(kind, match=message):
        network(**settings)


def test_backend_without_a_device():
    obstacle = backends.Obstacles()["cuda"]
    if obstacle is None:
        pytest.skip("there is a device")
    with pytest.raises(RuntimeError, match="backend 'cuda' is not usable here") as error:
        network(backend="cuda")
    assert obstacle in str(error.value)
    net = network(backend="auto")
    assert net.backend == "numpy"
    assert obstacle in str(net.plan)


# -- assigning parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        (
            "weights",
            [np.ones((4, 3))],
            ValueError,
            "weights must be 2 arrays, one per layer, got 1",
        ),
        (
            "weights",
            [np.ones((4, 3)), np.ones((4, 2))],
            ValueError,
            r"weights\[1\] does not fit layer 2: expected shape \(2, 4\), got \(4, 2\)",
        ),
        (
            "biases",
            [np.ones(4), np.ones((2, 1))],
            ValueError,
            r"biases\[1\] does not fit layer 2: expected shape \(2,\), got \(2, 1\)",
        ),
        ("biases", [np.full(4, np.nan), np.ones(2)], ValueError, r"biases\[0\] contains NaN"),
        ("biases", [np.ones(4), np.full(2, "x")], TypeError, r"biases\[1\] must hold real numbers"),
        ("weights", 3, TypeError, "weights"),
        ("weights", None, TypeError, "weights"),
    ],
)
def test_assigned_parameters_must_fit(name, value, kind, message):
    net = network()
    before = state(net)
    with pytest.raises(kind, match=message):
        setattr(net, name, value)
    assert state(net) == before


def test_parameters_are_copies():
    net = network()
    given = [np.ones((4, 3)), np.ones((2, 4))]
    net.weights = given
    given[0][...] = 7.0
    assert (net.weights[0] == 1.0).all()
    with pytest.raises(ValueError, match="read-only"):
        net.weights[0][0, 0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        net.biases[0][0] = 5.0
    held = net.weights[0]
    X, Y = data()
    net.fit(X, Y, **GOOD)
    assert (held == 1.0).all()
    assert [w.shape for w in net.weights] == [(4, 3), (2, 4)]
    assert [b.shape for b in net.biases] == [(4,), (2,)]
    net.weights, net.biases = [w.tolist() for w in net.weights], net.biases


def test_softmax_of_one_output_is_refused():
    with pytest.raises(ValueError, match="softmax of one output is always 1"):
        Network([3, 1], activation="softmax", backend="numpy")
