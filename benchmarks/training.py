"""Seconds of a training step and a forward pass of the U-Net, beside peers of its size.

Run it as `python benchmarks/training.py`; with 2 cores it takes about five minutes. A step is
`denoising_loss`, its gradients and AdamW. All networks have the same multipliers of channels and
attention at the lowest level only, and each the width that comes nearest to the number of
parameters: a multiple of 8, which convolutions like, where there is one within 6 %. All run with
one and with two residual blocks a level, so that depth can be compared with depth. Ours has as
many on the way up and two at the bottom; peers have one more on the way up, and EDM's resamples
in blocks. The last table sets both of ours against the fastest peer of any depth.

EDM's network has a licence of its own and no package: `--edm PATH` takes your clone of
https://github.com/NVlabs/edm. `--bfloat16`, `--compile` and `--channels-last` add these to all.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from _common import Spread, interleaved, options, parsed, peer, ratio, table, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion import VPSDE, ScoreModel, UNet, denoising_loss

OURS: Final = {n: f"sde_diffusion, {n} a level" for n in (1, 2)}
VARIANTS: Final = ("bfloat16", "compiled", "channels last")
SIZES: Final = ("2.5", "10")  # millions of parameters
Build = Callable[[int, tuple[int, int, int], list[int]], nn.Module]  # (width, image, multipliers)


class Case(NamedTuple):
    """What all networks have in common."""

    image: tuple[int, int, int]
    multipliers: list[int]
    batch: int
    parameters: float


class Adapter(nn.Module):
    """A peer's network, called as our networks are."""

    def __init__(self, inner: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the network's output; peers count time in thousandths."""
        return self.call(self.inner, x, 1000 * c)


def ours(
    blocks: int, width: int, image: tuple[int, int, int], multipliers: list[int]
) -> nn.Module:
    """Return our network."""
    return UNet(image[0], width, multipliers, blocks, attention=[len(multipliers) - 1])


def diffusers(
    module: Any,  # noqa: ANN401
    blocks: int,
    width: int,
    image: tuple[int, int, int],
    multipliers: list[int],
) -> nn.Module:
    """Return UNet2DModel, with as many groups as ours and four heads."""
    channels = image[0]
    lower = len(multipliers) - 1
    network = module.UNet2DModel(
        sample_size=image[1],
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=[width * m for m in multipliers],
        norm_num_groups=max(n for n in range(1, 33) if width % n == 0 and width // n >= 4),
        attention_head_dim=width * multipliers[-1] // 4,
        down_block_types=["DownBlock2D"] * lower + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * lower,
    )
    return Adapter(network, lambda inner, x, t: inner(x, t).sample)


def edm(
    module: Any,  # noqa: ANN401
    blocks: int,
    width: int,
    image: tuple[int, int, int],
    multipliers: list[int],
) -> nn.Module:
    """Return SongUNet in its DDPM++ settings, without dropout."""
    size = image[1]
    network = module.SongUNet(
        size,
        image[0],
        image[0],
        model_channels=width,
        channel_mult=multipliers,
        num_blocks=blocks,
        attn_resolutions=[size >> (len(multipliers) - 1)],
        dropout=0.0,
    )
    for norm in network.modules():
        if type(norm).__name__ == "GroupNorm":  # made for widths that 32 divides
            groups = range(norm.num_groups, 0, -1)
            norm.num_groups = next(n for n in groups if len(norm.weight) % n == 0)
    return Adapter(network, lambda inner, x, t: inner(x, t, None))


def lucidrains(
    module: Any,  # noqa: ANN401
    width: int,
    image: tuple[int, int, int],
    multipliers: list[int],
) -> nn.Module:
    """Return Unet, whose two blocks and attention at every level are not to choose."""
    network = module.Unet(width, dim_mults=tuple(multipliers), channels=image[0])
    return Adapter(network, lambda inner, x, t: inner(x, t))


def peers(clone: Path | None) -> Iterator[tuple[str, Build | str]]:
    """Yield each peer's name with what builds it, or with the reason why nothing does."""
    found = peer("diffusers")
    for blocks in (1, 2):
        build = found if isinstance(found, str) else partial(diffusers, found, blocks)
        yield f"diffusers UNet2DModel, {blocks} a level", build
    if clone is not None:
        sys.path.insert(0, str(clone))
    found = "give --edm PATH" if clone is None else peer("training.networks")
    for blocks in (1, 2):
        build = found if isinstance(found, str) else partial(edm, found, blocks)
        yield f"EDM SongUNet, {blocks} a level", build
    found = peer("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    yield "lucidrains Unet", found if isinstance(found, str) else partial(lucidrains, found)


def parameters(network: nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in network.parameters())


def fitted(build: Build, case: Case) -> nn.Module:
    """Return the network in the width that comes nearest to the case's number of parameters."""

    def distance(width: int) -> float:
        try:
            with torch.device("meta"):
                count = parameters(build(width, case.image, case.multipliers))
        except (AssertionError, ValueError, NotImplementedError, RuntimeError):
            return math.inf  # a width that the network does not have
        return abs(count / case.parameters - 1)

    found = {width: distance(width) for width in range(8, 129, 8)}
    if min(found.values()) > 0.06:
        found |= {width: distance(width) for width in range(10, 129, 2) if width % 8}
    return build(min(found, key=found.__getitem__), case.image, case.multipliers)


def networks(case: Case, clone: Path | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return ours and the peers that are there, and why the others are not."""
    found = {name: fitted(partial(ours, n), case) for n, name in OURS.items()}
    absent = dict[str, str]()
    for name, build in peers(clone):
        if isinstance(build, str):
            absent[name] = build
        else:
            found[name] = fitted(build, case)
    return found, absent


def training_step(
    network: nn.Module, case: Case, precision: AbstractContextManager[object]
) -> Callable[[], object]:
    """Return one step of training on a fixed batch."""
    model = ScoreModel(network, VPSDE()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, case.batch, *case.image, generator=generator)
    t = torch.rand(case.batch, generator=generator, dtype=torch.float64).clamp(min=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = denoising_loss(model, x0, t, eps).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def forward(
    network: nn.Module, case: Case, precision: AbstractContextManager[object]
) -> Callable[[], object]:
    """Return one pass without gradients."""
    x = torch.randn(case.batch, *case.image)
    c = torch.rand(case.batch)

    def run() -> None:
        with torch.no_grad(), precision:
            network(x, c)

    return run


def flops(program: Callable[[], object]) -> int:
    """Return the floating-point operations of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        program()
    return int(counter.get_total_flops())


def kept(network: nn.Module, case: Case) -> int:
    """Return the bytes that a forward pass keeps for the gradients, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = network(torch.randn(case.batch, *case.image), torch.rand(case.batch))
    del out
    return sum(found.values())


def ceilings(case: Case, width: int, size: int) -> dict[str, Callable[[], object]]:
    """Return a matrix product, and 3×3 convolutions at the sizes of the U-Net's outer levels."""
    a, b = torch.randn(2, size, size)
    found: dict[str, Callable[[], object]] = {f"sgemm {size}³": lambda: a @ b}
    for level, multiplier in enumerate(case.multipliers[:2]):
        channels = width * multiplier
        side = case.image[1] >> level
        w = torch.randn(channels, channels, 3, 3)
        x = torch.randn(case.batch, channels, side, side)
        last = x.to(memory_format=torch.channels_last)
        name = f"3×3 convolution, {channels} channels, {side}×{side}"
        found[name] = partial(F.conv2d, x, w, padding=1)
        found[f"{name}, channels last"] = partial(F.conv2d, last, w, padding=1)
    return found


class LastChannels(nn.Module):
    """A network whose weights and input have the channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the network's output."""
        out: Tensor = self.inner(x.to(memory_format=torch.channels_last), c)
        return out


def variants(
    chosen: argparse.Namespace, case: Case
) -> tuple[dict[str, tuple[nn.Module, AbstractContextManager[object]]], dict[str, str]]:
    """Return every network by name, as it is and as the options ask."""
    plain, absent = networks(case, chosen.edm)
    found = {name: (net, nullcontext()) for name, net in plain.items()}
    bfloat16 = torch.autocast("cpu", torch.bfloat16)
    every: dict[str, tuple[nn.Module, AbstractContextManager[object]]] = dict(found)
    if chosen.bfloat16:
        every |= {f"{name}, bfloat16": (net, bfloat16) for name, net in plain.items()}
    if chosen.compile:
        every |= {f"{n}, compiled": (torch.compile(m), nullcontext()) for n, m in plain.items()}
    if chosen.channels_last:
        copies, _ = networks(case, chosen.edm)
        last = {f"{name}, channels last": LastChannels(net) for name, net in copies.items()}
        every |= {name: (net, nullcontext()) for name, net in last.items()}
    return every, absent


def measure(chosen: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Return all seconds by program, with the work each of them does."""
    nets, absent = variants(chosen, case)
    steps = {f"step, {name}": training_step(net, case, how) for name, (net, how) in nets.items()}
    passes = {f"forward, {name}": forward(net, case, how) for name, (net, how) in nets.items()}
    width = cast("UNet", nets[OURS[2]][0]).config["width"]
    limits = ceilings(case, width, 256 if chosen.quick else 1024)
    programs = {**steps, **passes, **limits}
    work = {name: flops(run) for name, run in programs.items() if "compiled" not in name}
    counts = {name: parameters(net) for name, (net, _) in nets.items()}
    memory = {name: kept(net, case) for name, (net, _) in nets.items() if "compiled" not in name}
    taken = interleaved(programs, chosen.repeats)
    return {
        "absent": absent,
        "parameters": counts,
        "kept": memory,
        "flops": work,
        "seconds": taken,
        "limits": list(limits),
    }


def variant(name: str) -> str:
    """Return what a program's name says last, if it is an option."""
    last = name.rpartition(", ")[2]
    return last if last in VARIANTS else ""


def fastest(taken: dict[str, list[float]], like: str) -> str | None:
    """Return the peer of a program whose median is the least: the same work, the same option."""
    kind = like.partition(", ")[0]
    same = [n for n in taken if n.startswith(f"{kind}, ") and variant(n) == variant(like)]
    theirs = [name for name in same if ", sde_diffusion" not in name]
    return min(theirs, key=lambda name: Spread.of(taken[name]).median, default=None)


def show(found: dict[str, Any], case: Case) -> list[dict[str, Any]]:
    """Print the table of a case and return its rows."""
    taken = found["seconds"]
    work = found["flops"]
    limits = found["limits"]
    # The best convolution of a turn: what the network could reach if it were nothing else.
    turns = range(len(taken[limits[0]]))
    best = [max(work[n] / taken[n][i] for n in limits if "conv" in n) for i in turns]
    rows = []
    for name, seconds in taken.items():
        kind, _, network = name.partition(", ")
        base = None if name in limits else fastest(taken, name)
        rate = [work[name] / s for s in seconds] if name in work else None
        rows.append(
            {
                "program": name,
                "seconds": asdict(Spread.of(seconds)),
                "parameters": found["parameters"].get(network),
                "images_per_second": case.batch / Spread.of(seconds).median,
                "fastest_peer": base,
                "ratio_to_fastest_peer": None
                if base is None
                else asdict(ratio(seconds, taken[base])),
                "mebibytes_kept": found["kept"].get(network, 0) / 2**20
                if kind == "step"
                else None,
                "gflops_per_second": None if rate is None else Spread.of(rate).median / 1e9,
                "of_the_convolutions": None if rate is None else asdict(ratio(rate, best)),
            }
        )
    image = "×".join(map(str, case.image))
    table(
        f"{case.parameters / 1e6:g} M parameters, {image}, batch {case.batch}",
        [
            "program",
            "M",
            "seconds",
            "images/s",
            "÷ fastest peer",
            "MiB kept",
            "GFLOP/s",
            "of the best convolution",
        ],
        [_cells(row) for row in rows]
        + [[name, "", why, *[""] * 5] for name, why in found["absent"].items()],
    )
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    network = row["parameters"]
    ratios = row["ratio_to_fastest_peer"]
    rates = row["of_the_convolutions"]
    return [
        row["program"],
        "" if network is None else f"{network / 1e6:.2f}",
        Spread(**row["seconds"]).show(".4f"),
        "" if network is None else f"{row['images_per_second']:.1f}",
        "" if ratios is None else Spread(**ratios).show(".2f"),
        f"{row['mebibytes_kept']:.0f}" if row["mebibytes_kept"] else "",
        "" if rates is None else f"{row['gflops_per_second']:.1f}",
        "" if rates is None else Spread(**rates).show(".2f"),
    ]


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=SIZES, help="millions of parameters"
    )
    parser.add_argument(
        "--images", nargs="+", default=["1x28x28", "3x32x32"], help="channels x height x width"
    )
    parser.add_argument("--multipliers", nargs="+", type=int, default=[1, 2, 2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--edm", type=Path, help="a clone of NVlabs/edm, to measure SongUNet")
    parser.add_argument("--bfloat16", action="store_true", help="also under bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="also compiled (minutes more)")
    parser.add_argument("--channels-last", action="store_true", help="also with channels last")
    chosen = parsed(parser)
    sizes = [1e6 * float(size) for size in chosen.sizes]
    if chosen.quick:
        chosen.batch = 2
        chosen.repeats = 2
        chosen.images = ["1x8x8"]
        sizes = [5e5]
    torch.manual_seed(0)  # peers draw their weights from the global generator
    cases = []
    answers = []
    for size in sizes:
        for text in chosen.images:
            channels, height, side = map(int, text.split("x"))
            case = Case((channels, height, side), chosen.multipliers, chosen.batch, size)
            found = measure(chosen, case)
            rows = show(found, case)
            cases.append({"image": text, "parameters": found["parameters"], "rows": rows})
            plain = {row["program"]: row["ratio_to_fastest_peer"] for row in rows}
            for name in OURS.values():
                both = (plain[f"{kind}, {name}"] for kind in ("step", "forward"))
                shown = ("" if one is None else Spread(**one).show(".2f") for one in both)
                answers.append([name, f"{found['parameters'][name] / 1e6:.2f} M", text, *shown])
    table("Over the fastest peer", ["network", "parameters", "image", "step", "forward"], answers)
    print(
        "\nmedian (least–most) over the turns; ratios are taken within a turn; MiB kept: what a"
        "\nforward pass keeps for the gradients"
    )
    write(chosen.out, batch=chosen.batch, cases=cases)


if __name__ == "__main__":
    main()
