"""backprop_gpu.torch: models there and back, and MLP against PyTorch's own autograd.

What the module says where PyTorch is not installed stands in `test_import.py`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from backprop_gpu import Activation, Network, Population, activations, self_check
from machine import device_runtime

torch = pytest.importorskip(
    "torch", reason="backprop_gpu.torch needs PyTorch: pip install 'backprop_gpu[torch]'"
)

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from backprop_gpu.torch import MLP, equations, from_torch, library, mlp, to_torch  # noqa: E402

NAMES = [name for name in activations.names() if activations.get(name).builtin]
PORTABLE = [name for name in NAMES if name != "exponential"]
DTYPES = [torch.float32, torch.float64]

#: name -> σ in PyTorch, by formulas that share nothing with the module
SIGMAS = {
    "sigmoid": lambda z: torch.where(z > 0, 1 / (1 + (-z).exp()), z.exp() / (1 + z.exp())),
    "tanh": lambda z: 2 / (1 + (-2 * z).exp()) - 1,
    "relu": lambda z: torch.where(z > 0, z, 0 * z),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "elu": lambda z: torch.where(z > 0, z, z.exp() - 1),
    "gelu": lambda z: z * 0.5 * torch.special.erfc(-z / 2**0.5),
    "silu": lambda z: z / (1 + (-z).exp()),
    "softplus": lambda z: torch.log1p(z.exp()),
    "identity": lambda z: z,
    "exponential": lambda z: z.exp(),
    "softmax": lambda z: z.exp() / z.exp().sum(dim=1, keepdim=True),
}


def sigmas_of(name: str, layers: int = 2) -> list[str]:
    """A network with that activation: in every layer, or at the output if it must."""
    hidden = [name if activations.get(name).elementwise else "tanh"] * (layers - 1)
    if name == "exponential" and layers > 2:  # e^z of e^z of e^z is soon infinite
        hidden[0] = "tanh"
    return [*hidden, name]


def plain(mlp: MLP, x):
    """The same network as PyTorch's own operations, in the parameters' dtype."""
    a = x
    for linear, sigma in zip(mlp.linears, mlp.activations, strict=True):
        a = SIGMAS[sigma.name](a @ linear.weight.T + linear.bias)
    return a


def gradients(module, parameters, x, error):
    return torch.autograd.grad(module(x), [x, *parameters], error)


@pytest.fixture
def on_torch(monkeypatch):
    """By PyTorch's operations, as where there is no library."""
    monkeypatch.setattr(mlp, "library_of", lambda *_: None)


@pytest.fixture(params=["library", "torch"])
def either_way(request):
    if request.param == "torch":
        request.getfixturevalue("on_torch")


def random(*shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def as_function(mlp: MLP):
    """a^L as a function of x and the parameters, for gradcheck."""
    names = [name for name, _ in mlp.named_parameters()]
    return lambda x, *p: torch.func.functional_call(mlp, dict(zip(names, p, strict=True)), (x,))


@pytest.fixture
def square(registries):
    return activations.register(Activation("square", lambda z: z * z, lambda z: 2 * z))


# -- models as networks ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PORTABLE)
def test_models_go_there_and_back_with_every_bit(name, dtype):
    net = Network([5, 4, 3], activation=sigmas_of(name), dtype=str(dtype)[6:], seed=1)
    module = to_torch(net)
    assert list(module.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(module) == (3 if name == "identity" else 4)  # at the output it is left out
    back = from_torch(module, seed=1)
    assert back.dtype == net.dtype
    assert back.activations == net.activations
    for mine, theirs in zip(
        (*net.weights, *net.biases), (*back.weights, *back.biases), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()

    # z goes to ±30, where Softplus has left ln(1 + e^z) behind unless it was told not to.
    X = random(200, 5, dtype=dtype, scale=8.0)
    with torch.no_grad():
        got = module(X).numpy()
    expected = net.predict(X.numpy())
    # gelu's left tail: 1 + erf is off by an ulp of 1, times z
    bound = 40 * np.finfo(expected.dtype).eps
    assert abs(got - expected).max() <= bound * max(1.0, abs(expected).max())


def test_models_that_read_differently_are_the_same_network():
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    sigmoid = nn.Sigmoid()  # one module may stand in two places
    plainly = nn.Sequential(first, sigmoid, second, sigmoid)
    nested = nn.Sequential(
        nn.Flatten(), nn.Sequential(first, nn.Sequential(sigmoid)), second, nn.Identity(), sigmoid
    )
    X = random(6, 4, dtype=torch.float32).numpy()
    assert (from_torch(plainly).predict(X) == from_torch(nested).predict(X)).all()
    names = [a.name for a in from_torch(nested).activations]
    assert names == ["sigmoid", "sigmoid"]
    linear = from_torch(nn.Sequential(first, second, nn.Softmax(dim=1)))
    assert [a.name for a in linear.activations] == ["identity", "softmax"]


def test_the_copies_share_nothing():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    net = from_torch(module)
    before = net.weights[0].copy()
    back = to_torch(net)
    with torch.no_grad():
        module[0].weight.add_(1.0)
        back[0].weight.add_(1.0)
    assert (net.weights[0] == before).all()
    assert all(p.requires_grad for p in back.parameters())


def test_a_network_keeps_what_it_is_told():
    module = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=-1))
    nets = [
        from_torch(module, cost="categorical_cross_entropy", backend="numpy", seed=3)
        for _ in range(2)
    ]
    assert nets[0].cost.name == "categorical_cross_entropy"
    assert nets[0].backend == "numpy"
    X, y = np.eye(3)[[0, 1, 2] * 5], [0, 1, 1] * 5
    for net in nets:
        net.fit(X, y, epochs=2, batch_size=4, learning_rate=0.5)
    assert nets[0].weights[0].tobytes() == nets[1].weights[0].tobytes()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    linear = nn.Linear(2, 2)
    linear.register_forward_hook(lambda module, x, y: 2 * y)
    return linear


SAME = nn.Linear(2, 2)


def tied(name):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    setattr(second, name, getattr(first, name))
    return [first, nn.Tanh(), second]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(2, 2), nn.Dropout(0.5)], r"layer 1, Dropout\(p=0.5.*supported are Linear"),
        ([nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Dropout())], r"layer 1\.1, Dropout"),
        ([nn.Linear(2, 2, bias=False)], r"layer 0, .*bias=False.*bias of zeros"),
        ([nn.Linear(2, 2), nn.BatchNorm1d(2)], r"layer 1, BatchNorm1d"),
        ([nn.Linear(2, 2), nn.LeakyReLU(0.2)], r"layer 1, LeakyReLU\(negative_slope=0.2\).*0\.01"),
        ([nn.Linear(2, 2), nn.ELU(0.5)], r"layer 1, ELU\(alpha=0.5\)"),
        ([nn.Linear(2, 2), nn.GELU("tanh")], r"layer 1, GELU\(approximate='tanh'\)"),
        ([nn.Linear(2, 2), nn.Softplus(beta=2)], r"layer 1, Softplus\(beta=2"),
        ([nn.Linear(2, 2), nn.Softplus(threshold=5)], r"layer 1, Softplus\(beta=1.*threshold=5"),
        ([nn.Linear(2, 2), nn.Softmax(dim=0)], r"layer 1, Softmax\(dim=0\)"),
        ([nn.Linear(2, 2), nn.Softmax(dim=1), nn.Linear(2, 2)], r"layer 2, .*after a Softmax"),
        ([nn.Linear(2, 2), nn.ReLU(), nn.Tanh()], r"layer 2, Tanh.*second"),
        ([nn.ReLU(), nn.Linear(2, 2)], r"layer 0, ReLU.*no Linear comes before"),
        ([nn.Linear(2, 2), nn.Flatten()], r"layer 1, Flatten"),
        ([nn.Flatten(0), nn.Linear(2, 2)], r"layer 0, Flatten\(start_dim=0"),
        ([nn.Linear(2, 3), nn.Linear(2, 2)], r"layer 1: .*does not fit layer 0.*3 outputs"),
        ([Doubled(2, 2)], r"layer mul, mul, is not supported"),
        ([hooked()], r"layer 0, Linear.*hooks"),
        ([SAME, SAME], r"layer 0, Linear.*used twice"),
        (tied("weight"), r"layer 2 shares its weight with layer 0"),
        (tied("bias"), r"layer 2 shares its bias with layer 0"),
        ([nn.Linear(2, 2, device="meta")], r"meta device, where they have no numbers"),
        ([nn.ReLU6()], r"layer 0, ReLU6"),
        ([], r"module has no Linear"),
        ([nn.Linear(2, 1), nn.Softmax(dim=1)], r"softmax of one output"),
    ],
    ids=str,
)
def test_what_no_network_has_is_named(layers, message):
    with pytest.raises(ValueError, match=message):
        from_torch(nn.Sequential(*layers))


