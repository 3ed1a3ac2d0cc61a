"""What makes a run differ from the others of a sweep, and what came of it, for TensorBoard."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from polylight.ascent.precision import resolve_precision
from polylight.module import PolysemanticityModule
from polylight.neurons import layers_of

Setting = str | float
"""A setting as TensorBoard knows it; truth values are text."""

METRICS = {
    "run/median_score": "median score",
    "run/mean_score": "mean score",
    "run/finished": "neurons finished",
    "run/dead": "neurons dead",
    "run/failed": "neurons failed",
    "run/image_steps_per_second": "image-steps per second",
}
"""Scalars that sum a run up, with the names that they have in its table of runs."""
# TensorBoard shows five settings until asked for others: those that are said to differ come first.
_FIRST = ("layers", "max_steps", "preset", "repulsion", "subject")


def hyperparameters(
    module: PolysemanticityModule, expressions: list[str], device: torch.device
) -> dict[str, Setting]:
    """List the settings of a run by the names that the command line gives them.

    Args:
        module: Its settings; those that its preset decides are the preset's.
        expressions: Neuron expressions, whose layers count as a setting.
        device: Where the run works, which decides what precision ``auto`` is.

    Returns:
        Text and numbers; settings that are null are left out.
    """
    look, ascent = module.parametrization, module.ascent
    values: dict[str, Any] = {n: v for n, v in module.hparams.items() if not n.startswith("_")}
    values |= {
        "image_size": look.size,
        "parametrization": look.kind,
        "max_steps": ascent.max_steps,
        "learning_rate": ascent.learning_rate,
        "patience": ascent.patience,
        "explore": ascent.explore,
        "repulsion": ascent.repulsion,
        "min_images": module.rounds.min_images,
        "precision": resolve_precision(module.precision, device),
        "layers": ",".join(layers_of(expressions)),
    }
    given = {name: value for name, value in values.items() if value is not None}
    return {n: str(v).lower() if isinstance(v, bool) else v for n, v in given.items()}


def start_summaries(settings: Mapping[str, Setting], group: str) -> list[Summary]:
    """Say what a run's settings are, and which scalars are its metrics.

    Of several such summaries in a folder TensorBoard takes the first of each tag.

    Args:
        settings: As ``hyperparameters`` lists them.
        group: Name of the run, common to processes that share it.

    Returns:
        What is to be written when the run starts.
    """
    # Without a domain: TensorBoard takes one run's for all runs, and hides what is outside.
    infos = [
        api_pb2.HParamInfo(
            name=name,
            differs=name in _FIRST,
            type=api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64,
        )
        for name, value in settings.items()
    ]
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
        for tag, name in METRICS.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    start = SessionStartInfo(group_name=group, start_time_secs=time.time())
    for name, value in settings.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    return [
        _summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
    ]


def end_summary() -> Summary:
    """Say that all neurons of a run are through."""
    end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _summary(tag: str, content: HParamsPluginData) -> Summary:
    """Wrap what the hparams plugin reads, which is kept as metadata of nothing."""
    described = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
