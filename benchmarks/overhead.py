"""What a solver costs beside its network: step overhead, ours and that of other programs.

Run it as `python benchmarks/overhead.py`, or with `--all` for every fixed-step solver.

U-Net: wall-clock time of a solve over that of its bare network calls. After every step the network
is called directly, ``model.network(x, c)``, on the very inputs the step gave it, and these calls
are the reference: A B A B …, so that a machine that drifts drifts for both.
Trivial network: microseconds per evaluation, and their ratio to a bare loop of the same kind; one
turn runs every program once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from _common import Spread, interleaved, options, parsed, ratio, table, write
from _peers import PEERS, RAW, Peer, Tick
from _solvers import DETERMINISTIC, STOCHASTIC, TORCHDIFFEQ
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel, UNet, WhiteNoise, integrate, uniform
from sde_diffusion.integration import Solver, dynamics_for, sample
from sde_diffusion.nets.unet import mnist_config

ACCEPTED: Final = 1.05  # of the bare network's time, on the U-Net
CORE: Final = ("EulerMaruyama", "Ancestral", "Heun")
BESIDE: Final = ("diffusers DDIM", "diffusers DDPM", "diffusers Heun", "k-diffusion Euler",
                 "azula Euler", "azula DDPM")  # fmt: skip
# One solve from noise to data of the given network; tick() follows every step.
Contender = Callable[[nn.Module, Tick], object]


class Half(nn.Module):
    """The trivial network: ½x, in one kernel."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002  (asked for, not used)
        """Return ½x."""
        return 0.5 * x


class Meter(nn.Module):
    """A network that keeps the inputs of its calls and the time spent inside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls, self.inside = network, list[tuple[Tensor, Tensor]](), 0.0

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return network(x, c)."""
        self.calls.append((x, c))
        start = time.perf_counter()
        out: Tensor = self.network(x, c)
        self.inside += time.perf_counter() - start
        return out


def ours(solver: Solver[Any], shape: tuple[int, ...], steps: int) -> Contender:
    """Return `sample` with this solver, the draw of the prior included."""

    def run(network: nn.Module, tick: Tick) -> object:
        model = ScoreModel(network, VPSDE()).eval()
        grid = uniform(steps)  # torchdiffeq's Adams methods take no other
        return sample(model, solver, shape, grid=grid, callback=lambda *_: tick())

    return run


def white(solver: Solver[Any], shape: tuple[int, ...], steps: int) -> Contender:
    """Return `integrate` with one stream of noise for the batch, as the peers draw theirs."""
    grid, x = uniform(steps), torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def run(network: nn.Module, tick: Tick) -> object:
        model = ScoreModel(network, VPSDE()).eval()
        dynamics, noise = dynamics_for(solver, model.sde, model), WhiteNoise(0)
        call = integrate(dynamics, solver, x, grid, noise=noise, callback=lambda *_: tick())
        return call.x

    return run


def theirs(peer: Peer, shape: tuple[int, ...], steps: int) -> Contender:
    """Return a peer's solve from a fixed start."""
    grid, x = uniform(steps), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    run = peer.make(VPSDE(), grid)
    times = [torch.full((shape[0],), float(t)) for t in grid]
    return lambda network, tick: run(lambda x_t, i: network(x_t, times[i]), x, tick)


@dataclass(frozen=True)
class Overhead:
    """A solver on the U-Net: total over bare time, and over the time inside the same calls."""

    solver: str
    nfe: int
    bare: Spread
    inside: Spread

    def cells(self) -> list[object]:
        """Return the row as the table shows it."""
        verdict = "within" if self.bare.median <= ACCEPTED else "above"
        return [self.solver, self.nfe, self.bare.show(), self.inside.show(".4f"),
                verdict if self.solver in CORE else ""]  # fmt: skip


def solve(contender: Contender, network: nn.Module) -> tuple[float, float, float, int]:
    """Return the seconds of one solve, of its bare calls, inside its calls, and their number."""
    meter, bare, count = Meter(network), 0.0, 0

    def tick() -> None:
        nonlocal bare, count
        start = time.perf_counter()
        for x, c in meter.calls:
            network(x, c)
        bare, count = bare + time.perf_counter() - start, count + len(meter.calls)
        meter.calls.clear()

    start = time.perf_counter()
    contender(meter, tick)
    total = time.perf_counter() - start - bare
    tick()  # calls that no tick followed
    return total, bare, meter.inside, count


def on_unet(
    contenders: Mapping[str, Contender], network: nn.Module, repeats: int
) -> list[Overhead]:
    """Return the overheads; every turn runs each contender once."""
    names = list(contenders)
    turns = [
        {name: solve(contenders[name], network) for name in names} for _ in range(repeats + 1)
    ][1:]
    return [
        Overhead(
            name, turns[0][name][3],
            Spread.of([turn[name][0] / turn[name][1] for turn in turns]),
            Spread.of([turn[name][0] / turn[name][2] for turn in turns]),
        )
        for name in names
    ]  # fmt: skip


