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
    assert [side.label for side in sides] == ["x", "x (2)"]
    assert [side.folder for side in sides] == ["runs/1-x", "runs/2-x"]
    pair = compare(*sides)
    # a:5 to a:29 are in both, and a:5 has no score in the second.
    assert (pair.common, len(pair.scored)) == (25, 24)
    x, y = a[6:], b[1:25]
    assert pair.rank_correlation == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    differences = [abs(change.difference) for change in pair.changes]
    np.testing.assert_allclose(differences, sorted(abs(y - x), reverse=True), rtol=0, atol=1e-12)
    assert "24 neurons have a score in both." in pair.sentence
    assert "There are 5 neurons only in x and 5 neurons only in x (2)." in pair.sentence
    assert differing(sides) == [("seed", ["7", "8"]), ("scoring.restarts", ["32", "\N{EN DASH}"])]


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
    empty = compare(*make_sides([one, make_run(tmp_path, [neuron(0, "b:0")])]))
    assert "0 neurons in common" in empty.sentence
    assert empty.chart is None


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
