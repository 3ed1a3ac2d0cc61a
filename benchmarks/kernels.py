"""Each Triton kernel of the ascent beside its twin in plain torch, at the sizes of a pool."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Competitor, Row, gate, measure, ratios, row, take_turns
from polylight.ascent.augmentation import Augmentation
from polylight.ascent.parametrization import Parametrization
from polylight.kernels import Backend, adam_step, philox_normal, philox_uniform, sample

_BACKENDS: tuple[Backend, ...] = ("triton", "torch")


@dataclass(frozen=True)
class Case:
    """An operation on tensors that stay the same.

    Attributes:
        run: Each backend's; returns what it has made.
        shape: Of what it makes, as text.
        dtype: Likewise.
        gigabytes: What has to be read and written, once.
        tolerance: Largest difference between the backends, of the largest value.
    """

    run: Mapping[Backend, Callable[[], Tensor]]
    shape: str
    dtype: str
    gigabytes: float
    tolerance: float


def random_cases(slots: int, steps: int, device: torch.device) -> dict[str, Case]:
    """The random maps of ``steps`` steps, and the latents that a pool of images starts from."""
    latent = torch.Size(Parametrization().latent_shape).numel()
    cases = {}
    for name, draw, rows, num in (
        ("uniform numbers for maps", philox_uniform, slots * steps, 6),
        ("normal numbers for latents", philox_normal, slots, latent),
    ):
        keys = torch.arange(rows, device=device) << 40
        counters = torch.zeros_like(keys)
        cases[name] = Case(
            {b: partial(draw, keys, counters, num, backend=b) for b in _BACKENDS},
            f"[{rows}, {num}]",
            "float32",
            rows * (4 * num + 16) / 1e9,
            0.0,
        )
    return cases


def sample_cases(slots: int, size: int, device: torch.device) -> dict[str, Case]:
    """Images to bfloat16 for the subject, and the gradient on its way back."""
    augmentation = Augmentation()
    keys = torch.arange(slots, device=device)
    maps = augmentation.maps(keys, torch.zeros_like(keys), size)
    images = torch.rand(slots, 3, size, size, device=device, requires_grad=True)
    mean, std = (torch.full((3,), value, device=device) for value in (0.45, 0.23))
    forward = {
        b: partial(sample, images, maps, size, mean, std, torch.bfloat16, backend=b)
        for b in _BACKENDS
    }
    seen = {b: run() for b, run in forward.items()}
    grad = torch.randn_like(seen["torch"])

    def backward(backend: Backend) -> Tensor:
        return torch.autograd.grad(seen[backend], images, grad, retain_graph=True)[0]

    gigabytes = (4 * images.numel() + 2 * grad.numel()) / 1e9
    return {
        "sample, forward": Case(
            forward, f"[{slots}, 3, {size}, {size}]", "bfloat16", gigabytes, 2.0**-7
        ),
        "sample, backward": Case(
            {b: partial(backward, b) for b in _BACKENDS},
            f"[{slots}, 3, {size}, {size}]",
            "float32",
            gigabytes,
            1e-3,
        ),
    }


def adam_cases(slots: int, size: int, device: torch.device) -> dict[str, Case]:
    """A step of the optimizer, all slots running."""
    shape = (slots, *Parametrization(size=size).latent_shape)
    start, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
    running = torch.ones(slots, dtype=torch.bool, device=device)

    def stepping(backend: Backend) -> Callable[[], Tensor]:
        latents, exp_avg, exp_avg_sq = start.clone(), start * 0, start * 0
        step = latents.new_zeros(slots)

        def run() -> Tensor:
            adam_step(
                latents,
                grad,
                exp_avg,
                exp_avg_sq,
                step,
                running,
                learning_rate=0.05,
                betas=(0.9, 0.999),
                eps=1e-8,
                backend=backend,
            )
            return latents

        return run

    run = {b: stepping(b) for b in _BACKENDS}
    return {"adam step": Case(run, f"{list(shape)}", "float32", 7 * 4 * start.numel() / 1e9, 1e-5)}


def compare(name: str, case: Case, repeats: int, calls: int) -> list[Row]:
    """Check that both backends agree, then time them in turns.

    Args:
        name: The case's.
        case: What runs.
        repeats: Turns.
        calls: Calls to a turn, so that the wait for the GPU at its end weighs little.

    Returns:
        Rows.
    """
    ours, theirs = (case.run[b]().detach().double() for b in _BACKENDS)
    far = float((ours - theirs).abs().max() / theirs.abs().max())
    right = gate(
        f"{name}, triton from torch, largest difference",
        far,
        ("<=", case.tolerance),
        "of the largest",
        case.shape,
    )

    def repeat(call: Callable[[], Tensor]) -> float:
        for _ in range(calls):
            call()
        return float(calls)

    competitors: dict[str, Competitor] = {
        b: Competitor(partial(repeat, case.run[b])) for b in _BACKENDS
    }
    timed = take_turns(competitors, repeats, warmups=2, gates=[right])
    line = partial(row, case=name, shape=case.shape, dtype=case.dtype)
    rows = [right]
    for backend, t in timed.items():
        milliseconds = [1e3 / rate for rate in t.rates]
        bandwidth = [case.gigabytes * rate for rate in t.rates]
        rows.append(line(milliseconds, provider=backend, unit="ms", failure=t.failure))
        rows.append(line(bandwidth, provider=backend, unit="GB/s", failure=t.failure))
    gains, failure = ratios(timed["triton"], timed["torch"])
    rows.append(line(gains, provider="triton", unit="times as fast as torch", failure=failure))
    return rows


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    slots, size, steps, repeats, calls = (16, 128, 4, 2, 5) if quick else (256, 128, 16, 20, 20)
    config = {"slots": slots, "size": size, "steps": steps, "repeats": repeats, "calls": calls}
    if not torch.cuda.is_available():
        case = "CUDA devices, without which there is nothing to measure"
        return [row([0.0], case=case, unit="devices", provider="this machine", dtype="")], config
    device = torch.device("cuda")
    torch.manual_seed(0)
    cases = {
        **random_cases(slots, steps, device),
        **sample_cases(slots, size, device),
        **adam_cases(slots, size, device),
    }
    return [r for n, c in cases.items() for r in compare(n, c, repeats, calls)], config


if __name__ == "__main__":
    sys.exit(measure("kernels", run, sys.argv[1:]))
