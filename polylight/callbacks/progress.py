"""How far a run is: a live bar on a terminal and in a notebook, plain log lines elsewhere."""

import logging
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from polylight.callbacks.bars import NotebookBar, TerminalBar
from polylight.module import PolysemanticityModule

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.2


class RunProgress(ProgressBar):
    """Shows neurons done, images, image-steps per second and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar: TerminalBar | NotebookBar | None = None
        self._start = self._shown = time.perf_counter()
        self._enabled = True
        self._over = False

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what is to be done."""
        super().setup(trainer, pl_module, stage)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, PolysemanticityModule):
            return
        if self._enabled:
            total, left = len(data.neurons), len(data.pending)
            if left < total:
                done = total - left
                _logger.info("resuming: %d of %d neurons are finished already", done, total)
            name, device = pl_module.subject_model.name, trainer.strategy.root_device
            _logger.info("%d neurons of %s on %s", left, name, device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many images climb at once, and start the clock of the neurons."""
        self._stop()
        pool = getattr(pl_module, "pool", None)
        if self._enabled and pool is not None:
            _logger.info("%d images at a time, in %s", pool.size, pool.precision)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the neurons are."""
        engine = getattr(pl_module, "engine", None)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if engine is None or self._over:
            return
        last = isinstance(pl_module, PolysemanticityModule) and pl_module.is_done
        if not self._due(last=last):
            return
        self._over = last
        total, before = len(data.neurons), len(data.neurons) - len(data.pending)
        part = engine.progress(len(data.pending))
        elapsed = time.perf_counter() - self._start
        left = f"{_clock(elapsed * (1 - part) / part)} left" if part > 0.01 else ""
        made = engine.counters
        done = before + made.neurons
        rate = made.image_steps / max(engine.watch.seconds["ascent"], 1e-9)
        facts = [f"{made.images} images", f"{rate:.0f} image-steps/s", left]
        self._show("neurons", done, total, before + part * len(data.pending), facts)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was, and say what a run that was stopped is worth."""
        self._stop()
        engine = getattr(pl_module, "engine", None)
        if self._enabled and engine and isinstance(exception, KeyboardInterrupt | SystemExit):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            done, total = engine.counters.neurons, len(data.pending)
            _logger.info("stopped after %d of %d neurons; the same command continues", done, total)

    def show_reference(self, done: int, total: int) -> None:
        """Show how many of the reference images are made."""
        if self._due(last=done == total):
            self._show("reference images", done, total, done, ["made once, then kept"])

    def _due(self, *, last: bool) -> bool:
        pause = _SECONDS_BETWEEN_UPDATES if self._is_live else _SECONDS_BETWEEN_LINES
        if not self._enabled or (time.perf_counter() - self._shown < pause and not last):
            return False
        self._shown = time.perf_counter()
        return True

    @property
    def _is_live(self) -> bool:
        """Whether what is shown can be changed afterwards."""
        return self._console.is_terminal or self._console.is_jupyter

    def _show(self, what: str, done: int, total: int, part: float, facts: list[str]) -> None:
        text = f"{done}/{total} {what}"
        rest = ", ".join(fact for fact in facts if fact)
        if not self._is_live:
            _logger.info("%s, %s", text, rest)
            return
        if self._bar is None:
            is_notebook = self._console.is_jupyter
            self._bar = NotebookBar() if is_notebook else TerminalBar(self._console)
        self._bar.show(part / total, text, rest)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
