"""`to_c`: a network as one C header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..activations import LeakyRelu
from ..files import write_whole
from ..network import Network
from ..preprocessing import Number
from ..version import __version__

#: What stands behind it makes a keyword a name, too; two _ are C++'s own.
_NAME = r"[A-Za-z](_?[A-Za-z0-9]){0,60}"

#: By the names of activations, the C of σ(z[j]); {f} is the suffix of the type's functions.
_SIGMAS = {
    "sigmoid": "1 / (1 + exp{f}(-z))",
    "tanh": "tanh{f}(z)",
    "relu": "z < 0 ? 0 : z",  # so that a NaN stays one
    "leaky_relu": "z > 0 ? z : SLOPE * z",
    "elu": "z > 0 ? z : expm1{f}(z)",
    "gelu": "z * erfc{f}(-z * ROOT) / 2",
    "silu": "z / (1 + exp{f}(-z))",
    "softplus": "(z > 0 ? z : 0) + log1p{f}(exp{f}(-fabs{f}(z)))",
    "identity": "z",
    "exponential": "exp{f}(z)",
}


def to_c(net: Network, path: Any = None, *, name: str = "network") -> str:
    """A network as a C header that computes a^L of one row, for where there is no Python.

    C99 and C++11, and nothing but <math.h>. The weights are static constants in the network's
    dtype, with all their digits; ``void <name>_forward(const float x[n_0], float a[n_L])`` needs
    no memory but two rows of the widest layer on the stack, and several threads may call it.
    ``<NAME>_INPUTS`` and ``<NAME>_OUTPUTS`` are n_0 and n_L. Of a network for a table, x is a row
    behind its preprocessing; a comment gives the target's mean and deviation.

    Parameters
    ----------
    net : Network
        Its activations must be built-in ones. float64 gives double.
    path : path, optional
        Where to write it, too, the whole file or none of it.
    name : str, default "network"
        Begins all names in the header: two headers can be included together.

    Returns
    -------
    str
        The header, whether it was written or not.

    Raises
    ------
    ValueError
        For a name that is no identifier of C, for an activation that is Python of a user's, and for
        weights that are not finite.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net must be a Network, got {type(net).__name__}")
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise ValueError(
            "name must be an identifier of C, letters, digits and single _ after a letter, "
            f"got {name!r}"
        )
    for l, sigma in enumerate(net.activations, start=1):
        if not sigma.builtin:
            raise ValueError(
                f"activation {sigma.name!r} of layer {l} is Python of your own, and C has none; "
                f"it has for {', '.join((*_SIGMAS, 'softmax'))}"
            )
    if not all(np.isfinite(array).all() for array in (*net.weights, *net.biases)):
        raise ValueError("weights or biases are NaN or infinite, which C has no constant for")
    text = "\n".join(_lines(net, name)) + "\n"
    if path is not None:
        write_whole(Path(path), text.encode())
    return text


