import dataclasses
import json
import math
import re
import shlex

import pytest
from report_fakes import ODD, detail, make_run, neuron
from scipy.stats import binomtest

from polylight.report import explanation, words

TRIED = dataclasses.replace(detail(), bic=[-5.0, -9.0, -8.0, math.nan])
"""Of it K = 1, 2 and 3 were within reach."""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 1, "score": 0.0}, r"^One feature explains its 5 images\."),
        ({"k": 1, "score": 0.08}, "likeliest .* of its 5 images; the score of 0.080 is for how"),
        ({"k": 3, "k_eff": 2.26}, "these count as 2.3 equal, unrelated features"),
        ({"k": 3}, "K = 3 is the most that was tried with so many images, so it may have more"),
        (
            {"separation": 7.25, "p_value": 0.005, "q_value": 0.01},
            r"clusters 7.2 standard deviations better than those of one feature would; above 4 "
            r"several features are likelier than one \(p = 0.005, q = 0.010 over its layer\)\.",
        ),
        (
            {"separation": 4.0, "p_value": 0.04, "q_value": None, "k": 1},
            r"4.0 standard deviations better .* would; only above 4 are several likelier than one"
            r"\. The small p \(p = 0.040\) supports neither one feature nor several",
        ),
        (
            {"separation": -0.1, "p_value": 0.7, "q_value": 0.8, "k": 1},
            r"into clusters no better than those of one feature would; only above 4 .* "
            r"One Gaussian cloud would often cluster as well \(p = 0.700, q = 0.800 over its",
        ),
        ({"separation": None, "p_value": None, "q_value": None}, "too few valid images to test"),
        ({"k_stability": 0.4}, "40 % of random .* same K, which is often low with fewer than 16"),
        ({"k_stability": 0.6}, "60 % of random halves of the images give the same K\\."),
        ({"num_images": 16}, "75 % of random halves of the images give the same K\\."),
        (
            {"coverage": 0.944, "num_images": 16},
            "known feature in about 94 % of cases; one that fewer than 17 % of such images show",
        ),
        (
            {"coverage": 1.0, "num_images": 16},
            "A feature that fewer than 17 % of such images show may still be missing",
        ),
        ({"status": "failed"}, "^None of its images had a finite activation"),
    ],
)
def test_numbers_in_words(changes, sentence):
    said = " ".join(explanation.explain(neuron(0, "a:0", **changes), TRIED))
    assert re.search(sentence, said)
    assert "100 %" not in said


def test_a_small_p_is_no_support_where_k_is_one():
    one = {"k": 1, "separation": 2.9, "p_value": 0.004, "q_value": 0.014}
    said = " ".join(explanation.explain(neuron(0, "a:0", **one), TRIED))
    assert "supports neither one feature nor several" in said
    assert "p = 0.004, q = 0.014" in said
    several = {"k": 2, "separation": 6.0, "p_value": 0.004, "q_value": 0.014}
    said = " ".join(explanation.explain(neuron(0, "a:0", **several), TRIED))
    assert "neither" not in said
    assert "the most that was tried" not in said


def test_what_may_be_missing_follows_from_the_number_of_images():
    for images in (4, 16, 64):
        made = neuron(0, "a:0", coverage=1.0, num_images=images)
        (share,) = re.findall(r"fewer than (\d+) %", explanation.explain(made, TRIED)[-1])
        # The upper end of the one-sided 95 % interval of 0 successes.
        bound = binomtest(0, images, alternative="less").proportion_ci(0.95, "exact").high
        assert int(share) == round(100 * bound)


def test_why_k():
    clustered, unsure = {"separation": 6.5}, {"separation": 1.0}
    assert explanation.why_k(neuron(0, "a:0", k=3, **clustered), TRIED, "bic") == (
        "Whether there is more than one feature is decided by the separation, not by the BIC: 6.5 "
        "is above 4, so several features are likelier. Of these, K = 3 has the largest BIC of "
        "K = 2 to 3."
    )
    assert "K = 2 was chosen by sigclust; K = 3 has the largest BIC" in explanation.why_k(
        neuron(0, "a:0", k=2, **clustered), TRIED, "sigclust"
    )
    assert explanation.why_k(neuron(0, "a:0", k=1, **unsure), TRIED, "bic").endswith(
        "1.0 is not above 4, so one feature is likelier, and K = 1 wherever the curve peaks. If "
        "there were several, it would be K = 3, with the largest BIC of K = 2 to 3."
    )
    # Of equal values the smaller K is taken.
    tie = dataclasses.replace(detail(), bic=[0.0, -8.0, -8.0])
    assert "Of these, K = 2 has" in explanation.why_k(
        neuron(0, "a:0", k=2, **clustered), tie, "bic"
    )
    two = dataclasses.replace(detail(), bic=[0.0, -8.0, math.nan])
    assert explanation.why_k(neuron(0, "a:0", k=2, **clustered), two, "bic").endswith(
        "no other K within reach."
    )
    assert explanation.why_k(neuron(0, "a:0", k=1, separation=None), TRIED, "bic") == (
        "With 4 valid images more than one feature was out of reach."
    )
    assert explanation.why_k(neuron(0, "a:0", k=None), TRIED, "bic") == (
        "There was nothing to choose between."
    )


def test_some_of_several_shards_are_not_called_the_whole_run(tmp_path):
    whole = make_run(tmp_path, num_shards=5)
    assert words.state(whole) == "The run is finished."
    assert whole.is_whole
    one = make_run(tmp_path, num_shards=5, missing_shards=4)
    assert words.state(one).startswith(
        "1 of 5 shards is here, and finished. Write the report again"
    )
    assert not one.is_whole


def test_images_are_named_for_those_who_cannot_see_them():
    made = neuron(0, "a:0")
    made = dataclasses.replace(made, weights=(0.75, 0.25))
    assert words.typical(made) == "Typical images of a:0: feature 1 (75 %), feature 2 (25 %)"
    assert words.picture(made, 2) == "a:0, feature 2 (25 %): typical image"
    first, second = detail().clusters[0].pictures
    assert words.picture(made, 1, first) == (
        "a:0, feature 1 (75 %): typical image 0, activation 5.00"
    )
    assert words.picture(made, 0, second) == "a:0, not valid: image 1, activation 4.00"
    damaged = dataclasses.replace(second, is_damaged=True)
    assert words.picture(made, 1, damaged) == "a:0, feature 1 (75 %): image 1 is damaged"


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


def test_the_command_names_its_configuration_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    run = make_run("run")
    given = shlex.split(words.reproduction(run, run.neurons[0]))
    assert given[given.index("--config") + 1] == str(tmp_path / "run" / "config.yaml")
