"""A monitor scores a training and changes nothing of it."""

import logging
import random
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import polylight
from polylight import InputError, PolysemanticityMonitor, read_rows
from polylight.callbacks.monitor import _distribution
from polylight.run.manifest import read_manifest

pytestmark = [
    # What Lightning says of small trainings on this machine.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
QUICK = {
    "images": 4,
    "reference_images": 8,
    "max_steps": 8,
    "pool_size": 8,
    "mean": 0.5,
    "std": 0.5,
    "input_size": 16,
}


class Tiny(LightningModule):
    """Draws random numbers from everywhere, and remembers its losses."""

    def __init__(self, rate=0.05):
        super().__init__()
        self.rate, self.losses = rate, []
        self.net = nn.Sequential()
        for name, layer in (
            ("conv1", nn.Conv2d(3, 6, 3, 2, 1)),
            ("norm", nn.BatchNorm2d(6)),
            ("act", nn.ReLU()),
            ("conv2", nn.Conv2d(6, 10, 3, 2, 1)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
            ("drop", nn.Dropout(0.3)),
            ("fc", nn.Linear(10, 3)),
        ):
            self.net.add_module(name, layer)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        noise = np.random.rand() * torch.randn_like(x)  # noqa: NPY002
        x = x * (1 + 0.1 * random.random()) + 0.1 * noise
        loss = F.cross_entropy(self(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.rate)


def loader(shuffle=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 3, 16, 16, generator=generator)
    y = torch.randint(3, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8, shuffle=shuffle)


def make_trainer(*callbacks, epochs=2, logger=False, **options):
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"enable_checkpointing": False, **options},
    )


def monitor(*layers, **options):
    layers = layers or ("conv1", "conv2:3-4")
    given = {"network": "net", "neurons_per_layer": 3, "embedder": tiny.embedder(), **QUICK}
    return PolysemanticityMonitor(list(layers), **{**given, **options})


def train(*callbacks, model=None, **options):
    model = model or Tiny()
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, loader(), loader(shuffle=False))
    return model, trainer


@pytest.fixture(scope="module")
def scored():
    """A training of two epochs with a monitor."""
    seed_everything(3, verbose=False)
    found = monitor()
    model, _ = train(found)
    return model, found


def random_states():
    kind, state, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state(), random.getstate(), (kind, state.tolist(), *rest)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_training_with_it_is_the_same_to_the_bit():
    outcomes = []
    for callbacks in ([], [monitor()]):
        seed_everything(7, verbose=False)
        model, trainer = train(*callbacks)
        optimizer = trainer.optimizers[0].state_dict()
        outcomes.append((model.state_dict(), optimizer, model.losses, random_states()))
    for without, with_monitor in zip(*outcomes, strict=True):
        assert equal(without, with_monitor)
    assert len(outcomes[0][2]) == 6


class LookAround(Callback):
    """Compares what a monitor between two of these could have changed."""

    def __init__(self, before=None):
        self.before, self.seen, self.hooks = before, [], {}

    def on_train_epoch_end(self, trainer, pl_module):
        weights = pl_module.state_dict(keep_vars=True)
        state = {
            "weights": {n: (id(v), v.clone()) for n, v in weights.items()},
            "modes": {n: m.training for n, m in pl_module.named_modules()},
            "trained": {n: p.requires_grad for n, p in pl_module.named_parameters()},
            "gradients": {
                n: (id(p.grad), p.grad.clone())
                for n, p in pl_module.named_parameters()
                if p.grad is not None
            },
            "hooks": {n: dict(m._forward_hooks) for n, m in pl_module.named_modules()},
            "attributes": sorted(pl_module.__dict__),
            "callbacks": list(map(id, trainer.callbacks)),
            "state": (trainer.state.fn, trainer.state.stage, trainer.state.status),
            "metrics": dict(trainer.callback_metrics),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "random": random_states(),
        }
        if self.before is None:
            self.seen.append(state)
            return
        for name, value in self.before.seen[-1].items():
            assert equal(value, state[name]), name
        self.seen.append(state)


def test_nothing_of_the_module_or_the_process_changes():
    before = LookAround()
    after = LookAround(before)
    model = Tiny()
    model.net.conv2.register_forward_hook(lambda *_: None)
    # Lightning forgets gradients before it validates.
    make_trainer(before, monitor(), after, epochs=1).fit(model, loader())
    (state,) = after.seen
    assert state["gradients"]
    assert state["modes"]["net.drop"]
    assert len(state["hooks"]["net.conv2"]) == 1
    assert not state["trained"]["frozen.weight"]


