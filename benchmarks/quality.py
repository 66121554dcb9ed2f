"""Error against evaluations: our solvers beside those of other programs, at equal budgets.

Run it as `python benchmarks/quality.py`. Every solver takes the most steps whose counted
evaluations stay within the budget.

Solvers that draw nothing: RMS distance per coordinate to the flow's end points (Dormand–Prince)
from the same starts at the horizon; exact scores in float64, and the digits U-Net in float32.
`AngularAdams()` runs on its own grid, all others on four grids each; "best" is the best of these
for that problem and budget, chosen in hindsight. Peers have their own defaults, "full" ones keep
their order in the last steps. The defaults of `AngularAdams` were chosen with the first two
problems in view; the others were written down before they were run, and no default changed after.
Above NFE 50 only lines within 10 × of the best of their side go on; `--all` runs all, and prints
every line. At few evaluations one sample that ends in another mode makes most of an RMS, hence the
last table, of medians.

Solvers that draw: sliced W₂ to a sample of the data, beside the floor, other samples of the data
of that size. A solver's grid is the best of three in a smaller run with another seed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Final

import torch
from _common import options, parsed, table, write
from _peers import PEERS, Peer
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineBeta,
    GaussianMixture,
    LinearSDE,
    SubVPSDE,
    WhiteNoise,
    integrate,
    karras,
    load,
    log_snr,
    quadratic,
    uniform,
)
from sde_diffusion.diagnostics.metrics import rms_distance, sliced_wasserstein
from sde_diffusion.integration import dynamics_for
from sde_diffusion.models.exact import ExactScore
from sde_diffusion.sampling.costs import steps_within
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    SEEDS,
    SRA,
    AdamsBashforth,
    Ancestral,
    AngularAdams,
    AnnealedLangevin,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPPublished,
    EDMHeun,
    EDMStochastic,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Restart,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)

BUDGETS: Final = (5, 10, 20, 50, 100, 200)
LAW_BUDGETS: Final = (10, 15, 20, 25, 50)
SIFTED: Final = 50  # the budget from which lines are dropped …
FACTOR: Final = 10.0  # … if both their errors are larger than the least by this
PARTS: Final = ("tuned", "held-out", "digits", "law")
DEFAULT: Final = AngularAdams()
DETERMINISTIC: Final[Mapping[str, Solver[Any]]] = {
    "DDIM": DDIM(),
    "Heun": Heun(),
    "EDMHeun": EDMHeun(),
    **{f"DPMSolver({k})": DPMSolver(k) for k in (2, 3)},
    **{f"DPMSolverPP({k})": DPMSolverPP(k) for k in (2, 3)},
    "DPMSolverPPPublished(3)": DPMSolverPPPublished(3),
    **{f"UniPC({p})": UniPC(p) for p in (2, 3)},
    **{f"DEIS({k})": DEIS(k) for k in (2, 3, 4)},
    "IPNDM(4)": IPNDM(4),
    **{f"AdamsBashforth({k})": AdamsBashforth(k) for k in (2, 3)},
}
STOCHASTIC: Final[Mapping[str, Solver[Any]]] = {
    **{f"SDEDPMSolverPP({k})": SDEDPMSolverPP(k) for k in (2, 3)},
    "ERSDE": ERSDE(),
    "SASolver": SASolver(),
    "SEEDS(2)": SEEDS(2),
    "SRA": SRA(),
    "EDMStochastic": EDMStochastic(),
    "Restart": Restart(),
    "EulerMaruyama": EulerMaruyama(),
    "Ancestral": Ancestral(),
    "PredictorCorrector": PredictorCorrector(Ancestral(), AnnealedLangevin()),
}
# A solve along the grid, with a seed for what it draws: where x ends, and the evaluations counted.
Solve = Callable[[Any, Tensor, Tensor, int], tuple[Tensor, int]]
GRIDS: Final[Mapping[str, Callable[[LinearSDE, int], Tensor]]] = {
    "uniform": lambda sde, n: uniform(n, sde.horizon, sde.cutoff),
    "quadratic": lambda sde, n: quadratic(n, sde.horizon, sde.cutoff),
    "log-snr": log_snr,
    "karras": karras,
    "its own": DEFAULT.grid,
}


@dataclass(frozen=True)
class Problem:
    """Data in closed form, the SDE, and how many samples are followed."""

    name: str
    sde: LinearSDE
    data: Callable[[], GaussianMixture]
    samples: int = 256

    def model(self) -> ExactScore:
        """Return the exact score."""
        return self.data().diffused(self.sde)


def correlated(
    dimension: int = 64, modes: int = 4, seed: int = 0, decades: float = 2.0
) -> GaussianMixture:
    """Return modes with full covariances whose eigenvalues fall from .3 by so many decades."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(modes, dimension, generator=generator, dtype=torch.float64)
    z = torch.randn(modes, dimension, dimension, generator=generator, dtype=torch.float64)
    bases, _ = torch.linalg.qr(z)
    variances = 0.3 * torch.logspace(-decades, 0, dimension, dtype=torch.float64)
    covariances = bases * variances @ bases.mT
    return GaussianMixture(torch.ones(modes), means, 0.5 * (covariances + covariances.mT))


