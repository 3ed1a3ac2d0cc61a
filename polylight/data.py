"""Which neurons a run scores: selection, shard, and what is finished already."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning import LightningDataModule

from polylight.errors import InputError
from polylight.neurons import LayerShape, Neuron, layers_of, parse_neurons
from polylight.photos.folder import PhotoFolder


class NeuronDataModule(LightningDataModule):
    """Selects the neurons of a run and yields those that are not finished.

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

    def select(self, cut: Callable[[Sequence[str]], Mapping[str, LayerShape]]) -> None:
        """Resolve the expressions against a subject.

        Args:
            cut: Cuts the subject at the deepest of some layers and says what they offer.

        Raises:
            InputError: If an expression is malformed or names what the subject does not have, or
                no neuron falls into this shard.
        """
        layers = cut(layers_of(self.expressions))
        everything = parse_neurons(self.expressions, layers)
        # Neurons of a layer share the depth that a forward has to go to. Composites come first
        # among them: they wait for the scales of their components while others climb.
        everything.sort(key=lambda n: (layers[n.deepest_layer(layers)].depth, not n.operation))
        self.neurons = self.pending = everything[self.rank :: self.num_shards]
        if not self.neurons:
            raise InputError(
                f"shard {self.rank}/{self.num_shards} is empty: only {len(everything)} neurons "
                "are asked for."
            )

    def skip(self, finished: Collection[str]) -> None:
        """Leave out neurons that need not run again, given as normalised text."""
        self.pending = [n for n in self.neurons if str(n) not in finished]

    def train_dataloader(self) -> "NeuronStream":
        """The neurons that are not finished, one by one."""
        return NeuronStream(self.pending)


@dataclass(frozen=True)
class NeuronStream:
    """Yields neurons; it has no length, as the loop ends when they are finished, not drawn."""

    neurons: Sequence[Neuron]

    def __iter__(self) -> Iterator[Neuron]:
        """Yield them in order."""
        return iter(self.neurons)
