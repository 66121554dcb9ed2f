"""What a solver costs beside its network: step overhead, ours and that of other programs.

Run it as `python benchmarks/overhead.py`, or with `--all` for every fixed-step solver.

U-Net: wall-clock time of a solve over that of its bare network calls. After every step the network
is called directly, ``model.network(x, c)``, on the very inputs the step gave it, and these calls
are the reference: A B A B …, so that a machine that drifts drifts for both.
Trivial network: microseconds per evaluation, and their ratio to the fastest of the other programs
that do the same; one turn runs every program once. Ours is `sample`, with its prior draw, a stream
of noise for every sample, counted evaluations and the watch for divergence.
Wrapped network: time of a prediction of a model that is made of another program's network by one
call, over the time inside the call of its U-Net.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from _common import Spread, interleaved, options, parsed, ratio, table, write
from _peers import PEERS, RAW, TIMED, Peer
from _solvers import DETERMINISTIC, STOCHASTIC
from torch import Tensor, nn

from sde_diffusion import VPSDE, ScoreModel, UNet, linear_betas, uniform
from sde_diffusion.nets.unet import mnist_config
from sde_diffusion.sampling.generate import sample
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    AdamsBashforth,
    Ancestral,
    AngularAdams,
    DPMSolverPP,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Heun,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)

ACCEPTED: Final = 1.05  # of the bare network's time, on the U-Net
WRAPPED: Final = 1.01  # the same of one prediction of a wrapped network
# What other programs call the same, or what comes nearest.
EQUIVALENT: Final[Mapping[str, tuple[Solver[Any], tuple[str, ...]]]] = {
    "DDIM": (DDIM(), ("diffusers DDIM", "azula DDIM")),
    "Euler": (Euler(), ("azula Euler", "k-diffusion Euler")),
    "Heun": (Heun(), ("diffusers Heun", "azula Heun")),
    "EDMHeun": (EDMHeun(), ("diffusers Heun", "azula Heun")),
    "AdamsBashforth(3)": (AdamsBashforth(3), ("azula zAB3",)),
    "AngularAdams": (AngularAdams(), ("azula vAB3", "azula vAB4")),
    "DPMSolverPP(2)": (DPMSolverPP(2), ("diffusers DPM++2M", "k-diffusion DPM++2M")),
    "DPMSolverPP(3)": (DPMSolverPP(3), ("diffusers DPM++3M",)),
    "UniPC(2)": (UniPC(2), ("diffusers UniPC2",)),
    "UniPC(3)": (UniPC(3), ("diffusers UniPC3",)),
    "DEIS(3)": (DEIS(3), ("diffusers DEIS3", "azula zEAB3")),
    "EulerMaruyama": (EulerMaruyama(), ("azula Ito",)),
    "Ancestral": (Ancestral(), ("diffusers DDPM", "azula DDPM")),
    "SDEDPMSolverPP(2)": (SDEDPMSolverPP(2), ("diffusers SDE-DPM++2M",)),
    "SASolver": (SASolver(), ("diffusers SASolver",)),
}
CORE: Final = ("DDIM", "AngularAdams", "Heun", "EulerMaruyama", "Ancestral")
BESIDE: Final = ("diffusers DDIM", "diffusers DDPM", "diffusers Heun", "azula DDPM")
_PEERS: Final = {**PEERS, **TIMED}
Tick = Callable[[], object]
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
        self.network = network
        self.calls = list[tuple[Tensor, Tensor]]()
        self.inside = 0.0

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
        return sample(model, solver, shape, grid=uniform(steps), callback=lambda *_: tick())

    return run


def theirs(peer: Peer, shape: tuple[int, ...], steps: int) -> Contender:
    """Return a peer's solve from a fixed start."""
    grid = uniform(steps)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    run = peer.make(VPSDE(), grid)
    times = {float(t): torch.full((shape[0],), float(t)) for t in grid}

    def solve(network: nn.Module, tick: Tick) -> object:
        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            tick()  # of the step before
            found: Tensor = network(x_t, times[float(t)])
            return found

        return run(eps, x)

    return solve


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
        return [
            self.solver,
            self.nfe,
            self.bare.show(),
            self.inside.show(".4f"),
            verdict if self.solver in CORE else "",
        ]


def solve(contender: Contender, network: nn.Module) -> tuple[float, float, float, int]:
    """Return the seconds of one solve, of its bare calls, inside its calls, and their number."""
    meter = Meter(network)
    bare = 0.0
    count = 0

    def tick() -> None:
        nonlocal bare, count
        start = time.perf_counter()
        for x, c in meter.calls:
            network(x, c)
        bare = bare + time.perf_counter() - start
        count = count + len(meter.calls)
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
            name,
            turns[0][name][3],
            Spread.of([turn[name][0] / turn[name][1] for turn in turns]),
            Spread.of([turn[name][0] / turn[name][2] for turn in turns]),
        )
        for name in names
    ]


