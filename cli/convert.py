"""`sde-diffusion convert`: another program's weights as .safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sde_diffusion.cli import _common

EXAMPLES: Final = """\b
Examples:
  sde-diffusion convert edm-cifar10-32x32-cond-vp.pkl net.safetensors
  sde-diffusion convert checkpoint_26.pth net.safetensors --part model
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--part", help="Entry of the file with the weights, such as model or ema.shadow_params."
)
@_common.json_option
def command(source: Path, target: Path, part: str | None, as_json: bool) -> None:
    """Write another program's weights as .safetensors.

    SOURCE is a file of torch (.pt, .pth, .ckpt, .bin), an EDM pickle or .safetensors. Nothing in
    it is executed; the network's class is yours to bring.
    """
    from sde_diffusion.foreign.weights import convert_weights, read_weights

    convert_weights(source, target, part)  # read back: what the file holds is what is said
    found = read_weights(target)
    numbers = sum(tensor.numel() for tensor in found.tensors.values())
    record = {
        "target": str(target),
        "tensors": len(found.tensors),
        "numbers": numbers,
        "class": found.class_name,
        "arguments": found.arguments,
    }
    lines = [f"{target}: {len(found.tensors)} tensors, {numbers} numbers"]
    if found.class_name is not None:
        lines.append(f"of {found.class_name} with the arguments {found.arguments}")
    _common.show(record, lines, as_json=as_json)
