"""Planning is pure: no device is needed to see what would run and why."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backprop_gpu import Callback, Network, planning
from backprop_gpu.backends import Obstacles
from backprop_gpu.planning import (
    H200,
    TILES,
    Choice,
    Device,
    Run,
    choose_backend,
    choose_product,
    cpu,
    products,
)

USABLE = {"numpy": None, "cuda": None, "numba_cuda": None}
BARE = {"numpy": None, "cuda": "no CUDA device", "numba_cuda": "numba-cuda is not installed"}
SMALL = Device("a small card", (7, 5), 14, 1.5e9, 1.9e11)
DEVICES = st.sampled_from(
    [
        H200,
        SMALL,
        Device("A100", (8, 0), 108, 1.41e9, 1.9e12),
        Device("RTX 4090", (8, 9), 128, 2.5e9, 1.0e12),
        Device("of tomorrow", (12, 7), 200, 2.5e9, 8.0e12),
    ]
)
SIZE = st.integers(1, 5000)


# -- backends -------------------------------------------------------------------------------


def test_auto_takes_cuda_where_it_can():
    chosen = choose_backend("auto", USABLE)
    assert chosen.backend == "cuda"
    assert "usable" in chosen.reason


def test_auto_takes_numpy_otherwise_and_says_why():
    chosen = choose_backend("auto", BARE)
    assert chosen.backend == "numpy"
    assert "no CUDA device" in chosen.reason


@pytest.mark.parametrize("name", USABLE)
def test_what_is_asked_for_is_taken(name):
    assert choose_backend(name, USABLE) == Choice(name, "asked for")


@pytest.mark.parametrize("name", ["cuda", "numba_cuda"])
def test_what_cannot_be_used_is_refused_with_the_obstacle(name):
    with pytest.raises(RuntimeError, match=f"{name!r} is not usable here: {BARE[name]}"):
        choose_backend(name, BARE)


@pytest.mark.parametrize("name", ["gpu", "", None, "CUDA", 3])
def test_unknown_backends_list_the_known(name):
    with pytest.raises(ValueError, match=r"known: auto, numpy, cuda, numba_cuda") as error:
        choose_backend(name, USABLE)
    assert repr(name) in str(error.value)


def test_only_the_obstacle_in_question_is_looked_up():
    class Watched(dict):
        asked = ()

        def __getitem__(self, name):
            self.asked += (name,)
            return super().__getitem__(name)

    for requested, asked in (("numpy", "numpy"), ("auto", "cuda")):
        obstacles = Watched(BARE)
        choose_backend(requested, obstacles)
        assert set(obstacles.asked) == {asked}


def test_obstacles_of_this_machine():
    obstacles = Obstacles()
    assert list(obstacles)[:3] == ["numpy", "cuda", "numba_cuda"]  # conftest may add others
    assert obstacles["numpy"] is None
    for name in obstacles:
        assert obstacles[name] is None or (obstacles[name] and "\n" not in obstacles[name])


# -- products -------------------------------------------------------------------------------


@given(
    layout=st.sampled_from(["NT", "NN", "TN"]),
    m=SIZE,
    n=SIZE,
    k=SIZE,
    precision=st.sampled_from(["float64", "float32", "tf32", "bf16"]),
    device=DEVICES,
    library=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_every_product_has_a_kernel(layout, m, n, k, precision, device, library):
    itemsize = 8 if precision == "float64" else 4
    rounds = precision in ("tf32", "bf16")
    assume(device.multiplies_rounded or not rounds)
    chosen = choose_product(layout, m, n, k, itemsize, device, library, precision)
    assert chosen.reason
    assert chosen.seconds > 0.0
    if chosen.kernel == "cublas":
        assert library
        assert chosen.tile is None
        assert chosen.splits == 1
    else:
        if chosen.tile.cores == "tensor":
            assert chosen.tile in products.TENSOR_TILES[precision]
            assert device.multiplies_rounded
            assert rounds or k // chosen.splits >= products.LONG_SUM
        else:
            assert chosen.tile in TILES
            assert not rounds
        assert chosen.splits in products.SPLITS
        if chosen.splits > 1:  # the epilogues of the other two are not linear
            assert layout == "TN"
            assert k // chosen.splits >= chosen.tile.bk
    assert chosen == choose_product(layout, m, n, k, itemsize, device, library, precision)
    if library:
        without = choose_product(layout, m, n, k, itemsize, device, False, precision)
        assert chosen.seconds <= without.seconds


@given(
    layout=st.sampled_from(["NT", "NN", "TN"]),
    m=SIZE,
    n=SIZE,
    k=SIZE,
    grow=st.sampled_from("mnk"),
    itemsize=st.sampled_from([4, 8]),
    device=DEVICES,
    library=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_twice_the_work_is_not_predicted_to_be_faster(
    layout, m, n, k, grow, itemsize, device, library
):
    sizes = {"m": m, "n": n, "k": k}
    # From there on float32 may be multiplied on tensor cores.
    assume(grow != "k" or k >= products.LONG_SUM or itemsize == 8 or not device.tensor_cores)
    small = choose_product(layout, *sizes.values(), itemsize, device, library)
    sizes[grow] *= 2
    large = choose_product(layout, *sizes.values(), itemsize, device, library)
    assert large.seconds >= 0.999 * small.seconds


@given(layout=st.sampled_from(["NT", "NN", "TN"]), m=SIZE, n=SIZE, k=SIZE)
@settings(deadline=None, max_examples=50)
def test_a_faster_device_is_not_predicted_to_be_slower(layout, m, n, k):
    slow = choose_product(layout, m, n, k, 4, H200)
    fast = choose_product(layout, m, n, k, 4, replace(H200, clock=2 * H200.clock))
    assert fast.seconds <= slow.seconds


def test_clear_cases():
    # One small launch beats a library call and a map; a large product is the library's.
    assert choose_product("NT", 10, 10, 30, 4, H200).kernel == "tiled"
    assert choose_product("NT", 8192, 4096, 4096, 8, H200).kernel == "cublas"
    assert choose_product("NT", 8192, 4096, 4096, 4, H200, precision="bf16").kernel == "cublas"
    # cuBLAS has float32 on the plain cores alone.
    assert (
        choose_product("NT", 8192, 4096, 4096, 4, H200).tile == products.TENSOR_TILES["float32"][0]
    )
    plain = replace(H200, tensor_cores=False)
    assert choose_product("NT", 8192, 4096, 4096, 4, plain).kernel == "cublas"
    # A small gradient of a long batch leaves most of the device idle unless it is split.
    assert choose_product("TN", 10, 30, 60_000, 4, H200, library=False).splits > 1
    assert choose_product("TN", 4096, 4096, 64, 4, H200, library=False).splits == 1
    assert choose_product("NT", 4096, 4096, 4096, 4, plain, library=False).tile == TILES[0]


@pytest.mark.parametrize("library", [False, True])
def test_one_row_more_is_not_predicted_to_be_faster(library):
    for n in (10, 128, 129, 4096):
        rows = [size for tile in range(64, 20_000, 64) for size in (tile, tile + 1)]
        seconds = [choose_product("NT", m, n, 500, 4, H200, library).seconds for m in rows]
        assert seconds == sorted(seconds)


def test_tiles_are_whole():
    for tile in TILES:
        assert tile.bm % tile.tm == 0
        assert tile.bn % tile.tn == 0
        assert tile.threads % 32 == 0
        assert tile.threads <= 1024
        assert 0.0 < tile.efficiency <= 1.0
        # Two operand tiles in float64 fit the shared memory that every device has.
        assert 8 * tile.bk * (tile.bm + tile.bn) <= 48 * 1024
        assert str(tile) == f"{tile.bm}x{tile.bn}x{tile.bk}"


def test_rates():
    # NVIDIA's data sheet of the H200: 67 TFLOP/s in float32, 34 in float64, 67 on tensor cores.
    assert H200.rate(4) == pytest.approx(67e12, rel=0.02)
    assert H200.rate(8) == pytest.approx(34e12, rel=0.03)
    assert H200.library_rate(8) == pytest.approx(67e12, rel=0.02)
    # 494 in TF32 and 989 in bf16, without sparsity; float32 as three products of TF32.
    assert H200.peak_rate(4, "tf32") == pytest.approx(494e12, rel=0.1)
    assert H200.peak_rate(4, "bf16") == pytest.approx(989e12, rel=0.1)
    assert H200.peak_rate(4, "float32") == pytest.approx(494e12 / 3, rel=0.1)
    assert H200.peak_rate(8, "float64") == pytest.approx(67e12, rel=0.02)
    assert replace(H200, tensor_cores=False).peak_rate(4, "float32") == H200.rate(4)
    assert SMALL.rate(8) == SMALL.rate(4) / 32
    for capability in ((8, 7), (9, 9), (12, 5)):  # unlisted minor versions have a rate too
        assert replace(H200, compute_capability=capability).rate(4) > 0


def test_a_device_of_an_unknown_generation_still_has_a_plan():
    future = replace(H200, compute_capability=(13, 0))
    old = replace(H200, compute_capability=(6, 1))
    for device in (future, old):
        assert choose_product("NT", 64, 64, 64, 4, device).seconds > 0


# -- what the library does besides -----------------------------------------------------------

WIDE = (2048,) * 5
PLAIN = replace(H200, tensor_cores=False)


def epilogues(sigmas, sizes=WIDE, device=PLAIN, precision=None, **asked):
    chosen = products.layered_products(sizes, 8192, 4, device, precision, sigmas, **asked)
    assert chosen.keys() == products.product_shapes(sizes, 8192).keys()
    assert products.misfit(chosen, sigmas) is None
    return {label: product.epilogue for label, product in chosen.items()}


def test_each_activation_has_its_epilogue():
    found = epilogues(("relu", "tanh", "identity", "softmax"))
    assert [found[f"forward layer {l}"] for l in (1, 2, 3, 4)] == [
        "RELU_AUX_BIAS", "", "BIAS", "BIAS",
    ]  # fmt: skip
    assert [found[f"BP2 layer {l}"] for l in (1, 2, 3)] == ["DRELU_BGRAD", "", ""]
    # BP3 of the first layer is BP2's.
    assert [found[f"BP4 layer {l}"] for l in (1, 2, 3, 4)] == ["", "BGRADB", "BGRADB", "BGRADB"]
    assert epilogues(("tanh",) * 3 + ("relu",))["forward layer 4"] == "RELU_BIAS"  # has no BP2


def test_a_sum_of_rounded_errors_is_no_bp3():
    for precision in ("tf32", "bf16"):
        found = epilogues(("tanh",) * 4, precision=precision)
        assert set(found.values()) == {""}


def test_what_is_not_known_has_no_epilogue():
    assert not any(epilogues(("", "", "", ""), precision="bf16").values())
    assert not any(products.layered_products(WIDE, 8192, 4, PLAIN)[label].epilogue
                   for label in products.product_shapes(WIDE, 8192))  # fmt: skip
    assert not any(epilogues(("relu",) * 4, device=replace(PLAIN, epilogues=False)).values())


@pytest.mark.parametrize("missing", ["RELU_AUX_BIAS", "DRELU_BGRAD"])
def test_the_mask_has_a_writer_and_a_reader_or_there_is_none(missing):
    """What the library does not have is said."""

    def algorithm(layout, m, n, k, epilogue):
        return None if epilogue == missing else f"algorithm 7 for {epilogue or 'nothing'}"

    found = epilogues(("relu",) * 4, algorithm=algorithm)
    label = "forward layer 1" if missing == "RELU_AUX_BIAS" else "BP2 layer 1"
    chosen = products.layered_products(WIDE, 8192, 4, PLAIN, None, ("relu",) * 4, algorithm)
    assert chosen[label].reason.endswith(f"cuBLASLt has no algorithm with {missing}")
    assert "DRELU_BGRAD" not in found.values()
    assert "RELU_AUX_BIAS" not in found.values()
    assert [found[f"forward layer {l}"] for l in (1, 2, 3, 4)] == ["RELU_BIAS"] * 4
    assert [found[f"BP4 layer {l}"] for l in (1, 2, 3, 4)] == ["BGRADB"] * 4
    chosen = products.layered_products(
        WIDE, 8192, 4, PLAIN, None, ("relu",) * 4, lambda *_: None if _[-1] else "algorithm 7"
    )
    reason = chosen["forward layer 1"].reason
    assert "algorithm 7; cuBLASLt has no algorithm with RELU_AUX_BIAS" in reason
    assert reason.endswith("cuBLASLt has no algorithm with RELU_BIAS")
    with pytest.raises(RuntimeError, match="no algorithm for BP2 layer 1"):
        products.layered_products(
            WIDE, 8192, 4, PLAIN, None, ("relu",) * 4,
            lambda layout, *_: None if layout == "NN" else "algorithm 7",
        )  # fmt: skip


def test_no_kernel_of_ours_has_an_epilogue():
    ours = choose_product("NT", 64, 64, 64, 4, H200, library=False)
    assert ours.obstacle("NT", 64, 4, H200, None) is None
    assert replace(ours, epilogue="BIAS").obstacle("NT", 64, 4, H200, None) is not None


def test_a_layer_that_only_one_way_is_the_librarys_has_no_mask():
    """Forward of a narrow layer is ours where BP2 is not, and the other way round."""
    seen = set()
    for sizes in itertools.product((4, 16, 256, 2048), repeat=4):
        sigmas = ("relu",) * 3
        chosen = products.layered_products(sizes, 1024, 4, PLAIN, None, sigmas)
        kernels = {label: product.kernel for label, product in chosen.items()}
        assert products.misfit(chosen, sigmas) is None
        for l in (1, 2):
            two = kernels[f"forward layer {l}"], kernels[f"BP2 layer {l}"]
            seen.add(two)
            masked = chosen[f"BP2 layer {l}"].epilogue == "DRELU_BGRAD"
            assert not masked or two == ("cublas", "cublas")
            assert masked or two != ("cublas", "cublas")
    assert len(seen) == 4


def test_products_for_other_activations_do_not_fit():
    sigmas = ("relu", "tanh", "identity", "softmax")
    chosen = products.layered_products(WIDE, 8192, 4, PLAIN, None, sigmas)
    assert products.misfit(chosen, sigmas) is None
    for l, other in ((1, "tanh"), (3, "relu"), (4, "sigmoid"), (1, "")):
        changed = [*sigmas[: l - 1], other, *sigmas[l:]]
        assert products.misfit(chosen, changed) == "its products are for other activations"
    for label, epilogue, why in (
        ("BP2 layer 1", "", "layer 1 has one alone"),
        ("forward layer 1", "RELU_BIAS", "layer 1 has one alone"),
        ("BP2 layer 2", "DRELU_BGRAD", "layer 2 has one alone"),
        ("BP4 layer 1", "BGRADB", "BP3 of layer 1 is computed twice"),
    ):
        changed = chosen | {label: replace(chosen[label], epilogue=epilogue)}
        assert why in products.misfit(changed, sigmas)


@given(m=SIZE, n=SIZE, k=SIZE, precision=st.sampled_from([None, "tf32", "bf16"]))
@settings(deadline=None, max_examples=50)
def test_an_epilogue_is_not_predicted_to_be_slower(m, n, k, precision):
    for layout, rest in products.EPILOGUES.items():
        plain = products.by_library(layout, m, n, k, 4, H200, precision)
        for epilogue in rest[1:]:
            more = products.by_library(layout, m, n, k, 4, H200, precision, epilogue)
            # BP3 that comes along is a mean yet to be made.
            assert more.seconds <= plain.seconds + products.LAUNCH
            assert more == replace(plain, epilogue=epilogue)


def test_what_wide_networks_are_predicted_to_take():
    """Five layers of 4,096 and 8,192 rows on an H100, by the planner's own estimates."""
    h100 = replace(H200, name="NVIDIA H100", bandwidth=3.35e12)
    sigmas = ("relu",) * 3 + ("identity",)
    for precision, most in (("tf32", 8.5e-3), ("bf16", 5.5e-3)):
        seconds = products.layered_step_seconds((4096,) * 5, 8192, 4, h100, precision, sigmas)
        assert 0.6 * most < seconds <= most