def test_other_dtypes_and_modules_are_refused():
    with pytest.raises(TypeError, match="all be float32 or all be float64, got float16"):
        from_torch(nn.Sequential(nn.Linear(2, 2)).half())
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(TypeError, match="got float32, float64"):
        from_torch(mixed)
    with pytest.raises(TypeError, match=r"module must be an nn.Module, got OrderedDict"):
        from_torch(nn.Linear(2, 2).state_dict())
    with pytest.raises(TypeError, match="net must be a Network, got Linear"):
        to_torch(nn.Linear(2, 2))
    broken = nn.Sequential(nn.Linear(2, 2))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weights.*NaN"):
        from_torch(broken)
    with pytest.raises(ValueError, match="module has no Linear"):
        from_torch(type("Twice", (nn.Sequential,), {"forward": lambda self, x: x})())


class AsFunctions(nn.Module):
    """A chain written as a forward, with what only looks like steps left in."""

    def __init__(self, sigma):
        super().__init__()
        self.first, self.drop = nn.Linear(12, 5), nn.Dropout(0.3)
        self.block = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.last, self.sigma = nn.Linear(4, 3), sigma

    def forward(self, x, unused=None):
        x = x.view(x.size(0), -1)
        x = F.dropout(self.sigma(self.first(x)), 0.5, training=self.training)
        x = self.drop(self.block(x))
        return F.softmax(F.linear(x, self.last.weight, self.last.bias), dim=-1)


@pytest.mark.parametrize(
    ("sigma", "name"),
    [
        (F.relu, "relu"), (torch.relu, "relu"), (lambda z: z.relu(), "relu"),
        (F.sigmoid, "sigmoid"), (torch.sigmoid, "sigmoid"), (torch.tanh, "tanh"),
        (F.leaky_relu, "leaky_relu"), (F.elu, "elu"), (F.gelu, "gelu"), (F.silu, "silu"),
        (F.softplus, "softplus"), (torch.exp, "exponential"), (lambda z: z, "identity"),
    ],
)  # fmt: skip
def test_any_chain_of_linear_and_activations(sigma, name):
    module = AsFunctions(sigma).eval()
    net = from_torch(module)
    assert net.sizes == (12, 5, 4, 3)
    assert [a.name for a in net.activations] == [name, "tanh", "softmax"]
    images = random(6, 3, 2, 2, dtype=torch.float32)
    expected = module(images).detach().numpy()
    assert np.allclose(net.predict(images.flatten(1).numpy()), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"layer dropout, .*module\.eval\(\)"):
        from_torch(module.train())


def test_a_linear_by_itself():
    linear = nn.Linear(3, 2)
    assert from_torch(linear).sizes == (3, 2)
    assert (from_torch(linear).weights[0] == linear.weight.detach().numpy()).all()


class Residual(AsFunctions):
    def forward(self, x):
        x = self.first(x)
        return self.last(self.block(x) + x[:, :4])


class Looks(AsFunctions):
    def forward(self, x):
        return self.last(self.block(self.first(x if x.sum() > 0 else -x)))


class Scaled(AsFunctions):
    def forward(self, x):
        return self.last(self.block(self.first((x * 2).flatten(1))))


class Twice(AsFunctions):
    def forward(self, x):
        x = self.first(x)
        return x, self.last(self.block(x))


class Steep(AsFunctions):
    def forward(self, x):
        return self.block(F.leaky_relu(self.first(x), 0.3))


class Joined(AsFunctions):
    def forward(self, x):
        x = self.block(self.first(x))
        return self.last(x) * torch.sigmoid(x[:, :1])


class Learned(AsFunctions):
    def __init__(self, sigma):
        super().__init__(sigma)
        self.rows = nn.Parameter(torch.zeros(1, 12))

    def forward(self, x):
        return self.last(self.block(self.first(self.rows)))


