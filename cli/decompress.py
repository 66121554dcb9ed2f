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
  sde-diffusion decompress mnist.sdz --model mnist --out mnist.npy
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(dir_okay=False, path_type=Path))
@_common.model_option
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
    source: Path, model_name: str, batch_size: int, device: str, out: Path | None, as_json: bool
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
    model = menu.model(model_name, _common.resolve_device(device))
    with shown_progress(head.samples, head.steps) as callback:
        values = decompress(model, blob, batch_size=batch_size, callback=callback).numpy()

    def save(file: Path) -> None:
        with file.open("wb") as stream:  # save would add .npy to the temporary file's name
            np.save(stream, values, allow_pickle=False)

    write_atomically(out, save)
    result = {"file": str(out), "samples": len(values), "shape": list(values.shape[1:])}
    lines = [f"{out}: {len(values)} samples of {values.shape[1:]}, {values.dtype}"]
    _common.show(result, lines, as_json=as_json)
