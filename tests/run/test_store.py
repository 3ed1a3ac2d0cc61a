import dataclasses
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_rows import make_dead, make_row

from polylight.errors import InputError
from polylight.run.atomic import check_writable, write_atomically
from polylight.run.parts import PartError, read_groups
from polylight.run.png import encode_png
from polylight.run.schema import SCHEMA, NeuronRow, rows_to_table
from polylight.run.store import RunStore, part_paths, read_rows, read_run, stream_rows


def assert_same(a, b):
    for field in dataclasses.fields(NeuronRow):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, field.name
            if left.size or right.size:
                np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert len(left) == len(right)
        else:
            assert left == right, field.name


def test_every_column_comes_back(tmp_path):
    rows = [make_row("max(blocks.4:3,blocks.4:9)", channel=None), make_dead(), make_row(k=1, n=3)]
    RunStore(tmp_path).append(rows)
    for row, again in zip(rows, read_rows(tmp_path), strict=True):
        assert_same(row, again)


def test_columns_and_order_are_those_of_schema_version_4(tmp_path):
    RunStore(tmp_path).append([make_row()])
    schema = read_run(tmp_path).schema
    assert schema.names == [field.name for field in dataclasses.fields(NeuronRow)]
    assert schema.equals(SCHEMA, check_metadata=True)
    assert json.loads(schema.metadata[b"polylight"]) == {"schema_version": 4}


def test_non_finite_numbers_survive(tmp_path):
    row = make_row(
        status="failed", stop_reason="max_images", bic=np.array([np.nan, np.inf, -np.inf])
    )
    RunStore(tmp_path).append([row])
    np.testing.assert_array_equal(read_rows(tmp_path)[0].bic, row.bic)


def test_datasets_gives_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    datasets.disable_progress_bars()
    row = make_row()
    store = RunStore(tmp_path / "run")
    store.append([row])
    store.append([make_dead()])
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "run/neurons/*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.column_names == SCHEMA.names
    assert [len(images) for images in loaded["image"]] == [6, 0]
    pictures = np.stack([np.asarray(image) for image in loaded[0]["image"]])
    assert encode_png(pictures) == list(row.image)
    assert loaded[1]["score"] is None
    np.testing.assert_array_equal(np.float32(loaded[0]["embedding"]), row.embedding)


def test_duckdb_reads_all_parts_by_glob(tmp_path):
    rows = [make_row("a:0", score=0.25), make_row("a:1", score=0.75)]
    for rank, row in enumerate(rows):
        RunStore(tmp_path, rank).append([row])
    RunStore(tmp_path).append([make_dead()])
    found = duckdb.sql(
        "select neuron, score, len(label), image[1].bytes, image[6].path, embedding[2][3] "
        f"from '{tmp_path}/neurons/*.parquet' where status = 'ok' order by score desc"
    ).fetchall()
    assert [f[:4] for f in found] == [(r.neuron, r.score, 6, r.image[0]) for r in reversed(rows)]
    assert found[0][4] == "a_1/005.png"
    assert found[0][5] == float(rows[1].embedding[1, 2])


