import dataclasses

import numpy as np
import pytest
import torch

from polylight.embedding import Reference
from polylight.kernels import stream_key
from polylight.models import load_model
from polylight.neurons import Neuron, Part
from polylight.pictures import decode_png, encode_png
from polylight.results import Scorer
from polylight.scoring import polysemanticity_score
from polylight.validate.inside import inside_outcomes
from polylight.validate.plan import LayerPlan
from polylight.validate.planted import Planted
from polylight.validate.runs import Collector, Task
from tests.unit.example_rows import make_row

SCORER = Scorer(restarts=4)
CANVAS = 40


def planted(channel):
    part = Part("conv3", channel)
    return Planted(Neuron((part,)), "single", (part,), 1)


def composite(*channels):
    parts = tuple(Part("conv3", channel) for channel in channels)
    return Planted(Neuron(parts, "max"), "max", parts, len(parts))


def rows_of(count, images=10, seed=0):
    """Neurons of noise in some colours, so that channels of a layer differ between them."""
    generator = np.random.default_rng(seed)
    rows = []
    for channel in range(count):
        tint = generator.integers(0, 200, (2, 1, 1, 3))[np.arange(images) % 2]
        pixels = tint + generator.integers(0, 56, (images, 32, 32, 3))
        row = make_row(f"conv3:{channel}")
        rows.append(
            dataclasses.replace(
                row,
                image=encode_png(torch.from_numpy(pixels.astype(np.uint8))),
                num_images=images,
                activation=generator.uniform(2.0, 3.0, images).astype(np.float32),
                label=np.where(np.arange(images) == 3, -1, 0).astype(np.int32),
                part=np.zeros(images, np.int32),
                baseline=0.5,
            )
        )
    return rows, [planted(channel) for channel in range(count)]


def collector(plans):
    task = Task(
        subject="tiny:subject",
        recipe="polylight",
        seed=3,
        directory=None,
        neurons=[],
        module={},
        reference=Reference("key", torch.zeros(4), {}, {}),
        scorer=SCORER,
    )
    return Collector(task, plans, {})


def plan(layer, members):
    return LayerPlan(layer=layer, planted=members, similarity={}, classes=False)


def pooled_below(row):
    """What conv2 of the tiny subject returns, padded, by hand in float64."""
    model = load_model("tiny:subject")
    net = model.net.double()
    pixels = np.stack([decode_png(png) for png in row.image]).astype(np.float64) / 255.0
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=0.5)
    images = torch.from_numpy((padded - model.mean) / model.std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return net.act2(net.conv2(net.act1(net.conv1(images)))).mean((2, 3)).numpy()


def test_images_are_embedded_beside_those_of_channels_that_are_no_part():
    rows, members = rows_of(5)
    members[4] = composite(0, 2)
    rows[4] = dataclasses.replace(rows[4], neuron=str(members[4].neuron))
    given = collector([plan("conv3", members)])
    found = inside_outcomes(given, rows, load_model("tiny:subject"), {"conv3": "act2"}, CANVAS)
    assert [o.neuron for o in found] == [row.neuron for row in rows]
    assert {o.recipe for o in found} == {"inside"}
    seen = [pooled_below(row) for row in rows]
    beside = [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (1, 3)]
    for own, others, o, row in zip(seen, beside, found, rows, strict=True):
        frame = np.concatenate([seen[i] for i in others])
        deviation = frame.std(0, ddof=1)
        moves = deviation > 1e-6 * deviation.max()
        vectors = np.where(moves, own - frame.mean(0), 0.0) / np.where(moves, deviation, 1)
        expected = polysemanticity_score(
            torch.from_numpy(vectors)[None],
            torch.from_numpy(row.activation)[None],
            votes=torch.from_numpy(row.label >= 0)[None],
            keys=torch.tensor([stream_key(3, row.neuron, "inside")]),
            baseline=torch.tensor([0.5]),
            restarts=4,
        )
        assert o.scores["polylight"] == pytest.approx(expected.score.item(), abs=1e-4)
        assert o.labels[3] == -1
    assert len({o.scores["polylight"] for o in found}) == 5


def test_layers_without_one_below_and_neurons_without_company_are_left_out():
    rows, members = rows_of(3)
    model = load_model("tiny:subject")
    given = collector([plan("conv3", members)])
    assert inside_outcomes(given, rows, model, {"act3": "act2"}, CANVAS) == []
    assert inside_outcomes(given, rows[:2], model, {"conv3": "act2"}, CANVAS) == []
    assert len(inside_outcomes(given, rows, model, {"conv3": "act2"}, CANVAS)) == 3
    # A dead neuron has no score, and is no company.
    dead = [dataclasses.replace(rows[0], status="dead"), *rows[1:]]
    assert inside_outcomes(given, dead, model, {"conv3": "act2"}, CANVAS) == []