def images(modes: int = 6, seed: int = 1) -> GaussianMixture:
    """Return smooth 1×8×8 images of some kinds, each with smooth deviations."""
    place = torch.arange(8, dtype=torch.float64)
    near = torch.exp(-0.5 * ((place[:, None] - place) / 1.5) ** 2)
    smooth = torch.kron(near, near) + 1e-9 * torch.eye(64)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(modes, 64, generator=generator, dtype=torch.float64)
    means = torch.tanh(2 * z @ torch.linalg.cholesky(smooth).mT).reshape(modes, 1, 8, 8)
    covariance = 0.04 * smooth + 1e-4 * torch.eye(64)
    return GaussianMixture(torch.ones(modes), means, covariance.expand(modes, 64, 64))


TUNED: Final = (
    Problem("ring of 8, 2-d, VP", VPSDE(), lambda: GaussianMixture.ring(8), 1024),
    Problem("4 correlated modes, 64-d, VP", VPSDE(), correlated, 1024),
)
HELD_OUT: Final = (
    Problem(
        "ring of 5 of std .03, 2-d, cosine VP",
        VPSDE(CosineBeta()),
        lambda: GaussianMixture.ring(5, std=0.03),
    ),
    Problem("10 correlated modes, 8-d, sub-VP", SubVPSDE(), lambda: correlated(8, 10, 2, 2.7)),
    Problem("6 kinds of 1×8×8 images, VP", VPSDE(), images),
    Problem("10 correlated modes, 8-d, VE", VESDE(), lambda: correlated(8, 10, 3, 2.7)),
    Problem("6 kinds of 1×8×8 images, EDM", EDMSDE(), images),
    Problem("3 correlated modes, 24-d, VP", VPSDE(), lambda: correlated(24, 3, 4)),
)
DIGITS: Final = "digits U-Net, VP, float32"
DIGITS_MOST: Final = 20  # the network takes its time
PROBLEMS: Final = {problem.name: problem.data for problem in TUNED}  # for other scripts


@dataclass(frozen=True)
class Line:
    """A solver on a grid rule: where it is from, its solve and its most steps in a budget."""

    side: str
    solver: str
    grid: str
    solve: Solve
    steps: Callable[[LinearSDE, int], int]

    @property
    def name(self) -> str:
        """The name that a table shows."""
        return f"{self.solver}, {self.grid}"


@dataclass(frozen=True)
class Solved:
    """Where one line ended within one budget, or why it did not."""

    nfe: int
    steps: int
    x: Tensor | None
    failure: str | None = None


@dataclass(frozen=True)
class Cell:
    """The error of one line within one budget: RMS, and the median over samples of theirs."""

    problem: str
    side: str
    solver: str
    grid: str
    budget: int
    nfe: int
    steps: int
    rms: float
    median: float
    failure: str | None