class Aside(AsFunctions):
    def forward(self, x):
        x = self.first(x)
        self.block(torch.relu(x))
        return self.block[0](x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Learned, r"layer first, .*takes something else than what the layer before gives"),
        (Aside, r"layer block.0, .*is not supported"),
        (Residual, r"layer (getitem|add), .*is not supported"),
        (Looks, r"torch.fx cannot read the forward of Looks: symbolically traced"),
        (Scaled, r"layer flatten, .*rows \(n, 12\), and it would change them"),
        (Twice, r"returns more than its last layer's outputs"),
        (Steep, r"layer leaky_relu, leaky_relu, .*not with negative_slope=0.3"),
        (Joined, r"layer getitem"),
    ],
)
def test_other_modules_are_refused_and_a_part_is_offered(kind, message):
    module = kind(F.relu)
    with pytest.raises(
        ValueError, match=f"{message}.*Of this module from_torch takes module.block"
    ):
        from_torch(module)
    assert from_torch(module.block).sizes == (5, 4)


def test_activations_that_pytorch_has_not_are_named(square):
    for activation in ("exponential", square):
        net = Network([2, 2, 2], activation=["tanh", activation])
        name = activations.get(activation).name
        with pytest.raises(ValueError, match=f"no module for activation '{name}' of layer 2"):
            to_torch(net)


def test_the_softplus_of_float64_is_exact():
    """PyTorch's own threshold, 20, would be off by e^-20 there."""
    net = Network([1, 1], activation="softplus", dtype="float64")
    net.weights, net.biases = [[[1.0]]], [[0.0]]
    z = np.array([[20.5]])
    exact = np.log1p(np.exp(z))
    assert abs(to_torch(net)(torch.tensor(z)).item() - exact) < 1e-14
    assert abs(F.softplus(torch.tensor(z)).item() - exact) > 1e-9
    mlp = MLP([1, 1], "softplus", dtype=torch.float64)
    mlp.load_state_dict(to_torch(net).state_dict())
    assert abs(mlp(torch.tensor(z)).item() - exact) < 1e-14


