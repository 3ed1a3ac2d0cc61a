"""Which networks can be scored: ``polylight check`` over two libraries, into the docs.

``python -m benchmarks.architectures [NAME ...]`` checks every classifier of torchvision and one
network of every family of timm, or those that are named, each with random weights in a process of
its own; a result is kept as soon as it is there, and what is there already is not done again.
``--render`` only writes the table.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = Path(__file__).parent / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
_SECONDS = 1800
# Trained on larger images; what can be scored does not depend on the size.
_LARGE = [f"torchvision/efficientnet_b{i}" for i in range(2, 8)]
_LARGE += [f"torchvision/efficientnet_v2_{size}" for size in "sml"]
_LARGE += [f"torchvision/regnet_y_{size}" for size in ("16gf", "32gf", "128gf")]
_LARGE += ["timm/deepseek_vit_412m", "timm/gemma4_vit_167m"]
_SIZE = 224
# The smallest of each family but those made for timm's own tests, of timm 1.0.
_TIMM = """
beit_base_patch16_224 halonet_h1 repvgg_a0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 mnasnet_small efficientvim_m1 efficientvit_b0
efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf
gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny
hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_128s lowformer_b0 mambaout_femto coatnet_nano_rw_224 poolformerv2_s12
gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small nfnet_l0 pit_ti_224
pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50
resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1
skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception
xception41p xcit_nano_12_p8_224
"""


def names() -> list[str]:
    """The networks to check, each with the library that it is taken from."""
    from torchvision import models

    classifiers: list[str] = models.list_models(module=models)
    return [
        *(f"torchvision/{name}" for name in classifiers),
        *(f"timm/{name}" for name in _TIMM.split()),
    ]


def check(name: str) -> dict[str, Any]:
    """Check one network in a process of its own.

    Args:
        name: The network, with its library.

    Returns:
        ``name``, ``status`` (ok, refused, traceback, killed, timeout), ``seconds``, ``image_size``,
        ``scored`` and ``refused`` (numbers of layers), ``difference``, ``reasons`` (how many
        layers are refused for which) and ``error`` (of a network that is refused as a whole).
    """
    start = time.monotonic()
    command = [sys.executable, "-m", "polylight", "check", name, "--json", "true"]
    if name in _LARGE:
        command += ["--image_size", str(_SIZE)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"capture_output": True, "text": True, "cwd": ROOT, "env": one_thread}
    try:
        done = subprocess.run(command, timeout=_SECONDS, **how)
    except subprocess.TimeoutExpired:
        return {"name": name, "status": "timeout", "seconds": _SECONDS}
    row: dict[str, Any] = {"name": name, "seconds": round(time.monotonic() - start, 1)}
    if done.returncode == -signal.SIGKILL:
        return row | {"status": "killed", "error": "not checked: the machine ran out of memory"}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        refused = done.returncode == 2 and said[-1].startswith("polylight: error:")
        return row | {"status": "refused" if refused else "traceback", "error": said[-1]}
    found = json.loads(done.stdout)
    layers = found["layers"]
    reasons = Counter(_kind(x["reason"], x["layer"]) for x in layers if x["status"] == "refused")
    return row | {
        "status": "ok",
        "image_size": found["image_size"],
        "scored": sum(x["status"] == "scored" for x in layers),
        "refused": sum(reasons.values()),
        "difference": found["difference"],
        "reasons": dict(reasons.most_common()),
    }


def _kind(reason: str, layer: str) -> str:
    """A reason without the names and the shapes in it."""
    if reason.startswith("returns ["):
        return "returns no vectors, tokens or maps of each image"
    if "does not reach the image" in reason:
        return "no gradient reaches the image"
    return reason.split(";")[0].replace(f"{layer!r} ", "").split(", ")[0]


_SAID = {
    "hands on the output of another layer": "what they return is another layer's, which can be",
    "does not run": "they do not run in a forward",
    "returns no vectors, tokens or maps of each image": "they return no vectors, tokens or maps of "
    "each image, such as attention of all heads, or position tables",
    "no gradient reaches the image": "they do not depend on the image",
}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the table of the docs.

    Args:
        rows: What :func:`check` returns.

    Returns:
        Markdown.
    """
    scored = sum(row.get("scored", 0) for row in rows)
    layers = scored + sum(row.get("refused", 0) for row in rows)
    status = Counter(row["status"] for row in rows)
    reasons = Counter[str]()
    for row in rows:
        reasons.update(row.get("reasons", {}))
    refused = reasons.most_common()
    differences = [(r["difference"], r["name"]) for r in rows if r["status"] == "ok"]
    worst = sorted(differences, reverse=True)[:2]
    lines = [
        "# Which networks can be scored",
        "",
        f"`polylight check` of {len(rows)} networks with random weights: every classifier of",
        "torchvision, and the smallest of every family of timm.",
        "",
        f"- Networks read: {status['ok']}. Refused as a whole: {status['refused']}. Tracebacks: "
        f"{status['traceback']}. Not checked, for memory or time: "
        f"{status['killed'] + status['timeout']}.",
        f"- Of {layers:,} modules, {scored:,} can be scored, {scored / max(layers, 1):.1%}.",
        *(f"- {count:,} are not: {_SAID.get(kind, kind)}." for kind, count in refused),
        "",
        "**Difference** is the largest one between what a layer returns in the network that a run",
        "climbs and in the network as it came, relative to the largest value of the layer. The",
        f"largest: {', '.join(f'{d:.0e} ({name})' for d, name in worst)}. With its random weights",
        "the attention of visformer_tiny saturates: there, float32 itself is .007 from float64.",
        "",
        "| network | px | scored | refused | difference | refused because |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        if row["status"] != "ok":
            said = row.get("error", "").removeprefix("polylight: error: ") or row["status"]
            lines.append(f"| {row['name']} | | | all | | {said} |")
            continue
        reasons = "; ".join(f"{count} {reason}" for reason, count in row["reasons"].items())
        lines.append(
            f"| {row['name']} | {row['image_size']} | {row['scored']} | {row['refused'] or ''} | "
            f"{row['difference']:.0e} | {reasons} |"
        )
    lines += ["", "Made by `python -m benchmarks.architectures`."]
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> int:
    """Check networks and write what came of it.

    Args:
        args: Names of networks, by default all; ``--again`` does what is there already, too.

    Returns:
        The exit status: 0 where every network is read or refused.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--render", action="store_true", help="only write the table")
    given = parser.parse_args(args)
    found = (
        {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    )
    everything = names()
    wanted = [] if given.render else given.names or everything
    todo = [name for name in wanted if given.again or name not in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(check, name) for name in todo]):
            found[done.result()["name"]] = row = done.result()
            print({k: v for k, v in row.items() if k != "reasons"}, flush=True)
            rows = [found[name] for name in everything if name in found]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    rows = [found[name] for name in everything if name in found]
    PAGE.write_text(page(rows))
    return int(any(row["status"] in ("traceback", "timeout") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
