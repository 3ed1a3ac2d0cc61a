import dataclasses

import pytest
import torch
from tiny_runs import ASCENT, ROUNDS, assert_same, engine, model, reference, run

from polylight.ascent import engine as engine_module
from polylight.ascent.augmentation import Augmentation
from polylight.ascent.judge import mean_pairwise_cosine
from polylight.ascent.objective import Scale
from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.ascent.scheduler import PROBE_IMAGES, Rounds
from polylight.ascent.settings import Ascent
from polylight.kernels import stream_key
from polylight.neurons import Component, Neuron
from polylight.scoring.scorer import Scorer
from polylight.stopwatch import Stopwatch

# Neurons of every kind, of layers of different depth and width, with composites of 2 to 11
# components.
BATCH = [
    "act3:0",
    "conv1:2",
    "-act2:3",
    "act1:0@3x4",
    "fc:7",
    "max(act3:1,conv1:4)",
    "min(act3:2,-act2:5,act3:7@center)",
    "mean(act3:1,act3:2,act3:3,act2:4,act1:1)",
    f"mean({','.join(f'conv2:{c}' for c in range(11))})",
]


@pytest.mark.parametrize(("size", "pool_size", "threads"), [(32, 8, 1), (30, 5, 1), (30, 8, 2)])
def test_a_neuron_is_the_same_whatever_the_batch(size, pool_size, threads):
    torch.set_num_threads(threads)
    settings = {"size": size, "pool_size": pool_size}
    together = run(BATCH, **settings)
    assert len(together) == len(BATCH)
    images = torch.stack([n.images[:2] for n in together.values()]).flatten(0, 1)
    assert len(images.flatten(1).unique(dim=0)) == 2 * len(BATCH)
    full = ASCENT.max_steps * 6
    assert any(n.steps < full for n in together.values())  # some images stop early

    backwards = run(BATCH, backwards=True, **settings)
    assert list(backwards) != list(together)
    for name, neuron in together.items():
        assert_same(neuron, backwards[name])
        assert_same(neuron, run([name], **settings)[name])


def test_a_neuron_is_the_same_however_long_the_turns():
    by_four, by_three = run(BATCH, turn=4), run(BATCH, turn=3)
    for name, neuron in by_four.items():
        assert_same(neuron, by_three[name])


@pytest.mark.parametrize("lag", [1, 2])
def test_a_host_that_stays_ahead_gets_the_same_neurons(lag):
    at_once, late = run(BATCH), run(BATCH, lag=lag)
    assert at_once.keys() == late.keys()
    for name, neuron in at_once.items():
        assert_same(neuron, late[name])
    made = engine(BATCH, lag=lag)
    while not made.done:
        made.turn()
    assert made.counters.image_steps >= sum(
        n.steps for n in at_once.values()
    )  # the probes climb too
    assert made.counters.neurons == len(BATCH)
    assert made.turn() == []


@pytest.mark.parametrize("lag", [1, 2])
def test_dying_neurons_end_where_the_host_stays_ahead(lag):
    texts = ["act:0-4", "max(act:3,act:0)"]
    at_once, late = (run(texts, subject="tiny:dying", lag=n) for n in (0, lag))
    for name, neuron in at_once.items():
        assert_same(neuron, late[name])


def test_pixel_images_are_the_same_whatever_the_batch():
    settings = {"size": 26, "parametrization": Parametrization(kind="pixel", size=26, sd=0.1)}
    together = run(BATCH[:4], **settings)
    for name in ("act3:0", "-act2:3"):
        assert_same(together[name], run([name], **settings)[name])


def test_another_seed_gives_other_images():
    one, other = run(["act3:0"])["act3:0"], run(["act3:0"], seed=1)["act3:0"]
    assert not (one.images == other.images).flatten(1).all(1).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_non_finite_dead_and_retried_batch_changes_nothing(threads):
    torch.set_num_threads(threads)
    settings = {"subject": "tiny:dying", "pool_size": 4}
    texts = ["act:4", "act:0", "act:2", "act:1", "conv:3", "act:3", "max(act:3,act:0)", "head:1"]
    together = run(texts, **settings)
    assert set(together) == set(texts)
    for name in texts:
        assert_same(together[name], run([name], **settings)[name])


