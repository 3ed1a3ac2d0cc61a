import pytest
import torch

from polylight.kernels import teams


@pytest.mark.parametrize("team", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_work_is_dealt_out_once_and_in_ranges(monkeypatch, threads, team):
    if not team:
        monkeypatch.setattr(teams, "torchs_team", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for count, least in ((1, 1), (5, 1), (5, 2), (9, 4)):
        seen = []
        teams.deal_out(count, lambda *rows, seen=seen: seen.append(rows), least)
        assert sorted(i for rows in seen for i in range(*rows)) == list(range(count))
        assert len(seen) == max(1, min(threads, count // least))
    with pytest.raises(ZeroDivisionError):
        teams.deal_out(5, lambda start, stop: 1 // start)


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(teams, "_PROCESS", -1)
    monkeypatch.setattr(teams, "torchs_team", lambda: pytest.fail("asked for torch's threads"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = []
    teams.deal_out(4, lambda *rows: seen.append(rows))
    assert sorted(seen) == [(0, 2), (2, 4)]
