import dataclasses
import itertools
import json
import shutil
import struct
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from google.protobuf import text_format
from PIL import ImageColor
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.context import RequestContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from polylight.ascent.engine import Counters
from polylight.callbacks.scoring import ScoreNeurons
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.callbacks.tensorboard.grid import cluster_grid, read_images
from polylight.callbacks.tensorboard.options import Options
from polylight.callbacks.tensorboard.projector import COLUMNS, Projector
from polylight.callbacks.tensorboard.summaries import Progress, RunSummaries, read_events
from polylight.cli import main
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.inspect.palette import PALETTE
from polylight.module import PolysemanticityModule
from polylight.reference import load_or_make_reference
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.png import decode_png, encode_png
from polylight.run.store import RunStore, part_paths, read_rows

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


def halved(embeddings):
    """A frame that no other thing here could be mistaken for."""
    return embeddings / 2


class Session:
    """Summaries without a run: the caller says how far it is."""

    def __init__(self, folder, **options):
        score = options.pop("score", "score")
        given = Options(**{"every": 0.0, "summary_every": 1e9, **options})
        self.summaries = RunSummaries(folder, given, halved, Progress(), score)
        self.image_steps, self.seconds = 0, 0.0

    @property
    def progress(self):
        return Progress(
            images=7,
            image_steps=self.image_steps,
            seconds=self.seconds,
            occupancy=0.75,
            mean_activation=2.0,
        )

    def turn(self, step, rows=(), image_steps=0, seconds=0.0):
        for row in rows:
            self.summaries.count(row.neuron, row.layer, row.status, row.score)
            self.summaries.draw(row, step)
        self.image_steps += image_steps
        self.seconds += seconds
        self.summaries.refresh(self.progress, step)

    def end(self, step):
        self.summaries.close(self.progress, step, complete=True)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run in two sessions, and what each had finished."""
    run = tmp_path_factory.mktemp("monitor") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYLIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        # As on a GPU: rows that are not made yet when the loop ends go to the store only.
        patch.setattr("polylight.session.ScoreNeurons", partial(ScoreNeurons, threaded=True))
        assert fit(run, "--trainer.max_steps", "60", "--tensorboard.max_grids", "5") == 0
        patch.undo()
        patch.setenv("POLYLIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        first, folder = [row.neuron for row in read_rows(run)], run / "tensorboard"
        before = SimpleNamespace(
            neurons=first,
            manifest=read_manifest(run),
            step=scalars(folder, "neurons/finished")[-1][0],
            ends=SESSION_END_INFO_TAG in read(folder).summary_metadata,
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
    assert dict(scalars(resumed.folder, "all/neurons"))[60] == len(before.neurons)
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


def test_scores_are_those_of_all_sessions(resumed):
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
            decode_png(shown.encoded_image_string), cluster_grid(row, read_images(row))
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
        module.subject_model, module.embedder_model, module.reference_settings, torch.device("cpu")
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
    start = plugin_data(folder, SESSION_START_INFO_TAG).session_start_info
    settings = dict(start.hparams.items())
    assert start.group_name == str(resumed.run)
    # What the preset decides is there with its value; what is null is not.
    assert settings["subject"].string_value == "tiny:subject"
    assert settings["layers"].string_value == "act3,conv2"
    assert settings["selection"].string_value == "bic"
    assert settings["precision"].string_value == "float32"
    assert settings["cuda_graph"].bool_value is True
    assert settings["max_steps"].number_value == 12
    assert settings["repulsion"].number_value == 4.0
    assert settings["round_size"].number_value == 4
    assert "sd" not in settings
    end = plugin_data(folder, SESSION_END_INFO_TAG).session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS
    assert not resumed.before.ends
    # Written once, whatever the number of sessions; TensorBoard finds out what differs.
    events = [EventFileLoader(str(path)).Load() for path in sorted(folder.glob("*tfevents*"))]
    tags = [value.tag for event in itertools.chain(*events) for value in event.summary.value]
    there = [tag for tag in tags if tag.startswith("_hparams_")]
    assert there == [SESSION_START_INFO_TAG, SESSION_END_INFO_TAG]

    tags = ["neurons", "mean_score", "median_score"]
    values = [board.Scalars(f"all/{tag}")[-1].value for tag in tags]
    scores = [row.score for row in resumed.rows if row.score is not None]
    assert values == pytest.approx([10, np.mean(scores), np.median(scores)], rel=1e-5)
    rate = board.Scalars("run/image_steps_per_second")[-1].value
    assert rate == pytest.approx(read_manifest(resumed.run).image_steps_per_second, rel=1e-5)


def test_tensorboard_compares_the_runs_of_a_folder(tmp_path):
    """By what its own page of hyperparameters is told, also of a run that was killed."""
    runs = {"a": {"seed": 0, "preset": "fast"}, "b": {"seed": 0, "preset": "lucid", "sd": 0.1}}
    for name, settings in runs.items():
        session = Session(tmp_path / name)
        session.summaries.describe(settings, name)
        session.turn(4, [make_row()])
        if name == "a":
            session.end(8)
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = api_pb2.GetExperimentRequest()
    shown = get_experiment.Handler(RequestContext(), context, "", request).run()
    differs = {info.name: info.differs for info in shown.hparam_infos}
    assert differs == {"preset": True, "sd": False, "seed": False}
    # The first five are shown.
    metrics = [info.name.tag for info in shown.metric_infos]
    assert metrics[:3] == ["all/mean_score", "all/median_score", "all/neurons"]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=9,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN],
        col_params=[api_pb2.ColParams(hparam="preset", order=api_pb2.ORDER_ASC)],
    )
    found = list_session_groups.Handler(RequestContext(), context, "", request).run()
    status = {
        group.name: (group.hparams["preset"].string_value, group.sessions[0].status)
        for group in found.session_groups
    }
    assert status == {
        "a": ("fast", api_pb2.STATUS_SUCCESS),
        "b": ("lucid", api_pb2.STATUS_UNKNOWN),
    }


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
        assert scalars(folder, "all/neurons")[-1][1] == 2
        assert len(read(folder).Tags()["images"]) == 2
        start = plugin_data(folder, SESSION_START_INFO_TAG).session_start_info
        groups.add(start.group_name)
    assert len(groups) == 1


def test_all_switched_off_writes_nothing(tmp_path):
    off = [x for name in SWITCHES for x in (f"--tensorboard.{name}", "false")]
    assert fit(tmp_path / "run", *off, "--trainer.max_steps", "60") == 0
    folder = tmp_path / "run" / "tensorboard"
    assert read_events(folder) == (0, frozenset())
    assert ["tfevents" in p.name for p in folder.iterdir()] == [True]


@pytest.mark.parametrize("only", SWITCHES)
def test_each_switch_is_for_its_own(tmp_path, only):
    off = {name: name == only for name in SWITCHES}
    session = Session(tmp_path, **off)
    session.summaries.describe({"subject": "tiny"}, "run")
    session.turn(4, [make_row()])
    session.end(8)
    heads = {tag.split("/")[0] for tag in read_events(tmp_path)[1]}
    assert (
        heads
        == {
            "scalars": {"neurons", "images", "pool", "score_median"},
            "histograms": {"score"},
            "images": {"neuron"},
            "projector": set(),
            "hparams": {"_hparams_", "all", "run"},
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
    session = Session(tmp_path)
    rows = [
        make_row("a:0", layer="a", score=0.2),
        make_row("a:1", layer="a", score=0.6),
        make_row("b:0", layer="b", score=0.9),
    ]
    session.turn(4, rows[:1], image_steps=100, seconds=2.0)
    session.turn(8, [rows[1], make_dead()], image_steps=90, seconds=1.0)
    session.turn(12, rows[2:], image_steps=30, seconds=0.5)
    # Lightning takes a turn more after the last, which moves nothing.
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
    assert scalars(tmp_path, "all/median_score") == [(12, pytest.approx(0.6))]
    assert scalars(tmp_path, "all/mean_score") == [(12, pytest.approx(1.7 / 3))]
    assert scalars(tmp_path, "run/image_steps_per_second") == [(12, pytest.approx(220 / 3.5))]


def test_tags_and_columns_have_the_name_of_the_reported_score(tmp_path):
    session = Session(tmp_path, score="score_paper")
    session.summaries.describe({"seed": 0}, "run")
    row = make_row("a:0", layer="a", score=0.9, score_paper=0.25)
    session.summaries.count(row.neuron, row.layer, row.status, row.score_paper)
    session.summaries.draw(row, 4)
    session.turn(4, image_steps=10, seconds=1.0)
    session.end(4)
    assert scalars(tmp_path, "score_paper_median/a") == [(4, 0.25)]
    assert scalars(tmp_path, "all/median_score_paper") == [(4, 0.25)]
    assert read(tmp_path).Tags()["histograms"] == ["score_paper/a"]
    (first, *rest), (*_, score, _) = (
        line.split("\t")
        for line in (tmp_path / "projector" / "metadata.tsv").read_text().splitlines()[:2]
    )
    assert first == "neuron"
    assert "score_paper" in rest
    assert score == "0.25"


def test_a_histogram_has_bins_of_a_fortieth(tmp_path):
    scores = np.random.default_rng(0).uniform(0.1, 0.9, 500)
    session = Session(tmp_path, images=False, projector=False)
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
    grid = cluster_grid(row, read_images(row), columns=2)
    # Frames of 4 pixels, 6 between the rows; of the three in the strongest, two find room.
    assert grid.shape == (3 * 88 + 2 * 6, 2 * 80 + 3 * 4, 3)
    expected = [(PALETTE[0], [2, 1]), (PALETTE[1], [5, 0]), ("#8c959f", [3])]
    for place, (colour, images) in enumerate(expected):
        top = 94 * place
        width = 4 + 84 * len(images)
        frame = np.array(ImageColor.getrgb(colour))
        assert (grid[top : top + 4, :width] == frame).all()
        assert (grid[top : top + 88, width - 4 : width] == frame).all()
        assert (grid[top : top + 88, width:] == 255).all()
        for column, image in enumerate(images):
            left = 4 + 84 * column
            assert (grid[top + 4 : top + 84, left : left + 80] == colours[image]).all()
    assert (grid[88:94] == 255).all()


def test_a_damaged_image_is_a_cross_and_is_named(caplog):
    row = make_row(n=4, label=np.zeros(4, dtype=np.int32), activation=np.arange(4.0)[::-1])
    images = list(row.image)
    for i, place in ((1, images[1].index(b"IDAT") + 9), (2, 3)):
        images[i] = images[i][:place] + bytes([images[i][place] ^ 255]) + images[i][place + 1 :]
    images[3] = b""
    grid = cluster_grid(row, read_images(dataclasses.replace(row, image=images)))
    tiles = [grid[4:84, 4 + 84 * i : 84 + 84 * i] for i in range(4)]
    assert np.array_equal(tiles[0][::10, ::10], decode_png(row.image[0]))
    assert np.array_equal(tiles[1], tiles[2])
    assert np.array_equal(tiles[1], tiles[3])
    assert (tiles[1][[0, 40, 79], [0, 40, 79]] == ImageColor.getrgb("#8c959f")).all()
    assert (tiles[1][40, :30] == 255).all()
    warned = [record.getMessage()[:40] for record in caplog.records]
    assert warned == [f"image {i} of neuron blocks.4:17 is damaged" for i in (1, 2, 3)]


def test_projector_files_are_bounded_and_only_grow_at_the_end(tmp_path):
    rows = [make_row(f"a:{i}", n=6, score=0.1 * i) for i in range(4)]
    for row in rows:
        row.label[:] = 1
    rows[1].label[2] = -1
    unscored = dataclasses.replace(rows[0], neuron="b:0", score=None)
    projector = Projector(tmp_path, most=14)
    seen = []
    for row in [*rows[:2], make_dead(), unscored, *rows[2:]]:
        projector.add(row, read_images(row), halved)
        projector.write()
        seen.append(table(tmp_path / "projector" / "metadata.tsv")[1:])
    assert [len(facts) for facts in seen] == [6, 11, 11, 11, 14, 14]
    assert projector.room == 0
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
    assert list(embedding.sprite.single_image_dim) == [64, 64]
    for path in (embedding.tensor_path, embedding.metadata_path, embedding.sprite.image_path):
        assert (tmp_path / path).is_file()
    sprite = picture(tmp_path / embedding.sprite.image_path)
    assert sprite.shape == (4 * 64, 4 * 64, 3)
    for place, (r, i) in enumerate(kept):
        top, left = 64 * (place // 4), 64 * (place % 4)
        tile = sprite[top : top + 64 : 8, left : left + 64 : 8]
        assert np.array_equal(tile, decode_png(rows[r].image[i]))
    assert (sprite[3 * 64 :, 2 * 64 :] == 255).all()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "metadata.tsv",
        "projector_config.pbtxt",
        "sprite.png",
        "tensors.tsv",
    ]
    written = (tmp_path / "projector" / "tensors.tsv").stat().st_ino
    projector.write()
    assert (tmp_path / "projector" / "tensors.tsv").stat().st_ino == written


@pytest.mark.parametrize("most", [0, 1, 7, 1000])
@pytest.mark.parametrize("grids", [0, 2, 5])
def test_no_more_rows_are_asked_for_than_are_drawn(tmp_path, most, grids):
    rows = [make_row(f"a:{i}", n=1 + i % 4) for i in range(12)]
    rows[2:2] = [make_dead(), make_row("b:0", label=np.full(6, -1, dtype=np.int32))]
    points = np.cumsum([np.sum(row.label >= 0) for row in rows])
    with_images = np.cumsum([row.num_images > 0 for row in rows])
    session = Session(tmp_path, max_projected=most, max_grids=grids)
    for i, row in enumerate(rows):
        before = (0, 0) if i == 0 else (points[i - 1], with_images[i - 1])
        assert session.summaries.has_room == (before[0] < most or before[1] < grids)
        session.summaries.draw(row, 0)
    session.end(4)
    tags = [tag for tag in read_events(tmp_path)[1] if tag.startswith("neuron/")]
    drawn = [row.neuron for row in rows if row.num_images][:grids]
    assert sorted(tags) == sorted(f"neuron/{name}" for name in drawn)
    facts = tmp_path / "projector" / "metadata.tsv"
    assert (len(table(facts)) - 1 if most else 0) == min(most, points[-1])
    assert facts.exists() == (most > 0)


@pytest.mark.parametrize(("most", "side"), [(2000, 64), (16384, 64), (16385, 63), (100_000, 25)])
def test_a_sprite_never_outgrows_a_texture(tmp_path, most, side):
    images = np.full((1, 100, 100, 3), 7, dtype=np.uint8)
    projector = Projector(tmp_path, most)
    projector.add(make_row(n=1, label=np.zeros(1, dtype=np.int32)), images, halved)
    projector.write()
    assert picture(tmp_path / "projector" / "sprite.png").shape == (side, side, 3)
    assert side * np.ceil(np.sqrt(most)) <= 8192


def test_summaries_come_now_and_then(tmp_path):
    session = Session(tmp_path, summary_every=0.0)
    label = np.zeros(6, dtype=np.int32)
    session.turn(4, [make_row("a:0", label=label)])
    assert len(table(tmp_path / "projector" / "metadata.tsv")) == 1 + 6
    session.turn(8, [make_row("a:1", label=label)])
    assert len(table(tmp_path / "projector" / "metadata.tsv")) == 1 + 12
    session.end(12)
    assert scalars(tmp_path, "all/neurons") == [(4, 1), (8, 2), (12, 2)]


def test_what_is_there_is_read_up_to_where_it_is_whole(tmp_path):
    assert read_events(tmp_path / "missing") == (0, frozenset())
    writer = SummaryWriter(tmp_path)
    for step in range(1, 21):
        writer.add_scalar(f"tag/{step % 3}", step, 3 * step)
    writer.close()
    every = frozenset({"tag/0", "tag/1", "tag/2"})
    assert read_events(tmp_path) == (60, every)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert read_events(tmp_path) == (57, every)
    path.write_bytes(whole + struct.pack("<Q4x", 2**62))
    assert read_events(tmp_path) == (60, every)
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    path.write_bytes(flipped)
    assert read_events(tmp_path) == (57, every)
    path.write_bytes(whole)
    (tmp_path / "events.out.tfevents.9").write_bytes(b"")
    assert read_events(tmp_path) == (60, every)


@pytest.fixture
def part():
    """What Lightning hands to the callback, of a run that has just begun."""
    module = PolysemanticityModule("tiny:subject", "tiny:embedder", image_size=32)
    module.reference = SimpleNamespace(to=lambda device: SimpleNamespace(frame=halved))
    module._num_neurons = 4
    module.engine = SimpleNamespace(
        counters=Counters(neurons=1, images=3, image_steps=40, slot_steps=60),
        watch=module.watch,
        pool=SimpleNamespace(
            running=torch.tensor([True, False, True]), smooth=torch.tensor([1.0, 8.0, 3.0])
        ),
    )
    module.watch.seconds["ascent"] = 2.0
    trainer = SimpleNamespace(
        datamodule=NeuronDataModule(NEURONS),
        global_step=8,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return SimpleNamespace(trainer=trainer, module=module)


def test_curves_add_up_over_the_sessions(tmp_path, part):
    earlier = Manifest(
        device={},
        seed=0,
        settings={},
        images=5,
        image_steps=60,
        slot_steps=140,
        seconds={"ascent": 3.0},
    )
    monitor = TensorBoardMonitor(every=0.0)
    monitor.begin(tmp_path, None, earlier)
    monitor.setup(part.trainer, part.module, "fit")
    monitor.on_train_start(part.trainer, part.module)
    monitor.receive([make_row()], 6)
    monitor.on_train_batch_end(part.trainer, part.module, {"finished": []}, 0, 0)
    monitor.teardown(part.trainer, part.module, "fit")
    assert scalars(tmp_path, "images/finished") == [(8, 8)]
    assert scalars(tmp_path, "pool/occupancy") == [(8, 0.5)]
    assert scalars(tmp_path, "pool/image_steps_per_second") == [(8, 20)]
    assert scalars(tmp_path, "pool/mean_activation") == [(8, 2)]
    assert scalars(tmp_path, "run/image_steps_per_second") == [(8, 20)]
    assert scalars(tmp_path, "neurons/finished") == [(8, 1)]
    assert read(tmp_path).Images("neuron/blocks.4:17")[0].step == 6


def test_a_session_that_is_stopped_early_leaves_the_curves_alone(tmp_path, part, monkeypatch):
    session = Session(tmp_path / "board")
    session.turn(4, [make_row()])
    session.end(4)
    store = RunStore(tmp_path / "run")
    store.append([make_row()])
    monitor = TensorBoardMonitor(every=0.0)
    monitor.begin(tmp_path / "board", tmp_path / "run", None)
    monitor.setup(part.trainer, part.module, "fit")

    def stopped(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("polylight.callbacks.tensorboard.callback.read_run", stopped)
        with pytest.raises(KeyboardInterrupt):
            monitor.on_train_start(part.trainer, part.module)
    monitor.on_exception(part.trainer, part.module, KeyboardInterrupt())
    assert scalars(tmp_path / "board", "all/neurons") == [(4, 1)]


def test_without_a_folder_nothing_is_shown(tmp_path, part, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = TensorBoardMonitor()
    monitor.setup(part.trainer, part.module, "fit")
    monitor.on_train_start(part.trainer, part.module)
    monitor.receive([make_row()], 4)
    monitor.on_train_batch_end(part.trainer, part.module, {"finished": []}, 0, 0)
    monitor.teardown(part.trainer, part.module, "fit")
    assert list(tmp_path.iterdir()) == []
    assert fit(tmp_path / "run", "--trainer.logger", "false", "--trainer.max_steps", "4") == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("what", ["events", "projector", "folder"])
def test_a_full_disk_ends_what_is_shown_with_one_warning(
    tmp_path, part, caplog, capsys, monkeypatch, what
):
    def full(*given):
        raise OSError(28, "No space left on device")

    monitor = TensorBoardMonitor(every=0.0, summary_every=0.0)
    monitor.begin(tmp_path / "board", None, None)
    if what == "folder":
        (tmp_path / "board").write_text("in the way")
    monitor.setup(part.trainer, part.module, "fit")
    monitor.on_train_start(part.trainer, part.module)
    broken = {
        "events": "tensorboard.summary.writer.record_writer.RecordWriter.write",
        "projector": "polylight.callbacks.tensorboard.projector.write_atomically",
    }
    if what in broken:
        monkeypatch.setattr(broken[what], full)
    for step in (4, 8):
        part.trainer.global_step = step
        monitor.receive([make_row(f"a:{step}")], step)
        monitor.on_train_batch_end(part.trainer, part.module, {"finished": []}, 0, 0)
    monitor.on_exception(part.trainer, part.module, KeyboardInterrupt())
    monitor.teardown(part.trainer, part.module, "fit")
    (record,) = caplog.records
    assert record.getMessage().startswith("TensorBoard shows no more of this session: ")
    assert ("No space left" if what in broken else "exists") in record.getMessage()
    # Not what the thread that writes would say, either.
    assert capsys.readouterr().err == ""


def test_a_resume_goes_on_past_a_damaged_image(tmp_path, caplog):
    run = tmp_path / "run"
    assert fit(run, "--trainer.max_steps", "60") == 0
    path = part_paths(run)[0]
    stored = bytearray(path.read_bytes())
    stored[stored.index(b"IDAT") + 9] ^= 255
    path.write_bytes(stored)
    shutil.rmtree(run / "tensorboard")
    first = read_rows(run)[0].neuron
    # The picture of the run is made from the images, too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polylight.fit.contact_sheet", lambda *given, **more: None)
        assert fit(run) == 0
    assert f"image 0 of neuron {first} is damaged" in caplog.text
    assert read_manifest(run).status == "finished"
    assert scalars(run / "tensorboard", "neurons/finished")[-1][1] == 10
    assert len(read(run / "tensorboard").Tags()["images"]) == 10
