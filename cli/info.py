"""`sde-diffusion info`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import printable, wrong_type
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from sde_diffusion.models.conventions import ConventionCheck

EXAMPLES: Final = """\b
Examples:
  sde-diffusion info digits
  sde-diffusion info runs/digits-vp --json
  sde-diffusion info digits --data digits --limit 256
"""


@click.command(epilog=EXAMPLES)
@click.argument(
    "model", default="digits", shell_complete=menu.completing(menu.MODEL_NAMES, files=True)
)
@click.option(
    "--data",
    default=None,
    help="Check on these data whether the network means what its configuration says: the error "
    "of its predicted noise beside those of likely misreadings.",
)
@_common.levels_option
@_common.limit_option(1024)
@_common.split_option
@_common.reading_options
@_common.json_option
def command(
    model: str,
    data: str | None,
    as_json: bool,
    **reading: Any,  # noqa: ANN401
) -> None:
    """Show what is in a checkpoint.

    MODEL is digits (the default), mnist, the path of a checkpoint or run folder, ring,
    diffusers:FOLDER, or package.module:attr.
    """
    configuration, built = _configuration(model)
    lines = _lines(model, configuration)
    if data is not None:
        found = _convention(menu.model(model) if built is None else built, data, reading)
        lines += ["", f"mean square error of the predicted noise in {data}, by reading", ""]
        lines += [line.rstrip() for line in str(found).splitlines()]
        errors = {one.name: one.mean for one in found.readings}
        checked = {"times": found.times, "errors": errors, "fits": found.fits}
        checked |= {"best": found.best.name, "remedy": found.best.remedy}
        configuration = configuration | {"convention": checked}
    _common.show({"model": model} | configuration, lines, as_json=as_json)


def _convention(model: Any, data: str, reading: Mapping[str, Any]) -> ConventionCheck:  # noqa: ANN401
    """Return how well the model predicts noise in the data."""
    import torch

    from sde_diffusion.cli._held_out import data_of_model
    from sde_diffusion.models.conventions import check_convention
    from sde_diffusion.models.score import ScoreModel

    if not isinstance(model, ScoreModel):
        got = type(model).__name__
        rule = "be a network's, for --data to check what it means"
        raise wrong_type("info", "model", rule, got, "leave out --data")
    dataset = data_of_model(data, model, reading)
    named = ("labels",) if model.classes is not None else ()
    known = {key: v for key, v in dataset.given.items() if key in (*named, *model.conditions)}
    if known:
        model = model.given(**known)
    x0 = dataset.dequantized(torch.Generator().manual_seed(0))
    return check_convention(model.rows(torch.arange(len(x0))), x0)


def _configuration(name: str) -> tuple[dict[str, Any], Any]:
    """Return the configuration with the number of parameters, and the model, if it was built."""
    from sde_diffusion.checkpoints.checkpoint import configuration_of, describe, shipped
    from sde_diffusion.models.score import ScoreModel
    from sde_diffusion.models.wrapped import Wrapped

    if name in shipped() or Path(name).exists():
        described = describe(name)
        network, built = _built(name, described)
        count = None if network is None else _parameters(network)
        return described | {"parameters": count, "flops": _flops(built)}, built
    model = menu.model(name)
    if isinstance(model, ScoreModel):
        found = configuration_of(model)
        if isinstance(model.network, Wrapped):  # a network of another program, by its own name
            kind = type(model.network.network)
            found["network"] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
        return found | {"parameters": _parameters(model), "flops": _flops(model)}, model
    settings = {name: str(value) for name, value in vars(model.sde).items()}
    return {
        "network": {"class": type(model).__name__},
        "sde": {"class": type(model.sde).__name__} | settings,
        "data": {"shape": list(menu.event_shape(model))},
        "parameters": 0,
    }, model


def _built(name: str, described: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the network of a checkpoint and its model, None for what cannot be built here.

    A network of a class of the user's own cannot, and need not be; nor can a model of such an SDE.
    """
    from sde_diffusion.checkpoints.autoencoders import NAMES
    from sde_diffusion.checkpoints.checkpoint import load_autoencoder
    from sde_diffusion.checkpoints.configuration import network_of

    if described.get("class") in NAMES:
        made = load_autoencoder(name)
        return made, None
    if "." in described["network"]["class"]:
        return None, None
    if "." in described["sde"]["class"]:
        return network_of(described["network"]), None
    model = menu.model(name)
    return model, model


def _parameters(model: Any) -> int:  # noqa: ANN401
    return sum(parameter.numel() for parameter in model.parameters())


def _flops(model: Any) -> int | None:  # noqa: ANN401
    """Return the operations of an evaluation of one sample, None for networks of others.

    Those need not take what ours take.
    """
    from sde_diffusion.checkpoints.configuration import NETWORKS
    from sde_diffusion.models.score import LearnedScore
    from sde_diffusion.nets.cost import flops

    if not isinstance(model, LearnedScore) or model.data is None:
        return None
    ours = isinstance(model.network, tuple(NETWORKS.values()))
    return flops(model.network, model.data.shape) if ours else None


def _lines(name: str, configuration: dict[str, Any]) -> list[str]:
    """Return one line for every part of the configuration, largest first."""
    lines = [name]
    count = configuration.get("parameters")
    if "sde" not in configuration:
        return [*lines, *_autoencoder_lines(configuration)]
    network = configuration["network"]
    size = "of your own class" if count is None else f"{count:,} parameters"
    lines.append(f"  network     {network['class']}, {size}")
    if configuration.get("flops") is not None:
        lines.append(f"  evaluation  {configuration['flops']:,} operations a sample")
    lines.append(f"  settings    {_settings(network.get('config'))}")
    lines.append(f"  sde         {_settings(configuration['sde'])}")
    lines.append(f"  prediction  {configuration.get('prediction', 'exact score')}")
    if configuration.get("variance") == "learned":
        lines.append("  variance    learned: the solver ddpm and the bound vlb take it")
    lines.append(f"  data        {_settings(configuration.get('data'))}")
    if configuration.get("autoencoder") is not None:
        lines.append("  the data are latents of the autoencoder:")
        lines += _autoencoder_lines(configuration["autoencoder"])
    for key in ("objective", "training", "dataset", "step", "versions"):
        if configuration.get(key) is not None:
            lines.append(f"  {key:<11} {_settings(configuration[key])}")
    return [printable(line).rstrip() for line in lines]


def _autoencoder_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of an autoencoder, alone or with a score of its latents."""
    count = found.get("parameters")
    size = "" if count is None else f", {count:,} parameters"
    network = found.get("network", {"class": found["class"]})
    lines = [
        f"  autoencoder {network['class']}{size}",
        f"  settings    {_settings(network.get('config'))}",
        f"  data        {_settings(found.get('data'))}",
    ]
    lines += [
        f"  {key:<11} {_settings(found[key])}"
        for key in ("objective", "training", "dataset", "step", "versions")
        if found.get(key) is not None
    ]
    return [printable(line).rstrip() for line in lines]


def _settings(value: object) -> str:
    """Return a setting as ``Class(name=value, …)`` or ``name=value, …``."""
    if value is None:
        return "-"
    if isinstance(value, list):
        shown = [_settings(item) for item in value[:6]]
        more = [f"… {len(value)} in all"] if len(value) > 6 else []
        return f"[{', '.join(shown + more)}]"
    if not isinstance(value, dict):
        return f"{value:g}" if isinstance(value, float) else str(value)
    inner = ", ".join(f"{k}={_settings(v)}" for k, v in value.items() if k != "class")
    return f"{value['class']}({inner})" if "class" in value else inner
