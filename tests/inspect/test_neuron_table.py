import io
import itertools
import math
import re

import numpy as np
import pytest
from example_rows import make_dead, make_row
from rich.cells import cell_len
from rich.console import Console

from polylight.inspect.neuron_table import MEDIAN, SHOWN, add_median, render_table
from polylight.run.schema import rows_to_table

LONG = "max(features.denseblock3.denselayer12.conv2:1024,features.denseblock4.denselayer1.conv2:77)"


def rendered(rows, top=None, width=80, **options):
    stream = io.StringIO()
    laid = render_table(add_median(rows_to_table(rows)), top, width=width, **options)
    Console(file=stream, width=width).print(laid)
    return stream.getvalue()


def split(text):
    """The titles of the columns, and the lines between them and the summary."""
    lines = text.split("\n\n")[0].splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    # A title that is broken ends with a mark in one line and goes on in the next, at its right.
    ends = [{m.end(): m[0] for m in re.finditer(r"\S+", line)} for line in lines[:rule]]
    starts = [{m.start(): m[0] for m in re.finditer(r"\S+", line)} for line in lines[:rule]]
    titles = []
    for place in sorted({*ends[-1]}):
        below = ends[-1][place]
        start = place - len(below)
        above = [ends[0].get(place), starts[0].get(start)] if rule == 2 else []
        first = next((part for part in above if part and part.endswith("_")), "")
        titles.append(first + below)
    return titles, lines[rule + 1 :]


def names(text):
    """First words of the lines between the head and the summary."""
    return [line.split("  ")[0].strip() for line in split(text)[1]]


NARROW = ["neuron", "score", "score_low-high", "k", "k_eff", "score_paper", "num_images"]


def test_columns_of_a_neuron():
    activation = np.array([1.0, 30.25, 7.0], np.float32)
    label = np.array([0, 1, -1], np.int32)
    row = make_row(
        "blocks.4:1",
        n=3,
        score=0.625,
        score_low=0.5,
        score_high=0.754,
        activation=activation,
        label=label,
    )
    text = rendered([row])
    titles, (line,) = split(text)
    # The image that is not valid does not count in the median.
    assert titles == [*NARROW, "activation_median", "status"]
    assert line.split() == [
        "blocks.4:1",
        "0.625",
        "0.50-0.75",
        "2",
        "2.67",
        "0.510",
        "3",
        "15.6",
        "ok",
    ]
    assert text.splitlines()[-1] == "1 neuron, median score 0.625"


def test_more_columns_of_a_neuron_on_a_wide_terminal():
    changes = {"k_stability": 0.751, "coverage": 0.5, "stop_reason": "max_images"}
    row = make_row("a:1", p_value=0.0052, q_value=0.25, **changes)
    titles, (line,) = split(rendered([row], width=130))
    expected = [n for n in SHOWN if n in titles]
    assert titles == [
        "neuron", "score", "score_low-high", "p_value", "q_value", "k", "k_stability", "k_eff",
        "score_paper", "coverage", "num_images", "activation_median", "status", "stop_reason",
    ]  # fmt: skip
    assert set(titles) - set(expected) == {"score_low-high"}
    median = np.median(row.activation[row.label >= 0])
    said = f"a:1 0.500 0.40-0.60 0.005 0.250 2 0.75 2.00 0.510 0.50 6 {median:.3g} ok max_images"
    assert line.split() == said.split()
    (dead,) = split(rendered([make_dead()], width=130))[1]
    assert dead.split() == ["blocks.4:5", *"--------", "0", "-", "dead", "max_images"]


def test_every_column_has_the_name_that_the_rows_give_it():
    titles = split(rendered([make_row("a:1")], width=300))[0]
    low_high, *others = [title for title in titles if title not in SHOWN]
    assert (low_high, others) == ("score_low-high", [])


def test_the_most_important_columns_come_first_where_there_is_little_room():
    rows = [make_row(LONG), make_row("a:1")]
    seen = [split(rendered(rows, width=width))[0] for width in range(40, 200)]
    assert seen[0] == ["neuron", "score", "k", "num_images", "status"]
    for narrow, wide in itertools.pairwise(seen):
        assert len(set(narrow) - set(wide)) <= 1
    assert len(seen[-1]) == 14
    assert split(rendered(rows, width=60))[0] == [
        "neuron", "score", "score_low-high", "k", "num_images", "status",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("score", ["a:2", "a:1", "a:3", "a:9"]),
        ("-score", ["a:1", "a:3", "a:2", "a:9"]),
        ("p_value", ["a:3", "a:1", "a:2", "a:9"]),
        ("-p_value", ["a:1", "a:3", "a:2", "a:9"]),
        ("layer", ["a:2", "a:1", "a:9", "a:3"]),
        ("-neuron", ["a:9", "a:3", "a:2", "a:1"]),
    ],
)
def test_any_order_with_the_valueless_last_and_equals_by_name(sort, expected):
    rows = [
        make_row("a:3", score=0.5, p_value=0.25, layer="ü"),
        make_row("a:2", score=0.25, p_value=math.nan, layer="a"),
        make_dead("a:9"),
        make_row("a:1", score=0.5, p_value=0.75, layer="b"),
    ]
    assert names(rendered(rows, sort=sort)) == expected
    short = rendered(rows * 2, top=1, sort=sort)
    assert names(short)[0] == expected[0]
    assert names(short)[1].startswith("… ")