def test_history_has_a_row_for_each_neuron_and_epoch(scored):
    _, found = scored
    table = found.history.to_pandas()
    assert table.groupby("epoch").size().to_dict() == {0: 5, 1: 5, 2: 5}
    assert table.groupby("epoch")["step"].first().to_dict() == {0: 0, 1: 3, 2: 6}
    names = table["neuron"].unique().tolist()
    # Three of six channels, drawn once; channels that are named as they are.
    assert [n for n in names if n.startswith("conv2")] == ["conv2:3", "conv2:4"]
    assert len({n for n in names if n.startswith("conv1")}) == 3
    ok = table[table["status"] == "ok"]
    assert len(ok) > 5
    assert ok["score"].between(0, 1).all()
    assert (ok["score_low"] <= ok["score"]).all()
    np.testing.assert_allclose(ok["k_eff"], 1 / (1 - ok["score"]))
    assert found.seconds > 0


def test_scores_are_those_of_a_run_of_the_same_network(scored):
    model, found = scored
    last = found.history.to_pandas().query("epoch == 2")
    run = polylight.score(
        model.net,
        last["neuron"].tolist(),
        embedder=tiny.embedder(),
        images=4,
        image_size=16,
        reference_images=8,
        max_steps=8,
        mean=0.5,
        std=0.5,
        device="cpu",
        progress=False,
    )
    theirs = run.to_pandas().set_index("neuron")
    for row in last.itertuples():
        assert row.score == theirs.loc[row.neuron, "score"] or np.isnan(row.score)
        assert row.status == theirs.loc[row.neuron, "status"]


def test_the_sample_of_a_layer_does_not_depend_on_the_others():
    def sampled(*layers, **options):
        found = monitor(*layers, **options)
        found.on_fit_start(make_trainer(), Tiny())
        return [n for n in found._neurons if n.startswith("conv2")]

    alone, beside = sampled("conv2"), sampled("conv1", "conv2")
    assert alone == beside
    assert len(set(alone)) == 3
    assert sampled("conv2", seed=1) != alone
    assert len(sampled("conv2", neurons_per_layer=99)) == 10


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [({}, 3, [0, 1, 2, 3]), ({"at_start": False}, 2, [1, 2]), ({"every_n_epochs": 2}, 3, [0, 2])],
)
def test_epochs_that_are_scored(options, epochs, expected, monkeypatch):
    scored = []

    def note(self, trainer, pl_module, epoch):
        scored.append(epoch)

    monkeypatch.setattr(PolysemanticityMonitor, "_score", note)
    train(monitor("conv1:0", **options), epochs=epochs)
    assert scored == expected


def test_without_a_name_the_module_itself_is_scored():
    found = []
    for name, network in (("net.conv2:3", None), ("conv2:3", "net")):
        seed_everything(7, verbose=False)
        one = monitor(name, network=network)
        train(one, epochs=1)
        assert set(one.history["neuron"].to_pylist()) == {name}
        found.append(one.history["status"].to_pylist())
    assert found[0] == found[1] == ["ok", "ok"]


def test_loggers_get_the_distribution_and_every_curve(tmp_path):
    found = monitor()
    csv, board = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")
    train(found, logger=[csv, board])
    table = found.history.to_pandas()
    scores = table.query("epoch == 2")["score"].dropna()
    seen = EventAccumulator(board.log_dir, size_guidance={"histograms": 0}).Reload()

    def curve(tag):
        return {event.step: event.value for event in seen.Scalars(f"polysemanticity/{tag}")}

    assert curve("mean").keys() == {0, 3, 6}
    assert curve("mean")[6] == pytest.approx(scores.mean())
    assert curve("median")[6] == pytest.approx(scores.median())
    assert curve("q90")[6] == pytest.approx(np.quantile(scores, 0.9))
    assert curve("neuron/conv2/3")[6] == pytest.approx(
        table.query("epoch == 2 and neuron == 'conv2:3'")["score"].item()
    )
    of_layer = table.query("epoch == 2 and layer == 'conv1'")["score"].mean()
    assert curve("layer/conv1/mean")[6] == pytest.approx(of_layer)
    histograms = seen.Histograms("polysemanticity/scores")
    assert [h.step for h in histograms] == [0, 3, 6]
    assert histograms[-1].histogram_value.num == len(scores)
    logged = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "polysemanticity/neuron/conv2/4" in logged