def _lines(net: Network, name: str) -> Iterator[str]:
    single = net.dtype == np.float32
    kind, f = ("float", "f") if single else ("double", "")
    sizes, upper = net.sizes, name.upper()
    sigmas = [sigma.name for sigma in net.activations]
    shape = ", ".join(map(str, sizes))
    yield f"/* A network of sizes {shape}, written by backprop_gpu {__version__}."
    yield ""
    yield f"   {name}_forward(x, a): a^l = sigma(w^l a^(l-1) + b^l), a^0 = x, for one row."
    for l, sigma in enumerate(sigmas, start=1):
        inputs, outputs = sizes[l - 1 : l + 1]
        yield f"   layer {l}: w ({outputs}, {inputs}), row after row; b ({outputs}); {sigma}"
    target = None if net.preprocessing is None else net.preprocessing.target
    if net.preprocessing is not None and net.preprocessing.columns is not None:
        yield "   x is a row of a table behind its preprocessing: numbers of mean 0 and"
        yield "   deviation 1, texts one-hot."
    if isinstance(target, Number):
        mean, deviation = target.mean.hex(), target.deviation.hex()
        yield f"   The target is mean + deviation * a, mean = {mean}, deviation = {deviation}."
    yield "*/"
    yield f"#ifndef {upper}_H"
    yield f"#define {upper}_H"
    yield ""
    yield "#include <math.h>"
    yield ""
    yield f"#define {upper}_INPUTS {sizes[0]}"
    yield f"#define {upper}_OUTPUTS {sizes[-1]}"
    for l, (w, b) in enumerate(zip(net.weights, net.biases, strict=True), start=1):
        yield ""
        yield f"static const {kind} {name}_w{l}[{w.size}] = {{"
        yield from _numbers(w, f)
        yield "};"
        yield f"static const {kind} {name}_b{l}[{b.size}] = {{"
        yield from _numbers(b, f)
        yield "};"
    for sigma in dict.fromkeys(sigmas):
        yield ""
        yield from _sigma(sigma, name, kind, f)
    yield ""
    yield "/* out (rows) = w (rows, columns) in (columns) + b (rows) */"
    yield f"static void {name}_linear(const {kind} *w, const {kind} *b, const {kind} *in,"
    yield f"    {kind} *out, int columns, int rows)"
    yield "{"
    yield "    int j, k;"
    yield "    for (j = 0; j < rows; ++j) {"
    yield f"        const {kind} *row = w + (long)j * columns;"
    yield f"        {kind} sum = b[j];"
    yield "        for (k = 0; k < columns; ++k) {"
    yield "            sum += row[k] * in[k];"
    yield "        }"
    yield "        out[j] = sum;"
    yield "    }"
    yield "}"
    yield ""
    yield f"/* x ({sizes[0]}) -> a ({sizes[-1]}), which may be the same array */"
    yield f"static inline void {name}_forward(const {kind} x[{sizes[0]}], {kind} a[{sizes[-1]}])"
    yield "{"
    widest, last = max(sizes[1:]), len(sizes) - 1
    yield f"    {kind} layer[2][{widest}];"
    for l, sigma in enumerate(sigmas, start=1):
        given = "x" if l == 1 else f"layer[{l % 2}]"
        made = f"layer[{(l + 1) % 2}]"
        arguments = f"{name}_w{l}, {name}_b{l}, {given}, {made}, {sizes[l - 1]}, {sizes[l]}"
        yield f"    {name}_linear({arguments});"
        if sigma != "identity":
            yield f"    {name}_{sigma}({made}, {sizes[l]});"
    yield f"    for (int j = 0; j < {sizes[-1]}; ++j) {{"
    yield f"        a[j] = layer[{(last + 1) % 2}][j];"
    yield "    }"
    yield "}"
    yield ""
    yield f"#endif /* {upper}_H */"


def _numbers(array: np.ndarray, f: str) -> Iterator[str]:
    """In the fewest digits that read back to the same bits; C++ has hexadecimal since 2017 only."""
    shown = [f"{value!s}{f}" for value in array.ravel()]
    a_line = 6 if f else 4
    for start in range(0, len(shown), a_line):
        yield "    " + ", ".join(shown[start : start + a_line]) + ","


def _sigma(sigma: str, name: str, kind: str, f: str) -> Iterator[str]:
    if sigma == "identity":
        return
    yield f"static void {name}_{sigma}({kind} *layer, int count)"
    yield "{"
    yield "    int j;"
    if sigma == "softmax":
        yield f"    {kind} largest = layer[0], sum = 0;"
        yield "    for (j = 1; j < count; ++j) {"
        yield "        largest = layer[j] > largest ? layer[j] : largest;"
        yield "    }"
        yield "    for (j = 0; j < count; ++j) {"
        yield f"        layer[j] = exp{f}(layer[j] - largest);"
        yield "        sum += layer[j];"
        yield "    }"
        yield "    for (j = 0; j < count; ++j) {"
        yield "        layer[j] /= sum;"
        yield "    }"
        yield "}"
        return
    formula = _SIGMAS[sigma].format(f=f)
    formula = formula.replace("SLOPE", f"{LeakyRelu.slope!r}{f}")
    formula = formula.replace("ROOT", f"{np.sqrt(0.5):.17g}{f}")
    yield "    for (j = 0; j < count; ++j) {"
    yield f"        {kind} z = layer[j];"
    yield f"        layer[j] = {formula};"
    yield "    }"
    yield "}"
