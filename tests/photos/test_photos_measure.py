import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from polylight.ascent.objective import Scale
from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.networks import load_model
from polylight.networks.subject import Subject
from polylight.neurons import Component, layers_of, parse_neurons
from polylight.photos.folder import PhotoFolder
from polylight.photos.measure import KEPT, describe_photos, strongest_photos

CPU = torch.device("cpu")
SIDE = 32
# More than two batches, the last one not full.
COUNT = 37
NEURONS = [
    "act3:0-23",
    "fc:7",
    "-fc:2",
    "conv2:2@center",
    "conv2:5@3x1",
    "-act3:3",
    "act1:6",
    "max(conv2:1,conv2:5,act3:2)",
    "min(conv2:1,act3:5)",
    "mean(-conv2:3,fc:1)",
]


@pytest.fixture
def photos(tmp_path):
    """A folder of smooth photos, some of them nearly plain; with a file that is none."""
    rng = np.random.default_rng(3)
    for i in range(COUNT):
        waves = torch.from_numpy(rng.random((1, 3, 5, 5)) * (i % 5) / 4 + rng.random((1, 3, 1, 1)))
        pixels = F.interpolate(waves / 2, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
        array = (255 * pixels[0]).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "05-notes.txt").write_text("no photo")
    return PhotoFolder(tmp_path, "--photos")


def cut(expressions, model="tiny:subject"):
    subject = Subject(load_model(model), layers_of(expressions), SIDE)
    shapes = [layout.shape(0) for layout in subject.layouts]
    return subject, parse_neurons(expressions, dict(zip(subject.layers, shapes, strict=True)))


def scales_of(neurons):
    components = dict.fromkeys(component for neuron in neurons for component in neuron.components)
    return {
        component: Scale(0.1 * i - 0.3, 0.5 + 0.25 * i) for i, component in enumerate(components)
    }


def expected_values(photos, neurons, scales):
    """The definition, one neuron and one photo at a time, in float64: [U, N], and what sleeps."""
    model = load_model("tiny:subject")
    files = [photos.path / name for name in photos.names if name.endswith("png")]
    images = torch.from_numpy(np.stack([np.array(Image.open(f)) for f in files])).double() / 255
    values, maps = model.preprocess(images.permute(0, 3, 1, 2)), {}
    for name, module in model.net.double().named_children():
        values = maps[name] = module(values.clone())

    def component_value(component: Component, i):
        post = maps[component.layer][i, component.channel]
        pre = maps[component.layer.replace("act", "conv")][i, component.channel]
        if component.position == "center":
            row, column = post.shape[0] // 2, post.shape[1] // 2
            post, pre = post[row, column], pre[row, column]
        elif component.position is not None:
            post, pre = post[component.position], pre[component.position]
        rectified = component.layer.startswith("act")
        silent = bool(rectified and component.sign > 0 and (post <= 0).all())
        read = pre if rectified and (silent or component.sign < 0) else post
        return component.sign * read.mean().item(), silent

    found, inactive = [], []
    for neuron in neurons:
        row, sleeps = [], []
        for i in range(len(images)):
            components = [
                (*component_value(component, i), scales[component])
                for component in neuron.components
            ]
            if neuron.operation:
                components = [((v - s.offset) / s.gain, a, s) for v, a, s in components]
            combine = {"max": max, "min": min}.get(neuron.operation, lambda v: sum(v) / len(v))
            row.append(combine([value for value, _, _ in components]))
            silent = [a for _, a, _ in components]
            sleeps.append(any(silent) if neuron.operation == "min" else all(silent))
        found.append(row)
        inactive.append(sleeps)
    return np.array(found), np.array(inactive)


def test_the_strongest_photos_are_those_of_the_definition(photos):
    subject, neurons = cut(NEURONS)
    scales = scales_of(neurons)
    values, inactive = expected_values(photos, neurons, scales)
    assert inactive.any()
    assert not inactive.all()
    # Between two photos, so that rounding moves none across.
    ordered = np.sort(values, 1)
    thresholds = (ordered[:, 20] + ordered[:, 21]) / 2
    thresholds[4] = np.nan
    found = strongest_photos(subject, neurons, scales, thresholds.tolist(), photos)
    assert (found.finite == COUNT).all()
    assert found.below.tolist() == [0 if i == 4 else 21 for i in range(len(neurons))]
    numbers = np.array([i for i, name in enumerate(photos.names) if name.endswith("png")])
    for u, neuron in enumerate(neurons):
        awake = np.flatnonzero(~inactive[u])
        best = awake[np.argsort(-values[u, awake], kind="stable")][:KEPT]
        count = len(best)
        assert found.photo.shape == (len(neurons), KEPT)
        assert found.photo[u, :count].tolist() == numbers[best].tolist(), str(neuron)
        scale = np.abs(values[u]).max()
        np.testing.assert_allclose(
            found.activation[u, :count], values[u, best], rtol=0, atol=2e-5 * scale
        )
        assert (found.activation[u, count:] == -torch.inf).all()


