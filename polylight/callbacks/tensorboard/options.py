"""What a run shows in TensorBoard."""

from dataclasses import dataclass

from polylight.errors import InputError

# The projector of TensorBoard loads no more points.
_MOST_PROJECTED = 100_000


@dataclass(kw_only=True, eq=False)
class Options:
    """What is written for TensorBoard, and how often.

    Args:
        every: Seconds between scalars and between histograms, >= 0.
        summary_every: Seconds between two writings of the projector's files, which takes longer,
            and of the scores over all layers, >= 0; both are written at the end in any case.
        max_grids: Neurons whose images are shown at the most, >= 0; the first ones that finish.
        max_projected: Images in the projector at the most, 0 to 100,000; those that are in a
            cluster, of the first neurons that finish.
        scalars: Whether counts, throughput, and the median score of each layer are written.
        histograms: Whether the scores of each layer are.
        images: Whether a neuron's images are, a row for each cluster, the strongest on top.
        projector: Whether images are placed by what the embedder makes of them.
        hparams: Whether the run's settings and the scores over all layers are written, so that
            the runs of a folder can be compared.
        layout: Whether there is a page that groups the scalars.

    Raises:
        InputError: If a number is out of its range.
    """

    every: float = 2.0
    summary_every: float = 300.0
    max_grids: int = 64
    max_projected: int = 2000
    scalars: bool = True
    histograms: bool = True
    images: bool = True
    projector: bool = True
    hparams: bool = True
    layout: bool = True

    def __post_init__(self) -> None:
        for name in ("every", "summary_every", "max_grids"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"tensorboard.{name} has to be at least 0, not {value}.")
        if not 0 <= self.max_projected <= _MOST_PROJECTED:
            raise InputError(
                f"tensorboard.max_projected has to be from 0 to {_MOST_PROJECTED}, the most that "
                f"TensorBoard loads, not {self.max_projected}."
            )
