"""Commands as people type them: what they print, refuse and load."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from example_rows import make_row
from PIL import Image
from torch import nn

from polylight import __version__
from polylight.cli import main
from polylight.commandline.fit_parser import parse_fit
from polylight.commandline.messages import one_line
from polylight.commandline.nested import parse_nested
from polylight.commandline.plain import parse_plain
from polylight.commandline.signatures import read_signature
from polylight.errors import InputError, nearest
from polylight.planted.command import validate
from polylight.run.store import RunStore, read_run

ROOT = Path(__file__).parents[2]
TINY = [
    *("--model.subject", "tiny:subject"),
    *("--model.embedder", "tiny:embedder"),
    *("--model.image_size", "32"),
    *("--trainer.accelerator", "cpu"),
]


def bracketed():
    """A network with a layer whose name rich would read as a colour."""
    net = nn.Sequential()
    net.add_module("[red]x[/red]", nn.Conv2d(3, 4, 3))
    return net


def refused(capsys, *args):
    """Run a command that has to be refused; give its one line without the beginning."""
    assert main(list(args)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("polylight: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("polylight: error: ").rstrip("\n")


def settings(*args):
    """The settings that arguments of `fit` come to."""
    given = ["--run_dir", "run", *([] if "--data.neurons" in args else ["--data.neurons", "fc:0"])]
    return yaml.safe_load(parse_fit([*given, *TINY, *args]).config)


def test_the_version_and_the_commands_are_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polylight {__version__}\n"
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {name} " in usage for name in ("fit", "layers", "show", "query", "report"))
    assert main([]) == 2
    assert capsys.readouterr().out == usage


def test_the_help_of_fit_is_one_screen_of_what_matters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["fit", "--model.max_images", "3", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0] for line in lines if line.startswith("  --")}
    assert shown >= {
        "--run_dir",
        "--config",
        "--data.neurons",
        "--model.subject",
        "--model.embedder",
        "--model.subject_weights",
        "--model.embedder_weights",
        "--model.preset",
        "--model.max_images",
        "--trainer.accelerator",
    }
    assert sum(line.startswith("  polylight fit ") for line in lines) == 2


def test_the_examples_of_the_help_parse(capsys):
    main(["fit", "--help"])
    examples = re.findall(r"^  polylight fit (.*)$", capsys.readouterr().out, re.MULTILINE)
    for example in examples:
        words = example.replace("configs/", f"{ROOT}/configs/").split()
        assert parse_fit(words).run_dir.parent.name == "runs"


def test_all_of_the_help_has_lightnings_flags_too(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help-all"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    options = ("--trainer.detect_anomaly", "--model.restarts", "--tensorboard.every", "--run_dir")
    assert all(option in said for option in options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fot", r"no command 'fot'; nearest: fit, .*"),
        ("show", r"polylight show needs run; see `polylight show --help`\."),
        ("show R --tob 3", r"show has no option --tob; nearest: --top, .*"),
        ("show R --wher x", r"show has no option --wher; nearest: --where, .*"),
        ("show R --top many", r"--top: expected an integer, not 'many'; see .*"),
        ("show R --json=maybe", r"--json: expected true or false, not 'maybe'; see .*"),
        ("show R more", r"'more' belongs to no option; see `polylight show --help`\."),
        ("query R", r"polylight query needs sql; see .*"),
        ("layers", r"polylight layers needs model; see .*"),
        ("layers tiny:subject --image_siz 8", r".* nearest: --image_size.*"),
        ("report", r"polylight report needs runs; see .*"),
        ("report R --pfd false", r"report has no option --pfd; nearest: --pdf.*"),
        (
            "report R --neurons=[1",
            r"--neurons: expected values or a list in JSON, not '\[1'; see.*",
        ),
        ("validate --run_dri x", r"validate has no option --run_dri; nearest: --run_dir.*"),
        ("validate", r"validate needs --run_dir and --subjects; see .*"),
        ("validate --run_dir x --sizes.single 3", r".*--sizes.single; nearest: --sizes.singles.*"),
        ("validate --run_dir x --subjects 3", r"--subjects: expected a list, not '3'\."),
        (
            "fit --model.max_image 4",
            r"fit has no option --model.max_image; nearest: --model.max_.*",
        ),
        ("fit --max_images=4", r"fit has no option --max_images; nearest: --model.max_images, .*"),
        ("fit --trainer.devcies 2", r"fit has no option --trainer.devcies; nearest: .*devices.*"),
        ("fit --qqqqqqqq 2", r"fit has no option --qqqqqqqq; nearest: none\."),
        ("fit stray", r"'stray' belongs to no option; see `polylight fit --help`\."),
        ("fit", r"fit needs --run_dir; see `polylight fit --help`\."),
        ("fit --run_dir x", r"fit needs --data.neurons; see `polylight fit --help`\."),
        ("fit --run_dir", r"--run_dir: expected one argument; see `polylight fit --help`\."),
    ],
)
def test_what_is_wrong_is_one_line(words, message, capsys):
    said = refused(capsys, *words.split())
    assert re.fullmatch(message, said), said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.max_steps many", r"--model.max_steps: expected an integer or null, not 'many'\."),
        ("--model.max_images 1.5", r"--model.max_images: expected an integer, not '1.5'\."),
        (
            "--model.kernels trito",
            r"--model.kernels: expected one of auto, .*; nearest: triton, .*",
        ),
        ("--model.cuda_graph maybe", r"--model.cuda_graph: expected true or false, not 'maybe'\."),
        ("--config nowhere.yaml", r"--config: File does not exist: '.*/nowhere.yaml'\."),
        ("--model nowhere.yaml", r"--model: .*nowhere.yaml.*"),
        ("--trainer.callbacks Nope", r"--trainer.callbacks: expected a list or the path of .*"),
        ("--trainer.profiler simpl", r".*`profiler`.*'simple'.*"),
        ("--trainer.accelerator cup", r".*accelerator='cup'.*"),
        ("--seed_everything -1", r"--seed_everything .* from 0 to 4294967295, not -1\."),
        ("--seed_everything 99999999999", r"--seed_everything .* from 0 .*, not 99999999999\."),
        ("--seed_everything true", r"--seed_everything .* from 0 to 4294967295, not true\."),
        ("--trainer.devices 2", r"--trainer.devices 2: .*--data.shard i/n.*"),
        ("--trainer.devices [0,1]", r"--trainer.devices \[0, 1\]: .*--data.shard i/n.*"),
        ("--trainer.devices auto", r"--trainer.devices auto: .*--data.shard i/n.*"),
        ("--trainer.devices=-1", r"--trainer.devices -1: .*--data.shard i/n.*"),
        ("--trainer.num_nodes 2", r"--trainer.num_nodes cannot be 2 here: .*--data.shard i/n.*"),
        ("--trainer.strategy ddp", r"--trainer.strategy cannot be ddp here: .*--data.shard i/n.*"),
        ("--trainer.accumulate_grad_batches 4", r"--trainer.accumulate_grad_batches cannot be 4.*"),
        ("--trainer.gradient_clip_val 1", r"--trainer.gradient_clip_val cannot be 1(\.0)? here.*"),
        ("--trainer.limit_train_batches .5", r".*cannot be 0.5 here: .*--trainer.max_steps.*"),
        ("--trainer.overfit_batches 1", r"--trainer.overfit_batches cannot be 1.* here.*"),
        ("--trainer.val_check_interval 5", r"--trainer.val_check_interval cannot be 5 here.*"),
        ("--trainer.fast_dev_run true", r"--trainer.fast_dev_run cannot be True here.*"),
        ("--trainer.barebones true", r"--trainer.barebones cannot be True here.*"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=nothing",
            r"--trainer.callbacks EarlyStopping: .* trains nothing; leave it out, .*max_steps.*",
        ),
        (
            "--trainer.callbacks+=LearningRateMonitor",
            r"--trainer.callbacks LearningRateMonitor: .* trains nothing; leave it out.*",
        ),
        ("--trainer.limit_val_batches 1", r"--trainer.limit_val_batches cannot be 1(.0)? here.*"),
        ("--trainer.max_epochs 2", r"--trainer.max_epochs cannot be 2 here.*"),
        (
            "--trainer.precision 16-mixed",
            r"--trainer.precision 16-mixed would .*--model.precision.*",
        ),
    ],
)
def test_a_wrong_value_of_fit_is_one_line(words, message, tmp_path, capsys):
    run = tmp_path / "run"
    given = ["--run_dir", str(run), "--data.neurons", "fc:0", *TINY]
    said = refused(capsys, "fit", *given, *words.split())
    assert re.fullmatch(message, said), said
    assert not run.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {max_image: 4}",
            r"there is no setting model.max_image; nearest: model.max_images.*",
        ),
        ("modle: {max_images: 4}", r"there is no setting modle.max_images; nearest: model.max_.*"),
        ("model: {max_images: four}", r"--model.max_images: expected an integer, not 'four'\."),
        ("trainer: {devices: 2}", r"--trainer.devices 2: .*"),
        ("seed_everything: -3", r"--seed_everything .* not -3\."),
        ("model: [", r"Problems parsing config.*"),
        ("- 3", r"Unexpected config: - 3.*"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text, message, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    given = ["--run_dir", "r", "--data.neurons", "fc:0", "--config", str(tmp_path / "x.yaml")]
    said = refused(capsys, "fit", *given)
    assert re.fullmatch(message, said), said


@pytest.mark.parametrize("zero", ["0", "0.0"])
def test_no_validation_is_no_validation_however_it_is_written(zero):
    assert settings("--trainer.limit_val_batches", zero)["trainer"]["limit_val_batches"] == 0


def test_options_win_over_files_wherever_they_stand(tmp_path):
    path, part = tmp_path / "x.yaml", tmp_path / "model.yaml"
    path.write_text("model: {max_images: 4, max_steps: 7, restarts: 3}\nseed_everything: 5")
    part.write_text("max_steps: 9\nrestarts: 4")
    files = ["--config", str(path), "--model", str(part)]
    flags = ["--model.max_images", "8", "--model.restarts=5"]
    for words in ([*files, *flags], [*flags, *files], [*files[2:], *flags, *files[:2]]):
        found = settings(*words)
        model = found["model"]
        assert (model["max_images"], model["max_steps"], model["restarts"]) == (8, 9, 5)
        assert found["seed_everything"] == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--data.neurons", "fc:0-1", "-act3:2", "max(fc:0,fc:2)"],
        ["--data.neurons", "fc:0-1,-act3:2,max(fc:0,fc:2)"],
        ["--data.neurons", "fc:0-1", "--data.neurons", "-act3:2", "max(fc:0,fc:2)"],
        ["--data.neurons", '["fc:0-1", "-act3:2", "max(fc:0,fc:2)"]'],
    ],
)
def test_neurons_need_no_brackets(words):
    assert settings(*words)["data"]["neurons"] == ["fc:0-1", "-act3:2", "max(fc:0,fc:2)"]


def test_the_settings_of_a_run_are_enough_to_start_it_again(tmp_path):
    first = parse_fit(["--run_dir", "run", "--data.neurons", "fc:0", *TINY, "--seed_everything=3"])
    path = tmp_path / "config.yaml"
    path.write_text(first.config)
    again = parse_fit(["--config", str(path)])
    # By value: whether 0 is written 0 or 0.0 is not for us to say.
    assert yaml.safe_load(again.config) == yaml.safe_load(first.config)
    assert again.module.seed == first.module.seed == 3


def test_a_home_directory_is_found_in_options_and_in_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "grey.png")
    torch.save({}, tmp_path / "w.pt")
    (tmp_path / "x.yaml").write_text("run_dir: ~/a\ndata: {neurons: ['fc:0'], photos: ~/photos}")
    parsed = parse_fit(["--config=~/x.yaml", *TINY, "--run_dir=~/b"])
    assert parsed.run_dir == tmp_path / "b"
    assert parsed.trainer.default_root_dir == str(tmp_path / "b")
    assert yaml.safe_load(parsed.config)["data"]["photos"] == str(tmp_path / "photos")
    assert parse_fit(["--config", "~/x.yaml", *TINY]).run_dir == tmp_path / "a"
    with pytest.raises(InputError, match=rf"{tmp_path}/w\.pt"):
        settings("--model.subject_weights=~/w.pt")
    show = read_signature("polylight.inspect.show", "show")
    assert parse_plain("show", show, ["~/r"])["run"] == f"{tmp_path}/r"


def test_a_file_of_validate_gives_way_to_options_and_finds_the_home_directory(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "v.yaml").write_text(
        "{run_dir: ~/v, seed: 3, subjects: [{subject: resnet18, subject_weights: ~/w.pt, "
        "embedder: resnet18, layers: [layer1]}]}"
    )
    signature = read_signature("polylight.planted.command", "validate")
    words = ["--seed", "9", "--config=~/v.yaml", "--images=~/photos"]
    found = parse_nested("validate", validate, signature, words)
    assert found["seed"] == 9
    assert found["run_dir"] == str(tmp_path / "v")
    assert found["images"] == str(tmp_path / "photos")
    assert found["subjects"][0].subject_weights == str(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "launcher",
    [
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "scores",
        },
    ],
    ids=["torchrun", "srun"],
)
def test_a_process_of_a_launcher_runs_its_own_shard(launcher, tmp_path):
    run = tmp_path / "run"
    words = ["--run_dir", str(run), "--data.shard", "1/2", "--data.neurons", "fc:0-1", *TINY]
    words += ["--model.max_steps", "4", "--model.min_images", "4", "--model.max_images", "4"]
    words += ["--model.reference_images", "4", "--model.pool_size", "4"]
    script = "import sys; from polylight.cli import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", script, "fit", *words],
        env={**os.environ, **launcher, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert read_run(run, ["neuron"])["neuron"].to_pylist() == ["fc:1"]
    assert list((run / "tensorboard" / "shard-00001").glob("events*"))


def test_layers_need_no_weights(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    assert main(["layers", "resnet18", "--image_size", "64"]) == 0
    assert re.search(r"layer4\.1\.relu .* 512 .* 2x2", capsys.readouterr().out)


def test_layers_print_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["layers", f"{__name__}:bracketed", "--image_size", "8"]) == 0
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert f"{__name__}:bracketed: 1 layers" in out


def test_a_run_is_shown_and_asked_without_large_packages(tmp_path):
    with_rows = RunStore(tmp_path / "run")
    with_rows.append([make_row("a:0"), make_row("a:1")])
    with_rows.close()
    script = """