def test_distribution_of_scores():
    def row(score, k):
        return Mock(score=score, k=k)

    found = _distribution([row(0.1, 1), row(0.3, 2), row(0.8, 5), row(None, None)])
    assert found["mean"] == pytest.approx(0.4)
    assert found["median"] == pytest.approx(0.3)
    assert found["q25"] == pytest.approx(0.2)
    assert found["several"] == pytest.approx(2 / 3)
    assert found["dead"] == 0.25
    assert _distribution([row(None, None)]) == {"dead": 1.0}


def test_each_epoch_leaves_a_run(tmp_path):
    found = monitor(run_dir=tmp_path / "runs")
    train(found, epochs=1)
    table, hashes = found.history.to_pandas(), set()
    for epoch in (0, 1):
        folder = tmp_path / "runs" / f"epoch-{epoch:04d}"
        rows = {row.neuron: row for row in read_rows(folder)}
        of_epoch = table.query(f"epoch == {epoch}")
        assert rows.keys() == set(of_epoch["neuron"])
        for kept in of_epoch.itertuples():
            assert rows[kept.neuron].score == kept.score or np.isnan(kept.score)
        assert all(len(row.image) == 4 for row in rows.values())
        manifest = read_manifest(folder)
        assert manifest.status == "finished"
        assert manifest.neurons["finished"] == 5
        assert manifest.images == 20
        assert (folder / "reference.safetensors").is_file()
        hashes.add(manifest.subject["weights_hash"])
    assert len(hashes) == 2
    with pytest.raises(InputError, match="epoch-0000 of another training"):
        train(monitor(run_dir=tmp_path / "runs"))


def test_a_training_that_goes_on_keeps_its_history(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    first = monitor("conv1:0-1", run_dir=tmp_path / "runs")
    train(first, saver, epochs=1, enable_checkpointing=True)
    second = monitor("conv1:0-1", run_dir=tmp_path / "runs")
    trainer = make_trainer(second, epochs=2)
    trainer.fit(Tiny(), loader(), loader(shuffle=False), ckpt_path=tmp_path / "last.ckpt")
    assert second.history["epoch"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert second.history.slice(0, 4).equals(first.history)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        f"epoch-000{e}" for e in range(3)
    ]


def test_a_training_that_diverges_goes_on(caplog):
    class Diverging(Tiny):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                nn.init.constant_(self.net.conv1.weight, torch.nan)

    found = monitor("conv1:0")
    with caplog.at_level(logging.WARNING):
        _, trainer = train(found, model=Diverging(), epochs=3)
    assert trainer.current_epoch == 3
    assert found.history["epoch"].to_pylist() == [0, 1]
    assert "epoch 2 is not scored: conv1.weight" in caplog.text


def test_only_the_first_process_scores():
    found = monitor()
    other = Mock(is_global_zero=False, global_step=0, current_epoch=0)
    found.on_fit_start(other, None)
    found.on_train_start(other, None)
    found.on_train_epoch_end(other, None)
    assert found.history.num_rows == 0
    other.strategy.assert_not_called()


def refused(found, model=None):
    """What a training says that ends before its first batch."""
    model = model or Tiny()
    with pytest.raises(InputError) as error:
        train(found, model=model)
    assert model.losses == []
    return str(error.value)


def test_layers_that_do_not_exist_are_refused_before_the_first_batch():
    assert "conv22" in refused(monitor("conv22"))
    assert "nearest" in refused(monitor("conv22"))
    assert "channel 10" in refused(monitor("conv2:10"))


def test_a_network_that_does_not_exist_is_refused():
    said = refused(monitor(network="model"))
    assert "Tiny has no network 'model'" in said
    assert "net" in said


def test_a_module_without_forward_names_its_networks():
    class Inner(Tiny):
        forward = LightningModule.forward

    said = refused(monitor(network=None), Inner())
    assert "no forward of its own" in said
    assert "net, frozen" in said


def test_an_embedder_that_cannot_embed_is_refused():
    assert "cannot embed" in refused(monitor(embedder=tiny.headless()))


def test_weights_that_are_spread_are_refused():
    class FSDPStrategy:
        pass

    with pytest.raises(InputError, match="FSDPStrategy spreads the weights"):
        monitor().on_fit_start(Mock(strategy=FSDPStrategy()), Tiny())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs has to be an integer of at least 1, not 0"),
        ({"every_n_epochs": 1.5}, "not 1.5"),
        ({"neurons_per_layer": -1}, "neurons_per_layer has to be"),
        ({"max_step": 3}, "no setting 'max_step'; nearest: max_steps"),
        ({"max_images": 3}, "no setting 'max_images'"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_at_once(options, said):
    with pytest.raises(InputError, match=said):
        monitor(**options)


def test_no_layers_are_refused():
    with pytest.raises(InputError, match="no layers"):
        PolysemanticityMonitor([])