@dataclass(frozen=True)
class LawCell:
    """The sliced W₂ of one solver within one budget, on its best grid, seed by seed."""

    problem: str
    side: str
    solver: str
    grid: str
    budget: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Floor:
    """The sliced W₂ of other samples of the data to the one held."""

    problem: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the samples."""
        return fmean(self.values)

    @property
    def std(self) -> float:
        """The standard deviation of one of them."""
        return stdev(self.values)

    def reached(self, values: Sequence[float]) -> bool:
        """Return whether the mean of the values is within two standard errors above the floor."""
        error = self.std * math.sqrt(1 / len(values) + 1 / len(self.values))
        return fmean(values) <= self.mean + 2 * error


def ours(solver: Solver[Any]) -> Solve:
    """Return `integrate` with this solver."""

    def solve(model: ScoreLike, x: Tensor, grid: Tensor, seed: int) -> tuple[Tensor, int]:
        dynamics = dynamics_for(solver, model.sde, model)
        found = integrate(dynamics, solver, x, grid, noise=WhiteNoise(seed))
        return found.x, found.nfe

    return solve


def theirs(peer: Peer) -> Solve:
    """Return a peer's solve, its evaluations counted where the score is called."""

    def solve(model: Any, x: Tensor, grid: Tensor, seed: int) -> tuple[Tensor, int]:  # noqa: ANN401
        calls = 0

        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            found: Tensor = model.eps(x_t, t)
            return found

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return peer.make(model.sde, grid)(eps, x), calls
            except RuntimeError as error:  # a singular matrix; ours say it with their own errors
                raise FloatingPointError(str(error)) from error

    return solve


def lines(side: str, own: Mapping[str, Solver[Any]], grids: Sequence[str]) -> list[Line]:
    """Return these solvers of ours on all of these grids."""

    def line(name: str, solver: Solver[Any], rule: str) -> Line:
        @functools.cache  # many problems share an SDE
        def steps(sde: LinearSDE, budget: int) -> int:
            return steps_within(name, solver, sde, functools.partial(GRIDS[rule], sde), budget)

        return Line(side, name, rule, ours(solver), steps)

    return [line(name, solver, rule) for name, solver in own.items() for rule in grids]


def peer_lines(grids: Sequence[str], *, draws: bool) -> list[Line]:
    """Return the peers that are there on all of these grids."""
    there = {n: p for n, p in PEERS.items() if p.draws == draws and p.absent() is None}

    def line(name: str, peer: Peer, rule: str) -> Line:
        return Line("peer", name, rule, theirs(peer), lambda _, budget: peer.steps(budget))

    return [line(name, peer, rule) for name, peer in there.items() for rule in grids]


def solved(line: Line, budget: int, model: Any, x: Tensor, seed: int = 1) -> Solved:  # noqa: ANN401
    """Return the end of one solve, none if it failed."""
    steps = nfe = 0
    try:
        steps = line.steps(model.sde, budget)
        end, nfe = line.solve(model, x, GRIDS[line.grid](model.sde, steps), seed)
    except (FloatingPointError, ValueError) as error:
        return Solved(nfe, steps, None, str(error))
    finite = bool(torch.isfinite(end).all())
    return Solved(nfe, steps, end, None) if finite else Solved(nfe, steps, None, "not finite")


def cell(problem: str, line: Line, budget: int, found: Solved, end: Tensor) -> Cell:
    """Return the error of a solve, infinite where it failed."""
    rms = median = math.inf
    if found.x is not None:
        rms = rms_distance(found.x, end)
        square = (found.x.double() - end.double()).square().flatten(1).mean(1)
        median = math.sqrt(float(square.median()))
    return Cell(
        problem,
        line.side,
        line.solver,
        line.grid,
        budget,
        found.nfe,
        found.steps,
        rms,
        median,
        found.failure,
    )


def best(found: Sequence[Cell], side: str, budget: int, measure: str = "rms") -> Cell | None:
    """Return the best cell of a side, None if there is none."""
    cells = [c for c in found if c.side == side and c.budget == budget]
    return min(cells, key=lambda c: getattr(c, measure), default=None)


def ratio(found: Sequence[Cell], budget: int, measure: str = "rms") -> str:
    """Return the default's error over that of the best peer, as a table shows it."""
    default, peer = (best(found, side, budget, measure) for side in ("default", "peer"))
    return f"{getattr(default, measure) / getattr(peer, measure):.3f}" if default and peer else ""


def flow_cells(
    name: str,
    model: Any,  # noqa: ANN401
    x: Tensor,
    end: Tensor,
    budgets: Sequence[int],
    everyone: Sequence[Line],
    factor: float,
) -> list[Cell]:
    """Return the errors of all lines, without those that fall behind by the factor."""
    found = list[Cell]()

    def near(c: Cell, measure: str) -> bool:
        least: float = getattr(best(found, c.side, c.budget, measure), measure)
        value: float = getattr(c, measure)
        return value <= factor * least

    for budget in sorted(budgets):
        now = [cell(name, line, budget, solved(line, budget, model, x), end) for line in everyone]
        found += now
        if budget >= SIFTED:
            pairs = zip(everyone, now, strict=True)
            everyone = [line for line, c in pairs if near(c, "rms") or near(c, "median")]
    return found