def test_broken_images_are_retried_and_hopeless_neurons_end():
    made = engine(["act:0-4"], subject="tiny:dying", rounds=ROUNDS)
    attempts = []
    give_back = made.scheduler.give_back

    def spy(task, *, is_broken):
        attempts.append((str(task.active.neuron), task.attempt, is_broken))
        return give_back(task, is_broken=is_broken)

    made.scheduler.give_back = spy
    finished = {}
    while not made.done:
        for neuron in made.turn():
            finished[str(neuron.neuron)] = neuron

    # act:2 is non-finite for half of the random images that it can start from.
    assert ("act:2", 0, True) in attempts
    assert finished["act:2"].activations.isfinite().all()
    # act:4 is so for all of them: one try and three more for each of its images.
    hopeless = [a for a in attempts if a[0] == "act:4"]
    assert all(broken for _, _, broken in hopeless)
    assert sorted(a for _, a, _ in hopeless) == sorted([0, 1, 2, 3] * 6)
    assert finished["act:4"].activations.isnan().all()
    assert finished["act:4"].steps == 24
    assert {name for name, _, broken in attempts if broken} == {"act:2", "act:4"}
    assert finished["act:1"].inactive.all()
    assert (finished["act:1"].activations < 0).all()
    assert not finished["act:0"].inactive.any()  # it began inactive, and woke
    assert finished["act:0"].baseline < 0

    rows = Scorer(restarts=2).rows(
        list(finished.values()),
        reference("tiny:dying"),
        max_images=6,
        seed=0,
        seconds_per_step=0.5,
    )
    status = {row.neuron: row.status for row in rows}
    assert status == {
        "act:0": "ok",
        "act:1": "dead",
        "act:2": "ok",
        "act:3": "ok",
        "act:4": "failed",
    }


@pytest.mark.parametrize("lag", [0, 1])
def test_a_layer_that_is_not_finite_spoils_no_neuron_before_it(lag):
    alone = run(["act2:0", "max(act2:1,act1:0)"], subject="tiny:spoilt", lag=lag)
    beside = run(["act2:0", "max(act2:1,act1:0)", "conv3:0"], subject="tiny:spoilt", lag=lag)
    assert beside.pop("conv3:0").activations.isnan().all()
    assert all(neuron.activations.isfinite().all() for neuron in alone.values())
    for name, neuron in beside.items():
        assert_same(neuron, alone[name])


def test_an_image_that_stays_broken_has_no_activation():
    rounds = dataclasses.replace(ROUNDS, retries=0)
    neuron = run(["act:2"], subject="tiny:dying", rounds=rounds)["act:2"]
    lost = neuron.activations.isnan()
    assert 0 < lost.sum() < len(lost)
    assert neuron.images.shape == (6, 3, 32, 32)


def test_slots_stay_occupied_and_every_step_is_counted():
    made = engine(
        ["act3:*", "act2:*"],
        size=16,
        ascent=Ascent(max_steps=48, tolerance=0.1, patience=4),
        rounds=Rounds(round_size=2, min_images=2, max_images=4),
    )
    assert len(made.neurons) == 40
    moved = slots = 0
    lengths = set()
    step = made.optimizer.step

    def counted():
        nonlocal moved, slots
        moved += int(made.pool.moving.sum())
        slots += made.pool.size
        step()

    made.optimizer.step = counted
    while not made.done:
        lengths.update(n.steps for n in made.turn())
    assert len(lengths) > 3  # images stopped early, at different times
    assert (made.counters.image_steps, made.counters.slot_steps) == (moved, slots)
    # Of the whole run, its end with ever fewer neurons included.
    assert moved / slots >= 0.9
    assert made.counters.neurons == 40
    assert made.counters.images == 40 * 4
    assert made.progress(40) == 1.0
    assert made.turn() == []


def test_progress_counts_images_of_neurons():
    rounds = Rounds(round_size=1, min_images=4, max_images=4)
    made = engine(["act3:0", "max(act3:1,act3:2)", "min(act3:1,act2:3)"], rounds=rounds)
    seen = []
    while not made.done:
        made.turn()
        seen.append(made.progress(3))
        probes = 3 * made.counters.probes
        assert seen[-1] == pytest.approx((made.counters.images - probes) / (3 * 4))
    assert seen[-1] == 1.0
    assert len(set(seen)) > 5


