"""The notebooks run on settings that take seconds, and are stored with what they show."""

import copy
import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks.machine import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# A warning is an error, as in any test, unless it is the kernel's own.
STRICT = """import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
"""
EXAMPLES = str(ROOT / "docs" / "examples")
TINY = {"image_size": 32, "max_steps": 4, "pool_size": 4, "reference_images": 8}
SMALL = {
    "quickstart": {
        "NETWORK": "tiny:subject",
        "EMBEDDER": "tiny:embedder",
        "NEURONS": ["act3:0-1", "max(act3:0,act3:1)"],
        "IMAGES": 4,
        "SETTINGS": TINY,
    },
    "your_network": {
        "EPOCHS": 1,
        "NEURONS": ["conv1:0", "conv2:0"],
        "EMBEDDER": "tiny:embedder",
        "IMAGES": 4,
        "SETTINGS": TINY,
    },
    "sae": {
        "EXAMPLES": EXAMPLES,
        "LAYER": "blocks.4",
        "PHOTOS": None,
        "NUM_CROPS": 4,
        "EXPANSION": 2,
        "K": 8,
        "STEPS": 10,
        "COUNT": 1,
        "SETTINGS": {"embedder": "tiny:embedder", "images": 4, **TINY},
    },
    "training_curves": {
        "EXAMPLES": EXAMPLES,
        "EPOCHS": 1,
        "EVERY_N_EPOCHS": 1,
        "SETTINGS": {"neurons_per_layer": 1, "images": 4, "embedder": "tiny:embedder", **TINY},
    },
}
# Of each notebook, what has to hold where it ends; it runs in the notebook.
AFTERWARDS = {
    "quickstart": """
assert run.neurons and len(run) == 3 and scores.shape == (3, 3)
assert ((scores >= 0) & (scores <= 1)).all(axis=None)
assert all(neuron.images.shape == (4, 32, 32, 3) for neuron in run)
assert page.is_file()
""",
    "your_network": """
assert 0 <= accuracy <= 1 and accuracy > 0.1
assert len(found.scored) == 7
assert table["score"].between(0, 1).all() and list(table["layer"]) == ["conv1", "conv2"]
assert net.training and all(p.requires_grad for p in net.parameters())
""",
    "sae": """
assert sorted(table["kind"]) == ["latents", "neurons"]
assert table["score"].dropna().between(0, 1).all()
assert explained < 1
""",
    "training_curves": """
assert sorted(runs) == ["Adam", "Adam, weight decay"]
for history, accuracy in runs.values():
    assert history["epoch"].to_pylist() == [0, 0, 1, 1] and 0 < accuracy <= 1
assert table.shape == (2, 4) and ((table >= 0) & (table <= 1)).all(axis=None)
""",
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    return {output.output_type for output in cell.outputs}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_each_notebook_has_settings_for_its_test():
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys() == AFTERWARDS.keys()


@pytest.mark.slow
def test_notebooks_run(path, tmp_path, monkeypatch):
    stored = nbformat.read(path, 4)
    notebook = copy.deepcopy(stored)
    parameters, *_ = code_cells(notebook)
    given, named = SMALL[path.stem], {}
    exec(parameters.source, named)
    assert given.keys() == named.keys() - {"__builtins__"}
    parameters.source = STRICT + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    notebook.cells.append(nbformat.v4.new_code_cell(AFTERWARDS[path.stem]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # Kernels, profiles and settings of whoever runs this are none of the notebook's.
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    place = tmp_path / "notebooks"
    place.mkdir()
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(place)}}).execute()
    # Each cell shows what it shows on the page, and nothing is printed or warned of.
    *ran, _ = code_cells(notebook)
    assert [kinds(cell) for cell in ran] == [kinds(cell) for cell in code_cells(stored)]


def test_notebooks_are_stored_with_what_they_show(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert cells[0].metadata.tags == ["parameters"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "execute_result" in kinds(cells[-1])
    assert set().union(*map(kinds, cells)) <= {"display_data", "execute_result"}
    text = path.read_text()
    assert "data:image/jpeg;base64," in text or '"image/png"' in text
    assert len(text) < 1_500_000
    shown = re.sub(r"base64,[\w+/=]+|\"image/png\": \".*\"", "", text)
    assert not re.search(r"/(tmp|home|root|work|Users)/", shown)
