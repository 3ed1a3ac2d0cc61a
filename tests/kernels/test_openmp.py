import pytest
import torch

from polylight.kernels import openmp


@pytest.mark.parametrize("team", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_row_runs_once_and_in_ranges(monkeypatch, threads, team):
    if not team:
        monkeypatch.setattr(openmp, "gomp_parallel", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for count, grain_size in ((1, 1), (5, 1), (5, 2), (9, 4)):
        seen = []
        openmp.parallel_for(count, lambda *rows, seen=seen: seen.append(rows), grain_size)
        assert sorted(i for rows in seen for i in range(*rows)) == list(range(count))
        assert len(seen) == max(1, min(threads, count // grain_size))
    with pytest.raises(ZeroDivisionError):
        openmp.parallel_for(5, lambda start, stop: 1 // start)


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(openmp, "_PROCESS", -1)
    monkeypatch.setattr(openmp, "gomp_parallel", lambda: pytest.fail("asked for torch's threads"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = []
    openmp.parallel_for(4, lambda *rows: seen.append(rows))
    assert sorted(seen) == [(0, 2), (2, 4)]
