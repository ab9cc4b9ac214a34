"""
A differential equation
=======================

A network can be made to solve Δu = f: its Laplacian with respect to the inputs is a cost like any
other. Here f is that of u = sin πx sin πy on the unit square, with u = 0 on the edge.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

from backprop_gpu import Network

rng = np.random.default_rng(0)
inside = rng.uniform(size=(1000, 2))
t, zero = rng.uniform(size=(100, 1)), np.zeros((100, 1))
edge = np.concatenate(
    [np.hstack(side) for side in ((t, zero), (t, zero + 1), (zero, t), (zero + 1, t))]
)


def u(x):
    return np.sin(np.pi * x[:, :1]) * np.sin(np.pi * x[:, 1:])


f = -2 * np.pi**2 * u(inside)
net = Network([2, 32, 32, 1], activation=["tanh", "tanh", "identity"], dtype="float64", seed=1)
shapes = [part.shape for pair in zip(net.weights, net.biases) for part in pair]


def put(flat):
    parts = np.split(flat, np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1])
    parts = [part.reshape(shape) for part, shape in zip(parts, shapes)]
    net.weights, net.biases = parts[::2], parts[1::2]


def flat(gradients):
    return np.concatenate([part.ravel() for pair in gradients for part in pair])


def residual(rows, a, laplacian):
    off = laplacian - f[rows]
    return (off**2).sum() / len(f), np.zeros_like(a), 2 / len(f) * off


def objective(parameters):
    put(parameters)
    value, gradients = net.laplacian_gradients(inside, residual)
    at_edge = net.predict(edge)
    gradient = flat(gradients) + 200 * flat(net.gradients(edge, np.zeros_like(at_edge)))
    return value + 100 * (at_edge**2).mean(), gradient


start = flat(zip(net.weights, net.biases))
found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
put(found.x)

side = np.linspace(0, 1, 61)
points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
error = abs(net.predict(points) - u(points))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axis, values, title in zip(axes, (net.predict(points), error), ("the network's u", "|error|")):
    picture = axis.imshow(values.reshape(61, 61), extent=(0, 1, 0, 1), origin="lower")
    figure.colorbar(picture, ax=axis)
    axis.set(title=title, xlabel="x", ylabel="y")
plt.show()
