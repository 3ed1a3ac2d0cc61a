import copy
import dataclasses
import json
import subprocess
from importlib.metadata import version

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from sklearn.cluster import KMeans
from torch import nn

from benchmarks import __main__ as command
from benchmarks import ascent, ceiling, clustering, quickstart, render
from benchmarks.common import Competitor, Timed, gate, measure, ratios, row, take_turns
from benchmarks.document import RESULTS, check_document, load_documents, place
from benchmarks.machine import ROOT, Watch
from polylight.ascent.presets import PRESETS
from polylight.networks import Model
from polylight.run.manifest import Manifest


def document(rows):
    metadata = Watch().metadata("example", quick=False, config={"size": 4})
    return {"metadata": metadata, "results": [dataclasses.asdict(r) for r in rows]}


def example():
    return document(
        [
            gate("right", 0.0, ("<=", 1e-4), "absolute"),
            row([3.0, 1.0, 2.0], case="speed", unit="steps/s", shape="[4]", level="headline"),
            row([], case="speed", unit="steps/s", provider="a|b", failure="out of memory"),
        ]
    )


def test_row_sums_up_the_repeats():
    found = row([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], case="c", unit="s", limit=("<=", 3.5))
    assert (found.p20, found.median, found.p80, found.n) == (2.0, 3.5, 5.0, 6)
    assert found.passed is True
    assert found.target == "<= 3.5"
    assert row([3.6], case="c", unit="s", limit=("<=", 3.5)).passed is False
    assert row([3.6], case="c", unit="s", limit=(">=", 3.5)).passed is True
    assert row([3.6], case="c", unit="s").passed is None


@pytest.mark.parametrize(
    ("values", "failure", "status"),
    [
        ([], "", "FAILED: nothing was measured"),
        ([1.0, float("nan")], "", "FAILED: not finite"),
        ([], "no memory", "FAILED: no memory"),
    ],
)
def test_row_without_numbers_says_why(values, failure, status):
    found = row(values, case="c", unit="s", failure=failure, limit=(">=", 0.0))
    assert found.status == status
    assert (found.median, found.p20, found.p80, found.n) == (None, None, None, 0)
    assert found.passed is False


def test_competitors_take_turns():
    seen = []

    def competitor(name):
        return Competitor(lambda: len(seen.append(name) or "ab"), lambda: seen.append(f"{name}!"))

    timed = take_turns({"a": competitor("a"), "b": competitor("b")}, 2, warmups=1)
    assert seen == ["a!", "a", "b!", "b"] * 3
    assert [len(t.rates) for t in timed.values()] == [2, 2]
    assert all(rate > 0 for t in timed.values() for rate in t.rates)


def test_rate_is_work_over_time(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("benchmarks.common.time.perf_counter", lambda: next(clock))
    timed = take_turns({"a": Competitor(lambda: 8.0)}, 2, warmups=0)
    assert timed["a"].rates == [4.0, 2.0]


def test_competitor_that_raises_has_failed_and_the_others_go_on(capsys):
    def fail():
        raise RuntimeError("no such kernel")

    timed = take_turns({"bad": Competitor(fail), "good": Competitor(lambda: 1.0)}, 3)
    assert timed["bad"] == Timed(failure="RuntimeError: no such kernel")
    assert len(timed["good"].rates) == 3
    assert ratios(timed["good"], timed["bad"]) == ([], "RuntimeError: no such kernel")
    assert "no such kernel" in capsys.readouterr().err


def test_red_gate_lets_nothing_run():
    red = gate("right", 2.0, ("<=", 1.0), "")
    timed = take_turns({"a": Competitor(lambda: 1 / 0)}, 3, gates=[red])
    assert timed["a"] == Timed(failure="a gate is red")
    assert gate("right", float("nan"), ("<=", 1.0), "").passed is False


def test_ratio_is_taken_turn_by_turn():
    assert ratios(Timed([4.0, 9.0]), Timed([2.0, 3.0])) == ([2.0, 3.0], "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("metadata"), "document: .*metadata"),
        (lambda d: d["metadata"].pop("cpu"), "metadata: .*cpu"),
        (lambda d: d["metadata"].update(extra=1), "metadata: .*extra"),
        (lambda d: d["metadata"].update(threads="2"), "threads has to be int, not '2'"),
        (lambda d: d["results"].clear(), "at least one row"),
        (lambda d: d["results"][1].pop("unit"), r"results\[1\]: .*unit"),
        (lambda d: d["results"][1].update(median=3), "median has to be float or NoneType"),
        (lambda d: d["results"][1].update(median=None), "needs finite numbers"),
        (lambda d: d["results"][1].update(p80=float("inf")), "needs finite numbers"),
        (lambda d: d["results"][1].update(p20=9.0), "p20 <= median <= p80"),
        (lambda d: d["results"][2].update(median=1.0), "has no numbers"),
        (lambda d: d["results"][2].update(status="slow"), "says FAILED"),
        (lambda d: d["results"][1].update(target=">= 1"), "target and passed"),
        (lambda d: d["results"][1].update(level="top"), "level has to be one of headline"),
    ],
)
def test_schema_refuses(change, message):
    broken = copy.deepcopy(example())
    # It is refused for what is changed, and for nothing else.
    check_document(broken)
    change(broken)
    with pytest.raises(ValueError, match=message):
        check_document(broken)


