"""What an `MLP`'s products round, by its precision, by PyTorch's settings and by its dtype."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402

from backprop_gpu import Network  # noqa: E402
from backprop_gpu.activations import Activation  # noqa: E402
from backprop_gpu.precision import round_factor  # noqa: E402
from backprop_gpu.torch import MLP, from_torch  # noqa: E402
from backprop_gpu.torch import mlp as module  # noqa: E402
from backprop_gpu.torch.equations import rounded  # noqa: E402

ROUNDED = ("tf32", "bf16")
SIZES, SIGMAS = [6, 9, 3], ["tanh", "identity"]


def x_of(m: int = 40, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(m, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def made(**settings: Any) -> MLP:
    return MLP(SIZES, SIGMAS, seed=1, **settings)


@pytest.mark.parametrize("precision", ROUNDED)
def test_factors_are_those_of_the_network(precision: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    x = np.append(bits.view("f4"), np.array([np.nan, np.inf, -0.0, 3.4028235e38, 1e-45], "f4"))
    with np.errstate(all="ignore"):
        expected = round_factor(x, precision, np.empty_like(x))
    np.testing.assert_array_equal(rounded(torch.from_numpy(x), precision).numpy(), expected)


@pytest.mark.parametrize("precision", ROUNDED)
def test_passes_are_those_of_the_network(precision: str) -> None:
    # m is a power of 2: PyTorch's δ is 1 / m of the notes', and rounds alike.
    mlp, x, y = made(precision=precision), x_of(32), torch.randn(32, 3)
    net = Network(SIZES, activation=SIGMAS, precision=precision, backend="numpy", seed=1)
    a = mlp(x)
    (0.5 * (a - y).square().sum(1).mean()).backward()
    with torch.no_grad():
        assert torch.equal(mlp(x), a)
    # A value that is near the middle between two rounded ones may go to either.
    np.testing.assert_allclose(a.detach().numpy(), net.predict(x.numpy()), rtol=0, atol=1e-3)
    exact = Network(SIZES, activation=SIGMAS, backend="numpy", seed=1)
    found = [(w.weight.grad.numpy(), w.bias.grad.numpy()) for w in mlp.linears]
    args = x.numpy(), y.numpy()
    for mine, its, plain in zip(found, net.gradients(*args), exact.gradients(*args), strict=True):
        for got, expected, unrounded in zip(mine, its, plain, strict=True):
            away = np.abs(expected - unrounded).max()
            assert away > 0
            assert np.abs(got - expected).max() <= away / 2


@pytest.mark.parametrize("precision", ROUNDED)
def test_gradients_can_be_differentiated(precision: str) -> None:
    # σ' is 1, so that what is to be rounded is the same to the bit.
    mlp = MLP(SIZES, "identity", seed=1, precision=precision)
    x = x_of().requires_grad_()
    for got, expected in zip(
        torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()], create_graph=True),
        torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()]),
        strict=True,
    ):
        assert torch.allclose(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    mlp = made(precision=precision)
    of = [x, *mlp.parameters()]
    plain = torch.autograd.grad(mlp(x).square().sum(), of)
    kept = torch.autograd.grad(mlp(x).square().sum(), of, create_graph=True)
    for got, expected in zip(kept, plain, strict=True):
        scale = expected.abs().max()
        assert torch.allclose(got, expected, rtol=0, atol=float(scale) * 2e-2)
    twice = torch.autograd.grad(kept[0].square().sum(), list(mlp.parameters()), allow_unused=True)
    mlp.precision, exact = None, []
    once = torch.autograd.grad(mlp(x).square().sum(), x, create_graph=True)[0]
    exact = torch.autograd.grad(once.square().sum(), list(mlp.parameters()), allow_unused=True)
    for got, expected in zip(twice[:3], exact[:3], strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_for_pytorchs_modules(dtype: Any) -> None:
    mlp, x = made().to(dtype), x_of(dtype=dtype)
    assert mlp.layer_by_layer == f"its parameters are {dtype}"
    assert torch.equal(mlp(x), nn.Sequential(*mlp)(x))
    mlp(x).sum().backward()
    with pytest.raises(TypeError, match=f"x must be {dtype}, as the parameters are"):
        mlp(x.float())
    assert made().to(dtype).float().layer_by_layer is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_users_activation_is_of_float32_then(dtype: Any) -> None:
    def value(z: np.ndarray) -> np.ndarray:
        assert z.dtype != np.float16
        return np.sin(z)

    sine = Activation("sine", value, np.cos)
    mlp, x = MLP(SIZES, [sine, "identity"], seed=1).to(dtype), x_of(dtype=dtype).requires_grad_()
    z = mlp[0](x)
    assert torch.equal(mlp(x), mlp[2](torch.sin(z.float()).to(dtype)))
    mlp(x).sum().backward()
    assert x.grad.dtype is dtype


@pytest.mark.parametrize("precision", ROUNDED)
def test_pytorchs_modules_round_nothing(precision: str) -> None:
    mlp, x = made(precision=precision), x_of()
    error = f"precision '{precision}' is of MLP's own passes"
    calls = {
        "a transformation or trace": lambda: torch.func.vmap(mlp)(x),
        "torch.jit.script": lambda: torch.jit.script(mlp),
    }
    for why, call in calls.items():
        with pytest.raises(RuntimeError, match=f"{error}, and because of {why}"):
            call()
    with pytest.raises(RuntimeError, match=error):
        copy.deepcopy(mlp).bfloat16()(x.bfloat16())
    hook = mlp[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=f"{error}, and because of module 0 has hooks"):
        mlp(x)
    mlp.precision = None
    assert torch.equal(mlp(x), nn.Sequential(*mlp)(x))
    hook.remove()


def test_what_is_no_precision() -> None:
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        made(precision="half")
    with pytest.raises(ValueError, match="'bf16' does not go with dtype float64"):
        made(precision="bf16", dtype=torch.float64)
    with pytest.raises(ValueError, match="'bf16' does not go with dtype float64"):
        made(precision="bf16").double()(x_of(dtype=torch.float64))
    mlp = made()
    mlp.precision = "half"
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        mlp(x_of())


def test_autocast_decides_where_there_is_none() -> None:
    mlp, x = made(), x_of()
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(x).dtype is torch.bfloat16
    for precision in ("float32", *ROUNDED):
        mlp.precision = precision
        expected = mlp(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = mlp(x)
            mlp(x.bfloat16()).sum().backward()
        assert found.dtype is torch.float32
        assert torch.equal(found, expected)


def test_settings_of_pytorch_decide_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", None), ("high", "tf32"), ("medium", "bf16")):
            torch.set_float32_matmul_precision(setting)
            assert module._matmul_precision("cuda") == expected  # noqa: SLF001
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert module._matmul_precision("cuda") is None  # noqa: SLF001
    finally:
        torch.set_float32_matmul_precision(before)


def test_it_goes_with_the_module() -> None:
    mlp = made(precision="bf16")
    assert "precision='bf16'" in repr(mlp)
    for same in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert same.precision == "bf16"
    assert from_torch(mlp).precision == "bf16"
    assert from_torch(made()).precision == "float32"
    old = made()
    del old.__dict__["precision"]
    assert torch.equal(old(x_of()), made()(x_of()))
    assert "precision" not in "".join(mlp.state_dict())
