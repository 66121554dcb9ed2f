"""The network of `sde-diffusion train`: of a kind, with arguments that suit the data."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from sde_diffusion._check import wrong_value

if TYPE_CHECKING:
    from torch import nn

KINDS: Final = ("unet", "dit")  # of samples that have axes


def network_for(
    shape: tuple[int, ...], settings: dict[str, Any], others: dict[str, Any]
) -> nn.Module:
    """Return a network for samples of a shape.

    Arguments:
        shape: of a sample; one number for rows of numbers.
        settings: arguments that options of their own set.
        others: of --network: its ``kind`` and further arguments.

    Errors: ValueError for another kind, what is no argument of it, or is set by another option.
    """
    from sde_diffusion.nets import MLP, DiT, UNet
    from sde_diffusion.nets.choices import dit_for, unet_for

    known = ("mlp",) if len(shape) == 1 else KINDS
    kind = others.pop("kind", known[0])
    if kind not in known:
        rule = f"be {' or '.join(known)} for samples of shape {shape}"
        raise wrong_value("--network", "kind", rule, kind, f"pass --network kind={known[0]}")
    if kind == "mlp":
        check_arguments(MLP, settings, others)
        return MLP(shape[0], **settings | others)
    if kind == "dit":
        check_arguments(DiT, settings, others)
        return DiT(**dit_for(shape) | settings | others)
    check_arguments(UNet, settings, others)
    names = ("multipliers", "strides")
    asked = {name: others[name] for name in names if _numbers(others, name)}
    config = unet_for(shape, **asked) | settings | others
    if config["width"] % 2:  # the four heads of attention share twice the width
        raise wrong_value(
            "--width",
            "width",
            "be even for a U-Net",
            config["width"],
            "pass for example --width 32",
        )
    return UNet(**config)


def _numbers(others: dict[str, Any], name: str) -> bool:
    """Return whether there are integers of that name; the network refuses anything else."""
    found = others.get(name)
    return isinstance(found, (list, tuple)) and all(type(n) is int for n in found)


def check_arguments(
    kind: type[nn.Module], settings: dict[str, Any], others: dict[str, Any]
) -> None:
    """Refuse, by name, what is no argument of the network, or is set by another option."""
    from sde_diffusion.nets.conditions import KINDS

    first, *known = (name for name in inspect.signature(kind).parameters)
    of_data = {*settings, *KINDS, "width", "outputs", "dims", "times", first}
    free = [name for name in known if name not in of_data]
    for name in others:
        if name not in free:
            rule = f"be one of {', '.join(free)}"
            example = "blocks=2" if "blocks" in free else "depth=3"
            remedy = f"pass for example --network {example}"
            raise wrong_value("--network", "network", rule, name, remedy)