def test_metadata_says_where_and_when():
    found = example()["metadata"]
    assert found["versions"]["torch"] == version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert found["commit"] is None or len(found["commit"]) == 40
    assert found["cores_used_by_others"] is None or found["cores_used_by_others"] >= 0


def test_measure_writes_what_can_be_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.common.QUICK_RESULTS", tmp_path / "quick")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path / "full")
    asked = []

    def run(quick):
        asked.append(quick)
        return [row([1.5, 2.5], case="speed", unit="steps/s")], {"size": 1}

    assert measure("example", run, ["--quick"]) == 0
    assert measure("example", run, []) == 0
    assert asked == [True, False]
    (quick,) = load_documents(tmp_path / "quick")
    (full,) = load_documents(tmp_path / "full")
    assert (quick["metadata"]["quick"], full["metadata"]["quick"]) == (True, False)
    assert full["results"][0]["median"] == 2.0
    assert full["metadata"]["config"] == {"size": 1}
    printed = capsys.readouterr().out
    assert "speed" in printed
    assert str(place(tmp_path / "full", full)) in printed


def test_results_of_machines_lie_apart(tmp_path, monkeypatch):
    slow, fast, card = example(), example(), example()
    slow["metadata"].update(cpu="Some(R) CPU @ 2.0, AVX2", cores=2, gpu=None)
    fast["metadata"].update(cpu="Some(R) CPU @ 2.0, AVX512", cores=2, gpu=None)
    card["metadata"].update(gpu="NVIDIA H100 80GB HBM3")
    fast["metadata"].update(utc="2000-01-01T00:00:00+00:00")
    folders = [
        "nvidia-h100-80gb-hbm3",
        "some-r-cpu-2-0-avx2-2-cores",
        "some-r-cpu-2-0-avx512-2-cores",
    ]
    for each in (slow, fast, card):
        place(tmp_path, each).parent.mkdir()
        place(tmp_path, each).write_text(json.dumps(each))
    assert sorted(p.parent.name for p in tmp_path.glob("*/example.json")) == folders
    assert load_documents(tmp_path) == [card, slow, fast]
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "RESULTS", tmp_path / "benchmarks" / "results")
    marked = "<!-- benchmarks -->\n<!-- /benchmarks -->\n"
    measurements = tmp_path / "docs" / "measurements.md"
    for path in (measurements, tmp_path / "benchmarks" / "README.md"):
        path.parent.mkdir()
        path.write_text(marked)
    texts = render.rendered([card, slow, fast])
    pages = [render.RESULTS / folder / "README.md" for folder in folders]
    assert [p for p in texts if p.is_relative_to(render.RESULTS)] == pages
    assert texts[pages[0]].startswith("# NVIDIA H100 80GB HBM3\n\n## example\n")
    links = texts[tmp_path / "benchmarks" / "README.md"].splitlines()[1:-1]
    assert links[2] == f"- [Some(R) CPU @ 2.0, AVX512, 2 cores](results/{folders[2]}/README.md)"
    # Of either kind the one that was measured last.
    assert texts[measurements].count("| speed | polylight |") == 2
    for folder, is_shown in zip(folders, (True, True, False), strict=True):
        shown = f"`benchmarks/results/{folder}/README.md`" in texts[measurements]
        assert shown == is_shown


