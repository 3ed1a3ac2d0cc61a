import dataclasses
import logging

import numpy as np
import pytest
from example_rows import make_row
from report_fakes import Page, check_addresses, dead, details, make_run, manifest, neuron
from scipy.stats import spearmanr

from polylight.report.command import report
from polylight.report.compare import compare, differing, make_sides, write_comparison
from polylight.run.store import RunStore


def pair_of_runs(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30).round(1)
    first = [neuron(i, f"a:{i}", score=float(s)) for i, s in enumerate(a)]
    second = [neuron(i, f"a:{i + 5}", score=float(s)) for i, s in enumerate(b)]
    second[0] = dead(0, "a:5")
    other = manifest(seed=8, settings={"scoring": {"selection": "bic"}, "precision": "float32"})
    return (
        make_run(tmp_path / "one" / "x", first),
        make_run(tmp_path / "two" / "x", second, manifest=other),
        a,
        b,
    )


def test_comparing_runs(tmp_path):
    one, two, a, b = pair_of_runs(tmp_path)
    sides = make_sides([one, two])
    labels = ["x (seed 7, restarts 32)", "x (seed 8, restarts \N{EN DASH})"]
    assert [side.label for side in sides] == labels
    assert [side.folder for side in sides] == ["runs/1-x", "runs/2-x"]
    pair = compare(*sides)
    # a:5 to a:29 are in both, and a:5 has no score in the second.
    assert (pair.common, len(pair.scored)) == (25, 24)
    x, y = a[6:], b[1:25]
    assert pair.rank_correlation == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    differences = [abs(change.difference) for change in pair.changes]
    # What three digits do not show is left out.
    expected = sorted((d for d in abs(y - x) if d >= 0.0005), reverse=True)
    np.testing.assert_allclose(differences, expected, rtol=0, atol=1e-12)
    assert "24 neurons have a score in both." in pair.sentence
    only = " and ".join(f"5 neurons only in {label}" for label in labels)
    assert f"There are {only}." in pair.sentence
    assert "too few" not in pair.sentence
    assert differing([one, two]) == [
        ("seed", ["7", "8"]),
        ("scoring.restarts", ["32", "\N{EN DASH}"]),
    ]


def test_a_comparison_is_a_site_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("polylight.report.site.read_details", details)
    one, two, *_ = pair_of_runs(tmp_path)
    folder = tmp_path / "comparison"
    folder.mkdir()
    write_comparison(make_sides([one, two]), folder)
    check_addresses(folder)
    index = Page(folder / "index.html")
    assert index.headings[0] == 1
    assert "Spearman's rank correlation" in index.text
    assert "../../index.html" in Page(folder / "runs" / "1-x" / "index.html").addresses
    links = {a["href"] for t, a in index.tags if t == "a" and "aria-label" not in a}
    changed = [change.first.slug for change in compare(*make_sides([one, two])).changes]
    assert {f"runs/1-x/neurons/{slug}.html" for slug in changed} <= links
    assert all(a["alt"] for t, a in index.tags if t == "img")
    empty = compare(*make_sides([one, make_run(tmp_path, [neuron(0, "b:0")])]))
    assert "0 neurons in common" in empty.sentence
    assert empty.chart is None


SETTINGS = {
    "method": 6,
    "rounds": {"min_images": 16, "max_images": 16},
    "scoring": {"selection": "bic"},
    "ascent": {"max_steps": 128},
    "reference": "r",
}


@pytest.mark.parametrize(
    ("changes", "label", "warning"),
    [
        ({}, "x (2)", ""),
        ({"seed": 8}, "x (seed 8)", ""),
        (
            {"settings": {**SETTINGS, "rounds": {"min_images": 8, "max_images": 8}}},
            "x (max_images 8)",
            "differ in the number of images, so",
        ),
        ({"settings": {**SETTINGS, "method": 7}}, "x (method 7)", "the version of the method"),
        (
            {"subject": {"name": "net", "source": "packaged", "weights_hash": "b"}},
            "x (subject.weights_hash b)",
            "the network or its weights",
        ),
        (
            {"embedder": {"name": "nose"}, "settings": {**SETTINGS, "reference": "s"}},
            "x (embedder nose)",
            "differ in the embedder and the reference images, so",
        ),
        (
            {"settings": {**SETTINGS, "ascent": {"max_steps": 64}, "scoring": {"selection": "x"}}},
            None,
            "differ in the scoring and how images are made, so",
        ),
    ],
)
def test_runs_that_differ_are_named_and_warned_of(tmp_path, changes, label, warning):
    subject = {"name": "net", "source": "packaged", "weights_hash": "a"}
    made = manifest(settings=SETTINGS, subject=subject)
    first = make_run(tmp_path / "1" / "x", manifest=made)
    second = make_run(tmp_path / "2" / "x", manifest=dataclasses.replace(made, **changes))
    sides = make_sides([first, second])
    assert label in (None, sides[1].label)
    found = compare(*sides).warning
    assert warning in found
    assert bool(found) == bool(warning)
    unknown = make_sides([first, make_run(tmp_path, manifest=None)])
    assert "unknown" in compare(*unknown).warning


def test_a_correlation_of_few_neurons_says_so(tmp_path):
    runs = [
        make_run(tmp_path / name, [neuron(i, f"a:{i}", score=s) for i, s in enumerate(scores)])
        for name, scores in (("a", (0.1, 0.2, 0.3)), ("b", (0.2, 0.4, 0.9)), ("c", (0.5, 0.5, 0.5)))
    ]
    first, second, constant = make_sides(runs)
    assert "is 1.000, of too few neurons to mean much." in compare(first, second).sentence
    assert np.isnan(compare(first, constant).rank_correlation)
    assert "Spearman" not in compare(first, constant).sentence


def test_damage_in_one_of_two_compared_runs_is_named(tmp_path, caplog):
    damaged = make_row("a:1", n=4)
    damaged.image[2] = b""
    for name, row in (("one", make_row("a:1", n=4)), ("two", damaged)):
        store = RunStore(tmp_path / name)
        part = store.append([row])
        store.close()
    with caplog.at_level(logging.ERROR, "polylight"):
        assert report([str(tmp_path / "one"), str(tmp_path / "two")], pdf=False) == 1
    lost = f"{part}: image 2 of neuron a:1 is no readable PNG file"
    assert lost in caplog.text
    assert lost in Page(tmp_path / "one" / "comparison" / "index.html").text
