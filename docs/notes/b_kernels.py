r"""
From an equation to a kernel
============================

What a GPU has to do for one step of training, where the time goes, and what a tile is for. All
figures are the planner's own, for an H200: **predicted**, not measured. What was measured is on
the page of benchmarks.
"""

# %%
# Work and traffic
# ----------------
#
# An equation has operations, and bytes that it has to move. A product of (m, k) and (k, n) has 2 m
# n k operations and, if each number travels once, m k + k n + m n numbers to move. Whichever takes
# longer at the rates of the device is the least time it can take: the *floor*, or roofline. Below
# are the equations of a step of two networks, [784, 30, 10] and five layers of 4,096 neurons.
import matplotlib.pyplot as plt
import numpy as np

from backprop_gpu import planning
from backprop_gpu.planning import H200
from backprop_gpu.planning.plan import least_bytes, step_work

COLORS = {
    "forward": "#1f5fa8",
    "BP1": "#8a9a2f",
    "BP2": "#d1602b",
    "BP3": "#9c755f",
    "BP4": "#2a8050",
}


def plan_of(sizes, batch, engine):
    run = planning.Run(rows=max(60_000, batch), epochs=100, batch_size=batch, engine=engine)
    there = planning.Choice("cuda", "as an example")
    return planning.choose_plan(sizes, "float32", there, H200, run)


def roofline(axis, sizes, batch):
    intensity = np.geomspace(0.05, 2000, 200)
    peak = H200.rate(4)
    axis.loglog(intensity, np.minimum(peak, intensity * H200.bandwidth) / 1e12, color="gray")
    for work in step_work(sizes, batch, 4, 0, plan_of(sizes, batch, "layered")):
        if work.kernel == "that of BP4":
            continue
        name = work.label.split()[0]
        color = COLORS.get(name, "#7f8fa6")
        x = work.flops / work.bytes
        axis.plot(x, min(peak, x * H200.bandwidth) / 1e12, "o", color=color, label=name)
    axis.set(title=f"{sizes[0]:,} inputs, batches of {batch:,}", xlabel="operations for each byte")


figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
roofline(axes[0], (784, 30, 10), 10)
roofline(axes[1], (4096, 4096, 4096, 4096, 4096), 8192)
axes[0].set_ylabel("TFLOP/s at most")
handles, labels = axes[0].get_legend_handles_labels()
unique = dict(zip(labels, handles))
names = sorted(unique, key=[*COLORS, "update"].index)
axes[0].legend([unique[name] for name in names], names, frameon=False)
plt.show()

# %%
# The wide network's products are far to the right: arithmetic limits them, and the question is how
# near to its peak a product comes. In the small one nothing is: a step is all traffic and waiting.
# So the two want different kernels.
#
# A tile
# ------
#
# ``gemm.cuh`` divides the result of a product into tiles of BM × BN, one a block of threads. For
# its tile a block reads BM rows of one factor and BN columns of the other, a slice of BK at a
# time, through shared memory. A row is read by every block to its right, so that the factors
# travel N/BN and M/BM times: **the larger the tile, the less traffic**. The smaller, the more
# blocks there are to share the work.
from matplotlib.patches import Rectangle

tile = next(tile for tile in planning.TILES if tile.bm == 64)
m = n = 256
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=(1.2, 1))
axis = axes[0]
K = 160
axis.add_patch(Rectangle((0, 0), K, m, facecolor="#1f5fa820", edgecolor="#1f5fa8"))
axis.add_patch(Rectangle((K + 20, m + 20), n, K, facecolor="#2a805020", edgecolor="#2a8050"))
axis.add_patch(Rectangle((K + 20, 0), n, m, facecolor="none", edgecolor="gray"))
for i in range(0, m, tile.bm):
    axis.plot((K + 20, K + 20 + n), (i, i), color="gray", linewidth=0.5)
    axis.plot((K + 20 + i, K + 20 + i), (0, m), color="gray", linewidth=0.5)
row, column = 128, K + 20 + 64
axis.add_patch(Rectangle((0, row), K, tile.bm, facecolor="#1f5fa860"))
axis.add_patch(Rectangle((column, m + 20), tile.bn, K, facecolor="#2a805060"))
axis.add_patch(Rectangle((column, row), tile.bn, tile.bm, facecolor="#d1602b"))
axis.add_patch(Rectangle((64, row), tile.bk, tile.bm, facecolor="#1f5fa8"))
axis.add_patch(Rectangle((column, m + 20 + 64), tile.bn, tile.bk, facecolor="#2a8050"))
axis.text(K / 2, -14, "A', (m, k)", ha="center", va="top")
axis.text(K + 20 + n / 2, -14, "Z, (m, n)", ha="center", va="top")
axis.text(K + 20 + n + 8, m + 20 + K / 2, "wᵀ, (k, n)", va="center")
axis.set(xlim=(-5, 540), ylim=(-40, m + K + 30), aspect="equal", title="forward: Z = A' wᵀ + b")
axis.axis("off")

M = N = 4096
read = {str(tile): M * N * 4096 * 4 * (1 / tile.bm + 1 / tile.bn) / 1e9 for tile in planning.TILES}
axes[1].barh(list(read), list(read.values()), color="#d1602b")
axes[1].axvline(3 * M * N * 4 / 1e9, color="gray", linestyle="--", label="each number once")
axes[1].set(xlabel="GB read by the blocks", title="forward, 4096 × 4096 × 4096, by tile")
axes[1].legend(frameon=False)
plt.show()

# %%
# The planner predicts what each tile takes, and cuBLAS with the map it needs behind it, and takes
# the least:
for label, product in plan_of((4096, 4096, 4096, 4096, 4096), 8192, "layered").products[:2]:
    print(f"{label}: {product.reason}")

# %%
# What stays on the chip
# ----------------------
#
# The layered engine runs one kernel an equation. Whatever an equation leaves for the next goes to
# memory and comes back. The engines that run a whole step, or an epoch, in one launch keep it on
# the chip: of a small network the weights as well, so that a step moves the rows of its batch and
# nothing else.
small = (784, 30, 10)
work = step_work(small, 10, 4, 0, plan_of(small, 10, "layered"))
layered = {}
for part in work:
    name = part.label.split()[0]
    layered[name] = layered.get(name, 0) + part.bytes / 1e3
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
left = 0.0
for name, value in layered.items():
    axis.barh("layered", value, left=left, color=COLORS.get(name, "#7f8fa6"), label=name)
    left += value
axis.barh("resident", least_bytes(small, 10, 4, on_chip=H200.shared_memory) / 1e3, color="black")
axis.set(xlabel="KB moved in a step of [784, 30, 10], batches of 10")
axis.legend(frameon=False, ncols=3)
plt.show()

# %%
# That is why the planner takes the resident engine there, once it pays for building the kernel:
print(plan_of(small, 10, "auto"))

# %%
# Each ``.cu`` in ``kernels/cuda`` begins with its equation, its shapes, its tiling and the time it
# should take; ``kernels/README.md`` has the table.
