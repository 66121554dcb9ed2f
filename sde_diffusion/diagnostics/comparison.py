"""The comparison of solvers at equal numbers of evaluations of the score, from equal prior draws.

The end points of a deterministic solver are compared with those of the probability-flow ODE from
the same prior draws. The samples of every solver are compared with held-out data, beside the noise
floor: data against data of the same sizes. Without data, samples of the probability-flow ODE from
other noise take its place: distances to them measure what the solver does to the model's
distribution, not how good the model is. Intervals are over replicates, disjoint sets of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.diagnostics.metrics import Interval, Reference, paired_interval, rms_distance
from sde_diffusion.grids import Denoised, Grid, recommended, times_of
from sde_diffusion.integration import Solution
from sde_diffusion.sampling.costs import GridRule, cost, plan
from sde_diffusion.sampling.generate import sample
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver

OnSolve: TypeAlias = Callable[[int, int], object]  # called as (solves done, solves in all)

_SHOWN: Final = 1000  # samples kept for pictures
_AT_ONCE: Final = 1 << 18  # values in the states of one solve, which bounds a network's memory
_INTERVALS: Final = ("error", "sliced_wasserstein", "excess", "mmd", "frechet")
HELD_OUT: Final = "held-out data"
THE_FLOW: Final = "the flow from other noise"


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """What solvers are compared on: a model, held-out data, and the rule of the grids.

    Arguments:
        name: of the problem, for tables and pictures.
        model: the score model or exact score, with a LinearSDE, in evaluation mode.
        data: held-out data, scaled as for the model; (N, *event).
        grid: a number of steps to a grid; None for the `recommended` one of each solver.
        dtype: of the states.
        denoise: `Denoised` for a Tweedie step at the end of every solve; None for none.
        against: what the data are, `HELD_OUT` or, for those of `flow_samples`, `THE_FLOW`.
        units: what makes of the model's samples values in the units of ``data``, such as what
            decodes latents; None where they are in them.
        event: the shape of the model's states; None for that of the data.
    """

    name: str
    model: ScoreLike
    data: Tensor
    grid: GridRule | None = None
    dtype: torch.dtype = torch.float32
    denoise: type[Denoised] | None = None
    against: str = HELD_OUT
    units: Callable[[Tensor], Tensor] | None = None
    event: tuple[int, ...] | None = None

    @property
    def state(self) -> tuple[int, ...]:
        """The shape of the model's states."""
        return tuple(self.data.shape[1:]) if self.event is None else self.event

    def in_units(self, x: Tensor) -> Tensor:
        """Return the model's samples in the units of the data."""
        return x if self.units is None else self.units(x)

    def rule(self, solver: Solver[Any]) -> GridRule:
        """Return the rule of the grids for one solver."""
        rule = self.grid or partial(
            recommended, self.model.linear_sde(), end=self.model.t_min, solver=solver
        )
        last = self.denoise
        return rule if last is None else lambda steps: last(times_of(rule(steps)))


@final
@dataclass(frozen=True, eq=False)
class Student:
    """A model that takes its own steps, compared with the solvers of the problem's model.

    Arguments:
        model: the student, of the SDE and the units of the problem's model.
        solver: its steps, `FewSteps` or `Renoised`.
        steps: how many of them, a row each.
    """

    model: ScoreLike
    solver: Solver[Any]
    steps: Sequence[int] = (1, 2, 4)


