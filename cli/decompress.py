"""`sde-diffusion decompress`: the levels of a compressed file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sde_diffusion.cli import _common, menu
from sde_diffusion.cli.compress import shown_progress

EXAMPLES: Final = """\b
Examples:
  sde-diffusion decompress digits.sdz --out digits.npy
  sde-diffusion decompress mine.sdz --model runs/mine --out mine.npy
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model",
    "model_name",
    default=None,
    shell_complete=menu.completing(menu.MODEL_NAMES, files=True),
    help="The model that compressed them, as `compress` takes it; found among those shipped if "
    "not given.",
)
@_common.count_option("--batch-size", default=64, help="Samples computed at once.")
@_common.device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="File to write; SOURCE with .npy at its end if not given.",
)
@_common.json_option
def command(
    source: Path,
    model_name: str | None,
    batch_size: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the levels that `sde-diffusion compress` was given as .npy.

    The model must be the one that compressed them. A file that is cut short or damaged, another
    model, or a machine on which the model predicts otherwise ends in one sentence and no output.
    """
    import numpy as np

    from sde_diffusion._files import write_atomically
    from sde_diffusion.coding import decompress
    from sde_diffusion.coding.file_format import parsed

    out = source.with_suffix(".npy") if out is None else out
    _common.check_output_file(out)
    blob = source.read_bytes()
    head, _ = parsed(blob)
    name = _shipped(head.model) if model_name is None else model_name
    model = menu.model(name, _common.resolve_device(device))
    with shown_progress(head.samples, head.steps) as callback:
        values = decompress(model, blob, batch_size=batch_size, callback=callback).numpy()

    def save(file: Path) -> None:
        with file.open("wb") as stream:  # save would add .npy to the temporary file's name
            np.save(stream, values, allow_pickle=False)

    write_atomically(out, save)
    shape = list(values.shape[1:])
    result = {"file": str(out), "model": name, "samples": len(values), "shape": shape}
    lines = [
        f"{out}: {len(values)} samples of {values.shape[1:]}, {values.dtype}, by the model {name}"
    ]
    _common.show(result, lines, as_json=as_json)


def _shipped(model: str) -> str:
    """Return the name of the shipped model with a fingerprint."""
    from sde_diffusion._check import wrong_value
    from sde_diffusion.checkpoints.checkpoint import load, shipped
    from sde_diffusion.checkpoints.fingerprint import fingerprint

    names = shipped()
    for name in names:
        if fingerprint(load(name)) == model:
            return name
    rule = f"be given for a file of the model {model}, which is none of {', '.join(names)}"
    raise wrong_value("decompress", "--model", rule, "none", "pass the one that compressed it")