def expected_activation(neuron, name, images, border):
    """A neuron's activation by the network as it came, on padded images in [0, 1]."""
    loaded = model(name)
    padded = torch.nn.functional.pad(images / 255, [border] * 4, value=0.5)
    seen = {}
    with torch.no_grad():
        x = loaded.preprocess(padded)
        for key, layer in loaded.net.named_children():
            x = layer(x.clone())
            seen[key] = x.clone()

    def one(component):
        layer = component.layer
        if component.sign < 0 and layer in ("act1", "act2", "act3"):
            layer = layer.replace("act", "conv")
        found = seen[layer][:, component.channel]
        if found.ndim == 1:
            return component.sign * found
        if component.position is None:
            return component.sign * found.mean((1, 2))
        row, column = (
            (found.shape[1] // 2, found.shape[2] // 2)
            if component.position == "center"
            else component.position
        )
        return component.sign * found[:, row, column]

    return torch.stack([one(component) for component in neuron.components], 1)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "tiny:subject",
            ["act3:0-3", "conv1:2", "-act2:3", "act1:0@3x4", "fc:7", "conv2:1@center"],
        ),
        ("tiny:normed", ["5:0-3", "4:2", "0:1", "1:3", "8:1", "-4:1"]),
    ],
)
def test_activations_are_those_of_the_stored_images(name, texts):
    augmentation = Augmentation(jitter=2, jitter_after=2)
    finished = run(texts, subject=name, augmentation=augmentation)
    seen = 0
    for neuron in finished.values():
        expected = expected_activation(neuron.neuron, name, neuron.images, border=0)[:, 0]
        awake = ~neuron.inactive
        seen += int(awake.sum())
        torch.testing.assert_close(neuron.activations[awake], expected[awake], rtol=1e-4, atol=1e-6)
    assert seen >= 30


def test_composites_are_in_units_of_what_their_parts_can_gain():
    made = engine(["max(act3:1,-act2:5)", "min(act3:1,conv1:3)", "mean(fc:2,act3:1)"])
    finished = []
    while not made.done:
        finished += made.turn()
    scales = made.scheduler.scales
    for neuron in finished:
        components = expected_activation(neuron.neuron, "tiny:subject", neuron.images, border=0)
        offset = torch.tensor([scales[p].offset for p in neuron.neuron.components])
        gain = torch.tensor([scales[p].gain for p in neuron.neuron.components])
        values = (components - offset) / gain
        operation = neuron.neuron.operation
        expected = {"max": values.amax(1), "min": values.amin(1), "mean": values.mean(1)}[operation]
        torch.testing.assert_close(neuron.activations, expected, rtol=1e-4, atol=1e-4)
        assert 0.2 < neuron.activations.max() < 5


def test_scales_come_from_probes_and_not_from_the_batch(monkeypatch):
    probes = {}
    end_probe = engine_module.Engine._end_probe

    def spy(self, active, value):
        probes[str(active.neuron)] = (value.clone(), list(active.buffer.starts))
        end_probe(self, active, value)

    monkeypatch.setattr(engine_module.Engine, "_end_probe", spy)
    text = "max(conv1:3,act3:1)"
    alone = engine([text])
    while not alone.done:
        alone.turn()
    values, starts = probes["conv1:3"]
    assert len(values) == len(starts) == PROBE_IMAGES != ROUNDS.round_size

    # What the random images of its stream do to a component, by the network as it came.
    keys = torch.tensor([stream_key(0, "conv1:3", "probe", i, 0) for i in range(3)])
    made = alone.pool.parametrization
    images = ImageDecoder(made)(made.initial_latents(keys))
    maps = alone.pool.augmentation.maps(keys, torch.zeros_like(keys), 32)
    grid = torch.nn.functional.affine_grid(maps, [3, 3, 32, 32], align_corners=False)
    moved = torch.nn.functional.grid_sample(images - 0.5, grid, align_corners=False) + 0.5
    net = model("tiny:subject")
    first = net.net.conv1(net.preprocess(moved))[:, 3].mean((1, 2))
    torch.testing.assert_close(torch.tensor(starts), first, rtol=1e-4, atol=1e-6)

    offset = sum(starts) / 3
    expected = Scale(offset, sorted(values.tolist())[1] - offset)
    assert values.unique().numel() == 3
    assert alone.scheduler.scales[Component("conv1", 3)] == expected
    assert expected.gain > 0

    crowded = engine([*BATCH, text, "mean(conv1:3,conv1:5,conv1:6)"])
    while not crowded.done:
        crowded.turn()
    for component, scale in alone.scheduler.scales.items():
        assert crowded.scheduler.scales[component] == scale


