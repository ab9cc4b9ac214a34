"""The product under the CPU's resident loop, written in vectors.

Every matrix there is kept in *strips*: columns in groups as wide as a vector register, each
group stored row after row,

    M (r, n)  ->  strip s, row x, lane j:  element  (s · height + x) · LANES + j

so that the innermost index of a result is always one vector, and what a product reads lies in
the order in which it is read. Columns that fill up the last strip hold zeros.

    product             out(i, j) = scale · add(i, j) + Σ_p a(i, p) b(p, j)
    transposed_product  out(i, j) = scale · add(i, j) + Σ_p a(p, i) b(p, j)

Tiling. Up to ROWS rows and two strips of the result are held in registers while p runs once:
each step of p loads two vectors of b and one number of a for every row, and makes a
multiply-add for each vector of the result. The order of each sum is that of p, whatever the tile.
Numba's cache on disk looks at the file of the loop only: after a change here, `touch` that file.

The loops are written in LLVM's own language through Numba's `intrinsic`, because no loop of
scalars keeps its sums in vector registers reliably.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array


def _vectors() -> tuple[int, int]:
    """Bytes of a vector register, and how many sums of one vector fit beside the factors."""
    chosen = getattr(
        config, "CPU_FEATURES", None
    )  # Numba's own setting, for code that other machines will run
    features = (
        llvmlite.binding.get_host_cpu_features()
        if chosen is None
        else {flag[1:]: flag[0] == "+" for flag in chosen.split(",") if flag}
    )
    if features.get("avx512f"):
        return 64, 20
    return (32, 12) if features.get("avx") else (16, 12)


_BYTES, _SUMS = _vectors()
#: Strips that one tile of the result spans.
STRIPS = 2
#: Rows of a tile.
ROWS = _SUMS // STRIPS

_I64 = ir.IntType(64)


def lanes(itemsize: int) -> int:
    """Numbers in a vector."""
    return _BYTES // itemsize


def lanes_of(array):  # type: ignore[no-untyped-def]
    """`lanes` as a constant of compiled code."""
    return lanes(array.itemsize)


@overload(lanes_of)
def _lanes_of(array):  # type: ignore[no-untyped-def]
    count = _BYTES * 8 // array.dtype.bitwidth
    return lambda array: count


def _loop(
    b: ir.IRBuilder,
    times: ir.Value,
    carried: Sequence[ir.Value],
    body: Callable[[ir.Value, list[Any]], Sequence[ir.Value]],
) -> list[ir.Value]:
    """carried = body(i, carried) for i = 0 … times - 1, times being at least 1."""
    before, loop, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(_I64)
    i.add_incoming(_I64(0), before)
    values = []
    for value in carried:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    results = list(body(i, values))
    i_next = b.add(i, _I64(1))
    i.add_incoming(i_next, b.block)
    for phi, result in zip(values, results, strict=True):
        phi.add_incoming(result, b.block)
    b.cbranch(b.icmp_signed("<", i_next, times), loop, after)
    b.position_at_end(after)
    return results


def _define(function: ir.Function, number: ir.Type, width: int, transposed: bool) -> None:
    """The body of a product for one type of number, over all rows of the result."""
    out, out_strip, add, add_row, add_strip, scale, a, a_strip, b_, b_strip, count, rows, strips = (
        function.args
    )
    vector = ir.VectorType(number, width)
    align = _BYTES // width
    b = ir.IRBuilder(function.append_basic_block())
    contract = ("contract",)
    most = _I64(ROWS)

    def at(pointer: ir.Value, *offsets: ir.Value) -> ir.Value:
        for offset in offsets:
            pointer = b.gep(pointer, [offset])
        return pointer

    def load(pointer: ir.Value) -> ir.Value:
        return b.load(b.bitcast(pointer, vector.as_pointer()), align=align)

    def spread(value: ir.Value) -> ir.Value:
        one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)

    def tile(r: int, n: int, out: ir.Value, add: ir.Value, a: ir.Value) -> None:
        """r rows by n strips of the result."""

        def multiply(p: ir.Value, row_of_b: ir.Value, a: ir.Value, sums: list[Any]) -> list[Any]:
            factors = [load(at(row_of_b, b.mul(_I64(s), b_strip))) for s in range(n)]
            found = list(sums)
            for i in range(r):
                # The next row of a is a vector further on, its next column a number.
                step, next_row = (width, 1) if transposed else (1, width)
                value = spread(b.load(at(a, b.mul(p, _I64(step)), _I64(i * next_row))))
                for s in range(n):
                    term = b.fmul(value, factors[s], flags=contract)
                    found[i * n + s] = b.fadd(found[i * n + s], term, flags=contract)
            return found

        zero = ir.Constant(vector, [0.0] * width)
        sums: list[Any] = [zero] * (r * n)
        if transposed:
            sums = _loop(
                b, count, sums, lambda p, s: multiply(p, at(b_, b.mul(p, _I64(width))), a, s)
            )
        else:

            def strip(o: ir.Value, sums: list[Any]) -> list[Any]:
                done = b.mul(o, _I64(width))
                left = b.sub(count, done)
                inner = b.select(b.icmp_signed("<", left, _I64(width)), left, _I64(width))
                a_o = at(a, b.mul(o, a_strip))
                b_o = at(b_, b.mul(done, _I64(width)))
                return _loop(
                    b, inner, sums, lambda p, s: multiply(p, at(b_o, b.mul(p, _I64(width))), a_o, s)
                )

            outer = b.sdiv(b.add(count, _I64(width - 1)), _I64(width))
            sums = _loop(b, outer, sums, strip)
        factor = spread(scale)
        for i in range(r):
            for s in range(n):
                old = load(at(add, b.mul(_I64(i), add_row), b.mul(_I64(s), add_strip)))
                term = b.fmul(factor, old, flags=contract)
                new = b.fadd(sums[i * n + s], term, flags=contract)
                to = at(out, _I64(i * width), b.mul(_I64(s), out_strip))
                b.store(new, b.bitcast(to, vector.as_pointer()), align=align)

    # Rows are shared out evenly: 13 are 7 and 6, not 12 and 1.
    def next_rows(t: ir.Value, state: list[Any]) -> list[Any]:
        out, add, a, left = state
        tiles_left = b.sub(tiles, t)
        r = b.sdiv(b.add(left, b.sub(tiles_left, _I64(1))), tiles_left)
        done = b.append_basic_block()
        which = b.add(b.mul(r, _I64(STRIPS + 1)), strips)
        choice = b.switch(which, done)
        for rows_here in range(1, ROWS + 1):
            for strips_here in range(1, STRIPS + 1):
                block = b.append_basic_block()
                choice.add_case(_I64(rows_here * (STRIPS + 1) + strips_here), block)
                b.position_at_end(block)
                tile(rows_here, strips_here, out, add, a)
                b.branch(done)
        b.position_at_end(done)
        return [
            at(out, b.mul(r, _I64(width))),
            at(add, b.mul(r, add_row)),
            at(a, b.mul(r, _I64(1 if transposed else width))),
            b.sub(left, r),
        ]

    tiles = b.sdiv(b.add(rows, b.sub(most, _I64(1))), most)
    _loop(b, tiles, [out, add, a, rows], next_rows)
    b.ret_void()


def _product(transposed: bool) -> Any:
    def declare(  # type: ignore[no-untyped-def]
        typing, out, out_at, out_strip, add, add_at, add_row, add_strip, scale,
        a, a_at, a_strip, b, b_at, b_strip, count, rows, strips,
    ):  # fmt: skip
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            named = dict(zip(_ARGUMENTS, arguments, strict=True))
            typed = dict(zip(_ARGUMENTS, signature.args, strict=True))
            number = context.get_value_type(out.dtype)
            width = lanes(out.dtype.bitwidth // 8)
            name = f"backprop_gpu_{'transposed_' if transposed else ''}product_{out.dtype}"
            pointer, kinds = number.as_pointer(), []
            for kind in _PASSED:
                kinds.append({"pointer": pointer, "number": number}.get(kind, _I64))
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), kinds), name
            )
            if function.is_declaration:
                function.linkage = "linkonce_odr"  # one copy, however many callers
                function.attributes.add("noinline")
                _define(function, number, width, transposed)

            def element(array: str) -> ir.Value:
                view = context.make_array(typed[array])(context, builder, named[array])
                return builder.gep(view.data, [whole(f"{array}_at")])

            def whole(name: str) -> ir.Value:
                return context.cast(builder, named[name], typed[name], types.int64)

            builder.call(
                function,
                [
                    element("out"), whole("out_strip"),
                    element("add"), whole("add_row"), whole("add_strip"),
                    context.cast(builder, named["scale"], typed["scale"], out.dtype),
                    element("a"), whole("a_strip"),
                    element("b"), whole("b_strip"),
                    whole("count"), whole("rows"), whole("strips"),
                ],
            )  # fmt: skip
            return context.get_dummy_value()

        return types.void(
            out, out_at, out_strip, add, add_at, add_row, add_strip, scale,
            a, a_at, a_strip, b, b_at, b_strip, count, rows, strips,
        ), generate  # fmt: skip

    return intrinsic(declare)


_ARGUMENTS = (
    "out", "out_at", "out_strip", "add", "add_at", "add_row", "add_strip", "scale",
    "a", "a_at", "a_strip", "b", "b_at", "b_strip", "count", "rows", "strips",
)  # fmt: skip
_PASSED = (
    "pointer", "int", "pointer", "int", "int", "number", "pointer", "int", "pointer", "int",
    "int", "int", "int",
)  # fmt: skip

#: Arrays are flat, ``…_at`` is where a matrix begins in one, ``…_strip`` how far its strips are
#: apart and ``add_row`` its rows; ``count`` is the length of the sum, ``rows`` and ``strips``
#: (1 or 2) the size of the result.
product = _product(transposed=False)
transposed_product = _product(transposed=True)


# -- a part of an array ------------------------------------------------------------------


def _part(typing, array, first, count):  # type: ignore[no-untyped-def]
    """array[first : first + count] of a flat array, for as long as the array itself lives.

    Not being counted as a reference to it, it costs nothing.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.return_type)(context, builder)
        size = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        populate_array(
            view,
            data=_element(context, builder, signature, arguments, 0),
            shape=[context.cast(builder, arguments[2], signature.args[2], types.intp)],
            strides=[size],
            itemsize=size,
            meminfo=None,
        )
        return view._getvalue()  # noqa: SLF001

    return types.Array(array.dtype, 1, "C")(array, first, count), generate


