"""Runs as a report sees them, made of nothing, and what a test reads of a page."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from example_rows import make_row

from polylight.inspect.neuron_table import SCALARS
from polylight.report.content import (
    Cluster,
    LayerSummary,
    NeuronDetail,
    NeuronSummary,
    Picture,
    Run,
    Similar,
)
from polylight.report.site import write_site
from polylight.run.manifest import Manifest

ODD = "<script>alert(1)</script>\"&amp;'/../../x:3"


def neuron(position, name, layer="a", **changes):
    row = make_row(name, layer=layer)
    values = {column: getattr(row, column) for column in SCALARS}
    slug = f"n{position}-" + re.sub(r"[^a-z0-9]+", "-", name)
    return NeuronSummary(
        position=position,
        slug=slug,
        values={**values, "score": 0.25, "separation": 6.5, "k": 2, "num_images": 5, **changes},
        median_activation=1.5,
        weights=(0.75, 0.25) if changes.get("k", 2) == 2 else (1.0,),
        similar=[Similar(position=0, cosine=0.5)] if position else [],
    )


def dead(position, name, layer="a"):
    none = (
        "score",
        "score_low",
        "score_high",
        "separation",
        "p_value",
        "q_value",
        "k",
        "k_stability",
    )
    none = dict.fromkeys((*none, "coverage", "k_eff", "score_paper"))
    made = neuron(
        position, name, layer, status="dead", stop_reason="max_images", num_images=0, **none
    )
    return dataclasses.replace(made, weights=())


def detail():
    """Five images on a sheet of three columns: 2 and 2 that are valid, and one that is not."""

    def pictures(tiles, medoid):
        return [
            Picture(tile=t, image=t, activation=5.0 - t, is_medoid=t == medoid, x=t / 5, y=0.5)
            for t in tiles
        ]

    return NeuronDetail(
        clusters=[
            Cluster(number=1, weight=0.75, pictures=pictures([0, 1], 0)),
            Cluster(number=2, weight=0.25, pictures=pictures([2, 3], 2)),
            Cluster(number=0, weight=None, pictures=pictures([4], None)),
        ],
        similarity=np.eye(5),
        bic=[-10.0, -8.0, math.nan],
        sheet=b"sheet",
        columns=3,
        tile=8,
        thumb=b"thumb",
        thumbs=2,
    )


EMPTY = NeuronDetail(
    clusters=[], similarity=np.zeros((0, 0)), bic=[], sheet=b"", columns=0, tile=0, thumb=b"",
    thumbs=0,
)  # fmt: skip


def manifest(**changes):
    made = Manifest(
        settings={"scoring": {"selection": "bic", "restarts": 32}, "precision": "float32"},
        seed=7,
        device={"name": "cpu", "pool_size": 24},
        subject={"name": "net", "source": "packaged"},
        embedder={"name": "eye"},
        status="finished",
        created="2026-01-02T03:04:05+00:00",
    )
    return dataclasses.replace(made, **changes)


def make_run(path, neurons=None, **changes):
    if neurons is None:
        neurons = [
            neuron(0, "a:0", score=0.1, k=1),
            neuron(1, "a:1", score=0.7),
            dead(2, "a:2"),
            neuron(3, ODD, layer=ODD, score=0.4),
        ]
    names = dict.fromkeys(n.layer for n in neurons)
    layers = [
        LayerSummary(
            name=name, slug=f"layer-{i}", positions=[n.position for n in neurons if n.layer == name]
        )
        for i, name in enumerate(names)
    ]
    run = Run(
        name=Path(path).name,
        path=Path(path),
        state="finished",
        manifest=manifest(),
        unreadable=[],
        layers=layers,
        neurons=neurons,
    )
    return dataclasses.replace(run, **changes)


def details(run):
    return [(n, detail() if n.values["num_images"] else EMPTY) for n in run.neurons]


def write(run, folder, **options):
    folder.mkdir(parents=True)
    write_site(run, folder, details=details(run), **options)
    return folder


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.text, self.ids = path, "", []
        self.addresses, self.headings, self.tags, self.attributes = [], [], [], []
        self._in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.attributes += attributes
        self._in_script = tag == "script"
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.addresses += [attributes[name] for name in ("href", "src") if name in attributes]
        self.addresses += re.findall(r"url\((.*?)\)", attributes.get("style", ""))

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if not self._in_script:
            self.text += data


def every_page(folder):
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


def check_addresses(site):
    """Every link, script, style and picture is a file of the site, or a place on a page of it."""
    for page in every_page(site):
        for address in page.addresses:
            if address == "data:," or address.startswith("data:image/png;base64,"):
                continue
            parts = urlsplit(address)
            assert not parts.scheme, address
            assert not parts.netloc, address
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.is_file(), (page.path, address)
            assert target.is_relative_to(site.resolve())
            if parts.fragment:
                assert parts.fragment in Page(target).ids