@pytest.mark.parametrize(
    ("sort", "title", "value"),
    [
        ("p_value", "p_value", "0.005"),
        ("-stop_reason", "stop_reason", "elbow"),
        ("seconds", "seconds", "1.25"),
        ("-layer", "layer", "blocks.4"),
        ("seed", "seed", "4.61169e+18"),
        ("activation_median", "activation_median", "2.5"),
        ("score_high", "score_low-high", "0.40-0.60"),
        ("neuron", "status", "ok"),
    ],
)
@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_column_that_is_sorted_by_is_shown(sort, title, value, width):
    row = make_row("a:1", activation=np.full(6, 2.5, np.float32), label=np.zeros(6, np.int32))
    text = rendered([row], sort=sort, width=width)
    titles, (line,) = split(text)
    assert titles.count(title) == 1
    assert line.split()[titles.index(title)] == value
    assert max(map(len, text.splitlines())) <= width


def test_falling_score_and_the_unscored_last():
    rows = [make_dead("a:9"), make_row("a:1", score=0.25), make_row("a:2", score=0.75)]
    rows += [make_row("a:0", score=0.25), make_row("a:3", status="failed", score=0.5)]
    text = rendered(rows)
    assert names(text) == ["a:2", "a:3", "a:0", "a:1", "a:9"]
    assert text.endswith("5 neurons, median score 0.375, 1 dead, 1 failed\n")
    dead = next(line for line in text.splitlines() if line.startswith("a:9"))
    assert dead.split() == ["a:9", *"-----", "0", "-", "dead"]


def test_a_run_without_a_score_has_no_median():
    assert rendered([make_dead()]).endswith("\n1 neuron, 1 dead\n")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_names_break_between_tokens_and_no_line_is_wider_than_the_terminal(width):
    rows = [make_row(LONG, activation=np.full(6, 1.5e-7, np.float32)), make_dead()]
    text = rendered(rows, width=width)
    assert max(map(len, text.splitlines())) <= width
    lines = names(text)
    assert "".join(lines[:-1]) == LONG
    assert all(line[-1] in ",.(" for line in lines[:-2])


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_token_that_is_longer_than_the_column_is_broken_too(width):
    name = f"{'x' * 90}.{'日本' * 20}:3"
    text = rendered([make_row(name)], width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "".join(names(text)) == name
    assert len(split(text)[0]) >= 4


def test_names_are_shown_not_interpreted():
    name = "[red]x[/].[0]:17"
    assert names(rendered([make_row(name)])) == [name]
    assert "[/nothing]" in rendered([make_row("[/nothing]:1")])


def test_escape_sequences_in_names_are_spelt_out():
    name = "a\x1b]0;title\x07\x9b31m\n\u202eb:1"
    row = make_row(name, layer=name, status="ok")
    text = rendered([row], sort="layer", width=120)
    assert text.count(r"a\x1b]0;title\x07\x9b31m\n\u202eb:1") == 2
    assert text.replace("\n", "").isprintable()


def test_the_median_is_that_of_the_valid_images():
    activation = np.array([1, 2, 30, 400, 5000], np.float32)
    rows = [
        make_row("a:0", n=5, activation=activation, label=np.array([0, -1, 1, 0, -1], np.int32)),
        make_row("a:1", n=5, activation=activation, label=np.full(5, -1, np.int32)),
        make_dead(),
    ]
    table = add_median(rows_to_table(rows))
    assert table[MEDIAN].to_pylist() == [30.0, None, None]
    assert table.drop_columns([MEDIAN]).equals(rows_to_table(rows))


def test_a_long_run_is_shown_by_its_ends():
    rows = [make_row(f"a:{i:02d}", n=1, score=i / 100) for i in range(50)]
    assert len(names(rendered(rows[:40]))) == 40
    assert names(rendered(rows)) == (
        [f"a:{i}" for i in range(49, 34, -1)]
        + ["… 20 more"]
        + [f"a:{i:02d}" for i in range(14, -1, -1)]
    )
    dead = [make_dead(f"b:{i}") for i in range(4)]
    few = ["a:49", "a:48", "… 46 more", "a:01", "a:00", "b:0", "b:1", "… 2 more"]
    assert names(rendered(rows + dead, top=2)) == few