def test_results_in_the_folder_of_another_machine_are_refused(tmp_path):
    (tmp_path / "abacus").mkdir()
    (tmp_path / "abacus" / "example.json").write_text(json.dumps(example()))
    with pytest.raises(ValueError, match=r"abacus.example.json: .* belongs into .*example.json"):
        load_documents(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        row([], case="speed", unit="steps/s", failure="no"),
        gate("right", 2.0, ("<=", 1.0), ""),
    ],
)
def test_measure_fails_with_a_red_gate_or_a_failed_row(tmp_path, monkeypatch, capsys, bad):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    good = row([1.0], case="speed", unit="steps/s", limit=(">=", 2.0))
    assert measure("example", lambda quick: ([good], {}), []) == 0  # a missed target is a result
    assert measure("example", lambda quick: ([good, bad], {}), []) == 1


def test_command_knows_its_benchmarks(monkeypatch, capsys):
    started = []

    def start(arguments, cwd):
        started.append(arguments[2:])
        return type("Done", (), {"returncode": int("clustering" in arguments[2])})

    monkeypatch.setattr(command.subprocess, "run", start)
    assert command.main(["ascent", "--quick"]) == 0
    assert command.main([]) == 1
    assert started[0] == ["benchmarks.ascent", "--quick"]
    assert started[1:] == [[f"benchmarks.{n}"] for n in command.BENCHMARKS]
    assert all((ROOT / "benchmarks" / f"{n}.py").is_file() for n in command.BENCHMARKS)
    with pytest.raises(SystemExit):
        command.main(["ascend"])
    assert "no benchmark 'ascend'; there are ascent" in capsys.readouterr().err


def test_tables():
    done = example()
    full, short = render.full_tables([done]), render.short_table([done])
    lines = [line for line in full.splitlines() if line.startswith("|")]
    assert lines[2].startswith("| gate: right | polylight |")
    assert "<= 0.0001, met" in lines[2]
    assert "| 2 | 1.4 to 2.6 | steps/s | 3 |" in lines[3]
    assert "a\\|b" in lines[4]
    assert "FAILED: out of memory" in lines[4]
    assert sum(line.startswith("|") for line in short.splitlines()) == 3
    for entry in done["results"]:
        entry["level"] = "detail"
    shown = [x for x in render.full_tables([done]).splitlines() if x.startswith("|")]
    assert len(shown) == 3
    assert "FAILED" in shown[2]
    done["metadata"]["quick"] = True
    assert "not a measurement" in render.full_tables([done])


def test_table_goes_between_the_markers():
    text = "a\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nb\n"
    new = "a\n<!-- benchmarks -->\n| new |\n<!-- /benchmarks -->\nb\n"
    assert render.replace_between(text, "| new |") == new
    assert render.replace_between(new, "| new |") == new
    assert render.replace_between(new, render.short_table([])) == new.replace("| new |\n", "")
    for bad in ("nothing", "<!-- /benchmarks --><!-- benchmarks -->", text + text):
        with pytest.raises(ValueError, match="expected <!-- benchmarks -->"):
            render.replace_between(bad, "t")


def test_published_results_are_valid_and_in_the_docs():
    documents = load_documents()
    assert [place(RESULTS, d) for d in documents] == sorted(RESULTS.glob("**/*.json"))
    assert not any(d["metadata"]["quick"] for d in documents)
    for path, text in render.rendered(documents).items():
        assert path.read_text() == text, f"{path}: run python -m benchmarks.render"


def tiny_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
    net.append(nn.Sequential(nn.Conv2d(8, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)))
    net.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)))
    net[1].running_mean.uniform_(-1, 1)
    net[3][1].running_var.uniform_(0.5, 2)
    net.eval().requires_grad_(False)
    return Model("tiny", net, (0.5,) * 3, (0.2,) * 3, 32, "0" * 32, "factory")


def small_preset():
    fast = PRESETS["fast"]
    size = dataclasses.replace(fast.parametrization, size=32)
    return dataclasses.replace(fast, parametrization=size)


