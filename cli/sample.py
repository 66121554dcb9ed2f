"""`sde-diffusion sample`: draws of a model, as a picture and as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion._check import wrong_value
from sde_diffusion.cli import _common, menu

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.grids import Grid

EXAMPLES: Final = """\b
Examples:
  sde-diffusion sample --steps 10
  sde-diffusion sample --solver heun --steps 18 --grid karras --denoise
  sde-diffusion sample --model runs/digits-vp --solver ancestral --steps 200 -n 100
"""


@dataclass(frozen=True)
class Draws:
    """Samples on the CPU, and what they cost."""

    x: Tensor
    nfe: int
    seconds: float


@click.command(epilog=EXAMPLES)
@_common.model_option
@_common.solver_option("angular-adams")
@_common.grid_options
@_common.denoise_option
@_common.count_option("--number", "-n", default=64, help="How many samples.")
@_common.count_option("--batch-size", default=64, help="Samples computed at once.")
@_common.count_option("--class", "label", default=None, least=0,
                      help="Class of the samples, for a model trained with --conditional.")
@_common.common_options(out="samples")
def command(
    model_name: str, solver: str, steps: int | None, grid: str, tolerance: float | None,
    denoise: bool, number: int, batch_size: int, label: int | None, seed: int, device: str,
    out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Draw samples of a model with any solver.

    Writes samples.png, a picture, and samples.npz, with the samples as `x` (and as whole `levels`
    where the data has them). Sample i depends on --seed and i alone, not on --batch-size.
    """
    from sde_diffusion.grids import Denoised, times_of

    last = Denoised if denoise else times_of
    where = _common.resolve_device(device)
    made = menu.solver(solver, tolerance)
    model = menu.model(model_name, where)
    times = menu.times(grid, model.sde, made, steps)
    given = model if label is None else _given(model, label)
    folder = _common.output_folder(out)
    with _common.progress(number, "sample") as bar:
        draws = _draw(given, made, last(times), number, batch_size, seed, bar.update)
    files = _write(folder, model, draws.x, label)
    result = {
        "model": model_name, "solver": solver, "steps": len(times) - 1, "grid": grid,
        "denoise": denoise,
        "number": number, "seed": seed, "device": str(model.device), "nfe": draws.nfe,
        "seconds": draws.seconds, "files": [str(file) for file in files],
    }  # fmt: skip
    lines = [
        f"{number} samples of {model_name} by {solver}: {draws.nfe} network evaluations each, "
        f"{draws.seconds:.1f} s",
        *(f"wrote {file}" for file in files),
    ]
    _common.show(result, lines, as_json=as_json)


def _draw(
    model: Any,  # noqa: ANN401
    solver: Any,  # noqa: ANN401
    grid: Grid,
    number: int,
    batch_size: int,
    seed: int,
    tick: Callable[[int], object],
) -> Draws:
    """Return samples 0 … number − 1; nfe is that of the batch that needed most."""
    import torch

    from sde_diffusion import sample

    parts: list[Tensor] = []
    nfe, seconds = 0, 0.0
    for first in range(0, number, batch_size):
        count = min(batch_size, number - first)
        shape = (count, *menu.event_shape(model))
        solution = sample(model, solver, shape, grid=grid, seed=seed, first=first)
        parts.append(solution.x.float().cpu())
        nfe, seconds = max(nfe, solution.nfe), seconds + solution.seconds
        tick(count)
    return Draws(torch.cat(parts), nfe, seconds)


def _given(model: Any, label: int) -> Any:  # noqa: ANN401
    """Return the model conditioned on the class.

    Errors: ValueError for a model without classes, or without this one.
    """
    config = getattr(getattr(model, "network", None), "config", None)
    classes = config.get("classes") if isinstance(config, dict) else None
    if not classes:
        raise wrong_value("--class", "class", "be left out for a model without classes", label,
                          "train one with sde-diffusion train --conditional")  # fmt: skip
    if label >= classes:
        raise wrong_value("--class", "class", f"be one of 0 … {classes - 1}", label,
                          "choose one of these")  # fmt: skip
    return model.given(label)


def _write(folder: Path, model: Any, x: Tensor, label: int | None) -> list[Path]:  # noqa: ANN401
    """Write the picture, where the samples can be seen, and the arrays."""
    import numpy as np

    from sde_diffusion.checkpoint import write_atomically
    from sde_diffusion.pictures import sample_picture

    arrays: dict[str, Any] = {"x": x.numpy()}
    spec = getattr(model, "data", None)
    if spec is not None and spec.levels is not None:
        arrays["levels"] = spec.decode(x).numpy().astype(np.uint8 if spec.levels <= 256 else int)
    if label is not None:
        arrays["labels"] = np.full(len(x), label)

    def save(path: Path) -> None:
        with path.open("wb") as file:  # savez would add .npz to the name of the temporary file
            np.savez(file, **arrays)

    npz, png = folder / "samples.npz", folder / "samples.png"
    write_atomically(npz, save)
    sample_picture(x, png)
    return [png, npz]