@final
@dataclass(frozen=True)
class ComparisonRow:
    """One solver with one number of steps; every interval is over the replicates.

    Arguments:
        solver: its name.
        steps: of its grid; None for a solver that chooses its own.
        nfe: counted evaluations of the score in one solve.
        seconds: of the solve of all replicates; None where it diverged.
        error: RMS distance to the end points of the ODE; None for a stochastic solver.
        sliced_wasserstein: sliced W₂ to the data.
        excess: sliced W₂ less that of the noise floor, replicate by replicate.
        mmd: unbiased MMD² to the data.
        frechet: Fréchet distance to the data.
        failure: why there are no distances; None where there are.
        replicates: by the names of the distances to the data, those of each replicate.
        samples: at most 1000 of them, for pictures; (n, *event).
    """

    solver: str
    steps: int | None
    nfe: int
    seconds: float | None
    error: Interval | None = None
    sliced_wasserstein: Interval | None = None
    excess: Interval | None = None
    mmd: Interval | None = None
    frechet: Interval | None = None
    failure: str | None = None
    replicates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    samples: Tensor | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, object]:
        """Return the row without its samples, as JSON values."""
        values = asdict(replace(self, samples=None))
        del values["samples"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], samples: Tensor | None = None) -> ComparisonRow:
        """Return the row that `to_json` was asked of, with its samples if they were kept."""
        found = dict(values)
        for name in _INTERVALS:
            found[name] = None if found[name] is None else Interval(**found[name])
        return cls(**found, samples=samples)


@final
@dataclass(frozen=True)
class Comparison:
    """All rows of one problem, by evaluations, with the noise floor of data against data.

    Arguments:
        problem: its name.
        samples: of one replicate.
        replicates: disjoint sets of samples, over which the intervals are.
        seed: of the prior draws, the solvers' noise and the splits of the data.
        reference: the solver of the reference, as text.
        reference_nfe: its evaluations of the score.
        reference_error: RMS distance of the reference to itself with half the steps.
        against: what the data are.
        floor_sliced_wasserstein: sliced W₂ between disjoint parts of the data.
        floor_mmd: MMD² between them.
        floor_frechet: Fréchet distance between them.
        rows: one for each solver and number of steps, by evaluations.
        data: at most 1000 rows of it, for pictures; (n, *event).
    """

    problem: str
    samples: int
    replicates: int
    seed: int
    reference: str
    reference_nfe: int
    reference_error: float
    against: str
    floor_sliced_wasserstein: Interval
    floor_mmd: Interval
    floor_frechet: Interval
    rows: tuple[ComparisonRow, ...]
    data: Tensor = field(compare=False, repr=False)

    def to_json(self) -> dict[str, object]:
        """Return everything but samples and data, as JSON values."""
        return {
            "problem": self.problem,
            "samples": self.samples,
            "replicates": self.replicates,
            "seed": self.seed,
            "reference": self.reference,
            "reference_nfe": self.reference_nfe,
            "reference_error": self.reference_error,
            "against": self.against,
            "floor_sliced_wasserstein": asdict(self.floor_sliced_wasserstein),
            "floor_mmd": asdict(self.floor_mmd),
            "floor_frechet": asdict(self.floor_frechet),
            "rows": [row.to_json() for row in self.rows],
        }


class Kept(Protocol):
    """Rows that were computed before, and a place for those that are now."""

    def find(self, solver: str, steps: int | None) -> ComparisonRow | None:
        """Return the row of a solver and a number of steps, None where there is none yet."""

    def keep(self, row: ComparisonRow) -> None:
        """Take a row that is done."""


@dataclass(frozen=True, eq=False)
class _Replicate:
    """What one replicate's samples are compared with."""

    data: Reference  # held-out data, less the part that makes the noise floor
    floor_sliced_wasserstein: float
    floor_mmd: float
    floor_frechet: float
    flow: Tensor  # end points of the probability-flow ODE from the prior draws