def test_ascent_is_measured_behind_its_gates():
    rows = ascent.compare(tiny_model(), "3", (4, 8), steps=4, repeats=2, preset=small_preset())
    assert [r.status for r in rows] == ["ok"] * (2 + 15 + 15 + 8)
    assert all(r.passed for r in rows[:2])
    for size, found in ((4, rows[2:17]), (8, rows[17:32])):
        assert {r.shape for r in found} == {f"[{size}, 3, 32, 32]"}
        assert [r.unit for r in found[:7]] == ["image-steps/s"] * 7
        assert [r.target for r in found[7:]] == [">= 0.7", "", "", "", "", "", "", ""]
        assert found[7].unit == "of the convolutions alone"
        assert found[10].unit == "of the same arithmetic in matrix products"
        assert found[13].unit == f"of the {ceiling.UNFUSED}"
        level = "headline" if size == 8 else "table"
        assert [r.level for r in found] == ["table"] * 7 + [level] * 4 + ["table"] * 4
    assert {r.unit for r in rows[32:]} == {"ms/image-step"}
    assert {(r.shape, r.level) for r in rows[32:]} == {("[8, 3, 32, 32]", "table")}


def test_ascent_behind_a_red_gate_has_no_numbers(monkeypatch):
    monkeypatch.setattr(ascent, "differences", lambda model, subject: (1.0, 1.0))
    rows = ascent.compare(tiny_model(), "3", (8,), steps=4, repeats=1, preset=small_preset())
    assert {r.status for r in rows[2:]} == {"FAILED: a gate is red"}


def plain_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False))
    net.append(nn.Conv2d(8, 6, 1))
    net.eval().requires_grad_(False)
    return Model("plain", net, (0.5,) * 3, (0.2,) * 3, 32, "0" * 32, "factory")


def test_arithmetic_of_the_convolutions_is_counted_and_done_in_matrix_products(monkeypatch):
    model = plain_model()
    subject = ascent.Subject(model, ["2"], 32)
    alone = ceiling.Convolutions(subject, ascent.random_images(subject, 4))
    # 16 x 16 positions: 3 to 8 channels by 3 x 3, 8 alone by 5 x 5, 8 to 6; forward and backward.
    assert alone.operations == 4 * 256 * (3 * 8 * 9 + 8 * 25 + 8 * 6)
    done = []
    multiply = ceiling.products(alone.operations, 16, torch.device("cpu"))
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: done.append(matmul(a, b)))
    assert multiply(40) == pytest.approx(len(done) * 2 * 16**3 / alone.operations)
    assert 40 <= multiply(40) < 40 + 2 * 16**3 / alone.operations
    assert {made.shape for made in done} == {(16, 16)}


def test_convolutions_alone_are_those_of_the_network():
    model = plain_model()
    subject = ascent.Subject(model, ["2"], 32)
    images = ascent.random_images(subject, 4)
    alone = ceiling.Convolutions(subject, images)
    given, layers = model.preprocess(images), list(model.net)
    for call, layer in zip(alone.calls, layers, strict=True):
        torch.testing.assert_close(call.given, given, rtol=1e-5, atol=1e-5)
        assert call.given.is_contiguous(memory_format=torch.channels_last)
        given = layer(given)
    # Without anything between them, what is handed on is the network's own gradient.
    start = model.preprocess(images).double().requires_grad_()
    output = model.net.double()(start)
    (slope,) = torch.autograd.grad(output, start, alone.gradients[-1].double())
    torch.testing.assert_close(alone.run(handed_on=True).double(), slope, rtol=1e-4, atol=1e-4)
    # On tensors of its own, the first one's gradient is that of the first one alone.
    first = torch.nn.grad.conv2d_input(
        start.shape, layers[0].weight, alone.gradients[0].double(), stride=2, padding=1
    )
    torch.testing.assert_close(alone.run(handed_on=False).double(), first, rtol=1e-4, atol=1e-4)
    assert alone.passes(3, handed_on=True) == 12.0


def test_convolutions_keep_what_is_written_over():
    model = plain_model()
    model.net.insert(1, nn.ReLU(inplace=True))
    subject = ascent.Subject(model, ["3"], 32)
    images = ascent.random_images(subject, 2)
    alone = ceiling.Convolutions(subject, images)
    expected = model.net[:2](model.preprocess(images))
    torch.testing.assert_close(alone.calls[1].given, expected, rtol=1e-5, atol=1e-5)


def test_network_without_convolutions_has_no_ceiling():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval().requires_grad_(False)
    model = Model("flat", net, (0.5,) * 3, (0.2,) * 3, 8, "0" * 32, "factory")
    subject = ascent.Subject(model, ["1"], 8)
    with pytest.raises(ValueError, match="expected a network with convolutions before 1"):
        ceiling.Convolutions(subject, ascent.random_images(subject, 2))


