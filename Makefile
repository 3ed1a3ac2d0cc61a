# make quickstart   sets everything up and scores fourteen neurons of a real network
# make test         sets everything up and runs the tests
PY      := .venv/bin/python
READY   := .venv/.ready
RUN_DIR ?= runs/quickstart
# Many containers set it; each start would then compile all of torch and Lightning anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart test test-slow check format bench docs notebooks pictures references requirements

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@echo "Setting up .venv (7 GB). The first time this takes minutes."
	@python3 -m venv .venv
	@$(PY) -m pip install -qq --disable-pip-version-check "uv>=0.9"
	@.venv/bin/uv pip install --python $(PY) -r requirements.txt
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

quickstart: $(READY)
	.venv/bin/polylight fit --config configs/quickstart.yaml --run_dir $(RUN_DIR)

# The tests of a file share what they make: they stay in one process.
test: $(READY)
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m slow

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(READY)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: $(READY)
	$(PY) -m benchmarks

# A static site in build/docs; a warning is an error.
docs: $(READY)
	.venv/bin/uv pip install --quiet --python $(PY) --group docs
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

# The pictures of the README and the docs, from the quickstart, which is run if it is not there.
pictures: $(READY)
	$(PY) -m benchmarks.pictures $(RUN_DIR)

# The notebooks of the docs, run anew with the settings in them.
notebooks: $(READY)
	.venv/bin/jupyter execute --inplace docs/notebooks/*.ipynb

# The reference frames that are installed with polylight.
references: $(READY)
	$(PY) -m polylight.reference efficientnet_lite0 efficientnet_lite2
	$(PY) -m polylight.reference efficientnet_lite2 efficientnet_lite0
	$(PY) -m polylight.reference efficientnet_lite0 efficientnet_lite0
	$(PY) -m polylight.reference efficientnet_lite2 efficientnet_lite2

requirements: $(READY)
	echo "# Every dependency, pinned; written anew by: make requirements" > requirements.txt
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
		--no-header --no-emit-index-url --no-emit-find-links pyproject.toml >> requirements.txt
