"""`import backprop_gpu` is light: no device code, no plotting, little more than NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from machine import ROOT


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_brings_in_little():
    """Beside NumPy nothing but the standard library, and not much of that."""
    foreign, count = python(
        "import sys, numpy.random\n"
        "before = set(sys.modules)\n"
        "import backprop_gpu\n"
        "new = {m for m in set(sys.modules) - before if not m.startswith('backprop_gpu')}\n"
        "print({m.partition('.')[0] for m in new} - sys.stdlib_module_names, len(new), sep='|')"
    ).split("|")
    assert foreign == "set()"
    assert int(count) < 60  # `benchmarks/bench_import.py` times it


def test_numpy_networks_need_no_device_code():
    """Not even training imports CuPy where the backend is NumPy."""
    loaded = python(
        "import sys, backprop_gpu\n"
        "net = backprop_gpu.Network([2, 3, 1], backend='numpy')\n"
        "net.fit([[0, 1], [1, 0]], [0, 1], epochs=1, batch_size=1, learning_rate=0.1)\n"
        "net.check_gradients([[0, 1], [1, 0]], [0, 1])\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    ).split()
    assert not {"cupy", "cuda", "numba", "sklearn", "matplotlib", "scipy"} & set(loaded)


def test_import_works_without_the_cuda_packages():
    """As on a machine where only the required packages are installed."""
    out = python(
        "import sys\n"
        "for name in ('cupy', 'cuda', 'numba'): sys.modules[name] = None\n"
        "import backprop_gpu\n"
        "net = backprop_gpu.Network([2, 1])\n"
        "print(net.backend, '|', net.plan)"
    )
    assert out.startswith("numpy |")
    assert "not installed" in out


def test_the_torch_module_says_what_to_install():
    """As on a machine where only the required packages are installed."""
    out = python(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "try: import backprop_gpu.torch\n"
        "except ImportError as error: print(error)"
    )
    assert "backprop_gpu.torch: the package torch is not installed" in out
    assert "pip install 'backprop_gpu[torch]'" in out


def test_import_creates_no_context():
    """The answer must not depend on what a driver would say: none is asked."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "import backprop_gpu"], check=True, env=environment
    )


def test_moved_and_renamed_names_work_for_a_release() -> None:
    import backprop_gpu
    from backprop_gpu import planning
    from backprop_gpu.planning import residency

    with pytest.warns(DeprecationWarning, match=r"backprop_gpu\.planning\.residency now"):
        assert backprop_gpu.residency is residency
    with pytest.warns(DeprecationWarning, match="planning.Run now"):
        assert planning.Training is planning.Run
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        planning.nothing  # noqa: B018


def test_the_benchmarks_have_one_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import benchmarks"], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "python -m backprop_gpu.benchmarks" in done.stderr
