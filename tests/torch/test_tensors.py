"""PyTorch's tensors as arrays of networks and estimators: in, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn

from backprop_gpu import MLPClassifier, MLPRegressor, Network, Population, arrays
from backprop_gpu.cuda import interchange

torch = pytest.importorskip(
    "torch", reason="backprop_gpu.torch needs PyTorch: pip install 'backprop_gpu[torch]'"
)

N, INPUTS, CLASSES = 60, 3, 4
RNG = np.random.default_rng(2)
X = RNG.integers(-50, 50, (N, INPUTS)).astype(np.float32) / 16  # exact in bfloat16 and float16
LABELS = RNG.integers(0, CLASSES, N)


def network() -> Network:
    return Network(
        [INPUTS, 5, CLASSES], activation=["tanh", "softmax"], seed=1, backend="numpy",
        cost="categorical_cross_entropy",
    )  # fmt: skip


def trained(X: Any, Y: Any) -> bytes:
    net = network()
    net.fit(X, Y, epochs=2, batch_size=8, learning_rate=0.3)
    return bytes(net.parameters.flat.tobytes())


def test_nothing_is_copied_on_the_CPU() -> None:
    tensor = torch.from_numpy(X.copy())
    read = arrays.to_numpy("X", tensor)
    assert read.ctypes.data == tensor.data_ptr()
    ours = np.ones((2, 3), np.float32)
    given_back = arrays.as_given(ours, tensor)
    assert given_back.data_ptr() == ours.ctypes.data
    assert not given_back.requires_grad


def test_what_a_device_writes_to_is_of_the_dtype_of_the_network() -> None:
    library = interchange.library("torch")
    assert library.empty is not None
    made = library.empty(torch.zeros(2, 3, dtype=torch.float64), (4, 5), "float32")
    assert (tuple(made.shape), made.dtype) == ((4, 5), torch.float32)


@pytest.mark.parametrize(
    "made",
    [
        torch.from_numpy,
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda x: torch.from_numpy(x).half(),
        lambda x: torch.from_numpy(x).double(),
        lambda x: torch.from_numpy(x.T.copy()).T,
        lambda x: torch.from_numpy(x).repeat_interleave(2, dim=1)[:, ::2],
        lambda x: torch.nn.Parameter(torch.from_numpy(x), requires_grad=False),
        lambda x: torch.complex(torch.zeros(x.shape), -torch.from_numpy(x)).conj().imag,
    ],
)
def test_tensors_of_any_kind(made: Any) -> None:
    tensor = made(X)
    found = network().predict(tensor)
    assert type(found) is torch.Tensor
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), network().predict(X))
    assert trained(tensor, torch.from_numpy(LABELS)) == trained(X, LABELS)


def test_methods_that_read() -> None:
    net, tensor, labels = network(), torch.from_numpy(X), torch.from_numpy(LABELS)
    population = Population([INPUTS, 4, 2], members=2, seed=0, backend="numpy")
    for call in (
        net.jacobian,
        net.laplacian,
        lambda x: net.input_gradients(x, output=0),
        lambda x: net.gradient_norms(x, labels),
        lambda x: net.gradients(x, labels, per_sample=True)[1][1],
        population.predict,
        lambda x: population.predict(x, combine="mean"),
        lambda x: population.predict(x, combine="vote"),
    ):
        found, expected = call(tensor), call(X)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)
    assert net.loss(tensor, labels) == net.loss(X, LABELS)
    assert net.accuracy(tensor, labels) == net.accuracy(X, LABELS)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.from_numpy(X).requires_grad_(), r"requires grad.*pass X\.detach\(\)"),
        (torch.from_numpy(X).to_sparse(), r"sparse_coo; pass X\.to_dense\(\)"),
        (torch.zeros(N, INPUTS, device="meta"), "X, a tensor of torch.float32, cannot be read"),
        (torch.from_numpy(X) * 1j, "X must hold real numbers, got dtype complex64"),
    ],
)
def test_tensors_that_are_refused(tensor: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        network().predict(tensor)
    with pytest.raises(TypeError, match=message):
        trained(tensor, LABELS)
    with pytest.raises(TypeError, match=message.replace("X", "Y")):
        network().loss(X, tensor)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_dispatch(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, labels = torch.from_numpy(X), torch.from_numpy(LABELS)
    made = kind(hidden_layer_sizes=(5,), max_iter=3, random_state=0, backend="numpy")
    plain = sklearn.clone(made).fit(X, LABELS)
    assert type(made.fit(tensor, labels).predict(tensor)) is np.ndarray
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with sklearn.config_context(array_api_dispatch=True):
        made.fit(tensor, labels)
        for method in ("predict", "predict_proba", "predict_log_proba", "transform"):
            if hasattr(made, method):
                found = getattr(made, method)(tensor)
                assert isinstance(found, torch.Tensor)
                np.testing.assert_array_equal(found.numpy(), getattr(plain, method)(X))
        with pytest.raises(TypeError, match=r"X is a tensor that requires grad"):
            made.predict(tensor.clone().requires_grad_())
