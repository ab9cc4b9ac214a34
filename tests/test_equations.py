"""Each equation against numbers worked by hand and against `reference`, and its checks."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import reference
from backprop_gpu import Activation, Network, activations, backends, costs, equations
from backprop_gpu.backends.cuda import usable_cupy
from machine import device_runtime
from reference import assert_close, product_bound

DTYPES = ("float32", "float64")
#: (m, n_l, n_{l-1}): one of everything, one row, and sizes next to a tile's edge.
SHAPES = (
    (1, 1, 1),
    (1, 1, 17),
    (1, 17, 1),
    (17, 1, 1),
    (1, 129, 257),
    (31, 33, 17),
    (257, 129, 31),
    (129, 31, 257),
)
ELEMENTWISE = tuple(reference.ACTIVATIONS)


def draw(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def targets(cost: str, shape: tuple[int, int], dtype: str) -> np.ndarray:
    y = np.random.default_rng(7).uniform(0.05, 0.95, shape)
    if cost == "categorical_cross_entropy":
        y /= y.sum(axis=1, keepdims=True)
    return y.astype(dtype)


def on(backend: str, dtype: str) -> SimpleNamespace:
    """The equations on one backend, from host arrays to host arrays."""
    if backend == "numpy":
        return SimpleNamespace(**{name: getattr(equations, name) for name in _EQUATIONS})
    if backend == "cuda":
        runtime = device_runtime()

        def public(name: str):
            def call(*arguments):
                result = getattr(equations, name)(
                    *(runtime.array(x) if isinstance(x, np.ndarray) else x for x in arguments)
                )
                to_numpy = runtime.to_numpy
                return tuple(map(to_numpy, result)) if name == "forward" else to_numpy(result)

            return call

        return SimpleNamespace(**{name: public(name) for name in _EQUATIONS})
    return _through(backends.create(backend, np.dtype(dtype)))


_EQUATIONS = (
    "forward",
    "output_error",
    "hidden_error",
    "bias_gradient",
    "weight_gradient",
    "hadamard",
)


def _through(made: backends.Backend) -> SimpleNamespace:
    def put(array):
        return made.asarray(array)

    def run(method: str, shape: tuple[int, ...], *arguments):
        out = made.empty(shape)
        getattr(made, method)(*arguments, out)
        return made.to_numpy(out)

    def forward(w, b, a, activation):
        z, result = made.empty((len(a), len(w))), made.empty((len(a), len(w)))
        made.forward(put(w), put(b), put(a), activations.get(activation), z, result)
        return made.to_numpy(z), made.to_numpy(result)

    def output_error(z, a, y, activation, cost):
        pair = activations.get(activation), costs.get(cost)
        return run("output_error", a.shape, put(z), put(a), put(y), *pair)

    def hidden_error(w, delta, z, a, activation):
        given = put(w), put(delta), put(z), put(a), activations.get(activation)
        return run("hidden_error", a.shape, *given)

    def bias_gradient(delta):
        return run("bias_gradient", delta.shape[1:], put(delta))

    def weight_gradient(delta, a):
        return run("weight_gradient", (delta.shape[1], a.shape[1]), put(delta), put(a))

    def hadamard(s, t):
        return run("hadamard", s.shape, put(s), put(t))

    return SimpleNamespace(
        forward=forward,
        output_error=output_error,
        hidden_error=hidden_error,
        bias_gradient=bias_gradient,
        weight_gradient=weight_gradient,
        hadamard=hadamard,
    )


# -- a step worked by hand ------------------------------------------------------------

# A 2-2-1 network of sigmoids, quadratic cost, one sample x = (1, 2) with y = 1. The
# weights are such that σ meets only σ(0) = 1/2 and σ(ln 3) = 1/(1 + 1/3) = 3/4.
W1 = np.array([[2.0, -1.0], [math.log(3.0), 1.0]])
B1 = np.array([0.0, -2.0])
W2 = np.array([[2.0, -4.0]])
B2 = np.array([2.0])
X = np.array([[1.0, 2.0]])
Y = np.array([[1.0]])
# z¹ = (2·1 - 1·2 + 0, ln 3·1 + 1·2 - 2) = (0, ln 3)
Z1 = np.array([[0.0, math.log(3.0)]])
# a¹ = (1/2, 3/4),  σ'(z¹) = a¹(1 - a¹) = (1/4, 3/16)
A1 = np.array([[0.5, 0.75]])
# z² = 2·1/2 - 4·3/4 + 2 = 0,  a² = 1/2,  σ'(z²) = 1/4
Z2 = np.array([[0.0]])
A2 = np.array([[0.5]])
# C = 1/2 (1 - 1/2)² = 1/8
C = 0.125
# BP1: δ² = (a² - y) σ'(z²) = -1/2 · 1/4 = -1/8
DELTA2 = np.array([[-0.125]])
# BP2: δ¹ = (2·-1/8 · 1/4, -4·-1/8 · 3/16) = (-1/16, 3/32)
DELTA1 = np.array([[-0.0625, 0.09375]])
# BP3: ∂C/∂b² = -1/8, ∂C/∂b¹ = δ¹
# BP4: ∂C/∂w² = δ² a¹ = (-1/16, -3/32)
DW2 = np.array([[-0.0625, -0.09375]])
#      ∂C/∂w¹_jk = a⁰_k δ¹_j: (-1/16·1, -1/16·2), (3/32·1, 3/32·2)
DW1 = np.array([[-0.0625, -0.125], [0.09375, 0.1875]])
# η = 8: w ← w - 8 ∂C/∂w
ETA = 8.0
W1_NEXT = np.array([[2.5, 0.0], [math.log(3.0) - 0.75, -0.5]])
B1_NEXT = np.array([0.5, -2.75])
W2_NEXT = np.array([[2.5, -3.25]])
B2_NEXT = np.array([3.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_step_by_hand(backend, dtype):
    e = on(backend, dtype)
    tolerance = {"rtol": 4 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}

    def close(got, expected):
        np.testing.assert_allclose(got, expected, **tolerance)
        assert got.dtype == dtype

    w1, b1, w2, b2, x, y = (array.astype(dtype) for array in (W1, B1, W2, B2, X, Y))
    z1, a1 = e.forward(w1, b1, x, "sigmoid")
    close(z1, Z1)
    close(a1, A1)
    z2, a2 = e.forward(w2, b2, a1, "sigmoid")
    close(z2, Z2)
    close(a2, A2)
    delta2 = e.output_error(z2, a2, y, "sigmoid", "quadratic")
    close(delta2, DELTA2)
    delta1 = e.hidden_error(w2, delta2, z1, a1, "sigmoid")
    close(delta1, DELTA1)
    close(e.bias_gradient(delta2), DELTA2[0])
    close(e.bias_gradient(delta1), DELTA1[0])
    close(e.weight_gradient(delta2, a1), DW2)
    close(e.weight_gradient(delta1, x), DW1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_step_by_hand_in_a_network(backend, dtype):
    close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
    net = Network([2, 2, 1], dtype=dtype, backend=backend)
    net.weights, net.biases = [W1, W2], [B1, B2]
    np.testing.assert_allclose(net.predict(X), A2, **close)
    assert net.loss(X, Y) == pytest.approx(C, rel=float(close["rtol"]))
    (dw1, db1), (dw2, db2) = net.gradients(X, Y)
    for got, expected in ((dw1, DW1), (db1, DELTA1[0]), (dw2, DW2), (db2, DELTA2[0])):
        np.testing.assert_allclose(got, expected, **close)

    history = net.fit(X, Y, epochs=1, batch_size=1, learning_rate=ETA)
    assert history.loss == pytest.approx([C], rel=float(close["rtol"]))  # before the update
    for got, expected in zip(net.weights, (W1_NEXT, W2_NEXT), strict=True):
        np.testing.assert_allclose(got, expected, **close)
    for got, expected in zip(net.biases, (B1_NEXT, B2_NEXT), strict=True):
        np.testing.assert_allclose(got, expected, **close)


def test_collapsing_pair_by_hand(backend):
    # The same outputs with binary cross-entropy: δ² = a² - y = -1/2 and C = -ln 1/2.
    net = Network([2, 2, 1], dtype="float64", cost="binary_cross_entropy", backend=backend)
    net.weights, net.biases = [W1, W2], [B1, B2]
    assert net.gradients(X, Y)[1][1] == pytest.approx([-0.5], rel=1e-14)
    assert net.loss(X, Y) == pytest.approx(math.log(2.0), rel=1e-14)


# -- against the reference ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_forward(backend, dtype, m, n, k):
    w, b, a_prev = draw(1, dtype, (n, k), (n,), (m, k))
    z, a = on(backend, dtype).forward(w, b, a_prev, "sigmoid")
    assert z.dtype == a.dtype == dtype
    eps = np.finfo(dtype).eps
    expected, _ = reference.forward(w, b, a_prev, "sigmoid")
    bound = product_bound("jk,xk->xj", w, a_prev, dtype) + 2 * eps * np.abs(b)
    assert_close(z, expected, bound, "z")
    assert_close(a, reference.activate("sigmoid", np.float64(z)), 8 * eps, "a")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax"])
def test_forward_of_every_activation(backend, dtype, name):
    w, b, a_prev = draw(2, dtype, (17, 33), (17,), (31, 33))
    z, a = on(backend, dtype).forward(w, b, a_prev, name)
    expected = reference.activate(name, np.float64(z))
    bound = 16 * np.finfo(dtype).eps * np.maximum(np.abs(expected), np.abs(z))
    if name in ("exponential", "softmax"):  # the error of e^z grows with z
        bound = 16 * np.finfo(dtype).eps * expected * (1 + np.abs(z).max())
    assert_close(a, expected, bound + 4 * np.finfo(dtype).eps, "a")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(m, n) for m, n, _ in SHAPES])
@pytest.mark.parametrize(
    ("activation", "cost"),
    [
        ("sigmoid", "quadratic"),
        ("softmax", "quadratic"),
        ("sigmoid", "binary_cross_entropy"),
        ("softmax", "categorical_cross_entropy"),
    ],
)
def test_output_error(backend, dtype, m, n, activation, cost):
    check_output_error(backend, dtype, m, n, activation, cost)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "cost"), reference.COMMON_PAIRS)
def test_output_error_of_every_pair(backend, dtype, activation, cost):
    check_output_error(backend, dtype, 31, 5, activation, cost)


def check_output_error(backend, dtype, m, n, activation, cost):
    (z,) = draw(3, dtype, (m, n))
    y = targets(cost, (m, n), dtype)
    a = reference.activate(activation, np.float64(z)).astype(dtype)
    delta = on(backend, dtype).output_error(z, a, y, activation, cost)
    assert delta.dtype == dtype
    exact_a = reference.activate(activation, np.float64(z))
    pull = np.abs(reference.COSTS[cost][1](exact_a, np.float64(y)))
    # a and 1 - a are known to ε only, and both may stand in a denominator.
    edge = np.minimum(exact_a, np.abs(1 - exact_a))
    has_none = cost not in reference.WITH_POLES or edge.min() == 0.0
    size = (1 + pull) if has_none else (1 + pull) / np.minimum(edge, 1.0)
    if activation == "softmax":
        size = exact_a * (size + np.einsum("xk,xk->x", size, exact_a)[:, None]) + 1
    size = size * np.maximum(1, np.abs(exact_a))
    bound = 32 * np.finfo(dtype).eps * size
    assert_close(delta, reference.output_error(z, y, activation, cost), bound, "delta")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_hidden_error(backend, dtype, m, n, k):
    check_hidden_error(backend, dtype, m, n, k, "sigmoid")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_hidden_error_of_every_activation(backend, dtype, name):
    check_hidden_error(backend, dtype, 31, 17, 33, name)


def check_hidden_error(backend, dtype, m, n, k, name):
    w_next, delta_next, z = draw(4, dtype, (n, k), (m, n), (m, k))
    a = reference.activate(name, np.float64(z)).astype(dtype)
    delta = on(backend, dtype).hidden_error(w_next, delta_next, z, a, name)
    assert delta.dtype == dtype
    slope = np.maximum(1.0, np.abs(reference.ACTIVATIONS[name][1](np.float64(z))))
    product = np.abs(np.float64(delta_next) @ np.float64(w_next))
    bound = product_bound("jk,xj->xk", w_next, delta_next, dtype) * slope
    bound += 16 * np.finfo(dtype).eps * product * slope
    assert_close(delta, reference.hidden_error(w_next, delta_next, z, name), bound, "delta")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gradients(backend, dtype, m, n, k):
    delta, a_prev = draw(5, dtype, (m, n), (m, k))
    e = on(backend, dtype)
    dw, db = e.weight_gradient(delta, a_prev), e.bias_gradient(delta)
    assert dw.dtype == db.dtype == dtype
    bound = product_bound("xj,xk->jk", delta, a_prev, dtype) / m
    assert_close(dw, reference.weight_gradient(delta, a_prev), bound, "dw")
    bound = product_bound("xj,x->j", delta, np.ones(m), dtype) / m
    assert_close(db, reference.bias_gradient(delta), bound, "db")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (31, 33), (257, 129)])
def test_hadamard(backend, dtype, shape):
    s, t = draw(6, dtype, shape, shape)
    np.testing.assert_array_equal(on(backend, dtype).hadamard(s, t), s * t)


# -- what kinds of array the public functions take --------------------------------------


def calls(dtype: str = "float64", m: int = 4) -> dict[str, tuple[tuple, tuple]]:
    """name -> (arrays, other arguments) of a call to every equation."""
    w, b, a, z, delta = draw(8, dtype, (3, 5), (3,), (m, 5), (m, 3), (m, 3))
    a_out = reference.activate("sigmoid", np.float64(z)).astype(dtype)
    z_in = np.zeros_like(a)
    return {
        "forward": ((w, b, a), ("tanh",)),
        "output_error": ((z, a_out, np.abs(a_out - 0.5)), ("sigmoid", "quadratic")),
        "hidden_error": ((w, delta, z_in, a), ("sigmoid",)),
        "bias_gradient": ((delta,), ()),
        "weight_gradient": ((delta, a), ()),
        "hadamard": ((z, delta), ()),
    }


def call(name, arrays, others, **keywords):
    return getattr(equations, name)(*arrays, *others, **keywords)


def fortran(array):
    return np.asfortranarray(array)


def strided(array):
    wide = np.full(tuple(2 * n for n in array.shape), np.nan, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_rows(array):
    return array[::-1].copy()[::-1]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [fortran, strided, reversed_rows, read_only])
@pytest.mark.parametrize("name", _EQUATIONS)
def test_any_memory_layout(name, form, dtype):
    arrays, others = calls(dtype)[name]
    expected = call(name, arrays, others)
    given = tuple(map(form, arrays))
    before = [array.copy() for array in given]
    got = call(name, given, others)
    for array, old in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, old)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", _EQUATIONS)
def test_single_sample_is_a_row(name):
    arrays, others = calls(m=1)[name]
    batched = call(name, arrays, others)
    single = tuple(
        array[0] if array.ndim == 2 and array.shape[0] == 1 else array for array in arrays
    )
    got = call(name, single, others)
    if name in ("bias_gradient", "weight_gradient"):
        np.testing.assert_array_equal(got, batched)
    elif name == "forward":
        for one, rows in zip(got, batched, strict=True):
            assert one.shape == (3,)
            np.testing.assert_array_equal(one, rows[0])
    else:
        assert got.ndim == 1
        np.testing.assert_array_equal(got, batched[0])


@pytest.mark.parametrize("form", [np.ascontiguousarray, fortran, strided])
@pytest.mark.parametrize("name", _EQUATIONS)
def test_out_is_written_and_returned(name, form):
    arrays, others = calls()[name]
    expected = call(name, arrays, others)
    if name == "forward":
        out = tuple(form(np.full_like(part, np.nan)) for part in expected)
        got = call(name, arrays, others, out=out)
        assert got[0] is out[0]
        assert got[1] is out[1]
    else:
        out = form(np.full_like(expected, np.nan))
        assert call(name, arrays, others, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_of_a_single_sample():
    s, t = (array[0] for array in calls(m=1)["hadamard"][0])
    out = np.empty(3)
    assert equations.hadamard(s, t, out=out) is out
    w, b, a = calls(m=1)["forward"][0]
    z, result = np.empty(3), np.empty(3)
    equations.forward(w, b, a[0], out=(z, result))
    np.testing.assert_array_equal(z, equations.forward(w, b, a)[0][0])


def test_hadamard_in_place():
    (s, t), _ = calls()["hadamard"]
    expected = s * t
    assert equations.hadamard(s, t, out=s) is s
    np.testing.assert_array_equal(s, expected)
    np.testing.assert_array_equal(
        equations.hadamard(np.array(2.0), np.array(3.0)), 6.0
    )  # of no dimension


def test_results_are_new_arrays():
    for name, (arrays, others) in calls().items():
        result = call(name, arrays, others)
        for part in result if isinstance(result, tuple) else (result,):
            assert part.flags.writeable
            assert not any(np.shares_memory(part, array) for array in arrays)


@pytest.mark.parametrize("name", _EQUATIONS)
def test_wrong_out(name):
    arrays, others = calls()[name]
    expected = call(name, arrays, others)
    pair = name == "forward"
    good = expected[0] if pair else expected

    def with_out(out):
        return call(name, arrays, others, out=(out, np.empty_like(good)) if pair else out)

    with pytest.raises(ValueError, match=r"must have shape .*, got"):
        with_out(np.empty((9, 9)))
    with pytest.raises(TypeError, match="float64"):
        with_out(np.empty_like(good, dtype="float32"))
    with pytest.raises(TypeError, match="must be a NumPy array or one on a CUDA device, got list"):
        with_out(good.tolist())
    with pytest.raises(ValueError, match="read-only"):
        with_out(read_only(good))


def test_out_must_not_overlap_arguments():
    memory = np.ones(1000)
    square, column = memory[:25].reshape(5, 5), memory[25:30]
    later = np.empty((5, 5))
    with pytest.raises(ValueError, match=r"out.*must not overlap a"):
        equations.forward(square.copy(), column, square, out=(later, square))
    with pytest.raises(ValueError, match=r"out.*must not overlap w"):
        equations.forward(square, column, square.copy(), out=(square, later))
    with pytest.raises(ValueError, match="out must not overlap delta_next"):
        equations.hidden_error(later, square, later, later, out=memory[5:30].reshape(5, 5))
    with pytest.raises(ValueError, match="out must not overlap a"):
        equations.output_error(later, square, later, out=square)
    with pytest.raises(ValueError, match="out must not overlap delta"):
        equations.bias_gradient(square, out=square[0])
    with pytest.raises(ValueError, match="out must not overlap a_prev"):
        equations.weight_gradient(later, square, out=square.T)


def test_the_two_outs_of_forward_must_not_overlap():
    (w, b, a), _ = calls()["forward"]
    out = np.empty((4, 3))
    with pytest.raises(ValueError, match="overlap"):
        equations.forward(w, b, a, out=(out, out))


def test_columns_of_one_array_do_not_overlap():
    memory = np.random.default_rng(1).random((4, 6))
    z, a, y = memory[:, :2], memory[:, 2:4], memory[:, 4:].copy()
    expected = equations.output_error(z, a, y)
    equations.output_error(z, a, y, out=memory[:, 4:])
    np.testing.assert_array_equal(memory[:, 4:], expected)


@pytest.mark.parametrize(
    ("name", "position", "shape"),
    [
        ("forward", 0, (3, 4)),
        ("forward", 0, (3,)),
        ("forward", 1, (4,)),
        ("forward", 1, (1, 3)),
        ("forward", 2, (4, 6)),
        ("forward", 2, (2, 4, 5)),
        ("forward", 2, ()),
        ("output_error", 0, (3, 3)),
        ("output_error", 1, (4, 2)),
        ("output_error", 2, (4, 1)),
        ("output_error", 2, (3,)),
        ("hidden_error", 0, (4, 5)),
        ("hidden_error", 1, (4, 2)),
        ("hidden_error", 2, (4, 3)),
        ("hidden_error", 3, (5, 4)),
        ("bias_gradient", 0, (2, 2, 2)),
        ("weight_gradient", 0, (3, 3)),
        ("weight_gradient", 1, (5, 5)),
        ("hadamard", 0, (4, 1)),
        ("hadamard", 1, (3, 4)),
    ],
)
def test_wrong_shape(name, position, shape):
    arrays, others = calls()[name]
    given = [*arrays[:position], np.ones(shape), *arrays[position + 1 :]]
    with pytest.raises(ValueError, match=r"must .*, got (shape )?\("):
        call(name, given, others)


def test_no_rows_has_no_mean():
    with pytest.raises(ValueError, match="row"):
        equations.bias_gradient(np.empty((0, 3)))
    with pytest.raises(ValueError, match="row"):
        equations.weight_gradient(np.empty((0, 3)), np.empty((0, 2)))


@pytest.mark.parametrize("name", _EQUATIONS)
def test_wrong_dtype_or_kind(name):
    arrays, others = calls()[name]
    for dtype in ("float16", "int64", "complex128", "object"):
        with pytest.raises(TypeError, match=f"float32 or all be float64.*{dtype}"):
            call(name, [array.astype(dtype) for array in arrays], others)
    with pytest.raises(TypeError, match="must be a NumPy array or one on a CUDA device, got list"):
        call(name, [arrays[0].tolist(), *arrays[1:]], others)
    if len(arrays) > 1:
        with pytest.raises(TypeError, match="float32"):
            call(name, [arrays[0].astype("float32"), *arrays[1:]], others)


def test_unknown_names_list_the_known():
    (w, b, a), _ = calls()["forward"]
    with pytest.raises(ValueError, match="unknown activation 'sigmoids'; known: sigmoid, tanh"):
        equations.forward(w, b, a, "sigmoids")
    (z, a, y), _ = calls()["output_error"]
    with pytest.raises(ValueError, match="unknown cost 'mse'; known: quadratic"):
        equations.output_error(z, a, y, "sigmoid", "mse")
    with pytest.raises(ValueError, match=r"'poisson'.*'tanh'"):
        equations.output_error(z, a, y, "tanh", "poisson")
    with pytest.raises(TypeError, match="name or an Activation"):
        equations.forward(w, b, a, None)


def test_users_own_activation_in_an_equation():
    square = Activation("square", lambda z: z * z, lambda z: 2 * z)
    (w, b, a), _ = calls()["forward"]
    z, squared = equations.forward(w, b, a, square)
    np.testing.assert_array_equal(squared, z * z)
    delta = equations.hidden_error(np.eye(3), np.ones((4, 3)), z, squared, square)
    np.testing.assert_array_equal(delta, 2 * z)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_neurons(name, dtype):
    """Far from 0 there is neither a warning nor a NaN, and σ' is what the formula tends to."""
    size = 80.0 if name == "exponential" else 1e30
    z = np.array([[-size, -1e4, -200.0, -1e-30, 0.0, 1e-30, 200.0, 1e4, size]], dtype)
    if name == "exponential":
        z = np.clip(z, -size, size)
    function = activations.get(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, slope = function.function(z), function.derivative(z)
        one = np.ones((1, 1), dtype)
        _, through = equations.forward(one, np.zeros(1, dtype), z.T.copy(), name)
    assert a.dtype == slope.dtype == dtype
    np.testing.assert_array_equal(through.ravel(), a.ravel())
    exact = np.float64(z)
    tiny = np.finfo(dtype).tiny
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(
            a, reference.activate(name, exact), rtol=20 * np.finfo(dtype).eps, atol=tiny
        )
        expected = reference.ACTIVATIONS[name][1](exact)
    np.testing.assert_allclose(
        slope, expected, rtol=20 * np.finfo(dtype).eps, atol=200 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_function_of_a_number_is_a_number(name):
    function = activations.get(name)
    for z in (0, 0.5, np.float32(-1.0)):
        assert np.shape(function.function(z)) == np.shape(function.derivative(z)) == ()


@pytest.mark.parametrize("name", costs.names())
def test_costs_take_integers(name):
    cost, a, y = costs.get(name), np.array([[1, 0], [0, 1]]), np.array([[0, 1], [0, 1]])
    np.testing.assert_array_equal(cost.function(a, y), cost.function(a * 1.0, y * 1.0))
    np.testing.assert_array_equal(cost.gradient(a, y), cost.gradient(a * 1.0, y * 1.0))


@pytest.mark.parametrize(("activation", "cost"), reference.COMMON_PAIRS)
def test_output_error_of_saturated_outputs_is_finite(activation, cost):
    z = np.float32([[-200, -104, -100, -88, -80, 0, 17, 40]])
    a = np.empty_like(z)
    with np.errstate(all="ignore"):
        activations.get(activation).evaluate(z, a, np.empty_like(z))
    for y in (0.0, 1.0, 100.0 if cost == "poisson" else 0.5):
        delta = equations.output_error(z, a, np.full_like(z, y), activation, cost)
        assert np.isfinite(delta).all()


@pytest.mark.gpu
def test_cupy_in_cupy_out():
    cupy = usable_cupy()
    if cupy is None:
        pytest.skip("CuPy does not work here")
    with pytest.raises(TypeError, match="one kind"):
        equations.hadamard(cupy.ones((2, 2)), np.ones((2, 2)))
    out = cupy.empty((2, 2))
    assert equations.hadamard(cupy.full((2, 2), 3.0), cupy.full((2, 2), 2.0), out=out) is out
    assert (out.get() == 6.0).all()
    with cupy.cuda.Stream(non_blocking=True):
        z, _ = equations.forward(cupy.ones((4, 3)), cupy.zeros(4), cupy.ones((3, 2)).T)
        assert isinstance(z, cupy.ndarray)
        assert (z.get() == 3.0).all()


class Foreign:
    """An array of some other library, which tells of itself in one of the two ways."""

    def __init__(self, host, way):
        ours = device_runtime().array(host)
        self.shape, self.dtype, self.ndim = host.shape, host.dtype, host.ndim
        if way == "interface":
            self.__dict__["_interface"] = ours.__cuda_array_interface__
        else:
            self.__dlpack__, self.__dlpack_device__ = ours.__dlpack__, ours.__dlpack_device__
        self.ours = ours


class ForeignInterface(Foreign):
    @property
    def __cuda_array_interface__(self):
        return self._interface


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["interface", "dlpack"])
def test_any_array_of_a_device(way):
    runtime, rng = device_runtime(), np.random.default_rng(0)
    kind = ForeignInterface if way == "interface" else Foreign
    s, t = rng.standard_normal((2, 5, 3))
    out = kind(np.zeros((5, 3)), way)
    equations.hadamard(kind(s, way), kind(t, way), out=out)
    np.testing.assert_array_equal(runtime.to_numpy(out.ours), s * t)
    result = equations.hadamard(kind(s, way), kind(t, way))
    np.testing.assert_array_equal(runtime.to_numpy(result), s * t)


@pytest.mark.gpu
def test_device_arrays_are_refused_early():
    runtime = device_runtime()
    s, t = runtime.array(np.ones((2, 3))), runtime.array(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match="all be float32 or all be float64"):
        equations.hadamard(s, t)
    with pytest.raises(TypeError, match="one kind"):
        equations.hadamard(s, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"out must have shape \(2, 3\)"):
        equations.hadamard(s, s, out=runtime.array(np.ones((3, 2))))
    with pytest.raises(ValueError, match="out must not overlap delta"):
        equations.bias_gradient(s, out=s[0])
