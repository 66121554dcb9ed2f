"""`sde-diffusion compress`: levels to a file that a model's bound is the length of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sde_diffusion.cli import _common, menu, report

if TYPE_CHECKING:
    from sde_diffusion.data.dataset import Dataset

EXAMPLES: Final = """\b
Examples:
  sde-diffusion compress --limit 100 --out digits.sdz
  sde-diffusion compress --model mnist --data path/to/mnist --split test --out mnist.sdz
  sde-diffusion compress --limit 100 --table
  sde-diffusion decompress digits.sdz --out digits.npy
"""
_DRAWS: Final = 64


@click.command(epilog=EXAMPLES)
@_common.model_option
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="What is compressed: digits, or a path as `likelihood` takes it, of integers.",
)
@_common.reading_options
@_common.split_option
@_common.count_option("--limit", default=None, help="Use only the first N samples.")
@_common.count_option(
    "--steps", default=128, least=2, help="Steps of the chain; more take less room and more time."
)
@_common.count_option(
    "--block-size",
    default=4096,
    help="Samples of a block, each with its checksum; small blocks take more room.",
)
@_common.count_option("--batch-size", default=64, help="Samples computed at once.")
@click.option(
    "--table",
    is_flag=True,
    help="Compare the file with the model's discrete bound, PNG, LZMA and a histogram for each "
    "pixel.",
)
@_common.device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="compressed.sdz",
    show_default=True,
    help="File to write.",
)
@_common.json_option
def command(
    model_name: str,
    data: str,
    size: int | None,
    frames: str,
    layout: str | None,
    length: int | None,
    split: str | None,
    limit: int | None,
    steps: int,
    block_size: int,
    batch_size: int,
    table: bool,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Compress data of levels by a model, without loss.

    `sde-diffusion decompress` gives the same levels back, bit for bit, and needs the same model.
    The file is as long as the model's discrete bound says, in bits per dimension. Labels and
    names of files are not kept. What is kept is exact or refused: every block has a checksum of
    its levels and of the network's predictions.
    """
    from sde_diffusion._files import write_atomically
    from sde_diffusion.cli._held_out import data_of_model
    from sde_diffusion.coding import compress

    _common.check_output_file(out)
    model = menu.model(model_name, _common.resolve_device(device))
    reading = {"size": size, "frames": frames, "layout": layout, "split": split, "limit": limit}
    reading["length"] = length
    dataset = data_of_model(data, model, reading)
    with shown_progress(len(dataset), steps) as callback:
        blob = compress(
            model,
            dataset,
            steps=steps,
            block_size=block_size,
            batch_size=batch_size,
            callback=callback,
        )
    write_atomically(out, lambda file: file.write_bytes(blob))
    dimensions = len(dataset) * math.prod(dataset.spec.shape)
    result = {
        "file": str(out),
        "model": model_name,
        "samples": len(dataset),
        "bytes": len(blob),
        "bits_per_dim": 8 * len(blob) / dimensions,
    }
    lines = [
        f"{out}: {len(dataset)} samples in {len(blob)} bytes, {result['bits_per_dim']:.4f} "
        "bits/dim",
    ]
    if table:
        rows = compared(model, dataset, steps, len(blob))
        result["table"] = rows
        lines.append(_table(rows))
    _common.show(result, lines, as_json=as_json)


@contextmanager
def shown_progress(samples: int, steps: int) -> Iterator[Callable[[int], object]]:
    """Give what is told of every evaluation, and show how many samples' worth are done."""
    done = 0
    with _common.progress(samples, "sample") as bar:

        def told(count: int) -> None:
            nonlocal done
            done += count
            bar.update(done // steps - bar.n)

        yield told


def compared(
    model: Any,  # noqa: ANN401  (a score model)
    dataset: Dataset,
    steps: int,
    size: int,
) -> list[dict[str, Any]]:
    """Return the rows of the table: a name, bits per dimension and bytes.

    Arguments:
        model: the score model.
        dataset: what was compressed.
        steps: of the chain.
        size: bytes of the file.
    """
    from sde_diffusion.coding.comparison import discrete_bound, other_sizes

    found = discrete_bound(model, dataset, steps, draws=_DRAWS if steps > _DRAWS // 2 else None)
    error = float(found.standard_error.square().sum().sqrt())
    sizes = {
        "discrete bound": -float(found.nats.sum()) / math.log(2) / 8,
        "this file": size,
        **other_sizes(dataset),
    }
    dimensions = len(dataset) * math.prod(dataset.spec.shape)
    rows = [
        {"coder": name, "bytes": number, "bits_per_dim": 8 * number / dimensions}
        for name, number in sizes.items()
    ]
    rows[0]["standard_error"] = error / math.log(2) / dimensions
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("coder", "bytes", "bits/dim", "to the bound")
    bound = rows[0]["bytes"]
    return report.table(
        head,
        [
            (
                row["coder"],
                f"{row['bytes']:.0f}",
                f"{row['bits_per_dim']:.4f}"
                + (f" ± {row['standard_error']:.4f}" if "standard_error" in row else ""),
                f"{row['bytes'] / bound - 1:+.1%}",
            )
            for row in rows
        ],
    )