def test_a_photo_does_the_same_in_any_batch_and_neuron_by_neuron(photos, tmp_path, monkeypatch):
    subject, neurons = cut(NEURONS)
    scales, nothing = scales_of(neurons), [float("nan")] * len(neurons)
    found = strongest_photos(subject, neurons, scales, nothing, photos)
    monkeypatch.setattr("polylight.photos.measure._AT_ONCE", 1)
    alone = strongest_photos(subject, neurons, scales, nothing, photos)
    assert torch.equal(found.photo, alone.photo)
    torch.testing.assert_close(found.activation, alone.activation, rtol=1e-5, atol=1e-6)
    # Without the first photos, others share a batch.
    monkeypatch.undo()
    for name in photos.names[:3]:
        (tmp_path / name).unlink()
    fewer = strongest_photos(subject, neurons, scales, nothing, PhotoFolder(tmp_path, "--photos"))
    for u in range(len(neurons)):
        kept = {p - 3: a for p, a in zip(found.photo[u].tolist(), found.activation[u].tolist(),
                                         strict=True) if p >= 3 and a > -np.inf}  # fmt: skip
        there = dict(zip(fewer.photo[u].tolist(), fewer.activation[u].tolist(), strict=True))
        assert kept == {p: there[p] for p in kept}


def test_among_equal_photos_the_first_is_kept(tmp_path):
    for i in range(40):
        Image.new("RGB", (SIDE, SIDE), (200, 90, 40)).save(tmp_path / f"{i:02d}.png")
    subject, neurons = cut(["conv2:*"])
    found = strongest_photos(subject, neurons, {}, [0.0] * 16, PhotoFolder(tmp_path, "--photos"))
    assert (found.photo == torch.arange(KEPT)).all()


def test_photos_that_are_not_finite_or_leave_a_neuron_silent_are_not_strong(tmp_path):
    bright, dark = (Image.new("RGB", (SIDE, SIDE), (c, c, c)) for c in (255, 0))
    for i in range(6):
        (bright if i % 3 == 0 else dark).save(tmp_path / f"{i}.png")
    subject, neurons = cut(["act:0-4"], "tiny:dying")
    found = strongest_photos(subject, neurons, {}, [1e9] * 5, PhotoFolder(tmp_path, "--photos"))
    strong = [
        found.photo[u][found.activation[u] > -torch.inf].tolist() for u in range(len(neurons))
    ]
    # On for bright photos only, never, not a number for dark ones, as usual, never a number.
    assert strong[0] == [0, 3]
    assert strong[1] == []
    assert strong[2] in ([0, 3], [])
    assert strong[4] == []
    assert found.finite.tolist() == [6, 6, 2, 6, 0]
    assert found.below.tolist() == [6, 6, 2, 6, 0]


def test_photos_are_embedded_as_images_are_and_kept_small(photos):
    model = load_model("tiny:embedder")
    embedder = Embedder(model)
    chosen = [0, 3, 8, *range(10, 30)]
    batches = list(describe_photos(embedder, photos, chosen, 16, CPU))
    assert [len(batch) for batch in batches] == [16, 7]
    described = [photo for batch in batches for photo in batch]
    assert [photo.photo for photo in described] == chosen
    small = {index: pixels for index, (pixels,) in photos.read([16], chosen)}
    for photo in described:
        assert photo.name == photos.names[photo.photo]
        image = torch.from_numpy(small[photo.photo].copy()).permute(2, 0, 1)[None] / 255
        expected = embedder(image)[0].numpy()
        np.testing.assert_allclose(photo.embedding, expected, rtol=1e-4, atol=1e-5)
        with Image.open(io.BytesIO(photo.jpeg)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (128, 128))
            shrunk = np.array(picture.resize((SIDE, SIDE)), dtype=float)
        whole = np.array(Image.open(photos.path / photo.name), dtype=float)
        assert np.abs(shrunk - whole).mean() < 6


def test_a_photo_that_is_gone_is_told(photos):
    (photos.path / photos.names[2]).unlink()
    embedder = Embedder(load_model("tiny:embedder"))
    with pytest.raises(InputError, match=r"1 of the photos of .* can no longer be read"):
        list(describe_photos(embedder, photos, [0, 2, 3], 16, CPU))


def test_names_of_any_bytes_become_text(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    try:
        (tmp_path / "plain.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    folder, embedder = PhotoFolder(tmp_path, "--photos"), Embedder(load_model("tiny:embedder"))
    ((photo,),) = describe_photos(embedder, folder, [0], 16, CPU)
    assert photo.name == "caf\N{REPLACEMENT CHARACTER}.png"
    assert len(folder.key) == 32
