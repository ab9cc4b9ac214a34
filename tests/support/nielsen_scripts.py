"""Run the scripts of the book's repository with `backprop_gpu.nielsen` in place of its modules.

    python tests/support/nielsen_scripts.py CHECKOUT [--port CHECKOUT] [--times]

CHECKOUT is a folder with github.com/mnielsen/neural-networks-and-deep-learning, and the other one
with github.com/MichalDanielDobrzanski/DeepLearningPython, its port to Python 3. No script is kept
here: each is read, converted and run in a temporary folder, on scikit-learn's digits enlarged to
28 x 28 pixels in a ``data/mnist.pkl.gz`` of the book's form. A table in Markdown tells what ran.

What is done to a script:

- in `src`, `mnist_loader`, `network`, `network2` and `network3` are ours (`ALIAS`);
- Python 2 becomes 3 (`PYTHON_2`), and an old matplotlib a new one (`MATPLOTLIB`);
- sizes and epochs are cut down, by what `SCRIPTS` calls or replaces.

``--times`` trains with the port's `network` and `network2` and with ours, in turns.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent
SECONDS = 300

ALIAS = """\
import sys
from backprop_gpu.nielsen import {name}
sys.modules[__name__] = {name}
"""
MODULES = ("mnist_loader", "network", "network2", "network3")
PYTHON_2 = (
    (r"\bxrange\b", "range"),
    (r"\braw_input\b", "input"),
    (r"\bcPickle\b", "pickle"),
    (r"\.iteritems\(", ".items("),
    (r"\breduce\(", "__import__('functools').reduce("),
)
MATPLOTLIB = (
    (r"fig\.gca\(projection='3d'\)", "fig.add_subplot(projection='3d')"),
    (r"\bax\.w_([xyz])axis\b", r"ax.\1axis"),
)


@dataclass(frozen=True)
class Script:
    """A script of the checkout and how it is run.

    Parameters
    ----------
    path : str
    call : str
        What runs in its folder once it can be imported; by default the script itself.
    cut : tuple of (pattern, replacement)
        What is cut down in its text, left out, or mended.
    replaced : str
        Our command in its place.
    remark : str
        What is to be said of it.
    part : bool
        Whether only a part of it is run.
    """

    path: str
    call: str = ""
    cut: tuple[tuple[str, str], ...] = ()
    replaced: str = ""
    remark: str = ""
    part: bool = False


SCRIPTS = (
    Script("src/mnist_average_darkness.py"),
    Script("src/mnist_svm.py"),
    Script(
        "src/expand_mnist.py",
        replaced="-m backprop_gpu.nielsen.expand_mnist ../data/mnist.pkl.gz ../data/expanded.npz",
        remark="our command runs in its place",
    ),
    Script(
        "src/conv.py",
        "import conv; conv.shallow(n=1, epochs=2)",
        ((r"(?m)^import theano.*$", ""),),
        remark="`shallow()`; all else has convolutions, or calls Theano",
        part=True,
    ),
    Script("fig/backprop_magnitude_nabla.py"),
    Script("fig/false_minima.py"),
    Script("fig/generate_gradient.py", cut=((r"epochs = 500", "epochs = 3"),)),
    Script("fig/misleading_gradient.py"),
    Script("fig/misleading_gradient_contours.py"),
    Script(
        "fig/mnist.py",
        cut=((r"np\.floor\((\w+)\)", r"int(np.floor(\1))"),),
        remark="with integers where it has floats for indices, which NumPy no longer takes",
    ),
    Script(
        "fig/more_data.py",
        "import more_data; more_data.SIZES = [100, 200, 500]; more_data.main()",
        ((r"\b1500000\b", "3000"),),
    ),
    Script("fig/multiple_eta.py", "import multiple_eta as m; m.NUM_EPOCHS = 2; m.main()"),
    Script(
        "fig/overfitting.py",
        "import overfitting as o; o.main('a.json', 3, 1, 1); o.main('b.json', 3, 1, 1, lmbda=0.1)",
    ),
    Script("fig/pca_limitations.py"),
    Script("fig/serialize_images_to_json.py"),
    Script("fig/valley.py"),
    Script("fig/valley2.py"),
    Script(
        "fig/weight_initialization.py",
        "import weight_initialization as w; w.main('w.json', 30, 0.1)",
        remark="called with arguments, which its last line forgets",
    ),
    Script("fig/replaced_by_d3/relu.py"),
    Script("fig/replaced_by_d3/sigmoid.py"),
    Script("fig/replaced_by_d3/step.py"),
    Script("fig/replaced_by_d3/tanh.py"),
)


@dataclass(frozen=True)
class Result:
    """What became of a script: `error` is "" where it ran to its end."""

    path: str
    error: str
    remark: str = ""
    part: bool = False

    def __str__(self) -> str:
        what = self.error or ("in part" if self.part else "yes")
        return f"| `{self.path}` | {what}{self.remark and ': ' + self.remark} |"


def converted(text: str) -> str:
    """A script of Python 2 for Python 3 and today's matplotlib."""
    lines, out = iter(text.splitlines()), []
    for line in lines:
        found = re.match(r"(\s*(?:\w+.*:\s)?\s*)print (?!\()(.*)$", line) or re.match(
            r"(\s*)print (\(.*\) ?%.*)$", line
        )
        if found is None or line.lstrip().startswith("#"):
            out.append(line)
            continue
        statement = found[2]
        while statement.rstrip().endswith("\\") or statement.count("(") > statement.count(")"):
            statement = statement.rstrip().removesuffix("\\") + "\n" + next(lines)
        out.append(f"{found[1]}print({statement})")
    text = "\n".join(out) + "\n"
    for pattern, replacement in (*PYTHON_2, *MATPLOTLIB):
        text = re.sub(pattern, replacement, text)
    return text