def test_pictures_are_stored_as_they_are_and_the_rest_is_compressed(tmp_path):
    path = RunStore(tmp_path).append([make_row()])
    group = pq.read_metadata(path).row_group(0)
    codecs = {
        group.column(i).path_in_schema: group.column(i).compression
        for i in range(group.num_columns)
    }
    assert codecs.pop("image.list.element.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}


def test_parts_are_numbered_on_and_never_overwritten(tmp_path):
    store = RunStore(tmp_path)
    assert store.append([]) is None
    assert store.append([make_row("a:0")]).name == "part-00000-000000.parquet"
    store.close()
    (tmp_path / "neurons" / "part-00001-000041.parquet").write_bytes(b"of another rank")
    again = RunStore(tmp_path)
    assert again.append([make_row("a:1")]).name == "part-00000-000001.parquet"
    before = (tmp_path / "neurons" / "part-00000-000001.parquet").read_bytes()
    # As where a file system has no locks.
    next_part = tmp_path / "neurons" / "part-00000-000002.parquet"
    next_part.write_bytes(b"of an intruder")
    with pytest.raises(FileExistsError, match="another process writes as rank 0"):
        again.append([make_row("a:3")])
    assert next_part.read_bytes() == b"of an intruder"
    assert (tmp_path / "neurons" / "part-00000-000001.parquet").read_bytes() == before


def test_finished_counts_all_ranks_and_every_status(tmp_path):
    assert RunStore(tmp_path).finished() == set()
    RunStore(tmp_path, 0).append([make_row("a:0"), make_dead("a:1")])
    RunStore(tmp_path, 3).append([make_row("a:2", status="failed", stop_reason="max_images")])
    assert RunStore(tmp_path, 1).finished() == {"a:0", "a:1", "a:2"}
    assert RunStore(tmp_path, 1).statuses() == {"a:0": "ok", "a:1": "dead", "a:2": "failed"}


def test_q_values_are_of_the_whole_layer_whatever_is_asked_for(tmp_path):
    p_values = {"a": [0.01, 0.04, None, 0.03, 0.005], "b": [0.04, 0.5]}
    for rank, (layer, values) in enumerate(p_values.items()):
        RunStore(tmp_path, rank).append(
            [
                make_row(f"{layer}:{i}", layer=layer, p_value=p, q_value=None, n=1)
                for i, p in enumerate(values)
            ]
        )
    # Four p-values in a, and two in b.
    expected = [0.02, 0.04, None, 0.04, 0.02, 0.08, 0.5]
    table = read_run(tmp_path, columns=["q_value"])
    assert table.schema.names == ["q_value"]
    assert table["q_value"].to_pylist() == pytest.approx(expected)
    some = read_run(tmp_path, columns=["q_value", "neuron"], neurons=["b:0", "a:0", "a:2"])
    found = dict(zip(some["neuron"].to_pylist(), some["q_value"].to_pylist(), strict=True))
    assert found == pytest.approx({"a:0": 0.02, "a:2": None, "b:0": 0.08})
    assert [r.q_value for r in read_rows(tmp_path, ["a:3", "b:1"])] == pytest.approx([0.04, 0.5])


def test_of_a_neuron_written_twice_the_first_wins(tmp_path):
    RunStore(tmp_path, 1).append([make_row("a:0", score=0.75), make_row("a:1")])
    RunStore(tmp_path, 0).append([make_row("a:0", score=0.25)])
    table = read_run(tmp_path, columns=["score", "neuron"])
    assert table.to_pydict() == {"score": [0.25, 0.5], "neuron": ["a:0", "a:1"]}


def test_only_the_neurons_asked_for_are_read(tmp_path):
    store = RunStore(tmp_path)
    for start in (0, 40):
        store.append([make_row(f"a:{i}", n=1) for i in range(start, start + 40)])
    rows = read_rows(tmp_path, neurons=["a:61", "a:3", "a:999"])
    assert [row.neuron for row in rows] == ["a:3", "a:61"]
    assert read_run(tmp_path, columns=["score"], neurons=["a:999"]).num_rows == 0


def test_what_a_killed_writer_left_is_ignored_and_cleared_by_the_same_rank(tmp_path):
    RunStore(tmp_path).append([make_row()])
    leftover = tmp_path / "neurons" / ".part-00000-000001.parquet.tmp"
    leftover.write_bytes(b"half a part")
    other = RunStore(tmp_path, 1)
    assert leftover.exists()
    assert other.finished() == {"blocks.4:17"}
    RunStore(tmp_path, 0)
    assert not leftover.exists()


def test_a_full_disk_leaves_no_half_part(tmp_path, monkeypatch):
    store = RunStore(tmp_path)

    def write_half(table, file, **_):
        file.write(b"PAR1 and then")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("polylight.run.parts.pq.write_table", write_half)
        with pytest.raises(OSError, match="No space left"):
            store.append([make_row()])
    names = {path.name for path in (tmp_path / "neurons").iterdir()}
    assert names == {".rank-00000.lock"}
    assert store.append([make_row()]).name == "part-00000-000000.parquet"


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


KILLED_WRITER = """
import dataclasses, os, random, signal, sys, time
from polylight.run.store import RunStore
from example_rows import make_row

run, warm_up, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
template = dataclasses.replace(make_row(n=32), image=[bytes(8192)] * 32)
# The first write takes long. One process forks the writers, so that all but this one are fast.
RunStore(warm_up).append([template])
reader, writer = os.pipe()
for turn in range(kills):
    child = os.fork()
    if child == 0:
        store = RunStore(run)
        for i in range(10**6):
            name = f"a:{turn}-{i}"
            store.append([dataclasses.replace(template, neuron=name)])
            os.write(writer, f"{name}\\n".encode())
    first = os.read(reader, 1)
    time.sleep(random.Random(turn).uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sys.stdout.write((first + os.read(reader, 65536)).decode())
"""


def test_kill_9_at_any_moment_leaves_whole_parts_and_every_reported_row(tmp_path):
    here, run = str(Path(__file__).parents[1]), str(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_WRITER), run, str(tmp_path / "warm"), "20"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PATH": "", "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
    )
    reported = done.stdout.split()
    assert len(reported) >= 20
    finished = RunStore(run).finished()
    assert finished.issuperset(reported)
    # A writer may die between a part's renaming and its report: one row a kill, no more.
    assert len(finished) - len(set(reported)) <= 20
    rows = read_rows(run)
    assert len(rows) == len(finished)
    assert all([len(png) for png in row.image] == [8192] * 32 for row in rows)
    assert not list(Path(run, "neurons").glob(".*.tmp"))