def on_trivial(
    contenders: Mapping[str, Contender], repeats: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return microseconds per evaluation, turn by turn, and the evaluations of one solve."""
    network = Half()

    def idle() -> None:
        return None

    nfe = {name: solve(run, network)[3] for name, run in contenders.items()}
    programs = {name: (lambda run=run: run(network, idle)) for name, run in contenders.items()}
    taken = interleaved(programs, repeats)
    return {name: [s / nfe[name] * 1e6 for s in times] for name, times in taken.items()}, nfe


def chosen_solvers(every: bool) -> dict[str, Solver[Any]]:
    """Return our solvers for the U-Net: a few, or all that step along a grid."""
    if every:
        return {**STOCHASTIC, **DETERMINISTIC}
    return {name: EQUIVALENT[name][0] for name in CORE}


def unet_part(chosen: argparse.Namespace) -> list[Overhead]:
    """Measure on the U-Net and print the table."""
    batch, steps, repeats = (2, 2, 2) if chosen.quick else (16, chosen.steps, chosen.repeats)
    shape = (batch, 1, 28, 28)
    network = UNet(**(mnist_config() | ({"width": 16} if chosen.quick else {}))).eval()
    runs = {name: ours(s, shape, steps) for name, s in chosen_solvers(chosen.all).items()}
    runs |= {name: theirs(_PEERS[name], shape, steps) for name in BESIDE if not absent(name)}
    with torch.no_grad():
        rows = on_unet(runs, network, repeats)
    cells = [row.cells() for row in rows]
    cells += [[name, "", absent(name), "", ""] for name in BESIDE if absent(name)]
    table(
        f"U-Net of mnist_config(), batch {batch} of 1×28×28, {steps} steps, {repeats} turns",
        ["solver", "NFE", "× bare network", "× inside the same calls", f"≤ {ACCEPTED}"],
        cells,
    )
    return rows


def trivial_part(chosen: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """Measure on the trivial network and print the table."""
    steps, repeats = (10, 2) if chosen.quick else (50, 4 * chosen.repeats)
    shape = (batch, 3, 32, 32)
    loops = {name: theirs(loop, shape, steps) for name, loop in RAW.items()}
    own = {name: ours(solver, shape, steps) for name, (solver, _) in EQUIVALENT.items()}
    wanted = dict.fromkeys(peer for _, peers in EQUIVALENT.values() for peer in peers)
    peers = {name: theirs(_PEERS[name], shape, steps) for name in wanted if not absent(name)}
    with torch.no_grad():
        each, nfe = on_trivial({**loops, **own, **peers}, repeats)
    rows = []
    for name, (_, equivalents) in EQUIVALENT.items():
        there = [peer for peer in equivalents if peer in peers]
        fastest = min(there, key=lambda peer: statistics.median(each[peer]), default=None)
        rows.append(
            {
                "solver": name,
                "nfe": nfe[name],
                "microseconds": asdict(Spread.of(each[name])),
                "fastest": fastest,
                "theirs": asdict(Spread.of(each[fastest])) if fastest else None,
                "ratio": asdict(ratio(each[name], each[fastest])) if fastest else None,
            }
        )
    shown = [[name, nfe[name], Spread.of(each[name]).show(".0f"), "", ""] for name in loops]
    for row in rows:
        there = row["fastest"] is not None
        shown.append(
            [
                row["solver"],
                row["nfe"],
                Spread(**row["microseconds"]).show(".0f"),
                f"{row['fastest']} {Spread(**row['theirs']).show('.0f')}"
                if there
                else "none there",
                Spread(**row["ratio"]).show(".2f") if there else "",
            ]
        )
    table(
        f"Network ½x, batch {batch} of 3×32×32, float32, {steps} steps, {repeats} turns",
        ["solver", "NFE", "µs per evaluation", "fastest other program, µs", "ratio"],
        shown,
    )
    return rows


def wrapped_part(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure predictions of wrapped networks beside the calls inside them; print the table."""
    batch, repeats = (2, 2) if chosen.quick else (16, 8 * chosen.repeats)
    meter = Meter(UNet(**mnist_config())).eval()
    x = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.5, dtype=torch.float64)
    models = {
        "from_timesteps": ScoreModel.from_timesteps(meter, linear_betas(1000)),
        "from_denoiser": ScoreModel.from_denoiser(meter),
        "from_velocity": ScoreModel.from_velocity(meter),
    }
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for name, model in models.items():
                meter.inside = 0.0
                start = time.perf_counter()
                model.eps(x, t)
                taken[name].append((time.perf_counter() - start) / meter.inside)
    found = {name: Spread.of(ratios[1:]) for name, ratios in taken.items()}
    table(
        f"Wrapped U-Net of mnist_config(), batch {batch} of 1×28×28, {repeats} turns",
        ["made by", "× inside the same call", f"≤ {WRAPPED}"],
        [
            [name, each.show(".4f"), "within" if each.median <= WRAPPED else "above"]
            for name, each in found.items()
        ],
    )
    return {name: asdict(each) for name, each in found.items()}


def absent(name: str) -> str | None:
    """Return why a peer is absent, None where it is there."""
    return _PEERS[name].absent()


def main() -> None:
    """Measure all three, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--all", action="store_true", help="every fixed-step solver")
    parser.add_argument("--steps", type=int, default=10, help="steps on the U-Net")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    chosen = parsed(parser)
    wrapped = wrapped_part(chosen)
    unet = unet_part(chosen)
    trivial = {batch: trivial_part(chosen, batch) for batch in (16, 64)}
    print("\nmedian (least–most) over the turns; ratios are taken within a turn")
    rows = [asdict(row) for row in unet]
    write(chosen.out, accepted=ACCEPTED, wrapped=wrapped, unet=rows, trivial=trivial)


if __name__ == "__main__":
    main()
