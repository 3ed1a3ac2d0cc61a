"""Which score a run is sorted by and shown with: that which its settings name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from polylight.run.manifest import Manifest, manifest_path, read_manifest

ReportedScore = Literal["score", "score_paper"]

SCORE_TITLES: Mapping[ReportedScore, str] = {
    "score": "score",
    "score_paper": "Alic et al. (2025) score",
}
"""What each is called where people read it; the columns have the keys as their names."""


def reported_score(manifest: Manifest | None) -> ReportedScore:
    """Find which score a run reports.

    Args:
        manifest: Of the run; None where it has none.

    Returns:
        The name of a column of the run's rows; ``score`` where the manifest does not say.
    """
    scoring = manifest.settings.get("scoring") if manifest is not None else None
    named = scoring.get("reported_score") if isinstance(scoring, Mapping) else None
    return next((name for name in get_args(ReportedScore) if name == named), "score")


def read_reported_score(run_dir: str | Path) -> ReportedScore:
    """Read which score a run reports, from the manifest of any of its ranks.

    Raises:
        InputError: If the manifest cannot be understood.
    """
    ranks = [int(path.stem.split("-")[1]) for path in Path(run_dir).glob("manifest-[0-9]*.json")]
    there = [rank for rank in (0, *sorted(ranks)) if manifest_path(run_dir, rank).is_file()]
    return reported_score(read_manifest(run_dir, there[0]) if there else None)
