"""The loops over images, channels and rows, compiled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polylight.kernels.compiling import compiled
from polylight.kernels.inverted_residual.layout import AT_ONCE, VECTOR, Plan
from polylight.kernels.inverted_residual.tiles import ADD, MASK, RECTIFY, sum_terms

Singles = NDArray[np.float32]


@compiled(inline=True)
def _read(plans: Any, b: int) -> Plan:
    p = plans[b]
    return Plan(
        p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13],
        p[14], p[15], p[16], p[17], p[18], p[19], p[20], p[21], p[22], p[23], p[24], p[25], p[26],
        p[27], p[28], p[29],
    )  # fmt: skip


@compiled()
def _pad_channels(given: Singles, channels: int, padded: Singles, row: int) -> None:
    """Copy pixels of some channels into rows of whole vectors."""
    for pixel in range(len(given) // channels):
        for c in range(channels):
            padded[pixel * row + c] = given[pixel * channels + c]
        for c in range(channels, row):
            padded[pixel * row + c] = np.float32(0)


@compiled()
def _crop_channels(padded: Singles, row: int, out: Singles, channels: int) -> None:
    for pixel in range(len(out) // channels):
        for c in range(channels):
            out[pixel * channels + c] = padded[pixel * row + c]


@compiled()
def run_forward(
    plans: Any, highs: Singles, weights: Singles, taps: Any, given: Singles, out: Singles,
    bits: Any, one: Singles, other: Singles, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    """Run blocks on each row of ``given``, an image; write rows of ``out`` and ``bits``."""
    first, last = _read(plans, 0), _read(plans, len(plans) - 1)
    for i in range(len(given)):
        source, target = given[i], one
        if first.row != first.channels:
            _pad_channels(source, first.channels, other, first.row)
            source = other
        for b in range(len(plans)):
            target = one if b % 2 == 0 else other
            if b == len(plans) - 1 and last.out_row == last.out_channels:
                target = out[i]
            _block_forward(
                _read(plans, b), highs[b, 0], highs[b, 1], weights, taps, source, target, bits[i],
                ring, line, places,
            )  # fmt: skip
            source = target
        if last.out_row != last.out_channels:
            _crop_channels(source, last.out_row, out[i], last.out_channels)


@compiled()
def _block_forward(
    p: Plan, high: float, higher: float, weights: Singles, taps: Any, source: Singles,
    target: Singles, bits: Any, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    zero = np.float32(0)
    base, base_row = (source, p.row) if p.is_residual else (weights, 0)
    for vector in range(0, p.vectors, AT_ONCE):
        count = min(AT_ONCE, p.vectors - vector)
        inner, channel = count * VECTOR, vector * VECTOR
        pitch = (p.width + 2 * p.pad_left) * inner
        ring[: p.kernel_height * pitch] = np.float32(0)
        ready = 0
        for y in range(p.out_height):
            while ready < y * p.stride + p.kernel_height:
                row, at = ready - p.pad_top, ready % p.kernel_height * pitch
                ready += 1
                if row < 0 or row >= p.height:
                    ring[at : at + pitch] = np.float32(0)
                    continue
                here = row * p.width
                if p.has_expand:
                    sum_terms(
                        RECTIFY, 1, p.width, count,
                        source, here * p.row, p.row, places,
                        weights, p.expand + channel * p.channels, inner, places, p.channels,
                        ring, at + p.pad_left * inner, inner,
                        bits, p.bits + here * p.vectors + vector, p.vectors,
                        weights, p.expand_bias + channel, high,
                        weights, 0, 0,
                    )  # fmt: skip
                    continue
                for x in range(p.width):
                    into, out_of = at + (p.pad_left + x) * inner, (here + x) * p.row + channel
                    for c in range(inner):
                        ring[into + c] = source[out_of + c]
            begin = y * p.stride % p.kernel_height
            for t in range(p.num_taps):
                row = begin + taps[0, p.first_tap + t]
                row = row if row < p.kernel_height else row - p.kernel_height
                places[t] = row * pitch + taps[1, p.first_tap + t] * inner
            here = y * p.out_width
            sum_terms(
                RECTIFY, 0, p.out_width, count,
                ring, 0, p.stride * inner, places,
                weights, p.taps + channel, 0, taps[2, p.first_tap :], p.num_taps,
                line, 0, inner,
                bits, p.out_bits + here * p.vectors + vector, p.vectors,
                weights, p.taps_bias + channel, higher,
                weights, 0, 0,
            )  # fmt: skip
            sum_terms(
                ADD, 1, p.out_width, p.out_row // VECTOR,
                line, 0, inner, places,
                weights, p.project + channel * p.out_row, p.out_row, places, inner,
                target, here * p.out_row, p.out_row,
                bits, 0, 0,
                weights, p.project_bias if vector == 0 else p.zeros, zero,
                base, here * base_row if base_row else p.zeros, base_row,
            )  # fmt: skip
        base, base_row = target, p.out_row


@compiled()
def run_backward(
    plans: Any, weights: Singles, taps: Any, phases: Any, given: Singles, gradient: Singles,
    bits: Any, one: Singles, other: Singles, ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    """Take each row of ``given``, the gradient of an image's result, back to ``gradient``."""
    first, last = _read(plans, 0), _read(plans, len(plans) - 1)
    for i in range(len(given)):
        source, target = given[i], one
        if last.out_row != last.out_channels:
            _pad_channels(source, last.out_channels, other, last.out_row)
            source = other
        for turn in range(len(plans)):
            b = len(plans) - 1 - turn
            target = one if turn % 2 == 0 else other
            if b == 0 and first.row == first.channels:
                target = gradient[i]
            _block_backward(
                _read(plans, b), weights, taps, phases, source, target, bits[i], ring, line, places
            )
            source = target
        if first.row != first.channels:
            _crop_channels(source, first.row, gradient[i], first.channels)


