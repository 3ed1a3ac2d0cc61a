"""Loops of :mod:`polylight.kernels.inverted_residual_numba`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polylight.kernels import inverted_residual_layout, tiles_numba
from polylight.kernels.compiling import compiled
from polylight.kernels.inverted_residual_layout import AT_ONCE, Plan
from polylight.kernels.tiles_numba import ADD, MASK, RECTIFY, VECTOR, sum_terms

Singles = NDArray[np.float32]
_PARTS = (inverted_residual_layout, tiles_numba)


@compiled(inline=True, parts=_PARTS)
def _read(plans: Any, b: int) -> Plan:
    p = plans[b]
    return Plan(
        p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13],
        p[14], p[15], p[16], p[17], p[18], p[19], p[20], p[21], p[22], p[23], p[24], p[25], p[26],
        p[27], p[28], p[29],
    )  # fmt: skip


@compiled(parts=_PARTS)
def _fill_up(given: Singles, channels: int, padded: Singles, row: int) -> None:
    """Copy pixels of some channels into rows of whole vectors."""
    for pixel in range(len(given) // channels):
        for c in range(channels):
            padded[pixel * row + c] = given[pixel * channels + c]
        for c in range(channels, row):
            padded[pixel * row + c] = np.float32(0)


@compiled(parts=_PARTS)
def _cut_off(padded: Singles, row: int, out: Singles, channels: int) -> None:
    for pixel in range(len(out) // channels):
        for c in range(channels):
            out[pixel * channels + c] = padded[pixel * row + c]


@compiled(parts=_PARTS)
def run_forward(
    plans: Any, highs: Singles, weights: Singles, taps: Any, given: Singles, out: Singles,
    bits: Any, one: Singles, other: Singles, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    """Run blocks on each row of ``given``, an image; write rows of ``out`` and ``bits``."""
    first, last = _read(plans, 0), _read(plans, len(plans) - 1)
    for i in range(len(given)):
        source, target = given[i], one
        if first.row != first.channels:
            _fill_up(source, first.channels, other, first.row)
            source = other
        for b in range(len(plans)):
            target = one if b % 2 == 0 else other
            if b == len(plans) - 1 and last.out_row == last.out_channels:
                target = out[i]
            _run_block(
                _read(plans, b), highs[b, 0], highs[b, 1], weights, taps, source, target, bits[i],
                ring, line, places,
            )  # fmt: skip
            source = target
        if last.out_row != last.out_channels:
            _cut_off(source, last.out_row, out[i], last.out_channels)


@compiled(parts=_PARTS)
def _run_block(
    p: Plan, high: float, higher: float, weights: Singles, taps: Any, source: Singles,
    target: Singles, bits: Any, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    zero = np.float32(0)
    base, base_row = (source, p.row) if p.is_residual else (weights, 0)
    for vector in range(0, p.vectors, AT_ONCE):
        count = min(AT_ONCE, p.vectors - vector)
        inner, channel = count * VECTOR, vector * VECTOR
        pitch = (p.width + 2 * p.before) * inner
        ring[: p.reach * pitch] = np.float32(0)
        ready = 0
        for y in range(p.tall):
            while ready < y * p.stride + p.reach:
                row, at = ready - p.above, ready % p.reach * pitch
                ready += 1
                if row < 0 or row >= p.height:
                    ring[at : at + pitch] = np.float32(0)
                    continue
                here = row * p.width
                if p.expands:
                    sum_terms(
                        RECTIFY, 1, p.width, count,
                        source, here * p.row, p.row, places,
                        weights, p.expand + channel * p.channels, inner, places, p.channels,
                        ring, at + p.before * inner, inner,
                        bits, p.bits + here * p.vectors + vector, p.vectors,
                        weights, p.expand_bias + channel, high,
                        weights, 0, 0,
                    )  # fmt: skip
                    continue
                for x in range(p.width):
                    into, out_of = at + (p.before + x) * inner, (here + x) * p.row + channel
                    for c in range(inner):
                        ring[into + c] = source[out_of + c]
            begin = y * p.stride % p.reach
            for t in range(p.num_taps):
                row = begin + taps[0, p.first_tap + t]
                row = row if row < p.reach else row - p.reach
                places[t] = row * pitch + taps[1, p.first_tap + t] * inner
            here = y * p.wide
            sum_terms(
                RECTIFY, 0, p.wide, count,
                ring, 0, p.stride * inner, places,
                weights, p.taps + channel, 0, taps[2, p.first_tap :], p.num_taps,
                line, 0, inner,
                bits, p.more_bits + here * p.vectors + vector, p.vectors,
                weights, p.taps_bias + channel, higher,
                weights, 0, 0,
            )  # fmt: skip
            sum_terms(
                ADD, 1, p.wide, p.out_row // VECTOR,
                line, 0, inner, places,
                weights, p.project + channel * p.out_row, p.out_row, places, inner,
                target, here * p.out_row, p.out_row,
                bits, 0, 0,
                weights, p.project_bias if vector == 0 else p.zeros, zero,
                base, here * base_row if base_row else p.zeros, base_row,
            )  # fmt: skip
        base, base_row = target, p.out_row


@compiled(parts=_PARTS)
def run_backward(
    plans: Any, weights: Singles, taps: Any, phases: Any, given: Singles, pulled: Singles,
    bits: Any, one: Singles, other: Singles, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    """Take each row of ``given``, the gradient of an image's result, back to ``pulled``."""
    first, last = _read(plans, 0), _read(plans, len(plans) - 1)
    for i in range(len(given)):
        source, target = given[i], one
        if last.out_row != last.out_channels:
            _fill_up(source, last.out_channels, other, last.out_row)
            source = other
        for turn in range(len(plans)):
            b = len(plans) - 1 - turn
            target = one if turn % 2 == 0 else other
            if b == 0 and first.row == first.channels:
                target = pulled[i]
            _pull_block(
                _read(plans, b), weights, taps, phases, source, target, bits[i], ring, line, places
            )
            source = target
        if first.row != first.channels:
            _cut_off(source, first.row, pulled[i], first.channels)


