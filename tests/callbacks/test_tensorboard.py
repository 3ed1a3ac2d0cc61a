import itertools
import json
import struct
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from google.protobuf import text_format
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import ImageColor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from polylight.callbacks.scoring import ScoreNeurons
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.callbacks.tensorboard.board import Board
from polylight.callbacks.tensorboard.earlier import read_earlier
from polylight.callbacks.tensorboard.grid import cluster_grid
from polylight.callbacks.tensorboard.projector import COLUMNS, Projector
from polylight.cli import main
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.inspect.palette import PALETTE
from polylight.module import PolysemanticityModule
from polylight.reference import load_or_make_reference
from polylight.run.manifest import read_manifest
from polylight.run.png import decode_png, encode_png
from polylight.run.store import read_rows
from polylight.stopwatch import Stopwatch

SWITCHES = ("scalars", "histograms", "images", "projector", "hparams", "layout")
NEURONS = ["act3:0-5", "conv2:0-3"]
TINY = [
    *("--model.subject", "tiny:subject"),
    *("--model.embedder", "tiny:embedder"),
    *("--model.image_size", "32"),
    *("--model.max_steps", "12"),
    *("--model.max_images", "8"),
    *("--model.round_size", "4"),
    *("--model.pool_size", "6"),
    *("--model.reference_images", "24"),
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
]


def fit(run, *more):
    given = ["--run_dir", str(run), "--data.neurons", json.dumps(NEURONS), *TINY, *more]
    return main(["fit", *given])


def read(folder):
    """All events of a folder, none sampled away."""
    sizes = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    board = EventAccumulator(str(folder), sizes)
    board.Reload()
    return board