def test_free_subject_costs_nothing_and_returns_the_same():
    model = tiny_model()
    subject = ascent.Subject(model, ["3"], 32)
    images = ascent.random_images(subject, 4)
    free = ceiling.free_subject(model, subject, images)
    expected = subject(images)[0].post
    shown = torch.zeros_like(images).requires_grad_()
    found = free(shown)[0].post
    torch.testing.assert_close(found, expected)
    assert free.layouts == subject.layouts
    (slope,) = torch.autograd.grad(found.sum(), shown)
    (other,) = torch.autograd.grad(free(shown)[0].post[0, 0, 0, 0], shown)
    torch.testing.assert_close(slope, other)
    assert slope.abs().min() > 0


def test_parts_of_a_step_add_up():
    rates = {
        ceiling.WHOLE: 100.0,
        ceiling.BARE: 200.0,
        "random maps": 10000.0,
        "paint": 2000.0,
        "augment": 1000.0,
        "optimizer": 5000.0,
        "step with a network that costs nothing": 250.0,
    }
    rows = ceiling.part_rows("c", "[8]", {n: Timed([r, r]) for n, r in rates.items()})
    found = {r.case.removeprefix("c, where the time goes: "): r.median for r in rows}
    assert found == pytest.approx(
        {
            "whole step": 10.0,
            "random maps": 0.1,
            "paint, forward + backward": 0.5,
            "augment, forward + backward": 1.0,
            "subject, bare forward + backward": 5.0,
            "objective, repulsion and bookkeeping": 4.0 - 0.1 - 0.5 - 1.0 - 0.2,
            "optimizer": 0.2,
            "unaccounted: whole step without all these": 1.0,
        }
    )
    whole, *parts = found.values()
    assert sum(parts) == pytest.approx(whole)


def test_part_that_failed_takes_with_it_what_is_worked_out_from_it():
    names = {name for terms in ceiling._PARTS.values() for name in terms}
    timed = {n: Timed([100.0]) for n in names} | {"paint": Timed(failure="no memory")}
    failed = [r.case for r in ceiling.part_rows("c", "[8]", timed) if r.status != "ok"]
    assert [c.split(": ")[1] for c in failed] == [
        "paint, forward + backward",
        "objective, repulsion and bookkeeping",
    ]


def test_ascent_counts_its_steps_and_starts_anew():
    subject = ascent.Subject(tiny_model(), ["3"], 32)
    pool = ascent.build_pool(subject, small_preset(), 8)
    climb, refill = ascent.ascent(pool)
    refill()
    first = pool.latents.detach().clone()
    assert climb(8) == 64.0
    assert pool.steps.tolist() == [8] * 8
    assert pool.active_index.tolist() == [0] * 4 + [1] * 4
    assert not torch.equal(pool.latents, first)
    refill()
    assert torch.equal(pool.latents, first)
    assert pool.steps.tolist() == [0] * 8
    assert ascent.bare(subject, 8)(3) == 24.0


def test_gate_sees_another_network():
    model = tiny_model()
    subject = ascent.Subject(model, ["3"], 32)
    assert max(ascent.differences(model, subject)) < 1e-5
    subject.net[0].weight.data *= 1.01
    activation, gradient = ascent.differences(model, subject)
    assert activation > 1e-3
    assert gradient > 1e-3


def test_gradient_of_one_image_may_take_the_other_side_of_a_kink():
    found, expected = torch.ones(4, 3, 2, 2), torch.ones(4, 3, 2, 2)
    found[1, 0, 0, 0] = 1.5
    torch.testing.assert_close(ascent._apart(found, expected), torch.tensor([0.0, 0.5, 0.0, 0.0]))


def test_inertia_is_that_of_the_labels():
    points = clustering.embeddings(1, 40, 5).numpy()[0]
    found = [KMeans(k, n_init=2, random_state=0, tol=0).fit(points) for k in (1, 3)]
    labels = np.stack([f.labels_ for f in found]).astype(np.int64)
    expected = [f.inertia_ for f in found]
    np.testing.assert_allclose(clustering.inertia(points, labels), expected, rtol=1e-5)


