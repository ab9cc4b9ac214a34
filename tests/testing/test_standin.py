"""The driver's stand-in. It is a device for all of a process, so each run has its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backprop_gpu.testing import build, standin
from machine import SUPPORT

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
from cuda.pathfinder import find_nvidia_header_directory


def _pytest(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=SUPPORT, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("order", ["late", "others", "random:1"])
def test_cuda_core(order: str) -> None:
    _pytest("--stand-in", "H100", "--stand-in-order", order, "standin_cases.py")


@pytest.mark.parametrize("card", standin.CARDS)
def test_rules_of_the_driver(card: str) -> None:
    _pytest("--stand-in", card, "--stand-in-devices", "2", "driver_rules.py")


@pytest.mark.parametrize("order", ["others", "random:1"])
def test_rules_of_the_driver_in_another_order(order: str) -> None:
    _pytest("--stand-in", "H100", "--stand-in-order", order, "driver_rules.py")


def test_rules_of_the_stand_in() -> None:
    _pytest("--stand-in", "H100", "--stand-in-devices", "2", "standin_rules.py")


@pytest.mark.parametrize("order", ["late", "random:1"])
def test_rules_of_cublaslt(order: str) -> None:
    _pytest("--stand-in", "H100", "--stand-in-order", order, "cublaslt_rules.py")


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_rules_under_a_sanitizer(sanitizer: build.Sanitizer) -> None:
    arguments = "--stand-in", "H100", "--stand-in-devices", "2", "--stand-in-sanitizer", sanitizer
    files = "standin_cases.py", "driver_rules.py", "standin_rules.py"
    _pytest(*arguments, *files, **standin.environment(sanitizer))


@pytest.mark.parametrize(
    ("sanitizer", "kernel", "values", "report"),
    [
        ("asan", "put", "int(a), 1, N + 1", "AddressSanitizer"),
        ("tsan", "race", "int(a),", "ThreadSanitizer"),
    ],
)
def test_a_sanitizer_names_the_line(
    sanitizer: build.Sanitizer, kernel: str, values: str, report: str
) -> None:
    done = _python(
        "from backprop_gpu.testing import standin\n"
        f"standin.start(sanitizer={sanitizer!r})\n"
        "from driver_rules import *\n"
        "gpu = Gpu()\n"
        "a = gpu.floats()\n"
        f"values = ({values})\n"
        f"gpu.launch(gpu.kernel({kernel!r}), values, PUT[: len(values)],\n"
        "           grid=(2 if len(values) > 1 else 1, 1, 1), shared=BYTES)\n"
        "do(driver.cuStreamSynchronize, gpu.stream)\n",
        **standin.environment(sanitizer),
    )
    assert done.returncode != 0
    assert report in done.stderr, done.stderr
    lines = (SUPPORT / "rule_kernels.cu").read_text().splitlines()
    (line,) = [i for i, text in enumerate(lines, 1) if f"// {report}" in text]
    assert f"rule_kernels.cu:{line}" in done.stderr, done.stderr


def test_a_sanitizer_is_there_from_the_start() -> None:
    done = _python("from backprop_gpu.testing import standin\nstandin.start(sanitizer='asan')\n")
    assert "RuntimeError: this process was not started for asan" in done.stderr


@pytest.mark.gpu
def test_rules_on_a_gpu() -> None:
    if standin.running() is not None:
        pytest.skip("the tests above hold the stand-in to these rules")
    """The same, with the same answers; those that break a context in a process each."""
    _pytest("-m", "not sticky and not standin", "driver_rules.py")
    _pytest("-m", "not standin", "cublaslt_rules.py")
    for name in _sticky():
        _pytest(f"driver_rules.py::{name}")


def _sticky() -> list[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-m",
        "sticky",
        "driver_rules.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT)
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert len(names) > 5, done.stdout + done.stderr
    return names


def test_the_rules_that_break_a_context_are_known() -> None:
    _sticky()


def test_the_abi_is_that_of_nvidia_s_header(tmp_path: Path) -> None:
    """What cuda_abi.h declares by hand, against cuda.h: every number, size and place."""
    found = find_nvidia_header_directory("cudart")
    if found is None:
        pytest.skip("nvidia-cuda-runtime is not installed")
    header = (build.DRIVER / "cuda_abi.h").read_text()
    numbers = re.findall(r"\b(CU_\w+)\b(?: = \w+)?,", header)
    numbers.remove("CU_DEVICE_ATTRIBUTE_MAX")  # of whatever version
    numbers += ["CUDA_" + name for name in re.findall(r"X\((\w+), \d+\)", header)]
    assert len(numbers) > 100
    lines = [f"static_assert(int(ours::{name}) == int(::{name}));" for name in numbers]
    structs = re.findall(r"\n(?:struct|union) (\w+) \{\n(.*?)\n\};", header, re.DOTALL)
    assert len(structs) >= 7
    for struct, body in structs:
        if struct != "CUuuid":
            lines.append(f"static_assert(alignof(ours::{struct}) == alignof(::{struct}));")
        lines.append(f"static_assert(sizeof(ours::{struct}) == sizeof(::{struct}));")
        for names in re.findall(
            r"^  (?:unsigned char|\w+\*?) ([\w, ]+)(?:\[\d+\])?;", body, re.MULTILINE
        ):
            for name in set(names.split(", ")) - {"pad", "rest", "bytes"}:
                offset = f"offsetof(ours::{struct}, {name}) == offsetof(::{struct}, {name})"
                lines.append(f"static_assert({offset});")
    source = tmp_path / "abi.cpp"
    include = ["#include <stddef.h>", "#include <stdint.h>", "#include <cuda.h>"]
    source.write_text(
        "\n".join([*include, 'namespace ours {\n#include "cuda_abi.h"\n}', *lines, ""])
    )
    folders = [f"-I{found}", f"-I{build.DRIVER}"]
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", *folders]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=SUPPORT,
        env=os.environ | environment,
    )


def test_starts_before_a_driver_does() -> None:
    done = _python(
        "from backprop_gpu.testing import build, standin\n"
        "import ctypes; ctypes.CDLL(str(build.driver()))\n"
        "standin.start()\n"
    )
    assert "RuntimeError: a CUDA driver is loaded in this process" in done.stderr


def test_one_card_a_process() -> None:
    done = _python(
        "from backprop_gpu.testing import standin\n"
        "assert standin.start('T4') is standin.start('T4')\n"
        "standin.start('A100')\n"
    )
    assert "RuntimeError: the stand-in of this process is ('T4', 1, 'plain')" in done.stderr


def test_needs_a_compiler(tmp_path: Path) -> None:
    done = _python(
        "import os\n"
        f"os.environ |= {{'CXX': 'no-such-compiler', 'HOST_CUDA_CACHE': {str(tmp_path)!r}}}\n"
        "from backprop_gpu.testing import standin\n"
        "standin.start()\n"
    )
    assert "CompilerMissing" in done.stderr


def test_a_card_that_is_none() -> None:
    with pytest.raises(ValueError, match="card is one of H100, A100, RTX 4090, T4, got 'H1000'"):
        standin.start("H1000")


def test_a_gpu_is_used_where_home_cannot_be_written() -> None:
    """As in a container that may not write: without a cache, and without what CuPy writes there."""
    done = _python(
        "from backprop_gpu import Network, testing\n"
        "testing.start('H100')\n"
        "net = Network([3, 4, 2])\n"
        "net.fit([[0.0, 1.0, 2.0]] * 4, [0, 1, 0, 1], epochs=1, batch_size=2, learning_rate=0.1)\n"
        "print(net.backend)\n",
        HOME="/dev/null/nobody",
        XDG_CACHE_HOME="",
        HOST_CUDA_CACHE=str(build.cache_folder()),  # of g++: it is our users' tests that need it
    )
    assert done.stdout == "cuda\n", done.stderr