import json, sys
from polylight.cli import main
run = sys.argv[1]
ended = [main(["show", run, "--where", "k > 0"]), main(["query", run, "SELECT 1 FROM neurons"])]
loaded = {name.partition(".")[0] for name in sys.modules}
large = {"torch", "lightning", "jsonargparse", "pandas", "matplotlib"}
print("\\n" + json.dumps([ended, sorted(loaded & large)]))
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout.splitlines()[-1]) == [[0, 0], []]


@pytest.mark.parametrize(
    ("name", "words", "values"),
    [
        ("show", "R", {}),
        ("show", "--json R --sort -score", {"json": True, "sort": "-score"}),
        ("show", "R --json false --top 3 --where k>1", {"top": 3, "where": "k>1"}),
        ("show", "R --csv=true", {"csv": True}),
    ],
)
def test_plain_functions_get_what_is_typed(name, words, values):
    defaults = {"top": None, "where": None, "sort": None, "json": False, "csv": False}
    found = parse_plain(name, read_signature("polylight.inspect.show", name), words.split())
    assert found == {"run": "R", **defaults, **values}


def test_several_values_come_by_position_and_by_name():
    signature = read_signature("polylight.report.command", "report")
    found = parse_plain(
        "report", signature, ["R", "--pdf", "false", "S", "--neurons", "a:1", "b:2"]
    )
    assert found == {"runs": ["R", "S"], "out": None, "pdf": False, "neurons": ["a:1", "b:2"]}


def test_a_message_of_another_form_is_kept_in_one_line():
    said = one_line("fit", "argument --x: something\n  is odd", [])
    assert said == "--x: something is odd; see `polylight fit --help`."
    linked = one_line("fit", 'Linked "a.b" must be given via "c".', [])
    assert linked == "a.b follows --c; set that instead."


def test_the_nearest_names_are_named_and_far_ones_only_where_there_are_few():
    many = [f"layer{i}" for i in range(20)]
    assert nearest("layr3", many) == "nearest: layer3, layer13, layer9"
    assert nearest("xyz", many) == "nearest: none"
    assert nearest("xyz", ["fit", "show"]).startswith("nearest: ")
    assert nearest("FIT", ["Fit"]) == "nearest: Fit"
    assert nearest("x", []) == "nearest: none"