def test_embeddings_are_unit_vectors_around_their_modes():
    points = clustering.embeddings(9, 64, 200)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(9, 64))
    cosines = points @ points.mT
    assert cosines[0].min() > 0.6  # one mode
    assert cosines[7, 0, 8] > 0.6  # eight modes: images 0 and 8 share one, 0 and 1 do not
    assert cosines[7, 0, 1] < 0.4


def test_clustering_is_measured_behind_its_gates():
    rows = clustering.compare(
        neurons=8, images=24, dims=16, k_max=3, restarts=2, looped=2, repeats=1
    )
    assert [r.status for r in rows] == ["ok"] * len(rows)
    assert [r.passed for r in rows if r.case.startswith("gate:")] == [True, True]
    assert {r.provider for r in rows} >= {"polylight gram", "sklearn loop", "faiss loop"}
    assert sum("times as fast" in r.unit and r.target != "" for r in rows) == 2


def finished(**seconds):
    return Manifest(
        device={"name": "cpu"},
        seed=0,
        settings={},
        neurons={"total": 2, "finished": 2, "failed": 0, "dead": 0},
        images=8,
        image_steps=600,
        slot_steps=800,
        seconds=seconds,
    )


def test_time_outside_the_ascent():
    stages = {"load": 3.0, "reference": 2.0, "ascent": 12.0, "total": 20.0}
    assert quickstart.outside_ascent(stages) == pytest.approx(0.2)
    rows = quickstart.speed_rows([23.0, 25.0], [finished(**stages)] * 2)
    by_case = {r.case.removeprefix("quickstart, "): r for r in rows}
    assert by_case["whole process"].median == 24.0
    assert by_case["stage ascent"].median == 12.0
    assert by_case["time outside ascent steps once loaded"].median == pytest.approx(20.0)
    assert by_case["occupancy of the pool, whole run"].median == pytest.approx(75.0)
    assert by_case["ascent"].median == 50.0
    assert rows[0].shape == "2 neurons, 8 images"


def test_rows_are_finite_and_equal():
    one = make_row()
    assert quickstart.is_finite([one])
    assert not quickstart.is_finite([one, make_dead()])
    broken = dataclasses.replace(one, activation=one.activation * np.float32("nan"))
    assert not quickstart.is_finite([broken])
    assert quickstart.are_equal([one, make_dead()], [make_dead(), make_row()])
    assert not quickstart.are_equal([one], [dataclasses.replace(one, score=0.123)])
    assert not quickstart.are_equal([one], [])


def test_random_images_are_beaten_or_not():
    one, other = make_row("a:1"), make_row("a:2")
    low = float(np.median(one.activation))
    random = np.array([[low - 2, low - 1], [0.0, 1e6]], dtype=np.float32)
    share, *each = quickstart.image_rows([one, other], random, "random images", level="headline")
    assert share.median == 50.0
    assert share.passed is False
    assert [r.passed for r in each] == [True, None, False, None]
    assert each[1].median == pytest.approx(low - 1.5, rel=1e-5)


def test_random_activations_are_those_of_the_network():
    model = tiny_model()
    subject = quickstart.Subject(model, ["3"], 128)
    found = quickstart.random_activations(subject, ["3:1", "3:4"], 16, 1.0)
    preset = PRESETS["fast"].parametrization
    keys = [quickstart.stream_key("random image", "3:4", i) for i in range(16)]
    images = quickstart.ImageDecoder(preset)(preset.initial_latents(torch.tensor(keys)) / preset.sd)
    images = (images * 255).round() / 255
    expected = model.net[:4](model.preprocess(images)).mean((2, 3))[:, 4]
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found[1], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_quickstart_reports_why_it_failed(monkeypatch):
    done = subprocess.CompletedProcess([], 2, stdout="", stderr="no such config")
    monkeypatch.setattr(quickstart.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(RuntimeError, match=r"quickstart\.yaml(.|\n)*no such config"):
        quickstart.run_once([])


def test_quickstart_has_no_numbers_behind_a_red_gate(monkeypatch):
    stages = {"load": 3.0, "reference": 2.0, "ascent": 12.0, "total": 20.0}
    monkeypatch.setattr(
        quickstart, "run_once", lambda extra: (23.0, finished(**stages), [make_row(), make_dead()])
    )
    rows, config = quickstart.run(quick=False)
    assert [r.passed for r in rows] == [False, True]
    assert config["repeats"] == 3


def test_published_json_is_strict():
    for path in RESULTS.glob("*/*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
