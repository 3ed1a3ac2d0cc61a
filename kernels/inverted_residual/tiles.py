"""Products of small matrices for the compiled loops, a tile of registers at a time.

LLVM's own passes keep no block of sums in registers, on which all of the speed depends; so the
instructions are written out here. A vector has 16 numbers, whatever the processor has: LLVM makes
of it one register of AVX-512, two of AVX2 or four of NEON. Sums are fused multiplications and
additions in the order of their terms, so their bits depend neither on the tile nor on the CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from polylight.kernels.inverted_residual.layout import VECTOR

# How the sums of a tile begin and end.
RECTIFY, MASK, ADD = 0, 1, 2

_FLOAT, _BITS, _INT = ir.FloatType(), ir.IntType(VECTOR), ir.IntType(64)
_SUM = ir.VectorType(_FLOAT, VECTOR)
_FLAGS = ir.VectorType(ir.IntType(1), VECTOR)

_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Rows and vectors of a tile, largest first: as many sums as there are registers for.
_ROWS, _VECTORS = ((8, 4, 1), (3, 2, 1)) if _HAS_AVX512 else ((4, 1), (1,))


def _number(value: int) -> Any:
    return ir.Constant(_INT, value)


class _Writer:
    """Writes instructions."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        name = f"llvm.fma.v{VECTOR}f32"
        function = ir.FunctionType(_SUM, [_SUM] * 3)
        found = builder.module.globals.get(name)
        self.fused = found or ir.Function(builder.module, function, name)

    def at(self, data: Any, *terms: Any) -> Any:
        """The element of an array at the sum of some numbers."""
        place = terms[0]
        for term in terms[1:]:
            place = self.builder.add(place, term)
        return self.builder.gep(data, [place])

    def load(self, data: Any, *terms: Any) -> Any:
        pointer = self.builder.bitcast(self.at(data, *terms), _SUM.as_pointer())
        return self.builder.load(pointer, align=4)

    def store(self, value: Any, data: Any, *terms: Any) -> None:
        pointer = self.builder.bitcast(self.at(data, *terms), _SUM.as_pointer())
        self.builder.store(value, pointer, align=4)

    def broadcast(self, value: Any) -> Any:
        """A vector of one number."""
        undefined = ir.Constant(_SUM, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
        return self.builder.shuffle_vector(first, undefined, everywhere)

    def in_steps(self, count: Any, sizes: Sequence[int], write: Callable[[Any, int], None]) -> None:
        """Go through ``count`` things, as many at once as the largest size that still fits."""
        builder, done = self.builder, _number(0)
        for size in sizes:
            steps = builder.sdiv(builder.sub(count, done), _number(size))
            with cgutils.for_range(builder, steps) as loop:
                write(builder.add(done, builder.mul(loop.index, _number(size))), size)
            done = builder.add(done, builder.mul(steps, _number(size)))

    def repeat(self, depth: Any, sums: list[Any], add: Callable[..., list[Any]]) -> list[Any]:
        """Take sums on by ``depth`` > 0 terms."""
        builder, before = self.builder, self.builder.block
        loop, after = (builder.append_basic_block(name) for name in ("terms", "sums"))
        builder.branch(loop)
        builder.position_at_end(loop)
        term, running = builder.phi(_INT), [builder.phi(_SUM) for _ in sums]
        found = add(term, running)
        following = builder.add(term, _number(1))
        phis = zip([term, *running], [_number(0), *sums], [following, *found], strict=True)
        for phi, start, value in phis:
            phi.add_incoming(start, before)
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        return found

    def rectify(self, value: Any, high: Any) -> tuple[Any, Any]:
        """Bound values by 0 and ``high``, and say which were strictly between."""
        builder = self.builder
        zero, most = ir.Constant(_SUM, None), self.broadcast(high)
        between = builder.and_(
            builder.fcmp_ordered(">", value, zero), builder.fcmp_ordered("<", value, most)
        )
        # What is no number stays so.
        value = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
        value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
        return value, builder.bitcast(between, _BITS)

    def mask(self, value: Any, bits: Any) -> Any:
        """Values whose bit is set, 0 elsewhere."""
        flags = self.builder.bitcast(bits, _FLAGS)
        return self.builder.select(flags, value, ir.Constant(_SUM, None))


def _inserted(write: Callable[..., Any]) -> Any:
    """A function whose calls are replaced by LLVM's own instructions."""
    return intrinsic(prefer_literal=True)(write)


@_inserted
def sum_terms(
    typing: Any, mode: Any, deep: Any, rows: Any, vectors: Any,
    left: Any, left_at: Any, left_row: Any, left_places: Any,
    right: Any, right_at: Any, right_step: Any, right_places: Any, depth: Any,
    out: Any, out_at: Any, out_row: Any, bits: Any, bits_at: Any, bits_row: Any,
    bias: Any, bias_at: Any, high: Any, base: Any, base_at: Any, base_row: Any,
) -> Any:  # fmt: skip
    """For rows r and vectors v: out[r, v] = the sum of ``depth`` > 0 terms k.

    With ``deep`` a term is left[r, k] right[k, v], a number times a vector, as in a product of
    matrices; otherwise left[r + left_places[k], v] right[right_places[k], v], as in a depthwise
    convolution. Arrays are flat; rows begin at ``*_at`` and lie ``*_row`` apart.

    Mode RECTIFY begins with the bias, bounds sums by 0 and ``high``, and sets the bit of each that
    was strictly between; MASK keeps those whose bit is set; ADD begins with the bias and what
    ``base`` holds. What a mode does not name is not read.
    """
    how, is_deep = int(mode.literal_value), bool(deep.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        w = _Writer(builder)
        given = [
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array)
            else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        (_, _, rows, vectors,
         left, left_at, left_row, left_places,
         right, right_at, right_step, right_places, depth,
         out, out_at, out_row, bits, bits_at, bits_row,
         bias, bias_at, high, base, base_at, base_row) = given  # fmt: skip

        def write_tile(first: Any, vector: Any, count_rows: int, count_vectors: int) -> None:
            number = builder.mul(vector, _number(VECTOR))
            across = [_number(VECTOR * v) for v in range(count_vectors)]
            cells = [(r, v) for r in range(count_rows) for v in range(count_vectors)]
            lines = [builder.add(first, _number(r)) for r in range(count_rows)]
            shift = _number(0) if is_deep else number
            lefts = [w.at(left, left_at, builder.mul(n, left_row), shift) for n in lines]
            outs = [w.at(out, out_at, builder.mul(n, out_row), number) for n in lines]
            factors_at = w.at(right, right_at, number)

            def add_products(term: Any, sums: list[Any]) -> list[Any]:
                row = w.at(factors_at, builder.mul(term, right_step))
                factors = [w.load(row, place) for place in across]
                found = []
                for r in range(count_rows):
                    value = w.broadcast(builder.load(builder.gep(lefts[r], [term])))
                    for v in range(count_vectors):
                        terms = [value, factors[v], sums[r * count_vectors + v]]
                        found.append(builder.call(w.fused, terms))
                return found

            def add_taps(term: Any, sums: list[Any]) -> list[Any]:
                place = builder.load(builder.gep(left_places, [term]))
                row = w.at(factors_at, builder.load(builder.gep(right_places, [term])))
                factors = [w.load(row, place) for place in across]
                return [
                    builder.call(w.fused, [w.load(lefts[r], place, across[v]), factors[v], total])
                    for (r, v), total in zip(cells, sums, strict=True)
                ]

            sums = [ir.Constant(_SUM, None) for _ in cells]
            if how in (RECTIFY, ADD):
                begin = [w.load(bias, bias_at, number, place) for place in across]
                sums = [begin[v] for _, v in cells]
            if how == ADD:
                bases = [w.at(base, base_at, builder.mul(n, base_row), number) for n in lines]
                sums = [
                    builder.fadd(w.load(bases[r], across[v]), total)
                    for (r, v), total in zip(cells, sums, strict=True)
                ]
            sums = w.repeat(depth, sums, add_products if is_deep else add_taps)
            for (r, v), total in zip(cells, sums, strict=True):
                flags = w.at(bits, bits_at, builder.mul(lines[r], bits_row), vector, _number(v))
                result = total
                if how == RECTIFY:
                    result, between = w.rectify(total, high)
                    builder.store(between, flags)
                elif how == MASK:
                    result = w.mask(total, builder.load(flags))
                w.store(result, outs[r], across[v])

        def write_rows(vector: Any, count_vectors: int) -> None:
            w.in_steps(rows, _ROWS, lambda r, n: write_tile(r, vector, n, count_vectors))

        w.in_steps(vectors, _VECTORS, write_rows)
        return context.get_dummy_value()

    signature = types.void(
        mode, deep, types.intp, types.intp,
        left, types.intp, types.intp, left_places,
        right, types.intp, types.intp, right_places, types.intp,
        out, types.intp, types.intp, bits, types.intp, types.intp,
        bias, types.intp, types.float32, base, types.intp, types.intp,
    )  # fmt: skip
    return signature, generate