def test_a_part_that_cannot_be_moved_keeps_its_units():
    made = engine(
        ["max(act:4,act:3)"], subject="tiny:dying", rounds=dataclasses.replace(ROUNDS, retries=0)
    )
    while not made.done:
        made.turn()
    assert made.scheduler.scales[Component("act", 4)] == Scale(0.0, 1.0)
    assert made.scheduler.scales[Component("act", 3)].gain > 0


def test_a_neuron_ends_at_the_elbow_or_at_the_most_images():
    loose = Rounds(round_size=2, min_images=6, max_images=12, tolerance=2.0, patience=1)
    neuron = run(["act3:0"], rounds=loose)["act3:0"]
    assert (neuron.stop_reason, len(neuron.images)) == ("elbow", 6)
    strict = Rounds(round_size=4, min_images=4, max_images=6, tolerance=0.0)
    neuron = run(["act3:0"], rounds=strict)["act3:0"]
    assert (neuron.stop_reason, len(neuron.images)) == ("max_images", 6)
    assert neuron.embeddings.shape == (6, 20)
    assert neuron.images.dtype == torch.uint8


def test_the_elbow_looks_at_both_views(monkeypatch):
    seen = []
    decide = Rounds.elbow

    def spy(self, similarities):
        seen.append(list(similarities))
        return decide(self, similarities)

    monkeypatch.setattr(Rounds, "elbow", spy)
    rounds = Rounds(round_size=2, min_images=1, max_images=6, tolerance=0.0)
    neuron = run(["act3:0"], rounds=rounds)["act3:0"]
    frame = reference()
    expected = []
    for count in (2, 4):
        centred = neuron.embeddings[:count].double() - frame.mean
        layer_input = neuron.layer_input[:count].double()
        views = [x / x.norm(dim=1, keepdim=True) for x in (centred, layer_input)]
        alike = sum(x @ x.T for x in views) / 2
        expected.append(alike[~torch.eye(count, dtype=torch.bool)].mean().item())
    assert seen[-1] == pytest.approx(expected, abs=1e-6)


def test_the_baseline_is_the_mean_of_the_starts():
    ascent = Ascent(max_steps=1, patience=0, repulsion=0.0)
    rounds = Rounds(round_size=2, min_images=1, max_images=4)
    neuron = run(["act3:0"], ascent=ascent, rounds=rounds)["act3:0"]
    made = engine(["act3:0"])
    keys = torch.tensor([stream_key(0, "act3:0", "image", i, 0) for i in range(4)])
    images = ImageDecoder(made.pool.parametrization)(
        made.pool.parametrization.initial_latents(keys)
    )
    maps = made.pool.augmentation.maps(keys, torch.zeros_like(keys), 32)
    grid = torch.nn.functional.affine_grid(maps, [4, 3, 32, 32], align_corners=False)
    moved = torch.nn.functional.grid_sample(images - 0.5, grid, align_corners=False) + 0.5
    net = model("tiny:subject")
    expected = net.net[:6](net.preprocess(moved))[:, 0].mean().item()
    assert neuron.baseline == pytest.approx(expected, rel=1e-4)
    assert neuron.steps == 4


def test_mean_pairwise_cosine():
    units = torch.nn.functional.normalize(torch.randn(7, 5).double(), dim=1)
    cosines = units @ units.T
    expected = cosines[~torch.eye(7, dtype=torch.bool)].mean().item()
    assert mean_pairwise_cosine(units).item() == pytest.approx(expected, abs=1e-12)
    assert mean_pairwise_cosine(units[:1]) == 1.0


def test_time_inside_a_stage_does_not_count_for_the_outer_one(monkeypatch):
    clock = iter([-3.0, 0.0, 1.0, 4.0, 5.0, 6.0, 11.0])
    monkeypatch.setattr("polylight.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch("outer"):
        with watch("inner"):
            pass
        with watch("inner"):
            pass
    assert watch.seconds == {"inner": 4.0, "outer": 7.0}
    assert watch.started == -3.0


def test_a_neuron_is_named_by_its_text():
    neuron = Neuron((Component("act3", 0),))
    assert stream_key(0, neuron, "image") == stream_key(0, "act3:0", "image")