def compare(
    problem: Problem,
    solvers: Mapping[str, Solver[Any]],
    budgets: Sequence[int],
    *,
    reference: Solver[Any],
    reference_steps: int,
    samples: int = 64,
    replicates: int = 3,
    seed: int = 0,
    progress: OnSolve | None = None,
    kept: Kept | None = None,
    students: Mapping[str, Student] | None = None,
) -> Comparison:
    """Return errors, distances to data, counted evaluations and times of ``solvers``.

    Every solver takes the most steps whose *counted* evaluations stay within each budget; one
    that chooses its own steps runs once. The reference solves the probability-flow ODE twice,
    along ``reference_steps`` and along half of them: errors below the distance of the two, the
    reference error, are not resolved.

    One solve computes all replicates. For each replicate the held-out data is split anew:
    ``samples`` rows make the noise floor, and the rest is what they and every solver's samples
    are compared with.

    Arguments:
        problem: the model, the data and the rule of the grids.
        solvers: the solvers by name.
        budgets: the most evaluations of the score in a solve, at least one step of every solver.
        reference: an accurate solver of ODEs.
        reference_steps: of the reference, at least 2, along the same grid rule.
        samples: of one replicate, at least 2 and at most half the data.
        replicates: disjoint sets of samples, at least 2.
        seed: of the prior draws, the solvers' noise and the splits of the data.
        progress: called after every solve.
        kept: rows of a comparison that was stopped, which are not computed again; None for none.
        students: by names of their own, with rows for their own numbers of steps; None for none.

    Errors: ValueError for budgets below one step, fewer than 2 replicates or too little data; a
    solver that diverges gets a row that says so.
    """
    _check(problem, solvers, budgets, samples, replicates)
    positive_integer("compare", "reference_steps", reference_steps, least=2)
    sde = problem.model.linear_sde()
    plans: list[tuple[str, Solver[Any], int | None]] = [
        (name, solver, steps)
        for name, solver in solvers.items()
        for steps in plan(name, solver, sde, problem.rule(solver), budgets)
    ]
    pupils = {} if students is None else dict(students)
    _check_students(problem, solvers, pupils)
    plans += [(name, one.solver, steps) for name, one in pupils.items() for steps in one.steps]
    report = _silent if progress is None else progress
    shape = (samples * replicates, *problem.state)
    flow, half = (
        _solve(
            problem.model, reference, problem.rule(reference)(steps), shape, seed, problem.dtype
        )
        for steps in (reference_steps, reference_steps // 2)
    )
    report(1, 1 + len(plans))
    parts = [
        _replicate(problem, x, mix(seed, Purpose.SPLIT, i))
        for i, x in enumerate(torch.split(flow.x, samples))
    ]
    rows = list[ComparisonRow]()
    for name, solver, steps in plans:
        row = None if kept is None else kept.find(name, steps)
        if row is None:
            row = _row(problem, name, solver, steps, parts, seed, pupils.get(name))
            if kept is not None:
                kept.keep(row)
        rows.append(row)
        report(1 + len(rows), 1 + len(plans))
    order = [*solvers, *pupils]
    rows.sort(key=lambda row: (row.nfe, order.index(row.solver)))
    return Comparison(
        problem.name,
        samples,
        replicates,
        seed,
        repr(reference),
        flow.nfe,
        rms_distance(flow.x, half.x),
        problem.against,
        paired_interval([part.floor_sliced_wasserstein for part in parts]),
        paired_interval([part.floor_mmd for part in parts]),
        paired_interval([part.floor_frechet for part in parts]),
        tuple(rows),
        problem.data[:_SHOWN].cpu(),
    )


def _silent(_done: int, _total: int) -> None:
    """Do nothing: the default of ``progress``."""


def _check(
    problem: Problem,
    solvers: Mapping[str, Solver[Any]],
    budgets: Sequence[int],
    samples: int,
    replicates: int,
) -> None:
    positive_integer("compare", "samples", samples, least=2)
    positive_integer("compare", "replicates", replicates, least=2)
    for name, values in (("solvers", solvers), ("budgets", budgets)):
        if not values:
            raise wrong_value("compare", name, "hold at least one", "none", "pass some")
    if len(problem.data) < 2 * samples:
        rule = f"hold at least {2 * samples} rows, twice the samples"
        raise wrong_value("compare", "data", rule, len(problem.data), "ask for fewer samples")


def _check_students(
    problem: Problem, solvers: Mapping[str, Solver[Any]], students: Mapping[str, Student]
) -> None:
    for name, student in students.items():
        if name in solvers:
            remedy = "name the student otherwise"
            raise wrong_value("compare", "students", "have names of their own", name, remedy)
        if student.model.sde != problem.model.sde:
            rule = f"be of the SDE {problem.model.sde}"
            remedy = "compare it with the model that taught it"
            raise wrong_value("compare", f"student {name}", rule, student.model.sde, remedy)


def flow_samples(
    model: ScoreLike, solver: Solver[Any], grid: Grid, shape: Sequence[int], seed: int = 0
) -> Tensor:
    """Return samples of the probability-flow ODE, for a model without data at hand.

    Their noise is independent of the prior draws of `compare`, for any seed of its own.

    Arguments:
        model: the score model or exact score, with a LinearSDE, in evaluation mode.
        solver: the reference's.
        grid: the reference's, falling; (steps + 1,).
        shape: (B, *event), of the samples.
        seed: of the prior draws.

    Shapes: result (B, *event), float32.
    """
    return _solve(model, solver, grid, shape, mix(seed, Purpose.FLOW_SAMPLES), torch.float32).x


def _solve(
    model: ScoreLike,
    solver: Solver[Any],
    grid: Grid,
    shape: Sequence[int],
    seed: int,
    dtype: torch.dtype,
) -> Solution:
    """Return samples, computed in parts where they are many."""
    count, *event = shape
    part = max(1, _AT_ONCE // math.prod(event))
    found = [
        sample(
            model,
            solver,
            (min(part, count - first), *event),
            grid=grid,
            seed=seed,
            first=first,
            dtype=dtype,
        )
        for first in range(0, count, part)
    ]
    return Solution(
        torch.cat([s.x for s in found]),
        max(s.nfe for s in found),
        found[0].steps,
        sum(s.seconds for s in found),
    )


def _replicate(problem: Problem, flow: Tensor, seed: int) -> _Replicate:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(problem.data), generator=generator)
    data = problem.data[order.to(problem.data.device)]
    exact = data[: len(flow)]
    rest = Reference(data[len(flow) :], seed=seed)
    return _Replicate(
        rest, rest.sliced_wasserstein(exact), rest.mmd(exact), rest.frechet(exact), flow
    )


def _row(
    problem: Problem,
    name: str,
    solver: Solver[Any],
    steps: int | None,
    parts: Sequence[_Replicate],
    seed: int,
    student: Student | None = None,
) -> ComparisonRow:
    grid = problem.rule(solver)(1 if steps is None else steps)
    model = problem.model
    if student is not None:
        double = problem.dtype == torch.float64
        model = student.model.in_double() if double else student.model
        grid = times_of(grid)  # its last step is its own
    starts = parts[0].flow
    shape = (len(starts) * len(parts), *starts.shape[1:])
    paid = cost(solver, problem.model.linear_sde(), grid)
    try:
        solution = _solve(model, solver, grid, shape, seed, problem.dtype)
    except FloatingPointError as error:
        return ComparisonRow(name, steps, paid.nfe, None, failure=str(error))
    pairs = list(zip(torch.split(solution.x, len(starts)), parts, strict=True))
    errors = None if paid.draws else [rms_distance(x, part.flow) for x, part in pairs]
    seen = [(problem.in_units(x), part) for x, part in pairs]
    distances = [part.data.sliced_wasserstein(x) for x, part in seen]
    excess = [d - p.floor_sliced_wasserstein for d, p in zip(distances, parts, strict=True)]
    found = {
        "sliced_wasserstein": distances,
        "mmd": [part.data.mmd(x) for x, part in seen],
        "frechet": [part.data.frechet(x) for x, part in seen],
    }
    return ComparisonRow(
        name,
        steps,
        solution.nfe,
        solution.seconds,
        error=None if errors is None else paired_interval(errors),
        sliced_wasserstein=paired_interval(distances),
        excess=paired_interval(excess),
        mmd=paired_interval(found["mmd"]),
        frechet=paired_interval(found["frechet"]),
        replicates=found,
        samples=problem.in_units(solution.x[:_SHOWN]).cpu(),
    )
