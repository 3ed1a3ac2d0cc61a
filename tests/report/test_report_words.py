import dataclasses
import json
import math
import re
import shlex

import pytest
from report_fakes import ODD, detail, make_run, neuron

from polylight.report import words


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 1, "score": 0.0}, r"^One feature explains its 5 images\."),
        ({"k": 1, "score": 0.08}, "likeliest .* of its 5 images; the score of 0.080 is for how"),
        ({"k": 3, "k_eff": 2.26}, "these count as 2.3 equal, unrelated features"),
        (
            {"separation": 7.25, "p_value": 0.005, "q_value": 0.01},
            r"clusters 7.2 standard deviations better .*, and from 4 on several features are "
            r"likelier than one \(p = 0.005, q = 0.010 over its layer\)\.",
        ),
        (
            {"separation": 4.0, "p_value": 0.04, "q_value": None},
            r"4.0 standard deviations better .*, while from 4 on .* \(p = 0.040\)\.",
        ),
        ({"separation": -0.1}, "no better than those of one feature would, while from 4 on"),
        ({"separation": None, "p_value": None, "q_value": None}, "too few valid images to test"),
        ({"k_stability": 0.4}, "40 % of random .* same K, which is often low with fewer than 16"),
        ({"k_stability": 0.6}, "60 % of random halves of the images give the same K\\."),
        ({"num_images": 16}, "75 % of random halves of the images give the same K\\."),
        ({"coverage": 0.944}, "nothing new with a probability of 94 %"),
        ({"status": "failed"}, "^None of its images had a finite activation"),
    ],
)
def test_numbers_in_words(changes, sentence):
    assert re.search(sentence, " ".join(words.verdict(neuron(0, "a:0", **changes))))


def test_why_k():
    clustered_score, unsure = {"separation": 6.5}, {"separation": 1.0}
    four = dataclasses.replace(detail(), bic=[-5.0, -9.0, -8.0, math.nan])
    assert words.why_k(neuron(0, "a:0", k=3, **clustered_score), four, "bic") == (
        "Its images fall into clusters 6.5 standard deviations better than those of one feature "
        "would, so several features are likelier than one. Of these, K = 3 has the largest BIC of "
        "K = 2 to 3."
    )
    assert "K = 2 was chosen by sigclust; K = 3 has the largest BIC" in words.why_k(
        neuron(0, "a:0", k=2, **clustered_score), four, "sigclust"
    )
    assert words.why_k(neuron(0, "a:0", k=1, **unsure), four, "bic").endswith(
        "so one feature is likelier than several. If there were several, K = 3 would have the "
        "largest BIC of K = 2 to 3."
    )
    # Of equal values the smaller K is taken.
    tie = dataclasses.replace(detail(), bic=[0.0, -8.0, -8.0])
    assert "Of these, K = 2 has" in words.why_k(
        neuron(0, "a:0", k=2, **clustered_score), tie, "bic"
    )
    two = dataclasses.replace(detail(), bic=[0.0, -8.0, math.nan])
    assert words.why_k(neuron(0, "a:0", k=2, **clustered_score), two, "bic").endswith(
        "no rival within reach."
    )
    assert words.why_k(neuron(0, "a:0", k=1, separation=None), four, "bic") == (
        "With 4 valid images more than one feature was out of reach."
    )
    assert words.why_k(neuron(0, "a:0", k=None), four, "bic") == (
        "There was nothing to choose between."
    )


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".3f", "\N{EN DASH}"),
        (math.nan, ".3f", "\N{EN DASH}"),
        (-0.5, ".2f", "\N{MINUS SIGN}0.50"),
        (0.96, "#.3g", "0.960"),
        (123.4, "#.3g", "123"),
    ],
)
def test_numbers_are_written_alike(value, form, text):
    assert words.number(value, form) == text


def test_times_and_shares():
    assert [words.duration(s) for s in (1.25, 3599, 3600, 90061)] == [
        "1.25 s", "1 h 0 min", "1 h 0 min", "1 d 1 h",
    ]  # fmt: skip
    assert [words.percent(s) for s in (0.0, 0.004, 0.815, 0.996, 1.0)] == [
        "0 %", "under 1 %", "81 %", "100 %", "100 %",
    ]  # fmt: skip
    # Beside the same share with two decimals.
    for share in (0.005, 0.125, 0.285, 0.815, 0.995):
        assert words.percent(share) == f"{round(100 * float(format(share, '.2f')))} %"
    assert words.when("2026-01-02T03:04:05+00:00") == "2 January 2026, 03:04 UTC"
    assert words.when("yesterday") == "yesterday"


def test_the_command_survives_the_shell(tmp_path):
    folder = tmp_path / "a run's $HOME"
    folder.mkdir()
    run = make_run(folder)
    assert words.reproduction(run, run.neurons[3]) is None
    (folder / "config.yaml").write_text("")
    given = shlex.split(words.reproduction(run, run.neurons[3]))
    assert given[:2] == ["polylight", "fit"]
    options = dict(zip(given[2::2], given[3::2], strict=True))
    assert options.pop("--run_dir").startswith("reproduced-n3")
    assert json.loads(options.pop("--data.neurons")) == [ODD]
    assert options == {
        "--config": f"{folder}/config.yaml", "--data.shard": "0/1", "--model.pool_size": "24",
    }  # fmt: skip
