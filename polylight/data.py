"""Which neurons a run scores: selection, shard, and what is finished already."""

import re
from collections.abc import Collection, Iterator

from lightning import LightningDataModule

from polylight.ascent.scheduler import Scheduler
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.neurons import Neuron
from polylight.photos.folder import PhotoFolder


class NeuronDataModule(LightningDataModule):
    """Selects the neurons of a run and deals out their images.

    Args:
        neurons: Neuron expressions, such as ``blocks.4:0-63`` or ``max(blocks.4:3,blocks.4:9)``.
        shard: ``i/n`` takes every n-th neuron, from the i-th on, 0 <= i < n: one process of n.
        photos: Folder of photos to show beside the images. They change no score.

    Raises:
        InputError: If the shard is malformed, or there are no photos.
    """

    def __init__(self, neurons: list[str], shard: str = "0/1", photos: str | None = None) -> None:
        super().__init__()
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise InputError(f"shard has to be i/n with 0 <= i < n, such as 0/4, not '{shard}'.")
        self.photos = None if photos is None else PhotoFolder(photos, "--data.photos")
        self.expressions = neurons
        self.rank, self.num_shards = int(match[1]), int(match[2])
        self.neurons: list[Neuron] = []
        self.pending: list[Neuron] = []
        self.queue: Scheduler | None = None

    def select(self, module: PolysemanticityModule) -> None:
        """Resolve the expressions against the subject.

        Args:
            module: Knows the subject.

        Raises:
            InputError: If an expression is malformed or names what the subject does not have, or
                no neuron falls into this shard.
        """
        everything = module.resolve(self.expressions)
        self.neurons = everything[self.rank :: self.num_shards]
        if not self.neurons:
            raise InputError(
                f"shard {self.rank}/{self.num_shards} is empty: only {len(everything)} neurons "
                "are asked for."
            )
        self.pending = self.neurons

    def skip(self, finished: Collection[str]) -> None:
        """Leave out neurons that need not run again, given as normalised text."""
        self.pending = [n for n in self.neurons if str(n) not in finished]

    def setup(self, stage: str) -> None:
        """Resolve the expressions, where nobody has done so yet."""
        module = self.trainer.lightning_module if self.trainer else None
        if not self.neurons and isinstance(module, PolysemanticityModule):
            self.select(module)

    def train_dataloader(self) -> "Turns":
        """One batch for each turn of the engine."""
        if self.queue is None:
            raise RuntimeError("the module makes the queue before the loop asks for its turns")
        return Turns(self.queue)


class Turns:
    """Counts turns until every neuron is through; the loop's end is the queue's."""

    def __init__(self, queue: Scheduler) -> None:
        self.queue = queue

    def __iter__(self) -> Iterator[int]:
        """Yield the number of the next turn."""
        turn = 0
        while not self.queue.drained:
            yield turn
            turn += 1