@compiled(parts=_PARTS)
def _pull_block(
    p: Plan, weights: Singles, taps: Any, phases: Any, source: Singles, target: Singles, bits: Any,
    ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    zero = np.float32(0)
    base, base_row = (source, p.row) if p.is_residual else (weights, 0)
    for vector in range(0, p.vectors, AT_ONCE):
        count = min(AT_ONCE, p.vectors - vector)
        inner, channel = count * VECTOR, vector * VECTOR
        pitch = (p.wide + 2 * p.across) * inner
        ring[: p.reach * pitch] = zero
        ready = 0
        for y in range(p.height):
            while ready <= (y + p.above) // p.stride:
                at, here = ready % p.reach * pitch, ready * p.wide
                ready += 1
                if here >= p.tall * p.wide:
                    ring[at : at + pitch] = zero
                    continue
                sum_terms(
                    MASK, 1, p.wide, count,
                    source, here * p.out_row, p.out_row, places,
                    weights, p.project_back + channel * p.out_channels, inner, places,
                    p.out_channels,
                    ring, at + p.across * inner, inner,
                    bits, p.more_bits + here * p.vectors + vector, p.vectors,
                    weights, 0, zero, weights, 0, 0,
                )  # fmt: skip
            here, end = y * p.width, (y + p.above) // p.stride % p.reach
            for phase in range(min(p.stride, p.width)):
                index = p.first_phase + y % p.stride * p.stride + phase
                first, num = phases[index], phases[index + 1] - phases[index]
                for t in range(num):
                    row = end - taps[0, first + t]
                    row = row if row >= 0 else row + p.reach
                    places[t] = row * pitch + (taps[1, first + t] + p.across) * inner
                columns = (p.width - phase + p.stride - 1) // p.stride
                if p.expands:
                    sum_terms(
                        MASK, 0, columns, count,
                        ring, 0, inner, places,
                        weights, p.taps + channel, 0, taps[2, first:], num,
                        line, phase * inner, p.stride * inner,
                        bits, p.bits + (here + phase) * p.vectors + vector, p.stride * p.vectors,
                        weights, 0, zero, weights, 0, 0,
                    )  # fmt: skip
                else:
                    at = (here + phase) * p.row + channel
                    sum_terms(
                        ADD, 0, columns, count,
                        ring, 0, inner, places,
                        weights, p.taps + channel, 0, taps[2, first:], num,
                        target, at, p.stride * p.row,
                        bits, 0, 0,
                        weights, p.zeros, zero,
                        base, at if base_row else p.zeros, base_row,
                    )  # fmt: skip
            if p.expands:
                sum_terms(
                    ADD, 1, p.width, p.row // VECTOR,
                    line, 0, inner, places,
                    weights, p.expand_back + channel * p.row, p.row, places, inner,
                    target, here * p.row, p.row,
                    bits, 0, 0,
                    weights, p.zeros, zero,
                    base, here * base_row if base_row else p.zeros, base_row,
                )  # fmt: skip
        if p.expands:
            base, base_row = target, p.row