# -- plans ------------------------------------------------------------------------------------


def test_plan_of_numpy():
    training = Run(rows=1000, epochs=1, batch_size=10)
    plan = planning.choose_plan(
        [784, 30, 10], "float32", Choice("numpy", "because"), None, training
    )
    assert str(plan).startswith("backend numpy: because\nengine resident: ")
    assert not plan.captured
    assert plan.products == ()


def test_plan_of_a_device_names_every_product():
    training = Run(rows=1000, epochs=1, batch_size=10)
    plan = planning.choose_plan(
        [784, 30, 20, 10], "float32", Choice("cuda", "it is there"), H200, training
    )
    equations = [equation for equation, _ in plan.products]
    assert sorted(equations) == sorted(
        [f"forward layer {l}" for l in (1, 2, 3)]
        + [f"BP4 layer {l}" for l in (1, 2, 3)]
        + [f"BP2 layer {l}" for l in (1, 2)]
    )
    assert plan.captured
    text = str(plan)
    for equation, chosen in plan.products:
        assert f"{equation}: {chosen.kernel}" in text
        assert chosen.reason in text
    assert "graph" in text


@pytest.mark.parametrize("hindrance", ["step_callbacks", "a user's cost"])
def test_a_plan_says_why_steps_are_not_captured(hindrance):
    run = Run(rows=1000, epochs=1, batch_size=10, step_callbacks=hindrance == "step_callbacks")
    plan = planning.choose_plan(
        [4, 2], "float32", Choice("cuda", "x"), H200, run, builtin=hindrance != "a user's cost",
        obstacles=dict.fromkeys(("resident", "fused", "persistent"), hindrance),
    )  # fmt: skip
    assert not plan.captured
    assert "not captured" in str(plan)