def show_flow(title: str, found: Sequence[Cell], budgets: Sequence[int]) -> None:
    """Print the default beside the best of both sides."""

    def texts(side: str, budget: int) -> list[str]:
        one = best(found, side, budget)
        return [f"{one.rms:.2e}", f"{one.solver}, {one.grid}"] if one else ["—", "—"]

    rows = [
        [b, texts("default", b)[0], *texts("ours", b), *texts("peer", b), ratio(found, b)]
        for b in budgets
    ]
    header = ["NFE", "AngularAdams()", "best other of ours", "which", "best peer", "which"]
    table(title, [*header, "ratio to peer"], rows)


def show_lines(found: Sequence[Cell], budgets: Sequence[int]) -> None:
    """Print one line a solver and grid."""
    values = {(c.solver, c.grid, c.budget): f"{c.rms:.2e}" for c in found}
    names = dict.fromkeys((c.solver, c.grid) for c in found)
    rows = [[*name, *(values.get((*name, b), "") for b in budgets)] for name in names]
    table("", ["solver", "grid", *(f"NFE {b}" for b in budgets)], rows)


def show_ratios(found: Sequence[Cell], budgets: Sequence[int]) -> None:
    """Print the ratios to the best peer on all problems, by both measures."""
    names = dict.fromkeys(c.problem for c in found)
    for measure, title in (("rms", "RMS error"), ("median", "Median error of the samples")):
        rows = [
            [name, *(ratio([c for c in found if c.problem == name], b, measure) for b in budgets)]
            for name in names
        ]
        table(
            f"{title} of AngularAdams() over that of the best peer",
            ["problem", *(f"NFE {b}" for b in budgets)],
            rows,
        )


