import pytest
import torch

from polylight.ascent.precision import arithmetic, resolve_precision
from polylight.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("choice", "device", "precision"),
    [
        ("auto", CPU, "float32"),
        ("auto", CUDA, "bfloat16"),
        ("bfloat16", CPU, "bfloat16"),
        ("tf32", CUDA, "tf32"),
        ("float32", CUDA, "float32"),
    ],
)
def test_precision_follows_the_device(choice, device, precision):
    assert resolve_precision(choice, device) == precision


@pytest.mark.parametrize(
    ("choice", "message"), [("tf32", "needs a CUDA device"), ("bf16", "nearest: bfloat16")]
)
def test_impossible_precisions_are_refused(choice, message):
    with pytest.raises(InputError, match=message):
        resolve_precision(choice, CPU)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_float32_is_exact_inside_unless_asked_and_as_before_outside(precision):
    def state():
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            cudnn.benchmark,
            cudnn.deterministic,
        )

    before = state()
    with arithmetic(precision, CUDA):
        tf32 = precision == "tf32"
        assert state() == ("high" if tf32 else "highest", tf32, True, True)
    assert state() == before
    with arithmetic(precision, CPU):
        assert state() == before
