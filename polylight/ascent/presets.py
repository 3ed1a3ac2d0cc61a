"""Ascent settings that people recognise."""

from dataclasses import dataclass, fields, replace
from typing import Any

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.parametrization import Parametrization
from polylight.ascent.settings import Ascent


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How feature visualizations are made: from what, moved how, climbing how."""

    parametrization: Parametrization
    augmentation: Augmentation
    ascent: Ascent

    def override(self, **given: Any) -> "Preset":
        """Change some settings.

        Args:
            given: Fields of the parametrization and of the ascent; those that are None stay.

        Returns:
            The preset with those that are given instead, at the size that results.
        """
        given = {name: value for name, value in given.items() if value is not None}
        own = {field.name for field in fields(Parametrization)}
        parametrization = replace(
            self.parametrization, **{k: v for k, v in given.items() if k in own}
        )
        return Preset(
            parametrization=parametrization,
            augmentation=self.augmentation.at(parametrization.size),
            ascent=replace(self.ascent, **{k: v for k, v in given.items() if k not in own}),
        )


PRESETS = {
    # Ours: stops each image when it has converged.
    "fast": Preset(
        parametrization=Parametrization(),
        augmentation=Augmentation(),
        ascent=Ascent(),
    ),
    # The defaults of Lucid's render_vis, and of Lucent after it.
    "lucid": Preset(
        parametrization=Parametrization(sd=0.01),
        augmentation=Augmentation(jitter=8, scale=(0.9, 1.1), rotate=10.0, jitter_after=4),
        ascent=Ascent(max_steps=512, patience=0),
    ),
    # The footnote of Olah et al. 2017, "Feature visualization".
    "distill": Preset(
        parametrization=Parametrization(sd=0.01),
        augmentation=Augmentation(jitter=16, scale=(0.95, 1.05), rotate=5.0, jitter_after=8),
        ascent=Ascent(max_steps=2560, patience=0),
    ),
}