def flow_part(chosen: argparse.Namespace) -> list[Cell]:
    """Measure the solvers that draw nothing and print their tables."""
    everyone = lines("default", {"AngularAdams()": DEFAULT}, ["its own"])
    everyone += lines("ours", DETERMINISTIC, chosen.grids) + peer_lines(chosen.grids, draws=False)
    factor = math.inf if chosen.all else FACTOR
    found = list[Cell]()

    def part(name: str, model: Any, x: Tensor, end: Tensor, budgets: Sequence[int]) -> None:  # noqa: ANN401
        cells = flow_cells(name, model, x, end, budgets, everyone, factor)
        title = f"{name}: RMS distance to the flow map, {len(x)} samples"
        show_flow(title, cells, budgets)
        if chosen.all:
            show_lines(cells, budgets)
        found.extend(cells)

    def mapped(model: Any, x: Tensor, tolerance: float) -> Tensor:  # noqa: ANN401
        ends = uniform(1, model.sde.horizon, model.sde.cutoff)
        return ours(DormandPrince(tolerance, tolerance))(model, x, ends, 0)[0]

    parts = {"tuned": TUNED[: chosen.problems], "held-out": HELD_OUT[: chosen.problems]}
    for problem in itertools.chain(*(parts[p] for p in PARTS[:2] if p in chosen.parts)):
        model = problem.model()
        n = min(problem.samples, chosen.samples)
        z = torch.randn(
            n, *model.oracle.event, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        x = problem.sde.prior().std * z
        part(problem.name, model, x, mapped(model, x, chosen.tolerance), chosen.budgets)
    if "digits" in chosen.parts:
        labels = torch.arange(chosen.digits) % 10
        x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        exact = load("digits").double().given(labels)
        end = mapped(exact, x.double(), chosen.digits_tolerance)
        budgets = [b for b in chosen.budgets if b <= DIGITS_MOST]
        part(DIGITS, load("digits").given(labels), x, end, budgets)
    show_ratios(found, chosen.budgets)
    return found


def law_part(chosen: argparse.Namespace) -> tuple[list[LawCell], list[Floor]]:
    """Measure the solvers that draw and print their tables."""
    if "law" not in chosen.parts:
        return [], []
    grids = [name for name in chosen.grids if name != "uniform"]
    everyone = lines("ours", STOCHASTIC, grids) + peer_lines(grids, draws=True)
    low, high = TUNED
    settings = ((low, chosen.law_samples, 64, 50), (high, chosen.law_samples // 20, 256, 25))
    found = list[LawCell]()
    floors = list[Floor]()
    for problem, n, projections, most in settings:
        budgets = [b for b in chosen.law_budgets if b <= most]
        floor, cells = law_cells(problem, n, projections, budgets, everyone, chosen.replicates)
        show_law(floor, n, cells, budgets)
        found += cells
        floors.append(floor)
    return found, floors


def law_cells(
    problem: Problem,
    n: int,
    projections: int,
    budgets: Sequence[int],
    everyone: Sequence[Line],
    replicates: int,
) -> tuple[Floor, list[LawCell]]:
    """Return the floor, and what every solver reaches on the grid that was best before."""
    model = problem.model()
    oracle = problem.data()
    held = oracle.sample(n, torch.Generator().manual_seed(0))

    def distance(line: Line, budget: int, seed: int, n: int) -> float:
        # Not the seed of the noise, whose first draw would be x.
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.randn(n, *oracle.event, generator=generator)
        end = solved(line, budget, model, x, seed).x
        return math.inf if end is None else sliced_wasserstein(end, held[:n], projections)

    seeds = range(1, 4 * replicates + 1)
    drawn = (oracle.sample(n, torch.Generator().manual_seed(seed)) for seed in seeds)
    floor = Floor(problem.name, tuple(sliced_wasserstein(y, held, projections) for y in drawn))
    found = list[LawCell]()
    for solver, budget in itertools.product(dict.fromkeys(e.solver for e in everyone), budgets):
        of_it = [line for line in everyone if line.solver == solver]
        line = min(of_it, key=lambda line: distance(line, budget, 0, n // 4))
        values = tuple(distance(line, budget, seed, n) for seed in seeds[:replicates])
        found.append(LawCell(problem.name, line.side, solver, line.grid, budget, values))
    return floor, found


def show_law(floor: Floor, n: int, found: Sequence[LawCell], budgets: Sequence[int]) -> None:
    """Print the means, marked where they are at the floor."""
    values = {(c.solver, c.budget): c.values for c in found}

    def text(reached: Sequence[float]) -> str:
        return f"{fmean(reached):.4f}{'*' if floor.reached(reached) else ''}"

    rows = [
        [solver, *(text(values[solver, b]) for b in budgets)]
        for solver in dict.fromkeys(c.solver for c in found)
    ]
    title = (
        f"{floor.problem}: sliced W₂ to the data, mean of {len(found[0].values)} runs of {n} "
        f"samples; floor {floor.mean:.4f} ± {floor.std:.4f} a run, * at it"
    )
    table(title, ["solver", *(f"NFE {b}" for b in budgets)], rows)


def options_of_this() -> argparse.Namespace:
    """Return the options, made tiny for a quick run."""
    parser = options(__doc__)
    four = [name for name in GRIDS if name != "its own"]
    parser.add_argument("--all", action="store_true", help="run and print every line")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--law-budgets", type=int, nargs="+", default=list(LAW_BUDGETS))
    parser.add_argument("--grids", choices=four, nargs="+", default=four)
    parser.add_argument("--samples", type=int, default=1024, help="at most, for the flow map")
    parser.add_argument("--tolerance", type=float, default=1e-10, help="of the flow map")
    parser.add_argument("--problems", type=int, help="only so many of each part")
    parser.add_argument("--digits", type=int, default=32, help="latents for the digits U-Net")
    parser.add_argument("--digits-tolerance", type=float, default=1e-6, help="of its flow map")
    parser.add_argument("--law-samples", type=int, default=20_000, help="1/20 of it in 64-d")
    parser.add_argument("--replicates", type=int, default=4, help="runs of each solver that draws")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.budgets = [10]
        chosen.law_budgets = [10]
        chosen.grids = ["log-snr"]
        chosen.samples = 8
        chosen.problems = 1
        chosen.tolerance = 1e-7
        chosen.digits = 2
        chosen.digits_tolerance = 1e-3
        chosen.law_samples = 100
        chosen.replicates = 2
    return chosen


def main() -> None:
    """Measure both kinds, print the tables and write the JSON."""
    chosen = options_of_this()
    with torch.no_grad():
        flow = flow_part(chosen)
        law, floors = law_part(chosen)
    settings = {k: v for k, v in vars(chosen).items() if k not in ("out", "threads")}
    rows: dict[str, list[Any]] = {"flow": flow, "law": law, "floors": floors}
    write(chosen.out, settings=settings, **{k: [asdict(r) for r in v] for k, v in rows.items()})


if __name__ == "__main__":
    main()