@given(sizes=st.lists(SIZE, min_size=2, max_size=6), batch=SIZE, device=DEVICES)
@settings(deadline=None, max_examples=30)
def test_any_network_has_a_plan(sizes, batch, device):
    training = Run(rows=3 * batch, epochs=1, batch_size=batch)
    assert str(planning.choose_plan(sizes, "float32", Choice("cuda", "x"), device, training))
    assert str(planning.choose_plan(sizes, "float32", Choice("cuda", "x"), device))


def test_the_plan_of_a_network():
    net = Network([3, 4, 2], backend="numpy", seed=1)
    assert "backend numpy: asked for" in str(net.plan)
    assert "numpy" in repr(net)
    net.fit([[1, 2, 3]], [1], epochs=1, batch_size=1, learning_rate=0.1, callbacks=[Callback()])
    assert "engine resident" in str(net.plan)


# -- the CPU's resident engine ------------------------------------------------------------


def test_small_steps_stay_on_one_thread_and_large_ones_are_shared() -> None:
    assert planning.cpu_work((64, 30, 10), 10, 4, False, 8) == planning.CpuWork(10, 1, True)
    assert planning.cpu_work((784, 128, 128, 10), 128, 4, False, 4).threads == 4
    # A thread without two rows has too little to do.
    assert planning.cpu_work((784, 512, 512, 10), 40, 4, False, 64).threads == 20


