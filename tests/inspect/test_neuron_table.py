import io
import math

import numpy as np
import pytest
from example_rows import make_dead, make_row
from rich.console import Console

from polylight.inspect.neuron_table import render_table
from polylight.run.schema import rows_to_table

LONG = "max(features.denseblock3.denselayer12.conv2:1024,features.denseblock4.denselayer1.conv2:77)"


def rendered(rows, top=None, width=80, **options):
    stream = io.StringIO()
    laid = render_table(rows_to_table(rows), top, width=width, **options)
    Console(file=stream, width=width).print(laid)
    return stream.getvalue()


def names(text):
    """First words of the lines between the head and the summary."""
    body = text.split("\n\n")[0].splitlines()[2:]
    return [line.split("  ")[0].strip() for line in body]


def test_columns_of_a_neuron():
    activation = np.array([1.0, 30.25, 7.0], np.float32)
    row = make_row("a:1", n=3, score=0.625, score_low=0.5, score_high=0.754, activation=activation)
    head, _, line, _, summary = rendered([row]).splitlines()
    assert head.split() == [
        "neuron", "score", "95", "%", "K", "K_eff", "paper", "images", "activ.", "status",
    ]  # fmt: skip
    assert line.split() == ["a:1", "0.625", "0.50-0.75", "2", "2.67", "0.510", "3", "7", "ok"]
    assert summary == "1 neuron, median score 0.625"


def test_more_columns_of_a_neuron_on_a_wide_terminal():
    changes = {"k_stability": 0.751, "coverage": 0.5, "stop_reason": "max_images"}
    row = make_row("a:1", p_value=0.0052, q_value=0.25, **changes)
    head, _, line, *_ = rendered([row], width=120).splitlines()
    assert head.split() == [
        "neuron", "score", "95", "%", "p", "q", "K", "K", "stab.", "K_eff", "paper", "coverage",
        "images", "activ.", "status", "reason",
    ]  # fmt: skip
    said = "a:1 0.500 0.40-0.60 0.005 0.250 2 0.75 2.00 0.510 0.50 6 {} ok max_images"
    assert line.split() == said.format(f"{np.median(row.activation):.3g}").split()
    assert "reason" not in rendered([row], width=109)
    assert "reason" in rendered([row], width=110)
    dead = rendered([make_dead()], width=120).splitlines()[2]
    assert dead.split() == ["blocks.4:5", *"--------", "0", "-", "dead", "dead"]


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
        ("p_value", "p", "0.005"),
        ("-stop_reason", "reason", "elbow"),
        ("seconds", "seconds", "1.25"),
        ("-layer", "layer", "blocks.4"),
        ("seed", "seed", "4.61169e+18"),
        ("score_high", "status", "ok"),
        ("neuron", "status", "ok"),
    ],
)
def test_the_column_that_is_sorted_by_is_shown(sort, title, value):
    head, _, line, *_ = rendered([make_row("a:1")], sort=sort).splitlines()
    assert (head.split()[-1], line.split()[-1]) == (title, value)
    assert len(head) <= 80
    wide = rendered([make_row("a:1")], sort=sort, width=120).splitlines()[0]
    assert wide.split().count(title) == 1


def test_falling_score_and_the_unscored_last():
    rows = [make_dead("a:9"), make_row("a:1", score=0.25), make_row("a:2", score=0.75)]
    rows += [make_row("a:0", score=0.25), make_row("a:3", status="failed", score=0.5)]
    text = rendered(rows)
    assert names(text) == ["a:2", "a:3", "a:0", "a:1", "a:9"]
    assert text.endswith("5 neurons, median score 0.375, 1 dead, 1 failed\n")
    dead = next(line for line in text.splitlines() if line.startswith("a:9"))
    assert dead.split() == ["a:9", "-", "-", "-", "-", "0", "-", "dead"]


def test_a_run_without_a_score_has_no_median():
    assert rendered([make_dead()]).endswith("\n1 neuron, 1 dead\n")


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_name_is_cut(width):
    rows = [make_row(LONG, activation=np.full(6, 1.5e-7, np.float32)), make_dead()]
    text = rendered(rows, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert LONG in "".join(names(text))


def test_names_are_shown_not_interpreted():
    name = "[red]x[/].[0]:17"
    assert names(rendered([make_row(name)])) == [name]
    assert "[/nothing]" in rendered([make_row("[/nothing]:1")])


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