# -- MLP: its numbers ---------------------------------------------------------------------------


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of_x", [False, True], ids=["parameters", "parameters and x"])
def test_gradcheck(name, of_x):
    """Against the difference quotient, in float64, once and twice."""
    mlp = MLP([3, 4, 2], sigmas_of(name), dtype=torch.float64, seed=1)
    for linear in mlp.linears:  # where b = 0 and all of a^1 is 0, z is on relu's kink
        linear.bias.data.copy_(random(*linear.bias.shape, seed=3))
    x = random(5, 3, seed=2).requires_grad_(of_x)
    assert torch.autograd.gradcheck(as_function(mlp), (x, *mlp.parameters()))
    assert torch.autograd.gradgradcheck(as_function(mlp), (x, *mlp.parameters()))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_by_itself(name):
    """The output's σ is also the first layer's, and nothing between x and a^L hides a slip."""
    mlp = MLP([3, 2], name, dtype=torch.float64, seed=1)
    x = random(5, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(as_function(mlp), (x, *mlp.parameters()))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_autograd(name, dtype):
    sizes, m = [40, 30, 20, 10], 50
    mlp = MLP(sizes, sigmas_of(name, 3), dtype=dtype, seed=1)
    x, error = random(m, 40, dtype=dtype).requires_grad_(), random(m, 10, dtype=dtype, seed=1)
    got = gradients(mlp, list(mlp.parameters()), x, error)
    exact = copy.deepcopy(mlp).double()
    wanted = gradients(
        lambda x: plain(exact, x), list(exact.parameters()),
        x.detach().double().requires_grad_(), error.double(),
    )  # fmt: skip
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        bound = 30 * torch.finfo(dtype).eps * max(sizes) ** 0.5
        assert (mine - theirs).abs().max() <= bound * theirs.abs().max()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_network(name, dtype):
    """Within a few ulps times √k of the terms, on both of the ways forward."""
    net = Network([300, 100, 7], activation=sigmas_of(name), dtype=str(dtype)[6:], seed=1)
    mlp = MLP([300, 100, 7], sigmas_of(name), dtype=dtype, seed=1)
    X = random(64, 300, dtype=dtype)
    expected = net.predict(X.numpy())
    bound = 8 * np.finfo(expected.dtype).eps * np.sqrt(300) * max(1.0, abs(expected).max())
    with torch.no_grad():
        assert abs(mlp(X).numpy() - expected).max() <= bound
    assert abs(mlp(X).detach().numpy() - expected).max() <= bound


def test_the_left_tail_of_gelu_keeps_its_digits():
    mlp = MLP([1, 1], "gelu", dtype=torch.float32)
    mlp.load_state_dict({"0.weight": torch.ones(1, 1), "0.bias": torch.zeros(1)})
    x = torch.tensor([[-6.0]])
    exact = -6.0 * 0.5 * torch.special.erfc(torch.tensor(6.0 / 2**0.5, dtype=torch.float64))
    assert abs(mlp(x).item() / exact.item() - 1) < 1e-5
    assert abs(F.gelu(x).item() / exact.item() - 1) > 1e-2


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", NAMES)
def test_far_out(name):
    """σ and σ' have their limits, not NaN, where e^z leaves the range of float32."""
    mlp = MLP([1, 1], name) if name != "softmax" else MLP([1, 2], name)
    with torch.no_grad():
        mlp.linears[0].weight.fill_(1.0)
        mlp.linears[0].bias.zero_()
    x = torch.tensor([[-300.0], [300.0]]).requires_grad_()
    if name == "exponential":
        x = torch.tensor([[-300.0], [80.0]]).requires_grad_()
    y = mlp(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(slope).all()
    if name != "softmax":
        expected = activations.get(name)
        assert np.allclose(y.detach().numpy(), expected.function(x.detach().numpy()), rtol=1e-5)
        assert np.allclose(slope.numpy(), expected.derivative(x.detach().numpy()), rtol=1e-5)


def test_a_users_activation(square):
    mlp = MLP([3, 4, 2], ["square", "square"], dtype=torch.float64, seed=1)
    x = random(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(as_function(mlp), (x, *mlp.parameters()))
    assert mlp(x[:0]).shape == (0, 2)
    (first,) = torch.autograd.grad(mlp(x).sum(), x)
    with pytest.raises(RuntimeError, match=r"twice \(create_graph=True\).*'square'"):
        torch.autograd.grad(mlp(x).sum(), x, create_graph=True)
    assert first.shape == x.shape
    expected = from_torch(mlp).predict(x.detach().numpy())
    assert np.allclose(mlp(x).detach().numpy(), expected, rtol=1e-14, atol=0)


@pytest.mark.usefixtures("either_way")
def test_the_gradient_of_a_gradient():
    """A penalty on ∂a/∂x trains the parameters, as of an nn.Sequential."""
    mlp = MLP([3, 8, 1], ["tanh", "identity"], dtype=torch.float64, seed=1)
    twin = to_torch(from_torch(mlp))
    x = random(6, 3).requires_grad_()
    found = []
    for module in (mlp, twin):
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, [module.get_parameter("0.weight")])[0])
    assert found[0].abs().max() > 0
    assert torch.allclose(found[0], found[1], rtol=1e-12)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    """H v by the parameters and the Laplacian, which trains them, as of plain operations."""
    mlp = MLP([3, 5, 2], sigmas_of(name), dtype=torch.float64, seed=1)
    x, targets = random(6, 3).requires_grad_(), random(6, 2)
    v = [random(*p.shape) for p in mlp.parameters()]
    found = []
    for module in (mlp, lambda x: plain(mlp, x)):
        parameters = list(mlp.parameters())
        cost = (module(x) - targets).square().sum()
        slopes = torch.autograd.grad(cost, parameters, create_graph=True)
        along = sum((slope * d).sum() for slope, d in zip(slopes, v, strict=True))
        products = torch.autograd.grad(along, parameters)
        a = module(x)
        (slope,) = torch.autograd.grad(a[:, 1].sum() + 0 * a.square().sum(), x, create_graph=True)
        laplacian = 0 * x[:, 0]
        for k in range(3):
            laplacian = (
                laplacian + torch.autograd.grad(slope[:, k].sum(), x, create_graph=True)[0][:, k]
            )
        loss = (laplacian.square() + a[:, 1]).sum()
        found.append([*products, laplacian, *torch.autograd.grad(loss, parameters)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max() + 1))
    net = from_torch(mlp)
    ours = net.laplacian(x.detach().numpy())[:, 1]
    np.testing.assert_allclose(ours, found[0][len(v)].detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("either_way", "registries")
def test_second_derivatives_of_a_users_activation():
    cube = activations.register(
        Activation(
            "cube", lambda z: z**3, lambda z: 3 * z**2,
            second_derivative=lambda z: 6 * z, third_derivative=lambda z: 6 + 0 * z,
        )
    )  # fmt: skip
    mlp = MLP([3, 4, 2], [cube, cube], dtype=torch.float64, seed=1)
    x = random(5, 3).requires_grad_()
    inputs = (x, *mlp.parameters())
    assert torch.autograd.gradgradcheck(as_function(mlp), inputs)
    (slope,) = torch.autograd.grad(mlp(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(second.sum(), x)[0].abs().max() > 0
    mlp[1].register_forward_hook(lambda *given: None)  # layer by layer
    assert torch.autograd.gradgradcheck(as_function(mlp), inputs)


# -- MLP: what it computes when ------------------------------------------------------------------


def test_frozen_layers_get_no_gradient_and_cost_none(on_torch, monkeypatch):
    calls = []
    for name in ("weight_gradient", "bias_gradient", "hidden_error", "input_error"):
        method = getattr(equations.OnTorch, name)

        def counted(self, *arguments, _method=method, _name=name):
            calls.append(_name)
            return _method(self, *arguments)

        monkeypatch.setattr(equations.OnTorch, name, counted)
    mlp = MLP([3, 4, 4, 2], seed=1)
    for name, p in mlp.named_parameters():
        p.requires_grad_(name in ("2.bias", "4.weight"))
    x = random(5, 3, dtype=torch.float32)
    mlp(x).sum().backward()
    given = {name for name, p in mlp.named_parameters() if p.grad is not None}
    assert given == {"2.bias", "4.weight"}
    assert calls == ["weight_gradient", "hidden_error", "input_error", "bias_gradient"]
    free = MLP([3, 4, 4, 2], seed=1)
    free(x).sum().backward()
    assert torch.equal(mlp.linears[1].bias.grad, free.linears[1].bias.grad)


@pytest.mark.usefixtures("either_way")
def test_frozen_layers_get_no_gradient():
    mlp, free = (MLP([3, 4, 4, 2], seed=1, dtype=torch.float64) for _ in range(2))
    for name, p in mlp.named_parameters():
        p.requires_grad_(name in ("2.bias", "4.weight"))
    x = random(5, 3)
    for module in (mlp, free):
        module(x).sum().backward()
    given = {name for name, p in mlp.named_parameters() if p.grad is not None}
    assert given == {"2.bias", "4.weight"}
    assert torch.allclose(mlp.linears[1].bias.grad, free.linears[1].bias.grad, rtol=1e-12)
    assert torch.allclose(mlp.linears[2].weight.grad, free.linears[2].weight.grad, rtol=1e-12)


@pytest.mark.usefixtures("either_way")
def test_the_gradient_of_x_alone():
    mlp = MLP([3, 4, 2], seed=1).requires_grad_(False)
    x = random(5, 3, dtype=torch.float32).requires_grad_()
    mlp(x).sum().backward()
    (expected,) = torch.autograd.grad(plain(mlp, x).sum(), x)
    assert torch.allclose(x.grad, expected, rtol=1e-5)
    assert all(p.grad is None for p in mlp.parameters())


def test_the_library_keeps_what_it_was_given():
    mlp, kept = MLP([3, 4, 2], "gelu", seed=1), []
    x = random(5, 3, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        with torch.no_grad():
            assert mlp(x).grad_fn is None
        assert kept == []
        a = mlp(x)
    assert len(kept) == 5
    # Its memory is used again once the graph is gone, and not before.
    passes = a.grad_fn.library
    trip = a.grad_fn.lent.trip
    again = mlp(x)
    assert again.grad_fn.lent.trip is not trip
    first, second = (torch.autograd.grad(out.sum(), mlp[0].weight)[0] for out in (a, again))
    assert torch.equal(first, second)
    del a
    third = mlp(x)
    assert third.grad_fn.lent.trip is trip
    assert third.grad_fn.library is passes


def test_a_graph_that_is_kept_is_gone_through_by_threads():
    mlp = MLP([30, 40, 20], "tanh", seed=1)
    out = mlp(random(50, 30, dtype=torch.float32)).sum()
    parameters = list(mlp.parameters())
    wanted = torch.autograd.grad(out, parameters, retain_graph=True)

    def again(_):
        found = torch.autograd.grad(out, parameters, retain_graph=True)
        return all(map(torch.equal, found, wanted))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(again, range(200)))


@pytest.mark.usefixtures("either_way")
def test_gradients_of_the_parameters_alone_where_x_has_one():
    mlp = MLP([30, 20, 10], ["tanh", "identity"], seed=1, dtype=torch.float64)
    x = random(7, 30)
    wanted = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    x.requires_grad_()
    found = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    assert all(map(torch.equal, found, wanted))


def test_large_memory_is_given_back(monkeypatch):
    mlp = MLP([3, 2], seed=1)
    monkeypatch.setattr(library, "_KEPT", 0)
    a = mlp(random(4, 3, dtype=torch.float32))
    passes = a.grad_fn.library
    before = {size: len(kept) for size, kept in passes._idle.items()}  # noqa: SLF001
    del a
    assert {size: len(kept) for size, kept in passes._idle.items()} == before  # noqa: SLF001


def test_a_graph_is_gone_through_once():
    mlp = MLP([3, 2], seed=1)
    out = mlp(random(4, 3, dtype=torch.float32)).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("has_openmp", [True, False])
def test_threads_change_no_bits(threads, has_openmp, monkeypatch):
    """PyTorch's own, or the library's, as many as PyTorch says."""
    mlp = MLP([130, 90, 70], ["tanh", "identity"], seed=1)
    x = random(3000, 130, dtype=torch.float32).requires_grad_()
    before, found = torch.get_num_threads(), []
    if not has_openmp:
        monkeypatch.setattr(library, "openmp", lambda: None)
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            out = mlp(x)
            torch.set_num_threads(1 + threads % 2)  # backward may have others
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, *mlp.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_without_gradients_nothing_is_kept(on_torch, monkeypatch):
    mlp = MLP([3, 4, 2], "gelu", seed=1)
    x = random(5, 3, dtype=torch.float32)
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    forward, zs = equations.OnTorch.forward, []

    def watched(self, *arguments):
        z, a = forward(self, *arguments)
        zs.append(z)
        return z, a

    monkeypatch.setattr(equations.OnTorch, "forward", watched)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.no_grad():
            assert mlp(x).grad_fn is None
        with torch.inference_mode():
            assert mlp(x).grad_fn is None
        mlp.requires_grad_(False)
        assert not mlp(x).requires_grad
        assert kept == []
        assert zs == [None] * 6
        mlp.requires_grad_(True)
        assert torch.equal(mlp.eval()(x), mlp.train()(x))  # there is nothing random in it
    # 4 parameters, x, a of the hidden layer, and twice z; a^L is not needed.
    assert len(kept) == 2 * 8


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (2, 1, 2, 3), (0, 3), (2, 0, 3)])
def test_leading_dimensions(shape):
    mlp = MLP([3, 4, 2], dtype=torch.float64, seed=1)
    twin = to_torch(from_torch(mlp))
    x = random(*shape).requires_grad_()
    y = mlp(x)
    assert y.shape == (*shape[:-1], 2)
    wanted = [x, *mlp.parameters()]
    got = torch.autograd.grad(y.square().sum(), wanted)
    expected = torch.autograd.grad(twin(x).square().sum(), [x, *twin.parameters()])
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        assert torch.allclose(mlp(x), twin(x), rtol=1e-12)


@pytest.mark.usefixtures("either_way")
def test_strided_inputs_and_errors():
    mlp = MLP([3, 4, 2], ["tanh", "identity"], dtype=torch.float64, seed=1)
    x = random(3, 10)[:, ::2].T.requires_grad_()
    error = random(2, 5).T
    got = gradients(mlp, list(mlp.parameters()), x, error)
    expected = gradients(lambda x: plain(mlp, x), list(mlp.parameters()), x, error)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", NAMES)
def test_the_error_that_comes_in_is_left_alone(name):
    mlp = MLP([3, 4, 2], sigmas_of(name), dtype=torch.float64, seed=1)
    error = random(5, 2)
    before = error.clone()
    x = random(5, 3).requires_grad_()
    gradients(mlp, list(mlp.parameters()), x, error)
    assert torch.equal(error, before)


def test_what_was_saved_must_not_change():
    """PyTorch itself notices, because the tensors went through save_for_backward."""
    mlp = MLP([3, 4, 2], seed=1)
    x = random(5, 3, dtype=torch.float32)
    y = mlp(x)
    with torch.no_grad():
        mlp.linears[1].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_under_autocast_it_is_what_sequential_is():
    mlp = MLP([64, 32, 8], seed=1)
    x = random(16, 64, dtype=torch.float32)
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, expected = mlp(given), mlp[:](given)
            slopes = [torch.autograd.grad(a.float().sum(), list(mlp.parameters()))
                      for a in (got, expected)]  # fmt: skip
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, expected)
        assert all(map(torch.equal, *slopes))
    with pytest.raises(TypeError, match=r"x must be torch.float32.*got torch.bfloat16"):
        mlp(x.bfloat16())


# -- MLP as a module -----------------------------------------------------------------------------


def test_the_initial_parameters_are_the_networks():
    for settings in ({"activation": "relu"}, {"initial_weights": "xavier"}, {}):
        net = Network([5, 4, 3], seed=7, **settings)
        before = torch.random.get_rng_state()
        mlp = MLP([5, 4, 3], seed=7, **settings)
        assert torch.equal(torch.random.get_rng_state(), before)
        for linear, w, b in zip(mlp.linears, net.weights, net.biases, strict=True):
            assert linear.weight.detach().numpy().tobytes() == w.tobytes()
            assert linear.bias.detach().numpy().tobytes() == b.tobytes()


def test_without_a_seed_pytorchs_decides():
    torch.manual_seed(3)
    first, second = MLP([5, 4]), MLP([5, 4])
    torch.manual_seed(3)
    again = MLP([5, 4])
    assert torch.equal(first.linears[0].weight, again.linears[0].weight)
    assert not torch.equal(first.linears[0].weight, second.linears[0].weight)


def test_state_dicts_load_both_ways():
    mlp = MLP([5, 4, 3], "relu", seed=1)
    twin = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU())
    twin.load_state_dict(mlp.state_dict())
    x = random(6, 5, dtype=torch.float32)
    assert torch.allclose(twin(x), mlp(x), rtol=1e-5)
    other = MLP([5, 4, 3], "relu", seed=2)
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(x), mlp(x))
    assert np.allclose(from_torch(mlp).predict(x.numpy()), mlp(x).detach().numpy(), rtol=1e-5)


