import pytest
import torch

from benchmarks import kernels

pytest.importorskip("triton")


def test_every_kernel_agrees_with_its_twin_and_is_timed(device):
    cases = {
        **kernels.random_cases(1, 2, device),
        **kernels.sample_cases(2, 16, device),
        **kernels.adam_cases(2, 8, device),
    }
    for name, case in cases.items():
        found = kernels.compare(name, case, repeats=1, calls=1)
        assert found[0].passed, found[0]
        assert [(r.provider, r.unit) for r in found[1:]] == [
            ("triton", "ms"),
            ("triton", "GB/s"),
            ("torch", "ms"),
            ("torch", "GB/s"),
            ("triton", "times as fast as torch"),
        ]
        assert all(r.status == "ok" for r in found)
        ms, rate = found[1], found[2]
        assert ms.median * rate.median == pytest.approx(case.gigabytes * 1e3, rel=1e-6)


def test_without_a_gpu_there_is_one_row_that_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows, _ = kernels.run(quick=True)
    assert len(rows) == 1
    assert rows[0].status == "ok"
    assert (rows[0].median, rows[0].unit) == (0.0, "devices")