def test_a_small_batch_is_shared_by_inputs() -> None:
    shared = planning.cpu_work((784, 30, 10), 10, 4, False, 8)
    assert shared == planning.CpuWork(4, 3, True, by_inputs=True)  # 3e5 operations a thread
    assert planning.cpu_work((784, 512, 10), 10, 4, False, 8).threads == 4  # slices
    assert planning.cpu_work((784, 30, 10), 10, 4, False, 1) == planning.CpuWork(10, 1, True)
    assert planning.cpu_work((784, 30, 10), 10, 4, True, 8).threads == 1
    assert not planning.cpu_work((784, 512, 10), 33, 4, False, 8).by_inputs


def test_rows_are_read_in_place_where_few_read_them() -> None:
    assert planning.cpu_work((784, 30, 10), 10, 4, False, 2).in_place
    assert not planning.cpu_work((784, 30, 10), 10, 4, True, 2).in_place  # they must be converted
    assert not planning.cpu_work((784, 30, 10), 512, 4, False, 2).in_place


@pytest.mark.parametrize("batch", [1, 31, 200, 1 << 14])
def test_blocks_divide_a_batch_evenly_among_the_threads(batch: int) -> None:
    work = planning.cpu_work((256, 512, 16), batch, 4, False, 3)
    blocks = -(-batch // work.block)
    assert work.block <= cpu.CPU_BLOCK
    assert blocks % work.threads == 0 or batch < 36
    assert work.block * blocks - batch < max(blocks, work.threads)


def test_a_jacobian_goes_the_way_of_fewer_products() -> None:
    assert planning.jacobian_mode((784, 30, 30, 10), 10) == "reverse"
    assert planning.jacobian_mode((2, 30, 30, 10), 10) == "forward"
    assert planning.jacobian_mode((2, 30, 30, 10), 1) == "reverse"  # one output's
    assert planning.jacobian_mode((5, 3), 3) == "forward"  # w itself


def test_directions_fit_where_they_are_worked_on() -> None:
    for sizes, directions in (((2, 32, 1), 3), ((784, 30, 10), 1), ((100, 4096, 10), 101)):
        for itemsize, on_device in ((4, False), (8, False), (8, True)):
            how = itemsize, on_device
            for rows in (1, 17, 2000, 10_001):
                found = planning.rows_at_a_time(rows, sizes, directions, *how)
                assert 1 <= found <= min(rows, planning.CHUNK_ROWS)
                parts = -(-rows // found)
                assert parts == 1 or rows - (parts - 1) * found > 0
                assert planning.rows_at_a_time(rows, sizes, directions + 1, *how) <= found
    assert planning.rows_at_a_time(1800, (2, 32, 32, 1), 3, 8, False) == 450  # for two, or four
