"""What came of planted neurons: every score of the run, and of some of its images put anew."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from polylight.kernels import stream_key
from polylight.neurons import Neuron
from polylight.planted.outcome import PRIMARY, Outcome
from polylight.planted.plan import LayerPlan
from polylight.planted.planted import Planted, pool_images
from polylight.planted.runs import Task
from polylight.run.schema import NeuronRow
from polylight.scoring import polysemanticity_score, score_table

POOLED = "pooled"
"""Recipe of the control in which images of several neurons are put together."""
VIEWS = ("embedder", "layer_input")
"""Recipes of the same images as only one of the two sees them: the embedder, or the layer input."""
_PAPER = "paper"


@dataclass(frozen=True)
class Collector:
    """Puts what a run has found beside what is known of its neurons.

    Attributes:
        task: The run.
        plans: What was planted.
        screened: By component as text, whether an independent measure put it among the more
            monosemantic half of its layer; the channels of a layer of classes need none.
    """

    task: Task
    plans: Sequence[LayerPlan]
    screened: Mapping[str, bool]

    def outcomes(self, rows: Sequence[NeuronRow]) -> list[Outcome]:
        """Every score of the planted neurons that are among some rows.

        Args:
            rows: Rows of the run.

        Returns:
            An outcome for each planted neuron that has a row.
        """
        by_name = {row.neuron: row for row in rows}
        found = []
        for plan in self.plans:
            planted = [p for p in plan.planted if str(p.neuron) in by_name]
            if not planted:
                continue
            here = [by_name[str(p.neuron)] for p in planted]
            table = _scores(here, self.task)
            for index, (p, row) in enumerate(zip(planted, here, strict=True)):
                scores = {name: values[index].item() for name, values in table.items()}
                # What the run itself has found, not what the same clusters give again.
                own = {PRIMARY: row.score, _PAPER: row.score_paper}
                scores |= {name: value for name, value in own.items() if value is not None}
                outcome = self.outcome(
                    plan,
                    p,
                    recipe=self.task.recipe,
                    status=row.status,
                    scores={k: v for k, v in scores.items() if np.isfinite(v)},
                    labels=row.label.tolist(),
                    winner=row.component.tolist(),
                    activation=row.activation.tolist(),
                    k=row.k or 0,
                    score_low=row.score_low,
                    score_high=row.score_high,
                )
                found.append(outcome)
        return found

    def pooled(self, rows: Sequence[NeuronRow]) -> list[Outcome]:
        """Score perfect composites: images of the components put together, as many as a neuron has.

        They need no ascent of their own, so they tell what clusters and score could do if every
        feature had been found.

        Args:
            rows: Rows of the run, those of the components among them.

        Returns:
            Outcomes of recipe ``pooled``: the singles, and the composites whose components have
            images enough for one of each.
        """
        by_name = {row.neuron: row for row in rows}
        found = []
        for plan in self.plans:
            for p in plan.planted:
                components = [by_name.get(str(Neuron((component,)))) for component in p.components]
                there = [row for row in components if row is not None and row.status == "ok"]
                if p.kind in ("single", "max", "logits") and len(there) == len(components):
                    voting = [int((row.label >= 0).sum()) for row in there]
                    # As many images as one neuron has, and no more of any than it can give.
                    count = min(max(voting), len(there) * min(voting))
                    if count >= len(there):
                        found.append(self._pool(plan, p, there, count))
        return found

    def first(self, rows: Sequence[NeuronRow], count: int) -> list[Outcome]:
        """Score the first images of every neuron alone, to see what more of them are worth.

        Images are made one after the other, so these are what a run of fewer would have made.

        Args:
            rows: Rows of the run.
            count: How many images of each, > 0.

        Returns:
            Outcomes of recipe ``first <count>``, for planted neurons that have as many.
        """
        return [
            self._again(plan, p, row, _directions(row, self.task)[:count], f"first {count}")
            for plan, p, row in self._scored(rows)
            if row.num_images >= count
        ]

    def views(self, rows: Sequence[NeuronRow]) -> list[Outcome]:
        """Score the same images as only one of the two views has them, to see what each is worth.

        Args:
            rows: Rows of the run.

        Returns:
            Outcomes of the recipes ``embedder`` and ``below``, the latter for neurons of layers
            that have one layer_input.
        """
        found = []
        for plan, p, row in self._scored(rows):
            seen = self.task.reference.frame(torch.from_numpy(row.embedding.copy()))
            found.append(self._again(plan, p, row, seen, VIEWS[0]))
            if row.layer_input.shape[1]:
                layer_input = normalize(torch.from_numpy(row.layer_input.copy()), dim=-1)
                found.append(self._again(plan, p, row, layer_input, VIEWS[1]))
        return found

    def _scored(self, rows: Sequence[NeuronRow]) -> Iterator[tuple[LayerPlan, Planted, NeuronRow]]:
        by_name = {row.neuron: row for row in rows if row.status == "ok"}
        for plan in self.plans:
            for p in plan.planted:
                if str(p.neuron) in by_name:
                    yield plan, p, by_name[str(p.neuron)]

    def _again(
        self, plan: LayerPlan, p: Planted, row: NeuronRow, directions: Tensor, recipe: str
    ) -> Outcome:
        """Score the first images of a neuron anew, by other directions [N, D]."""
        count = len(directions)
        activation = row.activation[:count].copy()
        score = polysemanticity_score(
            directions[None],
            torch.from_numpy(activation)[None],
            valid=torch.from_numpy(row.label[:count] >= 0)[None],
            keys=torch.tensor([stream_key(self.task.seed, row.neuron, "cluster")]),
            baseline=torch.tensor([row.baseline]),
            **self.task.scorer.clustering(),
        )
        return self.outcome(
            plan,
            p,
            recipe=recipe,
            status="ok",
            scores={PRIMARY: score.score[0].item()},
            labels=score.labels[0].tolist(),
            winner=row.component[:count].tolist(),
            activation=activation.tolist(),
            k=int(score.k[0]),
            score_low=None,
            score_high=None,
        )

    def _pool(self, plan: LayerPlan, p: Planted, rows: Sequence[NeuronRow], count: int) -> Outcome:
        chosen = pool_images(rows, count)
        seen = [_directions(row, self.task) for row in rows]
        vectors = [seen[r][i] for r, i in chosen.tolist()]
        # Strengths of different neurons have different units.
        strength = [_strength(row) for row in rows]
        weight = torch.tensor([strength[r][i] for r, i in chosen.tolist()])
        scorer = self.task.scorer
        score = polysemanticity_score(
            torch.stack(vectors)[None],
            weight[None],
            keys=torch.tensor([stream_key(self.task.seed, p.neuron, POOLED)]),
            **scorer.clustering(),
        )
        return self.outcome(
            plan,
            p,
            recipe=POOLED,
            status="ok",
            scores={PRIMARY: score.score[0].item()},
            labels=score.labels[0].tolist(),
            winner=chosen[:, 0].tolist(),
            activation=weight.tolist(),
            k=int(score.k[0]),
            score_low=None,
            score_high=None,
        )

    def outcome(self, plan: LayerPlan, p: Planted, **found: Any) -> Outcome:
        """Put what was found for a neuron beside what is known of it."""
        components = tuple(map(str, p.components))
        return Outcome(
            subject=self.task.subject,
            layer=plan.layer,
            neuron=str(p.neuron),
            kind=p.kind,
            m=p.m,
            components=components,
            screened=plan.classes
            or all(self.screened.get(component, False) for component in components),
            seed=self.task.seed,
            similarity=plan.similarity.get(str(p.neuron)),
            **found,
        )


def _strength(row: NeuronRow) -> list[float]:
    gain = row.activation.astype(np.float64) - row.baseline
    best: float = np.nanmax(np.where(row.label >= 0, gain, np.nan))
    return list((gain / best).tolist())


def _directions(row: NeuronRow, task: Task) -> Tensor:
    """What the score compares a neuron's images by: unit vectors [N, D]."""
    embedding, layer_input = (torch.from_numpy(v.copy()) for v in (row.embedding, row.layer_input))
    return task.reference.join(embedding, layer_input)


def _scores(rows: Sequence[NeuronRow], task: Task) -> dict[str, Tensor]:
    """Every score of some neurons, by name: float64 [U]."""
    most = max(row.num_images for row in rows)
    width = max(row.embedding.shape[1] for row in rows)
    raw = torch.zeros(len(rows), most, width)
    seen = [_directions(row, task) for row in rows]
    directions = torch.zeros(len(rows), most, seen[0].shape[1])
    activations = torch.full((len(rows), most), torch.nan)
    valid = torch.zeros(len(rows), most, dtype=torch.bool)
    for index, row in enumerate(rows):
        directions[index, : row.num_images] = seen[index]
        raw[index, : row.num_images] = torch.from_numpy(row.embedding.copy())
        activations[index, : row.num_images] = torch.from_numpy(row.activation.copy())
        valid[index, : row.num_images] = torch.from_numpy(row.label >= 0)
    keys = torch.tensor([stream_key(task.seed, row.neuron, "cluster") for row in rows])
    baseline = torch.tensor([row.baseline for row in rows], dtype=torch.float32)
    return score_table(
        directions,
        raw,
        activations,
        valid,
        keys,
        finished=activations.isfinite(),
        baseline=baseline,
        **task.scorer.clustering(),
    )
