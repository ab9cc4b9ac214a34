r"""
Backpropagation
===============

How the gradient of the cost is computed: the notation, two assumptions about the cost, the
Hadamard product, the demon who nudges z, and the four equations, each derived and then run. It
follows chapter 2 of Michael Nielsen's *Neural Networks and Deep Learning*, in our words.
"""

# %%
# Notation
# --------
#
# Layers are counted from 0, the inputs, to L, the outputs. Layer l has n_l neurons.
#
# * ``w[l]`` is the matrix of weights that lead to layer l: w_jk leads **from neuron k of layer l-1
#   to neuron j of layer l**. In this order of indices it is (n_l, n_{l-1}), and needs no transpose
#   in the equation below.
# * ``b[l]`` are the biases of layer l, (n_l,).
# * ``z[l]`` are its weighted inputs and ``a[l]`` its activations, both (n_l,).
#
# A layer makes of the activations before it, a' say, for short
#
# .. code-block:: text
#
#     z = w a' + b        a = σ(z)
#
# with σ applied to each element. Here are two layers and one sample, in NumPy.
import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(3)
sizes = [4, 6, 3]
w = [None] + [rng.normal(size=(n, k)) / np.sqrt(k) for k, n in zip(sizes, sizes[1:])]
b = [None] + [rng.normal(size=n) for n in sizes[1:]]
x, y = rng.uniform(size=4), np.array([0.0, 1.0, 0.0])


def sigma(z):
    return 1 / (1 + np.exp(-z))


def sigma_prime(z):
    return sigma(z) * (1 - sigma(z))


def forward(x, nudge=None):
    """All z and a; ``nudge`` = (l, j, Δz) is the demon's."""
    z, a = [None], [x]
    for l in range(1, len(sizes)):
        z.append(w[l] @ a[-1] + b[l])
        if nudge is not None and nudge[0] == l:
            z[l][nudge[1]] += nudge[2]
        a.append(sigma(z[l]))
    return z, a


z, a = forward(x)
print("a of the outputs:", a[-1].round(3))

# %%
# Two assumptions about the cost
# ------------------------------
#
# **C is a mean over samples**, C = 1/n Σ_x C_x. Then so is its gradient, and it is enough to find
# that of one sample: a mini-batch adds them up.
#
# **C_x is a function of the outputs a^L**, and of nothing else in the network. The target y is a
# constant, for it is the network that learns. The quadratic cost, for one, is C_x = ½ Σ_j (a_j -
# y_j)².


def cost(a_L):
    return 0.5 * ((a_L - y) ** 2).sum()


# %%
# The Hadamard product
# --------------------
#
# s ⊙ t multiplies element by element: (s ⊙ t)_j = s_j t_j. It is what the chain rule makes of an
# elementwise function: a change dz of z changes a by da = σ'(z) ⊙ dz.
from backprop_gpu import equations

print(equations.hadamard(np.array([1.0, 2.0]), np.array([3.0, 4.0])))

# %%
# The demon
# ---------
#
# A demon sits at neuron j of layer l. As the weighted input z_j comes by, it adds a little Δz to
# it. The neuron then puts out σ(z_j + Δz), that goes on through the layers above, and in the end C
# has changed by about ∂C/∂z_j Δz. A kind demon looks for a Δz that makes C smaller. If the
# derivative is large it finds one: a nudge the other way. If it is near zero, the neuron is about
# as good as it can be. So the derivative tells how wrong the neuron is, and is called its
# **error**
#
# .. code-block:: text
#
#     δ_j^l = ∂C/∂z_j^l
#
# Let the demon try every neuron, and measure.
h = 1e-5
measured = [
    np.array(
        [
            (cost(forward(x, (l, j, h))[1][-1]) - cost(forward(x, (l, j, -h))[1][-1])) / (2 * h)
            for j in range(sizes[l])
        ]
    )
    for l in range(1, len(sizes))
]
print("δ as measured, layer 1:", measured[0].round(4))
print("δ as measured, layer 2:", measured[1].round(4))

# %%
# That took two forward passes a neuron, and two more for each weight: a network of a million
# weights would need two million passes for one step. The four equations need one pass forward and
# one back.
#
# BP1: the error of the outputs
# -----------------------------
#
# C depends on z_j^L only through a_j^L = σ(z_j^L). By the chain rule ∂C/∂z_j = ∂C/∂a_j σ'(z_j),
# for all j at once
#
# .. code-block:: text
#
#     δ^L = ∇_a C ⊙ σ'(z^L)                                                                    (BP1)
#
# Of the quadratic cost ∇_a C = a^L - y.
delta = [None, None, (a[2] - y) * sigma_prime(z[2])]
print("δ by BP1, layer 2:     ", delta[2].round(4))

