import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.networks import load_model
from polylight.networks.live import model_from_module


def images(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def seen_twice(name, module, batch, what):
    """What a module reads or returns for the two views, in float64, the network as it came."""
    model = load_model(name)
    net = copy.deepcopy(model.net).double()
    seen = []
    net.get_submodule(module).register_forward_hook(
        lambda _, args, output: seen.append((args[0] if what == "input" else output).clone())
    )
    side = (model.input_size, model.input_size)
    whole = batch.shape[-1]
    part = round(whole * 0.625)
    frame = torch.full_like(batch, 0.5)
    start = (whole - part) // 2
    frame[..., start : start + part, start : start + part] = F.interpolate(
        batch.flip(-1), size=(part, part), mode="bilinear", antialias=True
    )
    for view in (batch, frame):
        resized = F.interpolate(view.double(), size=side, mode="bilinear", antialias=True)
        with torch.no_grad():
            net(model.preprocess(resized))
    return seen


def assert_embeds(name, batch, expected):
    found = Embedder(load_model(name))(batch)
    assert found.dtype == torch.float32
    expected = expected.float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "maps", "size", "dims"),
    [
        ("tiny:embedder", "3", 32, 20),
        ("tiny:embedder", "3", 48, 20),
        ("tiny:embedder", "3", 16, 20),
        ("efficientnet_lite2", "bn2", 128, 1280),
    ],
)
def test_an_embedding_is_the_root_mean_square_of_the_last_maps_of_two_views(name, maps, size, dims):
    batch = images(2, size)
    near, far = seen_twice(name, maps, batch, "output")
    assert near.shape[:2] == (2, dims)
    rms = [(view**2).mean((2, 3)) ** 0.5 for view in (near, far)]
    assert_embeds(name, batch, (rms[0] + rms[1]) / 2)


class Returns(nn.Module):
    """Two convolutions whose mean is returned as it is, in a tuple, or by name beside tokens."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))
        # It reads vectors, but is no classifier: maps come after it.
        self.gate = nn.Linear(3, 12)
        self.last = nn.ReLU()

    def forward(self, x):
        maps = self.last(self.body(x) + self.gate(x.mean((2, 3)))[..., None, None])
        vector = maps.mean((2, 3))
        tokens = maps.flatten(2).mT
        return {
            "tensor": vector,
            "map": vector[..., None, None],
            "tuple": (vector, tokens),
            "names": {"last_hidden_state": tokens, "pooler_output": vector},
        }[self.how]


@pytest.mark.parametrize("how", ["tensor", "map", "tuple", "names"])
def test_a_network_without_a_classifier_gives_the_vector_that_it_returns(how):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Returns(how)
    model = model_from_module(net, mean=0.5, std=0.5, input_size=32)
    batch = images(2, 32)
    found = Embedder(model, plain=True)(batch)
    reference = copy.deepcopy(net).double()
    reference.how = "tensor"
    expected = reference((batch.double() - 0.5) / 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    # Where it averages its last maps, their root mean square is taken.
    assert Embedder(model)._pools == (how in ("tensor", "map"))


def test_a_vision_transformer_without_labels_embeds():
    options = {"num_classes": 0, "img_size": 56, "depth": 2}
    model = load_model("timm/vit_small_patch14_dinov2", "random", options)
    batch = images(2, 56)
    with torch.no_grad():
        expected = model.net(model.preprocess(batch))
    assert expected.shape == (2, 384)
    found = Embedder(model, plain=True)(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert Embedder(model)(batch).shape == (2, 384)


class Contrastive(nn.Module):
    """As CLIP: of an image alone, its vector, nothing, and a temperature."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 8, 3, 2))
        self.proj = nn.Parameter(torch.randn(8, 6))
        self.words = nn.Embedding(10, 6)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image):
        return F.normalize(self.visual(image).amax((2, 3)) @ self.proj, dim=-1)

    def forward(self, image, text=None):
        texts = None if text is None else self.words(text).mean(1)
        return self.encode_image(image), texts, self.logit_scale.exp()


def test_a_network_of_images_and_texts_embeds_images():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Contrastive()
    batch = images(2, 32)
    found = Embedder(model_from_module(net, mean=0.5, std=0.5, input_size=32), plain=True)(batch)
    expected = copy.deepcopy(net).double().encode_image((batch.double() - 0.5) / 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_no_vector():
    net = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.Flatten(2))
    with pytest.raises(InputError, match=r"cannot embed images.*or returns one"):
        Embedder(model_from_module(net, mean=0.5, std=0.5, input_size=32))


def test_a_convolution_may_be_the_classifier():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1))
    net.append(nn.Flatten())
    model = model_from_module(net, mean=0.5, std=0.5, input_size=16)
    batch = images(2, 16)
    with torch.no_grad():
        expected = net[:2]((batch - 0.5) / 0.5).flatten(1)
    torch.testing.assert_close(Embedder(model, plain=True)(batch), expected, rtol=1e-4, atol=1e-6)


def test_a_network_that_does_not_average_maps_gives_what_its_classifier_reads():
    batch = images(2, 32)
    near, far = seen_twice("tiny:flat", "fc", batch, "input")
    assert near.shape == (2, 6 * 16)
    assert_embeds("tiny:flat", batch, (near + far) / 2)


@pytest.mark.parametrize(
    ("name", "head", "dims"), [("tiny:embedder", "6", 20), ("tiny:flat", "fc", 96)]
)
def test_a_plain_embedding_is_what_the_classifier_reads_of_one_view(name, head, dims):
    batch = images(2, 32)
    near, _ = seen_twice(name, head, batch, "input")
    found = Embedder(load_model(name), plain=True)(batch)
    assert found.shape == (2, dims)
    torch.testing.assert_close(found, near.float(), rtol=1e-4, atol=1e-5)


