"""The stand-in as users start it, the library's check of itself, and the command `check`.

A driver stays in its process, so whatever needs the stand-in runs in a process of its own; the same
checks on a GPU are those of the command, at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from backprop_gpu import backends, cli, self_check
from machine import ROOT, needs_compiler

pytest.importorskip("cuda.core", reason="cuda-core is not installed")


HEAD = """
import shutil, threading, warnings
from pathlib import Path
import numpy as np
import backprop_gpu.planning.plan
from backprop_gpu import Network, Population, backends, planning, self_check, testing
from backprop_gpu.cuda import compiler
from backprop_gpu.cuda import runtime
from backprop_gpu.testing import build, standin, twins

planning.plan.BUILDING = dict.fromkeys(planning.plan.BUILDING, -10.0)  # of the smallest of networks
X, y = np.random.default_rng(0).random((20, 12)), np.arange(20) % 4


def fit(net, **options):
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 0.5} | options
    net.fit(X, y, **options)
    return net


def network(**options):
    return Network([12, 6, 4], **{"seed": 1, "backend": "cuda"} | options)


def changed(file, old, new):
    folder = Path("changed")
    shutil.copytree(compiler.folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    assert old in text, (file, old)
    (folder / file).write_text(text.replace(old, new))
    twins.sources = folder.absolute()


def raises(call, kind, *texts):
    try:
        call()
    except kind as error:
        assert all(text in str(error) for text in texts), error
    else:
        raise AssertionError("nothing was raised")
"""


def in_process(code: str, folder: Path, **environment: str) -> str:
    """Run it after `HEAD`; what it prints."""
    needs_compiler()
    own = {"BACKPROP_GPU_CACHE": str(folder / "verdicts")}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != self_check.OFF}
        | own
        | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- the context manager and the fixture ------------------------------------------------------


def test_cuda_is_there_inside_and_not_behind(tmp_path: Path) -> None:
    in_process(
        """
        numpy = fit(network(backend="numpy"))
        for _ in range(2):
            with testing.stand_in("RTX 4090") as outer:
                with testing.stand_in("RTX 4090") as inner:
                    assert inner is outer
                assert backends.Obstacles()["cuda"] is None
                net = fit(network())
                assert network(backend="auto").backend == "cuda"
            assert runtime._made.cache_info().currsize == 0
            assert "stand-in, which is not active" in backends.Obstacles()["cuda"]
            assert network(backend="auto").backend == "numpy"
            raises(network, RuntimeError, "not active")
            for got, exact in zip(net.weights, numpy.weights):
                np.testing.assert_allclose(got, exact, atol=1e-5)
            fit(net)
            assert net.__class__(net.sizes, backend="numpy", seed=1).predict(X).shape == (20, 4)
        with testing.stand_in("RTX 4090"):
            fit(net, engine="layered")
        def other():
            with testing.stand_in("T4"): ...
        raises(other, RuntimeError, "RTX 4090", "start another process")
        """,
        tmp_path,
    )


def test_one_that_was_started_stays(tmp_path: Path) -> None:
    in_process(
        """
        started = testing.start("T4")
        with testing.stand_in("T4"): ...
        assert testing.running() is started
        assert backends.Obstacles()["cuda"] is None
        """,
        tmp_path,
    )


@pytest.mark.parametrize(
    ("before", "error", "text"),
    [
        ("import ctypes; ctypes.CDLL(str(build.driver()))", "RuntimeError", "is loaded in this"),
        ("import os; os.environ['CXX'] = 'none'", "build.CompilerMissing", "there is none"),
        (
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name == 'cuda.core' else find(name, *rest)",
            "ImportError",
            "pip install 'backprop_gpu[compile]'",
        ),
    ],
)
def test_what_it_needs(before: str, error: str, text: str, tmp_path: Path) -> None:
    in_process(
        before + f"\nraises(lambda: testing.stand_in('T4').__enter__(), {error}, {text!r})\n"
        "assert testing.running() is None\n",
        tmp_path,
    )


def test_the_fixture_and_the_example_of_the_guide(tmp_path: Path) -> None:
    needs_compiler()
    guide = (ROOT / "docs" / "testing.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "test_it.py").write_text("import pytest\n" + "\n".join(examples))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["backprop_gpu.testing.plugin"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\ncuda_stand_in_card = H100\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# -- an engine that is wrong ------------------------------------------------------------------

# Learns at half the rate: wrong, and plausible.
WRONG_RESIDENT = ("resident.cu", "sum[i][v] * share", "sum[i][v] * share / 2")
WRONG_LAYERED = ("weight_gradient.cu", "product * scale", "product * scale / 2")


@pytest.mark.parametrize("card", ["T4", "H100"])
def test_a_wrong_resident_kernel_is_not_used(card: str, tmp_path: Path) -> None:
    in_process(
        f"""
        with testing.stand_in({card!r}):
            assert fit(network()).plan.engine == "resident"
        changed{WRONG_RESIDENT}
        with testing.stand_in({card!r}), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = fit(network())
            fit(network())
            raises(lambda: fit(network(), engine="resident"), ValueError,
                   "cannot run this", "failed its check", "backprop-gpu check")
            other = "layered" if "{card}" == "T4" else "persistent"
            right = fit(network(), engine=other)
            fit(Population([12, 6, 4], members=3, backend="cuda", seed=1))
        assert net.plan.engine == other
        assert "not resident, because the resident, one block engine failed" in str(net.plan)
        (warning,) = caught
        assert warning.category is RuntimeWarning, warning
        assert "off by" in str(warning.message) and "report" in str(warning.message), warning
        for got, exact in zip(net.weights, right.weights):
            np.testing.assert_array_equal(got, exact)
        """,
        tmp_path,
    )


def test_a_wrong_fused_kernel_is_not_used(tmp_path: Path) -> None:
    in_process(
        """
        changed("fused.cu", "z0 += here.b[j];", "z0 -= here.b[j];")
        with testing.stand_in("A100"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            raises(lambda: fit(network(), engine="fused"), ValueError,
                   "cannot run this", "the fused, float32 engine failed its check")
            assert fit(network()).plan.engine == "resident"
            assert fit(network(precision="bf16")).plan.engine == "persistent"
        assert len(caught) == 2, caught
        """,
        tmp_path,
    )


def test_a_wrong_persistent_kernel_is_not_used(tmp_path: Path) -> None:
    in_process(
        """
        changed("persistent.cu", "product + bias", "product - bias")
        with testing.stand_in("H100"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for precision in ("float32", "bf16"):
                raises(lambda: fit(network(precision=precision), engine="persistent"), ValueError,
                       "cannot run this", f"the persistent, {precision} engine failed its check")
            assert fit(network()).plan.engine == "resident"
        assert len(caught) == 2, caught
        """,
        tmp_path,
    )


def test_a_wrong_layered_engine_leaves_numpy(tmp_path: Path) -> None:
    in_process(
        f"""
        changed{WRONG_LAYERED}
        with testing.stand_in("A100"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = fit(network(backend="auto"))
            assert net.backend == "numpy"
            assert "cuda is not usable: the layered engine failed its check" in str(net.plan)
            raises(network, RuntimeError, "not usable here: the layered engine failed its check")
        (warning,) = caught
        """,
        tmp_path,
    )


def test_wrong_products_of_the_library_are_not_used(tmp_path: Path) -> None:
    in_process(
        """
        from backprop_gpu.cuda.blas import Blas
        product = Blas.product
        Blas.product = lambda self, layout, a, b, out, scale, *rest: product(
            self, layout, a, b, out, 1.01 * scale, *rest)
        with testing.stand_in("A100"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = network()
            assert not net.model.backend.device.library
            assert "layered, products by cuBLASLt" in str(caught[0].message)
        """,
        tmp_path,
    )


def test_wrong_tensor_cores_are_not_used(tmp_path: Path) -> None:
    in_process(
        """
        changed("factors.cuh", "before[r] + small[r]", "before[r] - small[r]")
        with testing.stand_in("A100") as it, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = network()
            assert not net.model.backend.device.tensor_cores
            assert "products of float32 on tensor cores" in str(caught[0].message), caught
        """,
        tmp_path,
    )


def test_wrong_tensor_cores_leave_rounded_products_no_way(tmp_path: Path) -> None:
    in_process(
        """
        changed("factors.cuh", "mma_bf16(of, a.x, b.x)", "mma_tf32(of, a.x, b.x)")
        with testing.stand_in("A100"):
            assert network(precision="tf32").precision == "tf32"
            raises(lambda: network(precision="bf16"), RuntimeError, "bf16", "failed its check")
        """,
        tmp_path,
    )


def test_a_card_without_such_tensor_cores_refuses(tmp_path: Path) -> None:
    in_process(
        """
        with testing.stand_in("T4"):
            raises(lambda: network(precision="bf16"), RuntimeError, "bf16", "8.0")
            assert network(precision="float32").backend == "cuda"
        """,
        tmp_path,
    )


def test_an_engine_that_raises_is_not_used(tmp_path: Path) -> None:
    """For this process: another may have more memory. The next asks again."""
    in_process(
        """
        def broken(self, form=None): raise RuntimeError("out of memory\\nand more")
        own = self_check.residency.choose
        with testing.stand_in("A100") as it, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = network()
            it.fail("launch", 1, 2)
            assert fit(net).plan.engine == "fused"
            assert "OUT_OF_MEMORY" in str(caught[0].message), caught[0].message
            self_check.forget()
            assert fit(net).plan.engine == "resident"
        """,
        tmp_path,
    )


def test_a_check_that_breaks_the_context_says_what_to_do(tmp_path: Path) -> None:
    in_process(
        """
        with testing.stand_in("A100") as it:
            net = network()
            it.fail("launch", 1, 719)  # launch failed
            raises(lambda: fit(net), RuntimeError, "of no use to this process", "start it again")
            it.reset()
        """,
        tmp_path,
    )


# -- when it is asked -------------------------------------------------------------------------

#: As on a GPU, whose verdicts are kept.
KEPT = """
self_check.is_stand_in = lambda: False
asked = []
check = self_check.check_engine
def counted(runtime, form, dtype):
    asked.append(form)
    return check(runtime, form, dtype)
self_check.check_engine = counted
"""


def test_verdicts_are_kept(tmp_path: Path) -> None:
    code = KEPT + textwrap.dedent(
        """
        testing.start("A100")
        fit(network(), engine="resident")
        print([str(form) for form in asked])
        """
    )
    on_tensor_cores = "layered, products of float32 on tensor cores"
    first = [
        "layered", "layered, products by cuBLASLt", "layered, products by cuBLASLt with epilogues",
        on_tensor_cores, "resident, one block",
    ]  # fmt: skip
    assert str(first) in in_process(code, tmp_path)
    assert "[]" in in_process(code, tmp_path)
    new_version = "self_check.__version__ = '9'\n"
    assert str(first) in in_process(new_version + code, tmp_path)


def test_a_kept_failure_needs_no_check(tmp_path: Path) -> None:
    code = KEPT + textwrap.dedent(
        f"""
        testing.start("A100")
        self_check._sources = lambda: twins.sources
        if not Path("changed").exists():
            changed{WRONG_RESIDENT}
        twins.sources = Path("changed").absolute()
        print(fit(network()).plan.engine, len(asked))
        """
    )
    for expected in ("fused 6", "fused 0"):
        printed = in_process(code, tmp_path)
        assert expected in printed
        assert "RuntimeWarning" in printed


def test_one_check_at_a_time(tmp_path: Path) -> None:
    in_process(
        KEPT
        + textwrap.dedent(
            """
            testing.start("A100")
            start, done = threading.Barrier(6), []
            def work():
                start.wait()
                done.append(fit(network()).plan.engine)
            threads = [threading.Thread(target=work) for _ in range(6)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert done == ["resident"] * 6
            assert len(asked) == len(set(asked)) == 5, asked
            """
        ),
        tmp_path,
    )


def test_not_for_numpy_and_not_if_off(tmp_path: Path) -> None:
    code = """
        def never(*_): raise AssertionError("checked")
        self_check.verdict = never
        with testing.stand_in("A100"):
            fit(network(backend={backend!r}))
        """
    in_process(code.format(backend="numpy"), tmp_path)
    in_process(code.format(backend="cuda"), tmp_path, **{self_check.OFF: "0"})


# -- the command ------------------------------------------------------------------------------


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if backends.Obstacles()["cuda"] is not None:
        assert cli.main(["check", "--out", str(tmp_path / "report.json")]) == 2
        assert "--stand-in runs the check without a GPU" in capsys.readouterr().err
        assert not (tmp_path / "report.json").exists()
    assert cli.main(["check", "--card", "T4"]) == 2
    assert "add --stand-in" in capsys.readouterr().err


def check(card: str, folder: Path, before: str = "") -> tuple[str, dict[str, object]]:
    code = f"{before}\nfrom backprop_gpu import cli\n" + textwrap.dedent(
        f"""
        status = cli.main(["check", "--stand-in", "--card", {card!r}, "--out", "report.json"])
        print("status", status)
        """
    )
    printed = in_process(code, folder)
    return printed, json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("card", ["H100", "A100", "RTX 4090", "T4"])
def test_every_card_passes(card: str, tmp_path: Path) -> None:
    printed, report = check(card, tmp_path)
    assert "status 0" in printed, printed
    results = report["results"]
    assert isinstance(results, list)
    assert len(results) > 150
    assert all(result["ok"] for result in results)
    names = {result["name"] for result in results}
    assert ("resident, a cluster of 16" in names) == (card == "H100")
    assert "resident, 8 blocks apart" in names
    facts = report["facts"]
    assert isinstance(facts, dict)
    assert card.removeprefix("RTX ") in facts["device"]


def test_a_wrong_kernel_fails_it(tmp_path: Path) -> None:
    printed, report = check("T4", tmp_path, f"changed{WRONG_RESIDENT}")
    assert "status 1" in printed
    results = report["results"]
    assert isinstance(results, list)
    failed = {result["name"] for result in results if not result["ok"]}
    assert "resident, one block" in failed
    assert all(name.startswith("resident") for name in failed), failed
    assert printed.count("FAILED") == sum(not result["ok"] for result in results) + 1


@pytest.mark.gpu
def test_this_device_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", "--out", str(tmp_path / "report.json")]) == 0, capsys.readouterr().out


# -- the plans of each card -------------------------------------------------------------------


def test_plans_differ_as_they_should(tmp_path: Path) -> None:
    """Where the book's network trains, and what each card has room for."""
    printed = {
        card: in_process(
            f"""
            with testing.stand_in({card!r}):
                for sizes in ([12, 6, 4], [784, 30, 10]):
                    net = Network(sizes, backend="cuda")
                    print(net.explain(batch_size=10, epochs=30).plan.engine_reason)
            """,
            tmp_path,
        ).splitlines()
        for card in ("H100", "A100", "RTX 4090", "T4")
    }
    for small, _ in printed.values():
        assert "one block of" in small
    assert "a cluster of 16 blocks" in printed["H100"][1]
    for card in ("A100", "RTX 4090", "T4"):
        assert "blocks that meet in device memory" in printed[card][1], printed[card]