def write_data(path: Path) -> None:
    """Digits of 28 x 28 pixels in a file of the book's form: 1200, 297 and 300."""
    sys.path.insert(0, str(SUPPORT))
    import warnings

    from backprop_gpu.nielsen import mnist_loader
    from book_pickle import book_pickle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = mnist_loader.load_data("digits")
    large = []
    for X, y in parts:
        images = X.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
        large.append((np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(len(y), -1), y))
    path.write_bytes(gzip.compress(book_pickle(large), 1))


def run(checkout: Path, scripts: tuple[Script, ...] = SCRIPTS) -> Iterator[Result]:
    """Run scripts of a checkout, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "mnist.pkl.gz"
        write_data(data)
        for k, script in enumerate(scripts):
            folder = Path(name) / str(k) / "code"
            for each in ("src", "fig", "data", "../js", "../images"):
                (folder / each).mkdir(parents=True, exist_ok=True)
            os.link(data, folder / "data" / "mnist.pkl.gz")
            for module in MODULES:
                (folder / "src" / f"{module}.py").write_text(ALIAS.format(name=module))
            text = converted((checkout / script.path).read_text(encoding="utf-8"))
            missed = [p for p, _ in script.cut if not re.search(p, text)]
            for pattern, replacement in script.cut:
                text = re.sub(pattern, replacement, text)
            path = folder / script.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            command = [path.name] if not script.call else ["-c", script.call]
            command = script.replaced.split() or command
            error = f"nothing to cut at {missed[0]!r}" if missed else python(command, path.parent)
            yield Result(script.path, error, script.remark, script.part)


def python(command: list[str], folder: Path) -> str:
    """Run Python there; the last line of what it says if it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, timeout=SECONDS,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not over after {SECONDS} s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")


def run_port(checkout: Path) -> Iterator[Result]:
    """The port's ``test.py``: the trainings that it has in quotes, but for convolutions."""
    text = (checkout / "test.py").read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"(?s)^'''\n(.*?)^'''$", text, re.MULTILINE) if "SGD(" in b]
    head = textwrap.dedent(
        """
        import mnist_loader, network, network2, network3
        from network3 import Network, FullyConnectedLayer, SoftmaxLayer, ConvPoolLayer
        mini_batch_size = 10
        if {shared}:
            training_data, validation_data, test_data = network3.load_data_shared()
        else:
            training_data, validation_data, test_data = mnist_loader.load_data_wrapper()
            training_data = list(training_data)
        """
    )
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name) / "mnist.pkl.gz")
        for module in MODULES:
            (Path(name) / f"{module}.py").write_text(ALIAS.format(name=module))
        for number, block in enumerate(blocks, start=1):
            if "ConvPoolLayer(" in block:
                yield Result(f"test.py, training {number}", "has convolutions")
                continue
            shared = "FullyConnectedLayer" in block
            cut = re.sub(r"SGD\((training_data(?:\[:1000\])?), \d+,", r"SGD(\1, 2,", block)
            code = head.format(shared=shared) + cut
            yield Result(f"test.py, training {number}", python(["-c", code], Path(name)))


TIMED = """
import contextlib, io, json, sys, time, random
from statistics import median
import numpy as np
sys.path.insert(0, {port!r})
import network as theirs, network2 as theirs2
from backprop_gpu.nielsen import mnist_loader, network as ours, network2 as ours2
training, held, test = mnist_loader.load_data_wrapper({data!r})

def one(module):
    net = module.Network([784, 30, 10])
    net.SGD(list(training), 5, 10, 3.0, test_data=list(test))

def two(module):
    net = module.Network([784, 30, 10], cost=module.CrossEntropyCost)
    net.SGD(list(training), 5, 10, 0.5, lmbda=5.0, evaluation_data=list(held),
            monitor_evaluation_accuracy=True, monitor_evaluation_cost=True,
            monitor_training_accuracy=True, monitor_training_cost=True)

found = {{}}
for name, train, pair in (("network", one, (theirs, ours)), ("network2", two, (theirs2, ours2))):
    seconds = [[], []]
    for _ in range({rounds} + 1):
        for which, module in enumerate(pair):
            np.random.seed(1)
            random.seed(1)
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                train(module)
            seconds[which].append(time.perf_counter() - start)
    found[name] = [median(each[1:]) for each in seconds]
print(json.dumps(found))
"""


def times(port: Path, rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of five epochs of [784, 30, 10] with 1200 samples: the port's and ours, medians."""
    import json

    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "mnist.pkl.gz"
        write_data(data)
        code = TIMED.format(port=str(port), data=str(data), rounds=rounds)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True, cwd=name,
        )  # fmt: skip
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--port", type=Path)
    parser.add_argument("--times", action="store_true")
    given = parser.parse_args(arguments)
    results = list(run(given.checkout))
    if given.port:
        results += run_port(given.port)
    print("| script | runs |\n| --- | --- |")
    for each in results:
        print(each)
    ran = sum(not each.error for each in results)
    print(f"\n{ran} of {len(results)}")
    if given.times:
        if given.port is None:
            parser.error("--times needs --port")
        print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print("| | the port | ours | ratio |\n| --- | --- | --- | --- |")
        for name, (theirs, ours) in times(given.port).items():
            print(f"| `{name}` | {theirs:.2f} s | {ours:.3f} s | {theirs / ours:.0f} |")
    return int(ran < len(results))


if __name__ == "__main__":
    sys.exit(main())