def on_trivial(
    contenders: Mapping[str, Contender], draws: Mapping[str, bool], repeats: int
) -> list[dict[str, Any]]:
    """Return microseconds per evaluation and the ratio to the bare loop of the same kind."""
    network, idle = Half(), lambda: None
    nfe = {name: solve(run, network)[3] for name, run in contenders.items()}
    programs = {
        name: (lambda run=run: run(network, idle)) for name, run in contenders.items()
    }
    taken = interleaved(programs, repeats)
    each = {name: [s / nfe[name] * 1e6 for s in times] for name, times in taken.items()}
    loops = {False: each["bare loop, DDIM"], True: each["bare loop, DDPM"]}
    return [
        {"solver": name, "nfe": nfe[name], "draws": draws[name],
         "microseconds": asdict(Spread.of(us)), "ratio": asdict(ratio(us, loops[draws[name]]))}
        for name, us in each.items()
    ]  # fmt: skip


def chosen_solvers(every: bool) -> dict[str, Solver[Any]]:
    """Return our solvers: the three of the acceptance, or all that step along a grid."""
    # The implicit methods need a network and steps for which their iteration converges.
    explicit = {k: v for k, v in TORCHDIFFEQ.items() if "implicit" not in k and "fixed" not in k}
    solvers = {**STOCHASTIC, **DETERMINISTIC, **explicit}
    return solvers if every else {name: solvers[name] for name in CORE}


def unet_part(chosen: argparse.Namespace) -> list[Overhead]:
    """Measure on the U-Net and print the table."""
    batch, steps, repeats = (2, 2, 2) if chosen.quick else (16, chosen.steps, chosen.repeats)
    shape = (batch, 1, 28, 28)
    network = UNet(**mnist_config()).eval()
    runs = {name: ours(s, shape, steps) for name, s in chosen_solvers(chosen.all).items()}
    runs |= {name: theirs(PEERS[name], shape, steps) for name in BESIDE if not absent(name)}
    with torch.no_grad():
        rows = on_unet(runs, network, repeats)
    cells = [row.cells() for row in rows]
    cells += [[name, "", absent(name), "", ""] for name in BESIDE if absent(name)]
    table(f"U-Net of mnist_config(), batch {batch} of 1×28×28, {steps} steps, {repeats} turns",
          ["solver", "NFE", "× bare network", "× inside the same calls", f"≤ {ACCEPTED}"],
          cells)  # fmt: skip
    return rows


def trivial_part(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure on the trivial network and print the table."""
    steps, repeats = (10, 3) if chosen.quick else (50, 4 * chosen.repeats)
    shape = (16, 3, 32, 32)
    runs = {name: theirs(loop, shape, steps) for name, loop in RAW.items()}
    draws = {name: loop.draws for name, loop in RAW.items()}
    for name, solver in chosen_solvers(chosen.all).items():
        runs[name], draws[name] = ours(solver, shape, steps), name in STOCHASTIC
        if name in STOCHASTIC:
            runs[f"{name}, WhiteNoise"] = white(solver, shape, steps)
            draws[f"{name}, WhiteNoise"] = True
    for name in BESIDE:
        if not absent(name):
            runs[name], draws[name] = theirs(PEERS[name], shape, steps), PEERS[name].draws
    with torch.no_grad():
        rows = on_trivial(runs, draws, repeats)
    shown = [
        [row["solver"], row["nfe"], Spread(**row["microseconds"]).show(".0f"),
         Spread(**row["ratio"]).show(".2f")] for row in rows
    ]  # fmt: skip
    shown += [[name, "", absent(name), ""] for name in BESIDE if absent(name)]
    table(f"Network ½x, batch 16 of 3×32×32, float32, {steps} steps, {repeats} turns",
          ["solver", "NFE", "µs per evaluation", "× bare loop of its kind"], shown)  # fmt: skip
    return rows


def absent(name: str) -> str | None:
    """Return why a peer is absent, None where it is there."""
    return PEERS[name].absent()


def main() -> None:
    """Measure both, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--all", action="store_true", help="every fixed-step solver")
    parser.add_argument("--steps", type=int, default=10, help="steps on the U-Net")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    chosen = parsed(parser)
    unet, trivial = unet_part(chosen), trivial_part(chosen)
    print("\nmedian (least–most) over the turns; ratios are taken within a turn")
    write(chosen.out, accepted=ACCEPTED, unet=[asdict(row) for row in unet], trivial=trivial)


if __name__ == "__main__":
    main()