def test_copies_and_files(square):
    mlp = MLP([5, 4, 3], ["gelu", "square"], seed=1)
    x = random(6, 5, dtype=torch.float32)
    file = io.BytesIO()
    torch.save(mlp, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(mlp),
        pickle.loads(pickle.dumps(mlp)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(twin(x), mlp(x))
        with torch.no_grad():
            twin.linears[0].weight.add_(1.0)
        assert not torch.equal(twin(x), mlp(x))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_training_goes_as_an_nn_sequentials(make):
    mlp = MLP([6, 16, 3], ["relu", "identity"], dtype=torch.float64, seed=1)
    twin = to_torch(from_torch(mlp))
    X = random(40, 6)
    y = (X[:, :3].argmax(dim=1)).long()
    losses = []
    for module in (mlp, twin):
        optimizer = make(module.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.CrossEntropyLoss()(module(X), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] < 0.7
    for p, q in zip(mlp.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10)


def test_a_parametrized_weight_is_the_one_used():
    mlp = MLP([4, 3], "tanh", dtype=torch.float64, seed=1)
    nn.utils.parametrizations.weight_norm(mlp.linears[0])
    with torch.no_grad():
        mlp.linears[0].parametrizations.weight.original0.mul_(2.0)
    x = random(5, 4).requires_grad_()
    assert torch.allclose(mlp(x), plain(mlp, x), rtol=1e-12)
    for p in mlp.parameters():
        (got,) = torch.autograd.grad(mlp(x).sum(), p)
        (expected,) = torch.autograd.grad(plain(mlp, x).sum(), p)
        assert torch.allclose(got, expected, rtol=1e-10)


def test_its_description_names_sizes_and_activations():
    mlp = MLP([5, 4, 3], ["exponential", "softmax"])
    shown = repr(mlp)
    for part in (
        "MLP(",
        "Linear(in_features=5, out_features=4",
        "ExponentialModule()",
        "Softmax(dim=-1)",
    ):
        assert part in shown
    assert mlp.sizes == (5, 4, 3)
    assert [a.name for a in mlp.activations] == ["exponential", "softmax"]


# -- MLP as an nn.Sequential ----------------------------------------------------------------------


@pytest.mark.parametrize("last", ["softmax", "identity", "exponential"])
def test_it_holds_the_modules_of_to_torch(last):
    mlp = MLP([5, 4, 3], ["gelu", last], seed=1)
    assert len(mlp) == (3 if last == "identity" else 4)
    assert list(mlp) == [mlp[l] for l in range(len(mlp))]
    assert mlp[0] is mlp.linears[0]
    assert mlp[2] is mlp.linears[1]
    assert mlp.layer_by_layer is None
    x = random(6, 5, dtype=torch.float32)
    hidden = mlp[:2](x)
    assert type(mlp[:2]) is nn.Sequential
    assert torch.allclose(hidden, F.gelu(mlp[0](x)))
    a = x
    for module in mlp:
        a = module(a)
    assert torch.allclose(a, mlp(x), rtol=1e-5)
    mlp[0].weight.data.mul_(2.0)
    assert not torch.allclose(a, mlp(x), rtol=1e-3)
    if last != "exponential":
        kinds = [type(module) for module in to_torch(from_torch(mlp))]
        assert [type(module) for module in mlp] == kinds


def test_a_replaced_or_added_module_is_used():
    mlp = MLP([5, 4, 3], ["sigmoid", "identity"], seed=1)
    x = random(6, 5, dtype=torch.float32)
    mlp[1] = nn.ReLU()
    assert torch.allclose(mlp(x), mlp[2](mlp[0](x).relu()))
    mlp.append(nn.Hardtanh())
    assert mlp.layer_by_layer.startswith("module 3 is Hardtanh")
    assert torch.allclose(mlp(x), F.hardtanh(mlp[2](mlp[0](x).relu())))
    mlp[3], x = nn.Softmax(dim=1), random(6, 2, 5, dtype=torch.float32)
    assert torch.allclose(mlp(x), mlp[2](mlp[0](x).relu()).softmax(1))
    mlp[1] = nn.LeakyReLU(0.3)
    assert "LeakyReLU" in mlp.layer_by_layer
    assert torch.allclose(mlp(x), mlp[2](F.leaky_relu(mlp[0](x), 0.3)).softmax(1))


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_a_module_are_heard(kind, at):
    mlp = MLP([5, 4, 3], "tanh", seed=1)
    x, heard = random(6, 5, dtype=torch.float32), []
    expected = torch.autograd.grad(mlp(x).sum(), list(mlp.parameters()))
    handle = getattr(mlp[at], f"register_{kind}")(lambda *given: heard.append(len(given)))
    assert mlp.layer_by_layer == f"module {at} has hooks"
    got = torch.autograd.grad(mlp(x).sum(), list(mlp.parameters()))
    assert len(heard) == 1
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    handle.remove()
    assert mlp.layer_by_layer is None
    mlp(x).sum().backward()
    assert len(heard) == 1


def test_hooks_on_all_modules_are_heard():
    mlp, heard = MLP([5, 4, 3], "tanh"), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, x, y: heard.append(module))
    try:
        mlp(torch.zeros(2, 5))
    finally:
        hook.remove()
    assert heard == [*mlp, mlp]


def test_a_users_activation_layer_by_layer(square):
    mlp = MLP([3, 4, 2], ["square", "identity"], dtype=torch.float64, seed=1)
    x = random(5, 3).requires_grad_()
    expected = gradients(mlp, list(mlp.parameters()), x, random(5, 2))
    mlp[1].register_forward_hook(lambda *given: None)
    got = gradients(mlp, list(mlp.parameters()), x, random(5, 2))
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    with pytest.raises(RuntimeError, match=r"twice \(create_graph=True\).*'square'"):
        torch.autograd.grad(mlp(x).sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["gelu", "exponential"])
def test_it_is_quantized_traced_scripted_and_read(name):
    mlp = MLP([5, 4, 3], [name, "softmax"], seed=1)
    x = random(6, 5, dtype=torch.float32)
    with torch.no_grad():
        expected = mlp(x)
        quantized = torch.ao.quantization.quantize_dynamic(mlp, {nn.Linear}, dtype=torch.qint8)
        assert "Quantized" in quantized.layer_by_layer
        assert not torch.equal(quantized(x), expected)
        assert torch.allclose(quantized(x), expected, atol=0.05)
        for other in (
            torch.jit.trace(mlp, x),
            torch.jit.script(mlp),
            torch.fx.symbolic_trace(mlp),
            torch.export.export(mlp, (x,)).module(),
        ):
            assert torch.allclose(other(x), expected, rtol=1e-5, atol=1e-7)
            assert torch.allclose(other(2 * x), mlp(2 * x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gelu", "exponential", "softplus"])
def test_transforms_of_torch_func(name):
    mlp = MLP([5, 4, 3], [name, "identity"], dtype=torch.float64, seed=1)
    x = random(6, 5)
    parameters = {key: p.detach() for key, p in mlp.named_parameters()}

    def total(parameters, x):
        return torch.func.functional_call(mlp, parameters, (x,)).sum()

    expected = torch.autograd.grad(mlp(x).sum(), list(mlp.parameters()))
    got = torch.func.grad(total)(parameters, x)
    each = torch.vmap(torch.func.grad(total), (None, 0))(parameters, x)
    for key, theirs in zip(parameters, expected, strict=True):
        assert torch.allclose(got[key], theirs, rtol=1e-9)
        assert torch.allclose(each[key].sum(0), theirs, rtol=1e-9)
    assert torch.allclose(torch.vmap(mlp)(x), mlp(x), rtol=1e-9)
    tangent = torch.func.jvp(mlp, (x,), (x,))[1]
    jacobian = torch.func.jacrev(mlp)(x)
    assert torch.allclose(tangent, torch.einsum("ijkl,kl->ij", jacobian, x), rtol=1e-9)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(mlp(dual)).tangent, tangent)


def test_on_the_meta_device():
    mlp = MLP([5, 4, 3], device="meta")
    assert mlp.layer_by_layer == "its parameters are on meta"
    assert mlp(torch.zeros(2, 5, device="meta")).shape == (2, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(…, 5\)"):
        mlp(torch.zeros(2, 4, device="meta"))
    with torch.device("meta"):
        built = MLP([5, 4, 3])
        placed = MLP([5, 4, 3], device="cpu", seed=1)
        assert to_torch(Network([5, 4, 3]))[0].weight.device.type == "cpu"
    assert built[0].weight.is_meta
    assert torch.equal(placed[0].weight, MLP([5, 4, 3], seed=1)[0].weight)
    built = built.to_empty(device="cpu")
    built.load_state_dict(placed.state_dict())
    assert built.layer_by_layer is None


def test_what_a_users_activation_cannot_be_is_said(square):
    mlp, x = MLP([5, 4], "square"), torch.zeros(2, 5)
    for use in (
        lambda: torch.jit.trace(mlp, x),
        lambda: torch.jit.script(mlp),
        lambda: torch.vmap(mlp)(x),
        lambda: mlp.to("meta")(x.to("meta")),
    ):
        with pytest.raises(RuntimeError, match=r"activation 'square' is a user's, in NumPy"):
            use()


# -- data of PyTorch's ----------------------------------------------------------------------------


def test_a_loader_is_refused_with_what_to_do():
    """And what it says to do works."""
    X, y = random(10, 1, 2, 2, dtype=torch.float32), torch.arange(10) % 3
    dataset = torch.utils.data.TensorDataset(X, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    net = Network([4, 3], seed=1)
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1}
    population = Population([4, 3], members=2, seed=1)
    for use in (
        lambda: net.fit(loader, **settings),
        lambda: population.fit(loader, **settings),
        lambda: net.predict(loader),
    ):
        with pytest.raises(TypeError, match=r"X must be an array, got a DataLoader.*zip\(\*loader"):
            use()
    with pytest.raises(TypeError, match=r"got a TensorDataset.*zip\(\*DataLoader\(dataset, 1000"):
        net.fit(dataset, **settings)
    with pytest.raises(TypeError, match=r"Y must hold real numbers of shape \(10, 3\), got None"):
        net.fit(X.flatten(1), **settings)
    X, Y = map(torch.cat, zip(*loader, strict=True))
    assert len(net.fit(X.flatten(1), Y, **settings).loss) == 1
    X, Y = map(torch.cat, zip(*torch.utils.data.DataLoader(dataset, 1000), strict=True))
    net.fit(X.flatten(1), Y, **settings)


# -- MLP: what does not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(5, 4), ValueError, r"x must have shape \(…, 3\), got \(5, 4\)"),
        (torch.tensor(1.0), ValueError, r"x must have shape \(…, 3\), got \(\)"),
        (torch.zeros(5, 3, dtype=torch.float64), TypeError, "x must be torch.float32.*float64"),
        (torch.zeros(5, 3, dtype=torch.int64), TypeError, "x must be torch.float32.*int64"),
        (np.zeros((5, 3)), TypeError, "x must be a torch.Tensor, got ndarray"),
        (torch.zeros(5, 3, device="meta"), ValueError, "x must be on cpu.*got meta"),
        (torch.zeros(5, 3).to_sparse(), TypeError, "x must be a dense tensor.*to_dense"),
    ],
    ids=["width", "scalar", "double", "labels", "numpy", "device", "sparse"],
)
def test_inputs_that_do_not_fit_are_named(x, kind, message):
    with pytest.raises(kind, match=message):
        MLP([3, 4, 2])(x)


def test_parameters_that_do_not_fit_are_named():
    x = torch.zeros(5, 3)
    with pytest.raises(TypeError, match=r"x must be torch.float16, as the parameters are"):
        MLP([3, 2]).half()(x)
    with pytest.raises(TypeError, match=r"parameters must be torch.float32 or.*got .*e4m3"):
        MLP([3, 2]).to(torch.float8_e4m3fn)(x)
    with pytest.raises(ValueError, match="x must be on meta, where the parameters are, got cpu"):
        MLP([3, 2]).to("meta")(x)
    mixed = MLP([3, 4, 2])
    mixed.linears[1].double()
    with pytest.raises(ValueError, match=r"one dtype and device, got torch.float32.*float64"):
        mixed(x)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64"):
        MLP([3, 2], dtype=torch.float16)
    with pytest.raises(ValueError, match="sizes must name an input and an output"):
        MLP([3])
    with pytest.raises(ValueError, match="unknown activation 'swoosh'"):
        MLP([3, 2], "swoosh")
    with pytest.raises(ValueError, match="output layer only"):
        MLP([3, 2, 2], "softmax")


# -- MLP on a CUDA device -------------------------------------------------------------------------


@pytest.fixture
def on_device(monkeypatch):
    """MLP's way on a CUDA device, on tensors of the CPU, copied there and back for each equation.

    What it leaves out: PyTorch's own memory and streams. `test_on_a_device` has them.
    """
    runtime = device_runtime()

    class OnCopies(equations.OnCuda):
        def __init__(self, precision):
            dtype = torch.float64 if precision is None else torch.float32
            super().__init__(runtime, torch.empty(0, dtype=dtype), precision)
            self._backend.scratch = runtime.empty
            self.copies = []

        def _view(self, tensor):
            if tensor is None:
                return None
            array = runtime.array(tensor.detach().contiguous().numpy())
            self.copies.append((array, tensor))
            return array

        def __getattribute__(self, name):
            equation = super().__getattribute__(name)
            if name.startswith("_") or name in ("copies", "reads_z"):
                return equation

            def and_back(*arguments):
                result = equation(*arguments)
                for array, tensor in self.copies:
                    if not tensor.requires_grad:
                        tensor.copy_(torch.from_numpy(runtime.to_numpy(array)))
                self.copies.clear()
                return result

            return and_back

    @contextlib.contextmanager
    def chosen(x, precision):
        yield OnCopies(precision) if x.numel() else equations.TORCH

    monkeypatch.setattr(mlp, "equations_of", chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_give_the_gradients_of_autograd(on_device, name):
    sizes, m = [7, 5, 4, 3], 6  # m is no power of 2, so that the m of the means must cancel
    mlp = MLP(sizes, sigmas_of(name, 3), dtype=torch.float64, seed=1)
    x, error = random(7, m).T.requires_grad_(), random(3, m, seed=1).T  # columns first
    before = error.clone()
    got = gradients(mlp, list(mlp.parameters()), x, error)
    expected = gradients(lambda x: plain(mlp, x), list(mlp.parameters()), x, error)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-11, atol=1e-13)
    assert torch.equal(error, before)
    with torch.no_grad():
        assert torch.allclose(mlp(x), plain(mlp, x), rtol=1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_kernels_round_as_the_cpu_does(on_device, monkeypatch, precision):
    mlp = MLP([70, 33, 5], ["tanh", "identity"], seed=1, precision=precision)
    # m is a power of 2: our δ is m-fold, and rounds alike.
    x, error = random(16, 70).float().requires_grad_(), random(16, 5, seed=1).float()
    got = gradients(mlp, list(mlp.parameters()), x, error)
    monkeypatch.undo()
    expected = gradients(mlp, list(mlp.parameters()), x, error)
    mlp.precision = None
    exact = gradients(mlp, list(mlp.parameters()), x, error)
    for mine, rounded, plain in zip(got, expected, exact, strict=True):
        # A number that is near the middle between two may be rounded to either.
        assert (mine - rounded).abs().max() <= (plain - rounded).abs().max() / 4 + 1e-6


@pytest.mark.gpu
def test_kernels_that_fail_their_check_are_not_used(monkeypatch):
    device = device_runtime()

    def wrong(runtime, form, dtype, optimizer=None):
        return self_check.Result(str(form), np.dtype(dtype).name, 1.0, 1e-4)

    x = SimpleNamespace(
        device=SimpleNamespace(type="cuda", index=0), dtype=torch.float32, numel=lambda: 1
    )
    monkeypatch.setattr(equations, "PASSED", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.delenv(self_check.OFF, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(self_check, "check_engine", wrong)
        patch.setattr(self_check.cache, "read", lambda name: None)
        patch.setattr(self_check.cache, "write", lambda *_: None)
        self_check.forget()
        with (
            pytest.warns(RuntimeWarning, match="failed its check"),
            equations.equations_of(x, None) as found,
        ):
            assert found is equations.TORCH
        with equations.equations_of(x, None) as found:  # and no second warning
            assert found is equations.TORCH
        # A capture is not disturbed: there is no check in it.
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with equations.equations_of(x, None) as found:
            assert isinstance(found, equations.OnCuda)
    self_check.forget()
    assert equations.passed_check(device, x.dtype)
    assert device in equations.PASSED[torch.float32, None]


@pytest.mark.gpu
def test_on_a_device():
    """No copy, PyTorch's stream, and the gradients of the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    for name in NAMES:
        mlp = MLP([70, 50, 30], sigmas_of(name), dtype=torch.float64, seed=1)
        x, error = random(40, 70).requires_grad_(), random(40, 30, seed=1)
        expected = gradients(mlp, list(mlp.parameters()), x, error)
        mlp.cuda()
        x = x.detach().cuda().requires_grad_()
        with torch.cuda.stream(torch.cuda.Stream()):
            got = gradients(mlp, list(mlp.parameters()), x, error.cuda())
            torch.cuda.current_stream().synchronize()
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.allclose(mine.cpu(), theirs, rtol=1e-10, atol=1e-12)


def test_many_threads_call_one_mlp() -> None:
    torch.manual_seed(0)
    mlp = MLP([12, 40, 5], activation=["gelu", "identity"], seed=1)
    inputs = [torch.randn(m, 12) for m in (64, 61, 300)]

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        out = mlp(x)
        return [out, *torch.autograd.grad(out.square().mean(), list(mlp.parameters()))]

    expected = [gradients(x) for x in inputs]

    def differing(thread: int) -> int:
        picks = np.random.default_rng(thread).integers(0, len(inputs), 100)
        return sum(
            not all(map(torch.equal, gradients(inputs[i]), expected[i])) for i in picks.tolist()
        )

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(differing, range(4))) == 0