def scalars(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def plugin_data(folder, tag):
    content = read(folder).summary_metadata[tag].plugin_data.content
    return HParamsPluginData.FromString(content)


def table(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def picture(path):
    return decode_png(path.read_bytes())


def pictures_of(row):
    return [decode_png(png) for png in row.image]


def halved(embeddings):
    """A frame that no other thing here could be mistaken for."""
    return embeddings / 2


class Sitting:
    """A board without a run: the caller says what the engine has done."""

    def __init__(self, folder, **wishes):
        self.writer = SummaryWriter(folder)
        given = {"every": 0.0, "summary_every": 1e9, **wishes}
        self.board = Board(self.writer, folder, TensorBoardMonitor(**given).wishes)
        self.engine = SimpleNamespace(
            images=0,
            image_steps=0,
            occupancy=1.0,
            watch=Stopwatch(),
            queue=SimpleNamespace(drained=False),
            pool=SimpleNamespace(
                running=torch.tensor([True, False, True]), smooth=torch.tensor([1.0, 8.0, 3.0])
            ),
        )
        self.board.start(halved, None)

    def turn(self, step, rows=(), image_steps=0, seconds=0.0):
        for row in rows:
            self.board.tally.note(row.neuron, row.layer, row.status, row.score)
            self.board.show(row, step)
        self.engine.image_steps += image_steps
        self.engine.watch.seconds["ascent"] += seconds
        self.board.refresh(self.engine, step)

    def end(self, step):
        self.engine.queue.drained = True
        self.board.end(self.engine, step)
        self.writer.close()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run in two sessions, and what each had finished."""
    run = tmp_path_factory.mktemp("monitor") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYLIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        # As on a GPU: rows that are not made yet when the loop ends go to the store only.
        patch.setattr("polylight.fit.ScoreNeurons", partial(ScoreNeurons, threaded=True))
        assert fit(run, "--trainer.max_steps", "60", "--tensorboard.max_grids", "5") == 0
        patch.undo()
        patch.setenv("POLYLIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        first, folder = [row.neuron for row in read_rows(run)], run / "tensorboard"
        before = SimpleNamespace(
            neurons=first,
            manifest=read_manifest(run),
            step=scalars(folder, "neurons/finished")[-1][0],
            ends="_hparams_/session_end_info" in read(folder).summary_metadata,
            facts=table(folder / "projector" / "metadata.tsv"),
            files=sorted(p.name for p in folder.rglob("*")),
        )
        assert 0 < len(first) < 5
        assert fit(run, "--tensorboard.max_grids", "5", "--tensorboard.every", "0") == 0
    return SimpleNamespace(run=run, folder=folder, rows=read_rows(run), before=before)


def test_a_resumed_run_continues_its_curves(resumed):
    board = read(resumed.folder)
    for tag in board.Tags()["scalars"]:
        steps = [event.step for event in board.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    for tag in board.Tags()["histograms"]:
        steps = [event.step for event in board.Histograms(tag)]
        assert steps == sorted(set(steps)), tag
    before = resumed.before
    assert before.step == 60
    finished = dict(scalars(resumed.folder, "neurons/finished"))
    assert dict(scalars(resumed.folder, "run/finished"))[60] == len(before.neurons)
    assert finished[60] <= len(before.neurons)
    later = [step for step in finished if step > 60]
    # Four steps a turn, from where the first session was cut off.
    assert later[0] == 64
    assert [finished[step] for step in sorted(finished)] == sorted(finished.values())
    assert finished[later[-1]] == len(resumed.rows) == 10
    images = scalars(resumed.folder, "images/finished")
    assert dict(images)[60] == before.manifest.images
    assert images[-1][1] == read_manifest(resumed.run).images
    assert [value for _, value in images] == sorted(value for _, value in images)


def test_scores_are_those_of_all_sittings(resumed):
    board = read(resumed.folder)
    for layer in ("act3", "conv2"):
        scores = [r.score for r in resumed.rows if r.layer == layer and r.score is not None]
        assert scores
        last = board.Histograms(f"score/{layer}")[-1].histogram_value
        assert last.num == len(scores)
        assert last.sum == pytest.approx(sum(scores))
        assert board.Scalars(f"score_median/{layer}")[-1].value == pytest.approx(np.median(scores))


def test_a_neuron_is_shown_once_and_no_more_than_wanted(resumed):
    board = read(resumed.folder)
    order = [row.neuron for row in resumed.rows]
    assert sorted(board.Tags()["images"]) == sorted(f"neuron/{name}" for name in order[:5])
    for row in resumed.rows[:5]:
        (shown,) = board.Images(f"neuron/{row.neuron}")
        assert np.array_equal(
            decode_png(shown.encoded_image_string), cluster_grid(row, pictures_of(row))
        )


def test_the_projector_holds_the_clustered_embeddings_of_the_run(resumed):
    facts = table(resumed.folder / "projector" / "metadata.tsv")
    scored = [row for row in resumed.rows if row.score is not None]
    assert facts[0] == list(COLUMNS)
    expected = [
        [row.neuron, row.layer, str(row.label[i]), f"{row.score:.6g}", f"{row.activation[i]:.6g}"]
        for row in scored
        for i in np.flatnonzero(row.label >= 0)
    ]
    assert facts[1:] == expected
    # What the first session wrote is still there, in its place.
    assert facts[: len(resumed.before.facts)] == resumed.before.facts
    assert len(resumed.before.facts) > 1
    points = np.loadtxt(resumed.folder / "projector" / "tensors.tsv", delimiter="\t")
    module = PolysemanticityModule(
        "tiny:subject", "tiny:embedder", image_size=32, reference_images=24
    )
    reference = load_or_make_reference(
        module.subject_model, module.embedder_model, module.recipe, torch.device("cpu")
    )
    raw = np.concatenate([row.embedding[row.label >= 0] for row in scored]).astype(np.float64)
    moved = raw - reference.mean.double().numpy()
    units = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    assert points == pytest.approx(units, abs=2e-6)
    # A folder that grows with every session by its event file and nothing else.
    files = sorted(p.name for p in resumed.folder.rglob("*"))
    assert len(files) == len(resumed.before.files) + 1


def test_hparams_are_one_session_with_metrics(resumed):
    folder, board = resumed.folder, read(resumed.folder)
    start = plugin_data(folder, "_hparams_/session_start_info").session_start_info
    settings = dict(start.hparams.items())
    assert start.group_name == str(resumed.run)
    # What the preset decides is there with its value; what is null is not.
    assert settings["subject"].string_value == "tiny:subject"
    assert settings["layers"].string_value == "act3,conv2"
    assert settings["selection"].string_value == "bic"
    assert settings["precision"].string_value == "float32"
    assert settings["cuda_graph"].string_value == "true"
    assert settings["max_steps"].number_value == 12
    assert settings["repulsion"].number_value == 4.0
    assert settings["round_size"].number_value == 4
    experiment = plugin_data(folder, "_hparams_/experiment").experiment
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    end = plugin_data(folder, "_hparams_/session_end_info").session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS
    assert not resumed.before.ends
    # Written once, whatever the number of sessions.
    for tag in board.summary_metadata:
        if tag.startswith("_hparams_"):
            assert len(board.Tensors(tag)) == 1, tag
    assert "hp_metric" not in board.Tags()["scalars"]

    values = {i.name.tag: board.Scalars(i.name.tag)[-1].value for i in experiment.metric_infos}
    scores = [row.score for row in resumed.rows if row.score is not None]
    statuses = [row.status for row in resumed.rows]
    rate = read_manifest(resumed.run).image_steps_per_second
    assert values == pytest.approx(
        {
            "run/median_score": np.median(scores),
            "run/mean_score": np.mean(scores),
            "run/finished": 10,
            "run/dead": statuses.count("dead"),
            "run/failed": statuses.count("failed"),
            "run/image_steps_per_second": rate,
        },
        rel=1e-5,
    )


def test_the_layout_is_there_once(resumed):
    board = read(resumed.folder)
    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {c.title: list(c.multiline.tag) for x in layout.category for c in x.chart}
    assert charts["median by layer"] == ["score_median/.*"]
    assert [x.title for x in layout.category] == ["Throughput", "Progress", "Scores"]
    plain = {tag for tags in charts.values() for tag in tags if "*" not in tag}
    assert plain <= set(board.Tags()["scalars"])


def test_shards_have_a_folder_each(tmp_path):
    run = tmp_path / "run"
    for shard in ("0/2", "1/2"):
        assert fit(run, "--data.neurons", '["act3:0-3"]', "--data.shard", shard) == 0
    groups = set()
    for folder in (run / "tensorboard", run / "tensorboard" / "shard-00001"):
        assert scalars(folder, "run/finished")[-1][1] == 2
        assert len(read(folder).Tags()["images"]) == 2
        start = plugin_data(folder, "_hparams_/session_start_info").session_start_info
        groups.add(start.group_name)
    assert len(groups) == 1


def test_all_switched_off_writes_nothing(tmp_path):
    off = [x for name in SWITCHES for x in (f"--tensorboard.{name}", "false")]
    assert fit(tmp_path / "run", *off, "--trainer.max_steps", "60") == 0
    folder = tmp_path / "run" / "tensorboard"
    assert read_earlier(folder) == (0, frozenset())
    assert {p.name for p in folder.iterdir() if "tfevents" not in p.name} <= {"hparams.yaml"}


@pytest.mark.parametrize("only", SWITCHES)
def test_each_switch_is_for_its_own(tmp_path, only):
    off = {name: name == only for name in SWITCHES}
    session = Sitting(tmp_path, **off)
    session.board.describe({"subject": "tiny"}, "run")
    session.turn(4, [make_row()])
    session.end(8)
    heads = {tag.split("/")[0] for tag in read_earlier(tmp_path).tags}
    assert (
        heads
        == {
            "scalars": {"neurons", "images", "pool", "score_median"},
            "histograms": {"score"},
            "images": {"neuron"},
            "projector": set(),
            "hparams": {"_hparams_", "run"},
            "layout": {"custom_scalars__config__"},
        }[only]
    )
    assert (tmp_path / "projector").exists() == (only == "projector")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every", -1.0),
        ("every", float("nan")),
        ("summary_every", -0.5),
        ("max_grids", -1),
        ("max_projected", -1),
        ("max_projected", 100_001),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, capsys, name, value):
    with pytest.raises(InputError, match=rf"tensorboard\.{name} has to be .*, not {value}"):
        TensorBoardMonitor(**{name: value})
    if np.isfinite(value):
        assert fit(tmp_path / "run", f"--tensorboard.{name}={value}") == 2
        assert f"tensorboard.{name}" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_scalars_are_those_of_the_rows(tmp_path):
    session = Sitting(tmp_path)
    rows = [
        make_row("a:0", layer="a", score=0.2),
        make_row("a:1", layer="a", score=0.6),
        make_row("b:0", layer="b", score=0.9),
    ]
    session.turn(4, rows[:1], image_steps=100, seconds=2.0)
    session.turn(8, [rows[1], make_dead()], image_steps=90, seconds=1.0)
    session.turn(12, rows[2:], image_steps=30, seconds=0.5)
    # Lightning takes a turn more after the last, which moves nothing.
    session.engine.queue.drained = True
    session.turn(12)
    session.end(12)
    assert scalars(tmp_path, "neurons/finished") == [(4, 1), (8, 3), (12, 4)]
    assert scalars(tmp_path, "neurons/dead") == [(4, 0), (8, 1), (12, 1)]
    assert scalars(tmp_path, "pool/image_steps_per_second") == [(4, 50), (8, 90), (12, 60)]
    assert scalars(tmp_path, "pool/mean_activation") == [(4, 2), (8, 2), (12, 2)]
    assert scalars(tmp_path, "score_median/a") == [
        (4, pytest.approx(0.2)),
        (8, pytest.approx(0.4)),
    ]
    assert scalars(tmp_path, "score_median/b") == [(12, pytest.approx(0.9))]
    assert scalars(tmp_path, "run/median_score") == [(12, pytest.approx(0.6))]
    assert scalars(tmp_path, "run/mean_score") == [(12, pytest.approx(1.7 / 3))]
    assert scalars(tmp_path, "run/image_steps_per_second") == [(12, pytest.approx(220 / 3.5))]


def test_a_histogram_has_bins_of_a_fortieth(tmp_path):
    scores = np.random.default_rng(0).uniform(0.1, 0.9, 500)
    session = Sitting(tmp_path, images=False, projector=False)
    session.turn(4, [make_row(f"a:{i}", score=float(s)) for i, s in enumerate(scores)])
    session.end(4)
    (event,) = read(tmp_path).Histograms("score/blocks.4")
    shown = event.histogram_value
    counts, edges = np.histogram(scores, bins=40, range=(0, 1))
    there = {round(e, 9): n for e, n in zip(shown.bucket_limit, shown.bucket, strict=True) if n}
    assert there == {round(e, 9): n for e, n in zip(edges[1:], counts, strict=True) if n}
    assert (shown.min, shown.max) == (scores.min(), scores.max())


def test_a_grid_has_a_row_a_cluster_the_strongest_on_top():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9), (90, 90, 90), (50, 0, 50)]
    flat = torch.tensor(colours, dtype=torch.uint8)[:, None, None].expand(-1, 8, 8, -1)
    row = make_row(
        label=np.array([0, 1, 1, -1, 1, 0], dtype=np.int32),
        activation=np.array([1, 5, 7, 9, np.nan, 2], dtype=np.float32),
        cluster_weight=np.array([0.3, 0.7]),
        image=encode_png(flat.numpy()),
    )
    grid = cluster_grid(row, pictures_of(row), columns=2, side=10)
    # Frames of 4 pixels, 6 between the rows; of the three in the strongest, two find room.
    assert grid.shape == (3 * 18 + 2 * 6, 2 * 10 + 3 * 4, 3)
    expected = [(PALETTE[0], [2, 1]), (PALETTE[1], [5, 0]), ("#8c959f", [3])]
    for place, (colour, images) in enumerate(expected):
        top = 24 * place
        width = 4 + 14 * len(images)
        frame = np.array(ImageColor.getrgb(colour))
        assert (grid[top : top + 4, :width] == frame).all()
        assert (grid[top : top + 18, width - 4 : width] == frame).all()
        assert (grid[top : top + 18, width:] == 255).all()
        for column, image in enumerate(images):
            left = 4 + 14 * column
            assert (grid[top + 4 : top + 14, left : left + 10] == colours[image]).all()
    assert (grid[18:24] == 255).all()


def test_projector_files_are_bounded_and_only_grow_at_the_end(tmp_path):
    rows = [make_row(f"a:{i}", n=6, score=0.1 * i) for i in range(4)]
    for row in rows:
        row.label[:] = 1
    rows[1].label[2] = -1
    projector = Projector(tmp_path, halved, most=14)
    seen = []
    for row in [*rows[:2], make_dead(), *rows[2:]]:
        projector.add(row, pictures_of(row))
        projector.write()
        seen.append(table(tmp_path / "projector" / "metadata.tsv")[1:])
    assert [len(facts) for facts in seen] == [6, 11, 11, 14, 14]
    for early, late in itertools.pairwise(seen):
        assert late[: len(early)] == early
    kept = (
        [(0, i) for i in range(6)] + [(1, i) for i in (0, 1, 3, 4, 5)] + [(2, i) for i in (0, 1, 2)]
    )
    points = np.loadtxt(tmp_path / "projector" / "tensors.tsv", delimiter="\t")
    expected = np.stack([rows[r].embedding[i] for r, i in kept]) / 2
    assert points == pytest.approx(expected, rel=1e-5)
    assert [fact[0] for fact in seen[-1]] == [f"a:{r}" for r, _ in kept]

    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    assert list(embedding.sprite.single_image_dim) == [8, 8]
    for path in (embedding.tensor_path, embedding.metadata_path, embedding.sprite.image_path):
        assert (tmp_path / path).is_file()
    sprite = picture(tmp_path / embedding.sprite.image_path)
    assert sprite.shape == (4 * 8, 4 * 8, 3)
    for place, (r, i) in enumerate(kept):
        top, left = 8 * (place // 4), 8 * (place % 4)
        tile = sprite[top : top + 8, left : left + 8]
        assert np.array_equal(tile, decode_png(rows[r].image[i]))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "metadata.tsv",
        "projector_config.pbtxt",
        "sprite.png",
        "tensors.tsv",
    ]
    written = (tmp_path / "projector" / "tensors.tsv").stat().st_ino
    projector.write()
    assert (tmp_path / "projector" / "tensors.tsv").stat().st_ino == written


@pytest.mark.parametrize("most", [0, 1, 7, 20, 1000])
@pytest.mark.parametrize("grids", [0, 2, 5])
def test_only_rows_that_are_drawn_are_asked_for(tmp_path, most, grids):
    rows = [make_row(f"a:{i}", n=1 + i % 4) for i in range(12)]
    rows[2:2] = [make_dead(), make_row("b:0", label=np.full(6, -1, dtype=np.int32))]
    counts = [(row.neuron, row.num_images, sum(c >= 0 for c in row.label.tolist())) for row in rows]
    drawn = []
    for name in ("all", "wanted"):
        session = Sitting(tmp_path / name, max_projected=most, max_grids=grids)
        wanted = session.board.wanted(counts) if name == "wanted" else [c[0] for c in counts]
        for row in rows:
            if row.neuron in wanted:
                session.board.show(row)
        session.end(4)
        facts = tmp_path / name / "projector" / "metadata.tsv"
        grid_tags = [tag for tag in read_earlier(tmp_path / name).tags if tag[:7] == "neuron/"]
        drawn.append((sorted(grid_tags), facts.exists() and table(facts)))
    assert drawn[0] == drawn[1]
    assert len(drawn[0][0]) == grids
    total = sum(points for _, _, points in counts)
    assert len(drawn[0][1] or [0]) == 1 + min(most, total)


@pytest.mark.parametrize(("most", "side"), [(2000, 64), (16384, 64), (16385, 63), (100_000, 25)])
def test_a_sprite_never_outgrows_a_texture(tmp_path, most, side):
    images = torch.full((1, 100, 100, 3), 7, dtype=torch.uint8)
    projector = Projector(tmp_path, halved, most)
    projector.add(make_row(n=1, label=np.zeros(1, dtype=np.int32)), images.numpy())
    projector.write()
    assert picture(tmp_path / "projector" / "sprite.png").shape == (side, side, 3)
    assert side * np.ceil(np.sqrt(most)) <= 8192


def test_summaries_come_now_and_then(tmp_path):
    session = Sitting(tmp_path, summary_every=0.0)
    label = np.zeros(6, dtype=np.int32)
    session.turn(4, [make_row("a:0", label=label)])
    assert len(table(tmp_path / "projector" / "metadata.tsv")) == 1 + 6
    session.turn(8, [make_row("a:1", label=label)])
    assert len(table(tmp_path / "projector" / "metadata.tsv")) == 1 + 12
    session.end(12)
    assert scalars(tmp_path, "run/finished") == [(4, 1), (8, 2), (12, 2)]


def test_what_is_there_is_read_up_to_where_it_is_whole(tmp_path):
    assert read_earlier(tmp_path / "missing") == (0, frozenset())
    writer = SummaryWriter(tmp_path)
    for step in range(1, 21):
        writer.add_scalar(f"tag/{step % 3}", step, 3 * step)
    writer.close()
    every = frozenset({"tag/0", "tag/1", "tag/2"})
    assert read_earlier(tmp_path) == (60, every)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert read_earlier(tmp_path) == (57, every)
    path.write_bytes(whole + struct.pack("<Q4x", 2**62))
    assert read_earlier(tmp_path) == (60, every)
    garbled = whole + struct.pack("<Q4x", 8) + b"\xff" * 8 + bytes(4)
    path.write_bytes(garbled)
    assert read_earlier(tmp_path) == (60, every)
    (tmp_path / "events.out.tfevents.9").write_bytes(b"")
    assert read_earlier(tmp_path) == (60, every)


def _trainer(tmp_path, logger):
    data = NeuronDataModule(NEURONS)
    return SimpleNamespace(
        loggers=[logger],
        callbacks=[],
        datamodule=data,
        global_step=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def test_a_logger_of_ones_own_has_the_same_hparams(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="own")
    module = PolysemanticityModule("tiny:subject", "tiny:embedder", image_size=32)
    TensorBoardMonitor().setup(_trainer(tmp_path, logger), module, "fit")
    # As Lightning does where it is not told otherwise.
    logger.log_hyperparams(dict(module.hparams))
    logger.finalize("success")
    start = plugin_data(logger.log_dir, "_hparams_/session_start_info").session_start_info
    assert start.group_name == logger.log_dir
    assert "layers" in start.hparams
    experiment = plugin_data(logger.log_dir, "_hparams_/experiment").experiment
    assert "run/median_score" in {info.name.tag for info in experiment.metric_infos}


def test_a_run_without_a_logger_goes_unwatched(tmp_path):
    monitor, module = TensorBoardMonitor(), SimpleNamespace(engine=None)
    trainer = SimpleNamespace(loggers=[])
    monitor.setup(trainer, module, "fit")
    monitor.on_train_start(trainer, module)
    monitor.on_train_batch_end(trainer, module, {"rows": []}, 0, 0)
    monitor.teardown(trainer, module, "fit")


def test_a_full_disk_does_not_keep_others_from_saving(tmp_path, caplog, monkeypatch):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    module = PolysemanticityModule("tiny:subject", "tiny:embedder", image_size=32)
    trainer, monitor = _trainer(tmp_path, logger), TensorBoardMonitor()
    engine = Sitting(tmp_path / "other").engine
    engine.reference = SimpleNamespace(to=lambda device: SimpleNamespace(frame=halved))
    monitor.setup(trainer, module, "fit")
    module.engine = engine
    monitor.on_train_start(trainer, module)
    monitor.on_train_batch_end(trainer, module, {"rows": [make_row()]}, 0, 0)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polylight.callbacks.tensorboard.projector.write_atomically", full)
    monitor.on_exception(trainer, module, KeyboardInterrupt())
    assert "the last values of TensorBoard are not written" in caplog.text
    assert "No space left on device" in caplog.text
    logger.finalize("failed")
