import base64
import csv
import io
import json
import math
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from example_rows import make_dead, make_row
from rich.console import Console

from polylight.cli import main
from polylight.errors import InputError
from polylight.inspect.neuron_table import SCALARS, SHOWN
from polylight.inspect.query import matching, query, select
from polylight.inspect.result_table import Result, render_result
from polylight.inspect.show import show
from polylight.run.false_discovery import q_values
from polylight.run.schema import SCHEMA
from polylight.run.store import RunStore, read_run

LISTS = [name for name in SCHEMA.names if name not in SCALARS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Nine neurons of three layers, one of them dead, with one part that repeats two of them."""
    path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    rows = [
        make_row(f"{layer}:{i}", layer=layer, channel=i, score=s, p_value=p, seconds=10 * s)
        for layer in ("blocks.3", "blocks.4", "Ebene-ü")
        for i, (s, p) in enumerate(rng.uniform(size=(3, 2)).tolist())
    ]
    rows[4] = make_dead("blocks.4:1")
    store = RunStore(path)
    store.append(rows)
    store.append([make_row(rows[0].neuron, score=0.99), make_row(rows[5].neuron, score=0.99)])
    store.close()
    return path


def printed(found, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_result(found, width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def asked(capsys, *args):
    query(*map(str, args[:2]), **dict.fromkeys(args[2:], True))
    return capsys.readouterr().out


def test_a_group_is_that_of_pyarrow(run, capsys):
    sql = "SELECT layer, avg(score) AS mean, max(p_value) AS p, count(*) AS n FROM neurons"
    found = json.loads(asked(capsys, run, f"{sql} GROUP BY layer ORDER BY layer", "json"))
    groups = read_run(run, columns=["layer", "score", "p_value"]).group_by("layer")
    expected = groups.aggregate([("score", "mean"), ("p_value", "max"), ([], "count_all")])
    expected = expected.sort_by("layer").to_pylist()
    assert [row["layer"] for row in found] == ["Ebene-ü", "blocks.3", "blocks.4"]
    for row, other in zip(found, expected, strict=True):
        assert row["layer"] == other["layer"]
        assert row["mean"] == pytest.approx(other["score_mean"], rel=1e-15)
        assert row["p"] == other["p_value_max"]
        assert row["n"] == other["count_all"] == 3


def test_every_row_and_value_is_what_is_read(run):
    table = read_run(run)
    found = select(table, "SELECT * FROM neurons")
    assert found.names == SCHEMA.names
    assert found.rows == [tuple(row.values()) for row in table.to_pylist()]
    assert len(found.rows) == 9


def test_a_plan_and_a_summary_are_only_looking(run):
    table = read_run(run, columns=SCALARS)
    summary = select(table, "SELECT column_name, max FROM (SUMMARIZE neurons)").rows
    assert float(dict(summary)["score"]) == pc.max(table["score"]).as_py()
    assert select(table, "EXPLAIN SELECT score FROM neurons").names[0] == "explain_key"


def test_the_first_row_of_a_neuron_counts_and_q_is_filled(run, capsys):
    found = json.loads(asked(capsys, run, "SELECT neuron, score, q_value FROM neurons", "json"))
    order = [("score", "descending"), ("neuron", "ascending")]
    rows = read_run(run, columns=["neuron", "layer", "score", "p_value"]).sort_by(order).to_pylist()
    assert [row["score"] for row in found] == [row["score"] for row in rows]
    assert 0.99 not in [row["score"] for row in found]
    table = pa.Table.from_pylist(rows)
    p = pc.fill_null(table["p_value"], math.nan).to_numpy()
    expected = q_values(p, table["layer"].to_pylist())
    got = [math.nan if row["q_value"] is None else row["q_value"] for row in found]
    np.testing.assert_array_equal(got, expected)


def test_a_star_is_the_columns_of_show(run, capsys):
    found = json.loads(asked(capsys, run, "SELECT * FROM neurons", "json"))
    assert [list(row) for row in found] == [list(SHOWN)] * 9
    show(str(run), json=True, sort="neuron")
    shown = json.loads(capsys.readouterr().out)
    assert sorted(found, key=lambda row: row["neuron"]) == shown
    text = asked(capsys, run, "SELECT * FROM neurons")
    assert len(text) < 9 * 2000


@pytest.mark.parametrize("named", [["layer_input"], ["image", "label"], LISTS])
def test_a_list_that_is_named_beside_a_star_stands_where_it_is_named(run, capsys, named):
    sql = f"SELECT *, {', '.join(named)}, 1 AS one FROM neurons LIMIT 2"
    found = json.loads(asked(capsys, run, sql, "json"))
    assert [list(row) for row in found] == [[*SHOWN, *named, "one"]] * 2
    read = read_run(run, columns=["layer_input"])["layer_input"].to_pylist()
    if "layer_input" in named:
        assert [row["layer_input"] for row in found] == read[:2]


@pytest.mark.parametrize(
    "sql", ["DESCRIBE neurons", "describe table neurons;", "SELECT * FROM (DESCRIBE neurons)"]
)
def test_every_column_is_described(run, capsys, sql):
    described = csv.DictReader(io.StringIO(asked(capsys, run, sql, "csv")))
    kinds = {row["column_name"]: row["column_type"] for row in described}
    assert list(kinds) == [*SHOWN, *LISTS]
    assert kinds["embedding"] == kinds["layer_input"] == "FLOAT[][]"
    assert kinds["image"] == "STRUCT(bytes BLOB, path VARCHAR)[]"
    assert kinds["activation_median"] == "DOUBLE"
    # What a star has is described as that.
    star = asked(capsys, run, "DESCRIBE SELECT * FROM neurons ORDER BY score DESC", "csv")
    assert [row["column_name"] for row in csv.DictReader(io.StringIO(star))] == list(SHOWN)


def test_pictures_and_embeddings_come_when_they_are_named(run, capsys):
    sql = 'SELECT "Image"[1].bytes AS png, len(embedding) AS n, embedding FROM neurons LIMIT 1'
    (row,) = json.loads(asked(capsys, run, sql, "json"))
    whole = read_run(run)
    assert base64.b64decode(row["png"]) == whole["image"][0][0]["bytes"].as_py()
    np.testing.assert_array_equal(row["embedding"], whole["embedding"][0].as_py())
    assert row["n"] == 6


def test_csv_comes_back_as_it_was(run, capsys):
    sql = "SELECT neuron, layer, k, score, seed, label FROM neurons"
    text = asked(capsys, run, sql, "csv")
    assert text.startswith("neuron,layer,k,score,seed,label\r\n")
    assert text.count("\r\n") == 10
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    table = read_run(run, columns=list(rows[0]))
    for name, read in (("neuron", str), ("layer", str), ("seed", int), ("label", json.loads)):
        assert [read(row[name]) for row in rows] == table[name].to_pylist()
    for name, read in (("k", int), ("score", float)):
        given = [read(row[name]) if row[name] else None for row in rows]
        assert given == table[name].to_pylist()
        assert given[4] is None


FORBIDDEN = [
    ("COPY neurons TO 'stolen.csv'", "the query has COPY"),
    ("EXPORT DATABASE 'stolen'", "the query has EXPORT"),
    ("ATTACH 'stolen.db'", "the query has ATTACH"),
    ("INSTALL httpfs", "the query has LOAD"),
    ("LOAD httpfs", "the query has LOAD"),
    ("SET enable_external_access = true", "the query has SET"),
    ("CREATE TABLE t AS SELECT 1", "the query has CREATE"),
    ("DROP VIEW neurons", "the query has DROP"),
    ("SELECT 1; COPY neurons TO 'stolen.csv'", "the query has SELECT, COPY"),
    ("EXPLAIN ANALYZE COPY neurons TO 'stolen.csv'", "Cannot access file"),
    ("SELECT * FROM read_csv('/etc/passwd')", "Cannot access file"),
    ("SELECT * FROM read_text('/etc/passwd')", "Cannot access file"),
    ("SELECT * FROM read_blob('/etc/passwd')", "Cannot access file"),
    ("SELECT * FROM sniff_csv('/etc/passwd')", "Cannot access file"),
    ("SELECT * FROM parquet_scan('a.parquet')", "Cannot access file"),
    ("SELECT * FROM glob('/etc/*')", "Cannot access file"),
    ("SELECT * FROM query('FROM read_csv(''/etc/passwd'')')", "Cannot access file"),
    ("SELECT * FROM 'a.csv'", "Cannot access file"),
    ("SELECT * FROM 'https://example.com/a.csv'", "Cannot access file"),
    ("SELECT * FROM '/etc/passwd'", "does not exist"),
    # Variables of the Python that runs the query.
    ("SELECT * FROM table", "syntax error"),
    ("SELECT * FROM columns", "does not exist"),
    ("SELECT * FROM query_table('table')", "does not exist"),
]


@pytest.mark.parametrize(("sql", "said"), FORBIDDEN)
def test_a_query_reaches_nothing_but_the_neurons(run, tmp_path, monkeypatch, sql, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        query(str(run), sql)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", r'^the query failed: Parser Error: syntax error at or near "selec"$'),
        ("SELECT scor FROM neurons", r'column "scor" not found.*; nearest: score, '),
        ("SELECT neurons.scor FROM neurons", r'named "scor"; nearest: score, '),
        ("SELECT embeddings FROM neurons", r"; nearest: embedding"),
        ("SELECT * FROM neuron", r'neuron does not exist! Did you mean "neurons\?*"'),
        ("SELECT neuron::int FROM neurons", r"Conversion Error: Could not convert string"),
        ("SELECT 'a\udcffb'", r"the query is not valid UTF-8: .*udcff"),
        ("", "the query has no statement$"),
        ("-- nothing", "the query has no statement$"),
        ("SELECT ?", "the query failed: Invalid Input Error: Values were not provided"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_in_a_line(run, sql, said):
    with pytest.raises(InputError, match=f"(?i){said}") as refused:
        query(str(run), sql)
    assert "\n" not in str(refused.value)


def test_where_there_is_no_run_or_no_neuron_nothing_is_asked(tmp_path):
    with pytest.raises(InputError, match="is not the directory of a run"):
        query(str(tmp_path), "SELECT 1")
    RunStore(tmp_path).close()
    with pytest.raises(InputError, match="holds no finished neuron yet"):
        query(str(tmp_path), "SELECT 1")


def test_without_duckdb_it_is_said_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    install = r' needs duckdb, which is not installed.*pip install "polylight\[query\]"$'
    with pytest.raises(InputError, match="^the query" + install):
        query(str(run), "SELECT 1")
    with pytest.raises(InputError, match="^--where" + install):
        matching(read_run(run, columns=["neuron"]), "true")


def test_a_condition_holds_where_pyarrow_says(run):
    table = read_run(run, columns=["neuron", "layer", "score"])
    holds = pc.and_(pc.greater(table["score"], 0.3), pc.equal(table["layer"], "Ebene-ü"))
    got = matching(table, "score > 0.3 and layer = 'Ebene-ü'")
    assert got.to_pylist() == pc.fill_null(holds, False).to_pylist()
    assert True in got.to_pylist()
    assert matching(table, "score is null").to_pylist() == table["score"].is_null().to_pylist()
    assert matching(table, "score > 0.5 or true").to_pylist() == [True] * 9
    assert matching(table, "neuron = 'blocks.4:2' -- not 3").to_pylist().index(True) == 5


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("scor > 1", 'column "scor" not found.*; nearest: score, layer, neuron$'),
        ("image is null", 'column "image" not found'),
        ("score >", "Parser Error: syntax error"),
        ("", "Parser Error"),
        ("true) or (true", "Parser Error"),
        ("true; drop view neurons", "Parser Error"),
        ("true) union select (true", "Parser Error"),
        ("score, true", "single expression"),
        ("avg(score) > 0", "cannot contain aggregates"),
        ("exists(select * from read_csv('/etc/passwd'))", "Cannot access file"),
        ("neuron", "Could not convert string"),
        ("neuron = '\udcff'", "not valid UTF-8"),
    ],
)
def test_what_is_no_condition_is_refused(run, condition, said):
    table = read_run(run, columns=["neuron", "layer", "score"])
    with pytest.raises(InputError, match=f"^--where .*{said}") as refused:
        matching(table, condition)
    assert "\n" not in str(refused.value)


def test_a_result_is_a_table():
    found = Result(
        ["layer", "mean", "n", "big", "parts", "png"],
        [("b.4", 0.123456789, 2**62, True, [0.5, None], b"1234"), ("ü", None, 3, None, [], None)],
    )
    lines = printed(found)
    assert lines[0].split() == found.names
    assert set(lines[1]) == {"─"}
    assert lines[2:] == [
        "b.4    0.123457  4611686018427387904  true  [0.5, -]  4 bytes",
        "ü             -                    3  -     []        -",
        "",
        "2 rows",
    ]


def test_long_values_are_folded_and_whole():
    rows = [("x" * 100, 1.5, "[red]" + "é" * 70), ("日本" * 30, 2.5, "[/]")]
    for width in (80, 120):
        lines = printed(Result(["a", "b", "c"], rows), width)
        assert max(map(len, lines)) <= width
        text = "".join(lines)
        counts = [text.count(letter) for letter in ("x", "é", "日", "[red]", "[/]")]
        assert counts == [100, 70, 30, 1, 1]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_names_break_between_tokens(width):
    name = "max(features.denseblock3.denselayer12:10,features.denseblock4.denselayer1:7)"
    lines = printed(Result(["neuron", "score"], [(name, 0.5), ("a:1", 0.25)]), width)
    assert max(map(len, lines)) <= width
    cells = [line.split("  ")[0].strip() for line in lines[2:-2]]
    assert "".join(cells) == name + "a:1"
    assert all(cell[-1] in ",.(" for cell in cells[:-2])


def test_escape_sequences_are_spelt_out_and_line_feeds_are_kept():
    hostile = "a\x1b[2J\x9b1m\r\u202e"
    for width in (80, 5):
        lines = printed(Result([hostile, "b"], [(f"{hostile}\nnext", {hostile: [hostile]})]), width)
        assert all(line.isprintable() for line in lines)
    lines = printed(Result([hostile, "b"], [(f"{hostile}\nnext", 1)]))
    assert [line.split() for line in lines[:4:2]] == [
        [r"a\x1b[2J\x9b1m\r\u202e", "b"],
        [r"a\x1b[2J\x9b1m\r\u202e", "1"],
    ]
    assert lines[3] == "next"


def test_too_many_columns_are_put_under_each_other():
    names = [f"column_{i}" for i in range(12)]
    found = Result(names, [tuple(range(12)), tuple("text" * i for i in range(12))])
    assert printed(found, 160)[0].split() == names
    lines = printed(found, 80)
    assert lines[:3] == ["column_0   0", "column_1   1", "column_2   2"]
    assert lines[12] == lines[25] == ""
    assert lines[24] == f"column_11  {'text' * 11}"
    assert lines[26] == "2 rows"
    # The same at the last width at which a table fits.
    pair = Result(["a", "b"], [("x" * 20, 123456)])
    assert len(printed(pair, 12 + 2 + 6)) == 6
    assert printed(pair, 12 + 1 + 6)[-1] == "1 row"
    assert printed(pair, 12 + 1 + 6)[0].startswith("a  xxx")


def test_nothing_found_is_no_error(run, capsys):
    sql = "SELECT neuron, score FROM neurons WHERE score > 2"
    assert asked(capsys, run, sql, "json") == "[]\n"
    assert asked(capsys, run, sql, "csv") == "neuron,score\r\n"
    lines = [line.rstrip() for line in asked(capsys, run, sql).splitlines()]
    assert (lines[0].split(), lines[2:]) == (["neuron", "score"], ["", "0 rows"])
    everything = asked(capsys, run, "SELECT * FROM neurons WHERE score > 2")
    assert everything.split("\n")[-2] == "0 rows"


def test_json_and_csv_at_a_time_are_refused(run):
    with pytest.raises(InputError, match="--json and --csv were both given"):
        query(str(run), "SELECT 1", json=True, csv=True)


def test_the_command_line(run, capsys):
    sql = "SELECT count(*) AS n FROM neurons WHERE layer LIKE '%ü'"
    assert main(["query", str(run), sql, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 3}]
    assert main(["query", "--csv", str(run), sql]) == 0
    assert capsys.readouterr().out == "n\r\n3\r\n"
    assert main(["query", str(run), "SELECT nothing FROM neurons"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("polylight: error: the query failed: ")
    assert said.err.count("\n") == 1
    main(["--help"])
    assert "  query RUN SQL " in capsys.readouterr().out