# %%
# BP2: the error of a layer, from that of the next
# ------------------------------------------------
#
# z_j^l reaches C only by way of the z_k^{l+1}, which all depend on it: z_k^{l+1} = Σ_j w_kj
# σ(z_j^l) + b_k. So
#
# .. code-block:: text
#
#     δ_j^l = Σ_k ∂C/∂z_k^{l+1} ∂z_k^{l+1}/∂z_j^l = Σ_k δ_k^{l+1} w_kj^{l+1} σ'(z_j^l)
#
# The sum over k runs over the *rows* of w, which makes it a product with the transpose: the error
# walks back through the weights, and through σ'.
#
# .. code-block:: text
#
#     δ^l = (w^{l+1}ᵀ δ^{l+1}) ⊙ σ'(z^l)                                                       (BP2)
delta[1] = (w[2].T @ delta[2]) * sigma_prime(z[1])
print("δ by BP2, layer 1:     ", delta[1].round(4))

# %%
# BP3 and BP4: what is wanted
# ---------------------------
#
# A bias is added to z_j, so that ∂z_j/∂b_j = 1; a weight multiplies a_k, so that ∂z_j/∂w_jk = a_k.
# Both reach C through z_j alone.
#
# .. code-block:: text
#
#     ∂C/∂b_j^l = δ_j^l                                                                        (BP3)
#     ∂C/∂w_jk^l = a_k^{l-1} δ_j^l                                                             (BP4)
#
# BP4 is an outer product. Two things can be read from it: a weight from a neuron that is hardly
# active, a_k ≈ 0, learns slowly, and so does one into a neuron that is saturated, σ'(z_j) ≈ 0,
# unless the cost makes up for it. The cross-entropy does: its ∇_a C has σ' in the denominator, and
# δ^L is a^L - y.
gradient_b = [None, delta[1], delta[2]]
gradient_w = [None, np.outer(delta[1], a[0]), np.outer(delta[2], a[1])]

# %%
# The demon's experiment
# ----------------------
#
# Nudge one z of layer 1, by more and more: C follows its curve, and δ Δz is the line that touches
# it. The demon's promise holds for small nudges, and that is all that gradient descent asks of it.
nudges = np.linspace(-4, 4, 81)
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for j, axis in enumerate(axes):
    curve = [cost(forward(x, (1, j, nudge))[1][-1]) for nudge in nudges]
    here = cost(a[-1])
    axis.plot(nudges, curve, color="#1f5fa8", label="C")
    axis.plot(nudges, here + delta[1][j] * nudges, "--", color="#d1602b", label="C + δ Δz")
    axis.plot(0, here, "o", color="#d1602b")
    axis.set(title=f"neuron {j} of layer 1, δ = {delta[1][j]:.3f}", xlabel="Δz")
    axis.set_ylim(0.9 * min(curve), 1.1 * max(curve))
axes[0].set_ylabel("C")
axes[0].legend(frameon=False)
plt.show()

# %%
# A batch
# -------
#
# Samples are rows. With m of them a[l], z[l] and δ[l] become matrices (m, n_l), which the notes
# write as capitals, and each equation a matrix product or an elementwise map:
#
# .. code-block:: text
#
#     forward   Z = A' wᵀ + b,  A = σ(Z)
#     BP1       Δ^L = ∇_a C ⊙ σ'(Z^L)
#     BP2       Δ^l = (Δ^{l+1} w^{l+1}) ⊙ σ'(Z^l)
#     BP3       ∂C/∂b = the mean of Δ over its rows
#     BP4       ∂C/∂w = Δᵀ A' / m
#
# That is all there is to do, and why a GPU is good at it. ``backprop_gpu.equations`` has these as
# functions, of one sample or a batch, of NumPy's arrays or a GPU's.
m = 1000
X, Y = rng.uniform(size=(m, 4)), np.eye(3)[rng.integers(0, 3, m)]
z1, a1 = equations.forward(w[1], b[1], X)
z2, a2 = equations.forward(w[2], b[2], a1)
delta2 = equations.output_error(z2, a2, Y, cost="quadratic")
delta1 = equations.hidden_error(w[2], delta2, z1, a1)
by_equations = equations.weight_gradient(delta1, X)

# %%
# The kernels
# -----------
#
# A ``Network`` of these weights runs them in the compiled library of the CPU, several equations at
# a time.
from backprop_gpu import Network

net = Network(sizes, cost="quadratic", dtype="float64", seed=0)
net.weights, net.biases = w[1:], b[1:]
by_library = net.gradients(X, Y)[0][0]
print("compiled library:", abs(by_library - by_equations).max())

# %%
# The CUDA C++ kernels need a GPU or, to see that they compute the same, a stand-in for one: a
# driver that runs each kernel, compiled by g++, thread by thread.
from backprop_gpu import testing

try:
    with testing.stand_in("H100"):
        on_gpu = Network(sizes, cost="quadratic", dtype="float64", backend="cuda", seed=0)
        on_gpu.weights, on_gpu.biases = w[1:], b[1:]
        by_kernels = on_gpu.gradients(X, Y)[0][0]
    print("CUDA kernels:    ", abs(by_kernels - by_equations).max())
except (ImportError, RuntimeError) as error:
    print("not run here:", error)

# %%
# And the demon once more, now as a tool: ``check_gradients`` nudges every z, and weights and
# biases, and compares.
print(net.check_gradients(X[:20], Y[:20]))