def test_an_embedder_can_be_used_again_and_keeps_nothing():
    embed = Embedder(load_model("tiny:embedder"))
    first, second = embed(images(2, 32)), embed(images(2, 32, seed=1))
    assert torch.equal(embed(images(2, 32)), first)
    assert not torch.equal(first, second)
    assert embed._caught == []
    assert not first.requires_grad


def test_a_network_that_returns_nothing_cannot_embed():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            self.conv(x)

    with pytest.raises(InputError, match="'Silent' cannot embed images"):
        Embedder(model_from_module(Silent(), mean=0.5, std=0.5, input_size=16))


def test_a_network_without_a_classifier_cannot_embed():
    with pytest.raises(InputError, match=r"'tiny:headless' cannot embed images.*such as resnet18"):
        Embedder(load_model("tiny:headless"))


def test_uncentred_images_are_compared_by_the_cosine_of_their_embeddings():
    frame = reference().uncentred()
    points = torch.randn(3, 20, generator=torch.Generator().manual_seed(3))
    joined = frame.join(points, torch.zeros(3, 0))
    torch.testing.assert_close(joined, F.normalize(points, dim=-1))
    assert frame.layer_start.keys() == reference().layer_start.keys()


def reference(dims=20):
    generator = torch.Generator().manual_seed(0)
    return Reference(
        "abc",
        torch.randn(dims, generator=generator),
        {"a": torch.randn(3, generator=generator) * 1e6, "b.0": torch.randn(5) * 1e-9},
        {"a": torch.rand(3) * 1e6, "b.0": torch.rand(5) * 1e-9},
        {"a": torch.randn(7, generator=generator), "c": torch.randn(4, generator=generator)},
        {"a": torch.rand(7), "c": torch.rand(4)},
    )


def test_the_frame_centres_and_normalises():
    frame = reference()
    found = frame.frame(torch.randn(4, 3, 20).double())
    assert found.shape == (4, 3, 20)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, 3).double())
    points = torch.randn(9, 20)
    expected = points.double() - frame.mean.double()
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(frame.frame(points).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("images_each", "dims"), [(8, 512), (9, 20), (6, 1280)])
def test_the_frame_of_an_embedding_does_not_depend_on_its_batch(images_each, dims, threads):
    torch.set_num_threads(threads)
    frame = reference(dims)
    points = torch.randn(7, images_each, dims)
    together = frame.frame(points)
    assert torch.equal(frame.frame(points[3:4])[0], together[3])
    assert torch.equal(frame.frame(points[3]), together[3])
    assert torch.equal(frame.frame(points[[5, 3, 1]])[1], together[3])
    assert torch.equal(frame.frame(points[3, 2:4]), together[3, 2:4])


@pytest.mark.parametrize("width", [7, 4])
def test_joined_views_are_as_alike_as_both_find_them_on_average(width):
    frame = reference()
    points, layer_input = torch.randn(2, 6, 20), torch.randn(2, 6, width) * 1e3
    joined = frame.join(points, layer_input)
    # As wide as the widest, whatever is there.
    assert joined.shape == (2, 6, 27)
    views = [points.double() - frame.mean.double(), layer_input.double()]
    units = [view / view.norm(dim=-1, keepdim=True) for view in views]
    expected = sum(view @ view.mT for view in units) / 2
    torch.testing.assert_close((joined @ joined.mT).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(frame.join(points[1, 2:4], layer_input[1, 2:4]), joined[1, 2:4])


def test_without_a_layer_below_the_embedder_decides():
    frame, points = reference(), torch.randn(6, 20)
    joined = frame.join(points, torch.zeros(6, 0))
    torch.testing.assert_close(joined[:, :20], frame.frame(points))
    assert (joined[:, 20:] == 0).all()
    # Nor does an image that the layer below does not tell from the mean.
    assert torch.equal(frame.join(points, torch.zeros(6, 4)), joined)
    lone = Reference("key", frame.mean, {}, {})
    assert lone.join(points, torch.zeros(6, 0)).shape == (6, 20)


def test_a_reference_is_read_back_as_it_was_written(tmp_path):
    made = reference()
    path = tmp_path / "references" / "abc.safetensors"
    made.save(path)
    made.save(path)  # another process may have been faster
    assert list(path.parent.iterdir()) == [path]
    # For whoever may read the run: as of any other file of it.
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode
    read = Reference.load(path)
    assert read.key == "abc"
    assert torch.equal(read.mean, made.mean)
    for ours, theirs, names in (
        (read.layer_start, made.layer_start, {"a", "b.0"}),
        (read.layer_std, made.layer_std, {"a", "b.0"}),
        (read.input_mean, made.input_mean, {"a", "c"}),
        (read.input_std, made.input_std, {"a", "c"}),
    ):
        assert set(ours) == names
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_layer_statistics_are_padded_to_the_widest():
    made = reference()
    mean, std = made.layer_table(["b.0", "a"])
    assert torch.equal(mean[0], made.layer_start["b.0"])
    assert torch.equal(std[1, :3], made.layer_std["a"])
    assert mean[1, 3:].tolist() == [0, 0]
    assert std[1, 3:].tolist() == [1, 1]
    assert made.layer_table(["a"])[0].shape == (1, 3)


def test_a_layer_without_statistics_is_refused():
    with pytest.raises(InputError, match=r"layer 'b\.1' only hands on.*nearest: b\.0"):
        reference().layer_table(["a", "b.1"])
