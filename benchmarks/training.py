"""Seconds of a training step and a forward pass of the U-Net, beside diffusers' and the ceilings.

Run it as `python benchmarks/training.py`. A step is `denoising_loss`, its gradients and AdamW; the
peer is diffusers' UNet2DModel of about as many parameters on the same loss. The ceilings, a matrix
product and 3×3 convolutions at the U-Net's sizes, are measured in the same turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch
from _common import Spread, interleaved, options, parsed, peer, ratio, table, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion import VPSDE, ScoreModel, UNet, denoising_loss
from sde_diffusion.nets.unet import mnist_config

OURS: Final = "sde_diffusion UNet"
THEIRS: Final = "diffusers UNet2DModel"


class Diffusers(nn.Module):
    """UNet2DModel with the widths and blocks of `mnist_config()`, called as our networks are."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401  (diffusers has no types)
        super().__init__()
        self.inner = module.UNet2DModel(
            sample_size=28, in_channels=1, out_channels=1, layers_per_block=2,
            block_out_channels=(48, 48, 96), norm_num_groups=16,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the network's output; diffusers counts time in thousandths."""
        out: Tensor = self.inner(x, 1000 * c).sample
        return out


def networks() -> tuple[dict[str, nn.Module], str | None]:
    """Return ours and, where it is there, diffusers'; else why it is not."""
    found: dict[str, nn.Module] = {OURS: UNet(**mnist_config())}
    module = peer("diffusers")
    if isinstance(module, str):
        return found, module
    found[THEIRS] = Diffusers(module)
    return found, None


def training_step(network: nn.Module, batch: int) -> Callable[[], object]:
    """Return one step of training on a fixed batch."""
    model = ScoreModel(network, VPSDE()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, batch, 1, 28, 28, generator=generator)
    t = torch.rand(batch, generator=generator, dtype=torch.float64).clamp(min=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        denoising_loss(model, x0, t, eps).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def forward(network: nn.Module, batch: int) -> Callable[[], object]:
    """Return one pass without gradients."""
    x, c = torch.randn(batch, 1, 28, 28), torch.rand(batch)

    def run() -> None:
        with torch.no_grad():
            network(x, c)

    return run


def flops(program: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        program()
    return int(counter.get_total_flops())


def ceilings(batch: int, size: int) -> dict[str, Callable[[], object]]:
    """Return a matrix product, and 3×3 convolutions at the sizes of the U-Net's outer levels."""
    a, b = torch.randn(2, size, size)
    found: dict[str, Callable[[], object]] = {f"sgemm {size}³": lambda: a @ b}
    for channels, side in ((48, 28), (48, 14)):
        w = torch.randn(channels, channels, 3, 3)
        x = torch.randn(batch, channels, side, side)
        last = x.to(memory_format=torch.channels_last)
        name = f"3×3 convolution, {channels} channels, {side}×{side}"
        found[name] = partial(F.conv2d, x, w, padding=1)
        found[f"{name}, channels last"] = partial(F.conv2d, last, w, padding=1)
    return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return all seconds by program, with the work each of them does."""
    batch = chosen.batch
    nets, absent = networks()
    steps = {f"step, {name}": training_step(net, batch) for name, net in nets.items()}
    passes = {f"forward, {name}": forward(net, batch) for name, net in nets.items()}
    limits = ceilings(batch, 256 if chosen.quick else 1024)
    programs = {**steps, **passes, **limits}
    with torch.no_grad():
        work = {name: flops(program) for name, program in (passes | limits).items()}
    work |= {name: flops(program) for name, program in steps.items()}
    taken = interleaved(programs, chosen.repeats)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    return {"absent": absent, "parameters": parameters, "flops": work, "seconds": taken,
            "limits": list(limits)}  # fmt: skip


def show(found: dict[str, Any], batch: int) -> list[dict[str, Any]]:
    """Print the tables and return their rows."""
    taken, work, limits = found["seconds"], found["flops"], found["limits"]
    # The best convolution of a turn: what the network could reach if it were nothing else.
    turns = range(len(taken[limits[0]]))
    best = [max(work[n] / taken[n][i] for n in limits if "conv" in n) for i in turns]
    rows = []
    for name, seconds in taken.items():
        kind = name.partition(",")[0]
        base = taken[f"{kind}, {OURS}"] if name not in limits else None
        rate = [work[name] / s for s in seconds]
        rows.append({
            "program": name, "seconds": asdict(Spread.of(seconds)),
            "images_per_second": None if base is None else batch / Spread.of(seconds).median,
            "ratio_to_ours": None if base is None else asdict(ratio(seconds, base)),
            "gflops_per_second": Spread.of(rate).median / 1e9,
            "of_the_convolutions": asdict(ratio(rate, best)),
        })  # fmt: skip
    table(", ".join(f"{name}: {n:,} parameters" for name, n in found["parameters"].items()),
          ["program", "seconds", "images/s", "× ours", "GFLOP/s", "of the best convolution"],
          [_cells(row) for row in rows]
          + ([[THEIRS, found["absent"], "", "", "", ""]] if found["absent"] else []))  # fmt: skip
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    images, ours = row["images_per_second"], row["ratio_to_ours"]
    return [
        row["program"], Spread(**row["seconds"]).show(".4f"),
        "" if images is None else f"{images:.1f}",
        "" if ours is None else Spread(**ours).show(".2f"),
        f"{row['gflops_per_second']:.1f}", Spread(**row["of_the_convolutions"]).show(".2f"),
    ]  # fmt: skip


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10, help="turns that count")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.batch, chosen.repeats = 2, 2
    torch.manual_seed(0)  # diffusers draws its weights from the global generator
    found = measure(chosen)
    rows = show(found, chosen.batch)
    print("\nmedian (least–most) over the turns; ratios are taken within a turn")
    write(chosen.out, batch=chosen.batch, parameters=found["parameters"], rows=rows)


if __name__ == "__main__":
    main()
