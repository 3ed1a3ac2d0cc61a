"""Whether images can climb a network: its gradient reaches them, and each is alone with itself."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from polylight.errors import InputError

Way = Callable[[], AbstractContextManager[Any]]
"""Makes the context that a forward runs in, for its gradient to reach the images."""
Read = Callable[[Tensor], Sequence[Tensor]]
"""Shows a batch of images to a network, and returns what some layers return."""

_TOLERANCE = 1e-4


def plain() -> AbstractContextManager[Any]:
    """The context of a forward that needs none."""
    return nullcontext()


def _kept() -> AbstractContextManager[Any]:
    """What the backward needs is kept apart: the network may write over it."""
    return saved_tensors_hooks(torch.clone, lambda kept: kept)


def unbroken() -> AbstractContextManager[Any]:
    """The network's own ``torch.no_grad`` is passed over: its function has a gradient there too."""
    return _Unbroken()


def _unbroken_and_kept() -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(_kept())
    stack.enter_context(_Unbroken())
    return stack


class _Unbroken(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


def find_way(read: Read, image: Tensor, name: str, layers: Sequence[str]) -> Way:
    """Find out what it takes for the gradient of layers to reach an image.

    Args:
        read: Reads the layers.
        image: Normalised, [1, C, H, W].
        name: Of the network, for the message.
        layers: Names of the layers, likewise.

    Returns:
        The context to run the network in.

    Raises:
        InputError: If there is no way.
    """
    problems = []
    for way in (plain, _kept, unbroken, _unbroken_and_kept):
        problem = _problem(read, image, layers, way)
        if problem is None:
            return way
        problems.append(problem)
    raise InputError(f"images cannot climb {name}: {problems[0]}")


def _problem(read: Read, image: Tensor, layers: Sequence[str], way: Way) -> str | None:
    """What keeps the gradient from the image; None where nothing does."""
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        try:
            with way():
                # Not the leaf itself, which a network could not write into.
                outputs = read(leaf * 1.0)
            cut = unreached(layers, outputs)
            if cut:
                return (
                    f"the gradient of {', '.join(cut)} does not reach the image. Its forward, or "
                    "what comes before it, cuts the gradient off (detach, inference_mode, round, "
                    "argmax, numpy); choose a layer before that."
                )
            torch.autograd.grad(sum(output.double().sum() for output in outputs), leaf)  # type: ignore[arg-type]
        except torch.OutOfMemoryError:
            raise
        # Whatever the backward of a third party's operation raises.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            return (
                f"the gradient of {', '.join(layers[:3])} cannot be computed "
                f"({type(error).__name__}: {reason}). Choose a layer before the operation that "
                "has none, or replace it."
            )
    return None


def unreached(layers: Sequence[str], outputs: Sequence[Tensor]) -> list[str]:
    """Name the layers whose output no gradient connects with the image."""
    return [n for n, output in zip(layers, outputs, strict=True) if not output.requires_grad]


@torch.no_grad()
def refuse_company(
    read: Read, image: Tensor, alone: Sequence[Tensor], name: str, layers: Sequence[str]
) -> None:
    """Refuse layers that show an image unlike itself: at random, or for the others of its batch.

    Args:
        read: Reads the layers.
        image: Normalised, [1, C, H, W].
        alone: What the layers return of it.
        name: Of the network, for the message.
        layers: Names of the layers, likewise.

    Raises:
        InputError: If a layer's output of the image among others is another.
    """
    among = read(torch.cat([image, -image, image.flip(-1)]))
    changed = _changed(layers, alone, among)
    if not changed:
        return
    again = _changed(layers, alone, read(image.clone()))
    if again:
        raise InputError(
            f"layer {again[0]!r} of {name} returns something else each time it sees the same "
            "image: its forward is random. Let what is random follow self.training (as in "
            "F.dropout(x, training=self.training)), or choose a layer before it."
        )
    raise InputError(
        f"layer {changed[0]!r} of {name} returns something else of an image when others are in "
        "its batch, so its score would depend on its company. Take the statistics over each "
        "image alone, or choose a layer before that."
    )


def _changed(layers: Sequence[str], alone: Sequence[Tensor], among: Sequence[Tensor]) -> list[str]:
    """Name the layers whose output of the first image is not what it is alone."""
    return [
        name
        for name, one, many in zip(layers, alone, among, strict=True)
        if one.shape[1:] == many.shape[1:] and not is_close(many[:1], one)
    ]


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether an activation is what it should be, relative to its largest value."""
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)