@compiled()
def _block_backward(
    p: Plan, weights: Singles, taps: Any, phases: Any, source: Singles, target: Singles, bits: Any,
    ring: Singles, line: Singles, places: Any,
) -> None:  # fmt: skip
    zero = np.float32(0)
    base, base_row = (source, p.row) if p.is_residual else (weights, 0)
    for vector in range(0, p.vectors, AT_ONCE):
        count = min(AT_ONCE, p.vectors - vector)
        inner, channel = count * VECTOR, vector * VECTOR
        pitch = (p.out_width + 2 * p.kernel_width) * inner
        ring[: p.kernel_height * pitch] = zero
        ready = 0
        for y in range(p.height):
            while ready <= (y + p.pad_top) // p.stride:
                at, here = ready % p.kernel_height * pitch, ready * p.out_width
                ready += 1
                if here >= p.out_height * p.out_width:
                    ring[at : at + pitch] = zero
                    continue
                sum_terms(
                    MASK, 1, p.out_width, count,
                    source, here * p.out_row, p.out_row, places,
                    weights, p.project_back + channel * p.out_channels, inner, places,
                    p.out_channels,
                    ring, at + p.kernel_width * inner, inner,
                    bits, p.out_bits + here * p.vectors + vector, p.vectors,
                    weights, 0, zero, weights, 0, 0,
                )  # fmt: skip
            here, end = y * p.width, (y + p.pad_top) // p.stride % p.kernel_height
            for phase in range(min(p.stride, p.width)):
                index = p.first_phase + y % p.stride * p.stride + phase
                first, num = phases[index], phases[index + 1] - phases[index]
                for t in range(num):
                    row = end - taps[0, first + t]
                    row = row if row >= 0 else row + p.kernel_height
                    places[t] = row * pitch + (taps[1, first + t] + p.kernel_width) * inner
                columns = (p.width - phase + p.stride - 1) // p.stride
                if p.has_expand:
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
            if p.has_expand:
                sum_terms(
                    ADD, 1, p.width, p.row // VECTOR,
                    line, 0, inner, places,
                    weights, p.expand_back + channel * p.row, p.row, places, inner,
                    target, here * p.row, p.row,
                    bits, 0, 0,
                    weights, p.zeros, zero,
                    base, here * base_row if base_row else p.zeros, base_row,
                )  # fmt: skip
        if p.has_expand:
            base, base_row = target, p.row
