import threading
from types import SimpleNamespace

import pytest
import torch

from polylight.callbacks.scoring import ScoreNeurons
from polylight.module import PolysemanticityModule


@pytest.fixture(scope="module")
def module():
    return PolysemanticityModule("tiny:subject", "tiny:embedder", image_size=32)


class Sink:
    def __init__(self):
        self.rows, self.steps = [], []

    def receive(self, rows, step):
        self.rows += rows
        self.steps.append(step)


def trainer(step=0):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(strategy=strategy, global_step=step)


@pytest.mark.parametrize("threaded", [False, True])
def test_rows_come_in_the_order_of_their_neurons_and_each_once(threaded, module, monkeypatch):
    first = threading.Event()

    def score(finished):
        # The first neurons are the last whose score is there.
        if threaded and 1 in finished:
            first.wait(10)
        return [f"row {n}" for n in finished]

    monkeypatch.setattr(module, "rows", score)
    one, other = Sink(), Sink()
    callback = ScoreNeurons([one, other], threaded=threaded)
    callback.on_train_start(trainer(), module)
    callback.on_train_batch_end(trainer(4), module, {"finished": [1, 2]}, None, 0)
    callback.on_train_batch_end(trainer(8), module, {"finished": []}, None, 1)
    callback.on_train_batch_end(trainer(12), module, {"finished": [3]}, None, 2)
    if threaded:
        assert one.rows == []
    first.set()
    callback.on_train_end(trainer(16), module)
    assert one.rows == other.rows == ["row 1", "row 2", "row 3"]
    assert one.steps == ([16] if threaded else [4, 12])
    callback.on_train_end(trainer(20), module)
    assert len(one.rows) == 3


def test_what_goes_wrong_in_the_thread_is_raised_when_its_rows_are_asked_for(module, monkeypatch):
    def score(finished):
        raise ArithmeticError("no score")

    monkeypatch.setattr(module, "rows", score)
    callback = ScoreNeurons([Sink()], threaded=True)
    callback.on_train_start(trainer(), module)
    callback._submit(module, [1])
    with pytest.raises(ArithmeticError, match="no score"):
        callback.on_train_end(trainer(), module)


def test_a_sink_that_fails_at_the_end_does_not_hide_why_the_run_ended(module, monkeypatch, caplog):
    class Full(Sink):
        def receive(self, rows, step):
            raise OSError("no space left on device")

    monkeypatch.setattr(module, "rows", list)
    callback = ScoreNeurons([Full()])
    callback._submit(module, [1])
    callback.on_exception(trainer(), module, KeyboardInterrupt())
    assert "no space left" in caplog.text