HELD_RANK = """
import sys, time
from polylight.run.store import RunStore
store = RunStore(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_rank_has_one_live_writer(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HELD_RANK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"rank 0 of .* by process {holder.pid} on "):
            RunStore(tmp_path)
        RunStore(tmp_path, 1)
    finally:
        holder.kill()
        holder.communicate()
    RunStore(tmp_path)


def test_a_rank_is_held_within_a_process_too_and_reading_takes_nothing_from_it(tmp_path):
    store = RunStore(tmp_path)
    with pytest.raises(InputError, match=rf"rank 0 of .* by process {os.getpid()} on "):
        RunStore(tmp_path)
    lock = tmp_path / "neurons" / ".rank-00000.lock"
    # Closing any descriptor of a file gives up the process's POSIX record locks on it.
    lock.read_bytes()
    command = [sys.executable, "-c", "import sys; from polylight.run.store import RunStore; "]
    command[-1] += "RunStore(sys.argv[1])"
    other = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "is being written by process" in other.stderr
    store.close()
    store.close()
    RunStore(tmp_path).close()


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path):
    forking = """
        import os, sys, time
        from polylight.run.store import RunStore
        store = RunStore(sys.argv[1])
        if os.fork() == 0:
            os.close(1)
            os.close(2)
            time.sleep(20)
        print("forked", flush=True)
        os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(forking), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"forked\n"
    RunStore(tmp_path).close()


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level(logging.WARNING):
        store = RunStore(tmp_path)
    assert "has no file locks" in caplog.text
    store.append([make_row()])
    store.close()


def test_an_unreadable_part_is_named(tmp_path):
    path = RunStore(tmp_path).append([make_row()])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot read .*part-00000-000000.parquet: .*delete it"):
        RunStore(tmp_path).finished()


@pytest.mark.parametrize(
    ("version", "advice"),
    [(1, "run the same fit again in another --run_dir"), (5, "upgrade polylight")],
)
def test_a_part_of_another_version_is_refused(tmp_path, version, advice):
    path = RunStore(tmp_path).append([make_row()])
    other = {"polylight": json.dumps({"schema_version": version})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(other), path)
    message = f"{path}: it has schema version {version}, .* knows version 4; {advice}"
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)
    with pytest.raises(InputError, match=message):
        RunStore(tmp_path, 1).finished()


def test_rows_are_streamed_a_few_at_a_time(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    rows = [make_row(f"a:{i}", n=2, q_value=None) for i in range(40)]
    store.append(rows[:36])
    store.append([make_row("a:3", n=2, score=0.75), *rows[36:]])
    loaded = []
    read = pq.ParquetFile.iter_batches

    def count(part, **options):
        for batch in read(part, **options):
            loaded.append((*options["row_groups"], batch.num_rows))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    stream = stream_rows(part_paths(tmp_path))
    assert_same(next(stream), rows[0])
    assert loaded == [(0, 4)]
    for row, again in zip(rows[1:], stream, strict=True):
        assert_same(row, again)
    loaded.clear()
    found = list(stream_rows(part_paths(tmp_path), ["a:35", "a:36"]))
    assert [row.neuron for row in found] == ["a:35", "a:36"]
    # Row groups without a wanted neuron are not loaded.
    assert loaded == [(2, 4), (0, 4), (0, 1)]


def test_what_is_wrong_with_a_part_is_told_apart_from_where_it_is(tmp_path):
    path = RunStore(tmp_path).append([make_row()])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PartError) as caught:
        next(read_groups(path, ["neuron"]))
    assert caught.value.path == path
    assert "magic bytes" in caught.value.reason


def test_a_foreign_part_is_refused(tmp_path):
    (tmp_path / "neurons").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "neurons" / "part-00000-000000.parquet")
    with pytest.raises(InputError, match="was not written by polylight"):
        read_run(tmp_path)


def test_no_directory_and_no_column(tmp_path):
    with pytest.raises(InputError, match="expected the directory of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no column 'scores'; nearest: score"):
        read_run(tmp_path, columns=["scores"])


def test_a_directory_that_cannot_be_written_is_found_out_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write in the run directory .*Not a directory"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="choose another --run_dir"):
        RunStore(tmp_path / "file")
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "status of neuron blocks.4:17 is 'fine'; expected one of ok, dead"),
        ({"stop_reason": "bored"}, "stop_reason .* is 'bored'; expected one of elbow"),
        ({"num_images": 7}, "num_images=7 but 6 entries in 'label'"),
        ({"component": np.zeros(5, np.int32)}, "num_images=6 but 5 entries in 'component'"),
        ({"image": [b"png"]}, "num_images=6 but 1 entries in 'image'"),
        ({"embedding": np.zeros(6, np.float32)}, r"shape \(6,\); expected \[N, D\]"),
        ({"cluster_weight": np.ones(3)}, "k=2 but 3 cluster weights"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rows_to_table([make_row(**changes)])