part: Any = intrinsic(_part)


# -- moving rows --------------------------------------------------------------------------


def _copy(typing, out, out_at, a, a_at):  # type: ignore[no-untyped-def]
    """One vector: out[out_at + j] = a[a_at + j]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number, size = context.get_value_type(out.dtype), out.dtype.bitwidth // 8
        vector = ir.VectorType(number, lanes(size)).as_pointer()
        to, source = (
            builder.bitcast(_element(context, builder, signature, arguments, i), vector)
            for i in (0, 2)
        )
        builder.store(builder.load(source, align=size), to, align=size)
        return context.get_dummy_value()

    return types.void(out, out_at, a, a_at), generate


copy: Any = intrinsic(_copy)


def _prefetch(typing, a, at):  # type: ignore[no-untyped-def]
    """Bring the cache line of a[at] near, without waiting for it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        line = builder.bitcast(_element(context, builder, signature, arguments, 0), byte)
        builder.call(function, [line, int32(0), int32(2), int32(1)])  # to read, into L2, data
        return context.get_dummy_value()

    return types.void(a, at), generate


prefetch: Any = intrinsic(_prefetch)


def _element(context: Any, builder: Any, signature: Any, arguments: Any, i: int) -> ir.Value:
    """The address of an array's element, array and index being arguments i and i + 1."""
    view = context.make_array(signature.args[i])(context, builder, arguments[i])
    index = context.cast(builder, arguments[i + 1], signature.args[i + 1], types.int64)
    return builder.gep(view.data, [index])


# -- threads that wait for each other ---------------------------------------------------


def _arrive(typing, counter):  # type: ignore[no-untyped-def]
    """counter[0] += 1, in one piece and after all that this thread wrote before."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        builder.atomic_rmw("add", view.data, _I64(1), "acq_rel")
        return context.get_dummy_value()

    return types.void(counter), generate


arrive: Any = intrinsic(_arrive)


def _arrived(typing, counter):  # type: ignore[no-untyped-def]
    """counter[0], after which all that is seen that came before the arrivals it counts."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(view.data, "acquire", 8)

    return types.int64(counter), generate


arrived: Any = intrinsic(_arrived)
