"""The comparison: its errors against an exact flow, its counts against an independent count."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_few_steps import FlowOfGaussian
from torch import Tensor

from sde_diffusion import (
    MLP,
    VESDE,
    VPSDE,
    DataSpec,
    FewStepModel,
    FewSteps,
    Gaussian,
    GaussianMixture,
    LinearSDE,
    Noise,
    Renoised,
    ReverseSDE,
    load_data,
    quadratic,
    sample,
    uniform,
)
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.cli.compare import command
from sde_diffusion.cli.main import main
from sde_diffusion.cli.report import comparison_text, table
from sde_diffusion.diagnostics.comparison import (
    THE_FLOW,
    Comparison,
    Problem,
    Student,
    compare,
    flow_samples,
)
from sde_diffusion.diagnostics.metrics import (
    Interval,
    paired_interval,
    rms_distance,
    sliced_wasserstein,
)
from sde_diffusion.diagnostics.model_comparison import differences
from sde_diffusion.sampling.costs import adapts, cost, plan, steps_within
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    DDIM,
    AdamsBashforth,
    Ancestral,
    AnnealedLangevin,
    DormandPrince,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    TorchDiffEq,
)

RING = GaussianMixture.ring(8, radius=1.0, std=0.1)
TIGHT: dict[str, Any] = {"reference": RungeKutta4(), "reference_steps": 400}
LOOSE: dict[str, Any] = {"reference": Heun(), "reference_steps": 5}


def ring_problem(model: Any = None, rows: int = 400) -> Problem:
    data = RING.sample(rows, torch.Generator().manual_seed(5))
    return Problem("ring", model or RING.diffused(VPSDE()), data, quadratic, torch.float64)


@dataclass
class CountingModel(ScoreLike):
    """The ring's score with a count of its own."""

    calls: int = 0
    sde: LinearSDE = field(default_factory=VPSDE)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return RING.diffused(self.sde).score(x, t)


@dataclass
class Sampler(Solver):
    """A "solver" that ignores the score and draws from the data itself, spread by a factor."""

    spread: float
    dynamics = ReverseSDE
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(9))

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        assert isinstance(dynamics, ReverseSDE)
        noise.normal(x)
        for _ in grid[1:]:
            yield self.spread * RING.sample(len(x), self.generator)[:, : x.shape[1]]


@dataclass
class Recorder(Solver):
    """Heun's method, with a record of where it started."""

    starts: list[Tensor]
    dynamics = Heun.dynamics

    def steps(self, dynamics: Any, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        self.starts.append(x.clone())
        yield from Heun().steps(dynamics, x, grid, noise)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    solvers = {
        "euler": Euler(),
        "heun": Heun(),
        "rk4": RungeKutta4(),
        "ddim": Ancestral(eta=0.0),
        "adams-bashforth": AdamsBashforth(),
        "euler-maruyama": EulerMaruyama(),
    }
    return compare(ring_problem(), solvers, [8, 24, 72], **TIGHT, samples=50, replicates=2)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "ddim", "adams-bashforth"])
def test_the_error_to_the_flow_falls_with_evaluations(comparison: Comparison, name: str) -> None:
    errors = [r.error.mean for r in comparison.rows if r.solver == name and r.error is not None]
    assert len(errors) == 3
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_higher_order_wins_at_the_largest_budget(comparison: Comparison) -> None:
    best = {r.solver: r.error.mean for r in comparison.rows if r.nfe == 72 and r.error is not None}
    assert best["rk4"] < best["heun"] < best["euler"] < best["ddim"]


def test_only_solvers_that_draw_nothing_have_an_error_to_the_flow(comparison: Comparison) -> None:
    assert {r.solver for r in comparison.rows if r.error is None} == {"euler-maruyama"}


def test_rows_come_by_evaluations(comparison: Comparison) -> None:
    counts = [row.nfe for row in comparison.rows]
    assert counts == sorted(counts)
    assert set(counts) == {8, 24, 72}


def test_the_error_is_that_to_the_exact_flow() -> None:
    mixture = GaussianMixture([1.0, 2.0], torch.tensor([[-1.0], [1.0]]), stds=[0.3, 0.2])
    model = mixture.diffused(VPSDE())
    data = mixture.sample(100, torch.Generator().manual_seed(0))
    problem = Problem("one-dimensional", model, data, uniform, torch.float64)
    found = compare(problem, {"e": Euler()}, [30], **TIGHT, samples=40, replicates=2, seed=3)
    grid = uniform(30)
    by_hand = []
    # One step so short that it leaves the prior's draw as it is.
    start = uniform(1, 1.0, 1.0 - 1e-12)
    for first in (0, 40):
        x, ends = (
            sample(model, Euler(), (40, 1), grid=times, seed=3, first=first, dtype=torch.float64).x
            for times in (start, grid)
        )
        by_hand.append(rms_distance(ends, model.flow(x, grid[0], grid[-1])))
    assert found.rows[0].error is not None
    assert found.rows[0].error.mean == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    assert found.reference_error < 1e-7


def test_the_reference_says_how_well_the_flow_is_known() -> None:
    found = compare(
        ring_problem(), {"heun": Heun()}, [100], reference=Heun(), reference_steps=100, samples=20
    )
    # Half of the reference's steps are the solver's, so both distances are one.
    assert found.rows[0].steps == 50
    assert found.rows[0].error is not None
    assert found.reference_error == pytest.approx(found.rows[0].error.mean, rel=0.2)
    assert found.reference_error > 0


def test_counts_agree_with_an_independent_count() -> None:
    model = CountingModel()
    solvers = {
        "heun": Heun(),
        "rk4": RungeKutta4(),
        "ab4": AdamsBashforth(order=4),
        "pc": PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(count=2)),
    }
    found = compare(
        ring_problem(model),
        solvers,
        [7, 21],
        reference=RungeKutta4(),
        reference_steps=9,
        samples=10,
    )
    assert found.reference_nfe == 4 * 9
    assert model.calls == 4 * (9 + 4) + sum(row.nfe for row in found.rows)


def test_all_solvers_start_from_the_same_draws() -> None:
    one = Recorder([])
    two = Recorder([])
    compare(ring_problem(), {"one": one, "two": two}, [4, 10], **LOOSE, samples=10, replicates=2)
    starts = [x for recorder in (one, two) for x in recorder.starts if x.shape == (20, 2)]
    assert len(starts) == 4  # two solvers, two budgets
    assert all(torch.equal(x, starts[0]) for x in starts)
    assert not torch.equal(starts[0][:10], starts[0][10:])


def test_the_exact_sampler_reaches_the_noise_floor_and_a_wrong_one_does_not() -> None:
    found = compare(
        ring_problem(rows=600),
        {"exact": Sampler(1.0), "spread": Sampler(1.3)},
        [1],
        **LOOSE,
        samples=100,
        replicates=6,
    )
    floor = found.floor_sliced_wasserstein
    assert floor.mean - floor.half_width > 0
    exact, spread = found.rows
    assert exact.excess is not None
    assert exact.mmd is not None
    assert 0.0 in exact.excess
    assert spread.excess is not None
    assert spread.mmd is not None
    assert spread.excess.mean > spread.excess.half_width
    assert spread.mmd.mean > spread.mmd.half_width
    assert abs(found.floor_mmd.mean) < 0.2 * spread.mmd.mean
    assert abs(exact.mmd.mean) < 0.2 * spread.mmd.mean


def test_students_start_from_the_same_draws_and_an_exact_one_has_no_error() -> None:
    sde = VPSDE()
    oracle = Gaussian(torch.zeros(2), 0.25 * torch.eye(2))
    data = oracle.sample(100, torch.Generator().manual_seed(0))
    problem = Problem("gaussian", oracle.diffused(sde), data, None, torch.float64)
    exact, wrong = (
        FewStepModel(FlowOfGaussian(sde, 0.5, error), sde).eval() for error in (0.0, 0.1)
    )
    students = {
        "exact": Student(exact, FewSteps()),
        "wrong": Student(wrong, FewSteps(), (1,)),
        "fresh noise": Student(exact, Renoised(), (1, 2)),
    }
    settings: dict[str, Any] = {"reference": RungeKutta4(), "reference_steps": 100}
    settings["students"] = students
    found = compare(problem, {"ddim": DDIM()}, [4], **settings, samples=40, replicates=2)
    rows = {(row.solver, row.steps): row for row in found.rows}
    for steps in (1, 2, 4):
        row = rows["exact", steps]
        assert row.nfe == steps
        assert row.error is not None
        assert row.error.mean < 2e-6
    one = rows["wrong", 1].error
    assert one is not None
    assert one.mean == pytest.approx(0.1, rel=0.2)  # q v is off by .1 x, x of unit variance
    assert rows["fresh noise", 2].error is None
    first = rows["fresh noise", 1].error
    assert first is not None
    assert first.mean < 2e-6
    for name, student, words in (
        ("ddim", exact, "students must have names of their own, got ddim"),
        ("other", FewStepModel(MLP(2), VESDE()).eval(), "student other must be of the SDE VPSDE"),
    ):
        settings["students"] = {name: Student(student, FewSteps())}
        with pytest.raises(ValueError, match=words):
            compare(problem, {"ddim": DDIM()}, [4], **settings, samples=40)


def test_without_data_the_flow_itself_is_the_reference_from_noise_of_its_own() -> None:
    model = RING.diffused(VPSDE())
    grid = quadratic(60)
    flow = flow_samples(model, RungeKutta4(), grid, (400, 2), seed=3)
    same = sample(model, RungeKutta4(), (400, 2), grid=grid, seed=3).x
    assert not torch.isclose(flow, same).any()
    other = flow_samples(model, RungeKutta4(), grid, (400, 2), seed=4)
    assert not torch.isclose(flow, other).any()
    problem = Problem("ring", model, flow.double(), quadratic, torch.float64, against=THE_FLOW)
    found = compare(
        problem,
        {"exact": Sampler(1.0), "spread": Sampler(1.3)},
        [1],
        **LOOSE,
        samples=100,
        replicates=4,
    )
    exact, spread = found.rows
    assert exact.excess is not None
    assert spread.excess is not None
    assert 0.0 in exact.excess
    assert spread.excess.mean > spread.excess.half_width
    assert exact.frechet is not None
    assert spread.frechet is not None
    assert spread.frechet.mean > 2 * found.floor_frechet.mean > 0
    assert found.to_json()["against"] == "the flow from other noise"
    text = comparison_text(found)
    assert "to the flow from other noise; excess: SW2 above the noise floor" in text


def test_many_samples_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def once() -> Any:
        found = compare(
            ring_problem(),
            {"em": EulerMaruyama(), "heun": Heun()},
            [6],
            **LOOSE,
            samples=20,
            replicates=2,
        )
        return [(row.nfe, row.error, row.sliced_wasserstein) for row in found.rows]

    whole = once()
    monkeypatch.setattr("sde_diffusion.diagnostics.comparison._AT_ONCE", 14)  # seven points
    assert once() == whole


def test_a_comparison_can_be_repeated() -> None:
    def once() -> Comparison:
        return compare(
            ring_problem(), {"em": EulerMaruyama()}, [5], **LOOSE, samples=20, replicates=2, seed=7
        )

    one = once().to_json()
    two = once().to_json()
    for result in (one, two):
        for row in result["rows"]:  # type: ignore[attr-defined]
            del row["seconds"]
    assert one == two


def test_json_round_trip(comparison: Comparison) -> None:
    text = json.dumps(comparison.to_json(), allow_nan=False)
    assert json.loads(text) == comparison.to_json()
    row = json.loads(text)["rows"][0]
    assert row["solver"] == comparison.rows[0].solver
    assert comparison.rows[0].sliced_wasserstein is not None
    assert row["sliced_wasserstein"]["mean"] == comparison.rows[0].sliced_wasserstein.mean


@dataclass(frozen=True)
class Broken(Solver):
    """A solver that leaves the finite numbers."""

    dynamics = Heun.dynamics

    def steps(self, dynamics: Any, x: Tensor, grid: Tensor, noise: Noise) -> Iterator[Tensor]:
        assert noise is not None
        for t in grid[:-1]:
            # The closed form that costs are measured on has events (1,), the ring (2,).
            yield dynamics.velocity(x, t) * (float("nan") if x.shape[1] == 2 else 1.0)


def test_a_diverging_solver_gets_a_row_that_says_so() -> None:
    found = compare(
        ring_problem(),
        {"broken": Broken(), "heun": Heun()},
        [4],
        **LOOSE,
        samples=10,
        replicates=2,
    )
    rows = {row.solver: row for row in found.rows}
    assert rows["heun"].failure is None
    assert "NaN or infinity at step 1" in str(rows["broken"].failure)
    text = comparison_text(found)
    assert "broken, NFE 4: integrate: x must stay finite" in text
    json.dumps(found.to_json(), allow_nan=False)


def test_progress_counts_every_solve() -> None:
    seen = list[tuple[int, int]]()
    compare(
        ring_problem(),
        {"heun": Heun(), "euler": Euler()},
        [4, 8],
        **LOOSE,
        samples=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize(
    ("solver", "budget", "steps", "nfe"),
    [
        (Euler(), 9, 9, 9),
        (Heun(), 9, 4, 8),
        (RungeKutta4(), 9, 2, 8),
        # Order 4 starts with three Runge-Kutta steps: 4, 8, 12, 13, 14 evaluations.
        (AdamsBashforth(order=4), 14, 5, 14),
        (AdamsBashforth(order=4), 11, 2, 8),
        (PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(count=2)), 10, 3, 9),
    ],
)
def test_steps_fill_the_budget(solver: Any, budget: int, steps: int, nfe: int) -> None:
    assert steps_within("solver", solver, VPSDE(), uniform, budget) == steps
    assert cost(solver, VPSDE(), uniform(steps)).nfe == nfe


def test_solvers_with_steps_of_their_own_are_recognised() -> None:
    grid = uniform(1)
    adaptive = [
        s
        for s in (Heun(), RungeKutta4(), DormandPrince(), TorchDiffEq("bosh3"))
        if adapts(s, VPSDE(), grid)
    ]
    assert adaptive == [DormandPrince(), TorchDiffEq("bosh3")]
    assert plan("dormand-prince", DormandPrince(), VPSDE(), uniform, [5, 10]) == [None]


def test_equal_steps_run_once() -> None:
    assert plan("rk4", RungeKutta4(), VPSDE(), uniform, [8, 9, 10, 12]) == [2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budgets": [3]}, "budgets must be at least 4, one step of rk4, got 3"),
        ({"budgets": []}, "budgets must hold at least one"),
        ({"solvers": {}}, "solvers must hold at least one"),
        ({"replicates": 1}, "replicates must be at least 2"),
        ({"reference_steps": 1}, "reference_steps must be at least 2"),
        ({"samples": 201}, "data must hold at least 402 rows, twice the samples, got 400"),
        ({"samples": 1}, "samples must be at least 2"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], words: str) -> None:
    settings = {"solvers": {"rk4": RungeKutta4()}, "budgets": [8], **LOOSE} | change
    with pytest.raises(ValueError, match=f"compare: {words}"):
        compare(ring_problem(), **settings)


def test_tables_are_aligned() -> None:
    lines = table(("a", "number"), [("longer", "1"), ("b", "1.25")]).splitlines()
    assert lines == ["a       number", "------  ------", "longer       1", "b         1.25"]


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    arguments = [
        "--model",
        "ring",
        "--solver",
        "heun",
        "--solver",
        "ancestral",
        "--nfe",
        "6",
        "--samples",
        "20",
        "--replicates",
        "2",
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "results.json").read_text())
    rows = printed["comparisons"][0]["rows"]
    assert [(row["solver"], row["nfe"]) for row in rows] == [("heun", 6), ("ancestral", 6)]
    text = (tmp_path / "table.txt").read_text()
    for row in rows:  # the least decimal of an interval is its tenth
        shown = [line.split()[-3] for line in text.splitlines() if line.startswith(row["solver"])]
        mean, half = shown[0].split("±")
        assert float(mean) == pytest.approx(row["excess"]["mean"], abs=0.06 * float(half))
    # Every column of the table stands in the legend, and a terminal of 100 columns shows it all.
    columns = text.splitlines()[1].split()[2:]
    legend = " ".join(text.splitlines()[5:9])
    assert columns == ["NFE", "s", "RMS", "SW2", "excess", "MMD2", "FD"]
    assert all(f"{name}:" in legend or f"{name}," in legend for name in columns)
    assert max(map(len, text.splitlines())) <= 100
    for name in ("error_vs_nfe.png", "samples-ring.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert {Path(file).name for file in printed["files"]} == {p.name for p in tmp_path.iterdir()}


# --- several models on one data set ---


def test_differences_are_paired_by_replicate() -> None:
    """From the samples of each model themselves, by scipy's interval of a mean."""
    from scipy import stats

    data = ring_problem().data
    found = [
        compare(
            Problem(name, RING.diffused(sde), data, quadratic, torch.float64),
            {"heun": Heun()},
            [8],
            **TIGHT,
            samples=50,
            replicates=3,
        )
        for name, sde in (("one", VPSDE()), ("other", VESDE(0.01, 5.0)))
    ]
    [difference] = differences(found)
    assert (difference.model, difference.baseline) == ("other", "one")
    values = [c.rows[0].replicates["sliced_wasserstein"] for c in found]
    for c, row in zip(found, values, strict=True):
        assert c.rows[0].sliced_wasserstein == paired_interval(row)
    gaps = [b - a for a, b in zip(*values, strict=True)]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(gaps), stats.sem(gaps))
    assert difference.sliced_wasserstein.mean == pytest.approx(statistics.fmean(gaps))
    assert difference.sliced_wasserstein.half_width == pytest.approx((high - low) / 2)
    # The first replicate, from nothing but a draw and its part of the data.
    x = sample(RING.diffused(VPSDE()), Heun(), (50, 2), grid=quadratic(4), dtype=torch.float64).x
    order = torch.randperm(400, generator=torch.Generator().manual_seed(mix(0, Purpose.SPLIT, 0)))
    again = sliced_wasserstein(x, data[order[50:]], seed=mix(0, Purpose.SPLIT, 0))
    assert values[0][0] == pytest.approx(again, rel=1e-9)


def test_a_model_differs_in_nothing_from_itself() -> None:
    runs = [
        compare(
            replace(ring_problem(), name=name),
            {"heun": Heun(), "ancestral": Ancestral()},
            [6, 12],
            **TIGHT,
            samples=40,
            replicates=2,
        )
        for name in ("one", "same")
    ]
    found = differences(runs)
    assert len(found) == 4
    for d in found:
        assert d.sliced_wasserstein == d.mmd == d.frechet == Interval(0.0, 0.0)
    other = replace(runs[1], data=runs[1].data + 1)
    with pytest.raises(ValueError, match="data must be the same for one and same, to pair them"):
        differences([runs[0], other])


def test_distances_are_in_the_units_of_the_data() -> None:
    """Twice the units are twice the distances, while errors stay those of the states."""
    plain = ring_problem()
    twice = replace(plain, data=2 * plain.data, units=lambda x: 2 * x)
    rows = [
        compare(problem, {"heun": Heun()}, [8], **TIGHT, samples=40, replicates=2).rows[0]
        for problem in (plain, twice)
    ]
    for name in ("sliced_wasserstein", "frechet"):
        one, two = (getattr(row, name).mean for row in rows)
        assert two == pytest.approx(2 * one)
    assert rows[0].error == rows[1].error
    assert rows[0].mmd.mean == pytest.approx(rows[1].mmd.mean)  # its kernel knows no units


def rows_of(folder: Path) -> Any:
    """The comparisons of a folder without the times that they took."""
    found = json.loads((folder / "results.json").read_text())["comparisons"]
    for comparison in found:
        for row in comparison["rows"]:
            del row["seconds"]
    return found


class Ring(ScoreLike):
    """The ring's score, interrupted at an evaluation whose number is in the environment."""

    calls = 0

    def __init__(self) -> None:
        self.sde = VPSDE()
        self.data = DataSpec("ring", (2,), None)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        Ring.calls += 1
        if str(Ring.calls) == os.environ.get("INTERRUPTED_AT"):
            raise KeyboardInterrupt
        return RING.diffused(self.sde).score(x, t)


def compared(out: Path, data: Path, *more: str) -> Any:
    words = ["compare", "--model", f"{__name__}:Ring", "--model", "ring:ve", "--data", str(data)]
    words += ["--samples", "40", "--replicates", "3", "--reference-steps", "20", "--nfe", "8"]
    words += ["--solver", "heun", "--solver", "ancestral", "--solver", "euler", "--out", str(out)]
    return CliRunner().invoke(main, [*words, *more])


def test_models_stand_in_one_table_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "ring.npy"
    np.save(data, RING.sample(600, torch.Generator().manual_seed(1)).numpy())
    whole = compared(tmp_path / "whole", data)
    assert whole.exit_code == 0, whole.output
    text = (tmp_path / "whole" / "table.txt").read_text()
    lines = text.splitlines()
    assert lines[:2] == [f"A: {__name__}:Ring", "B: ring:ve"]
    assert [line.split()[:2] for line in lines[4:13]] == [
        [label, solver] for solver in ("heun", "ancestral", "euler") for label in ("A", "B", "B−A")
    ]
    legend = " ".join(lines[13:])
    assert all(f"{name}:" in legend or f"{name}," in legend for name in lines[2].split()[2:])
    assert "B−A: mean of the differences" in legend
    assert max(map(len, lines)) <= 100
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [d["solver"] for d in found["differences"]] == ["heun", "ancestral", "euler"]
    for d, line in zip(found["differences"], (lines[6], lines[9], lines[12]), strict=True):
        interval = d["sliced_wasserstein"]
        shown, half = line.split()[3].rstrip("*").split("±")
        assert float(shown) == pytest.approx(interval["mean"], abs=0.06 * float(half))
        outside = abs(interval["mean"]) > interval["half_width"]
        assert line.split()[3].endswith("*") is outside

    calls, Ring.calls = Ring.calls, 0
    monkeypatch.setenv("INTERRUPTED_AT", str(calls - 3))  # in the last solve of the first model
    out = tmp_path / "out"
    stopped = compared(out, data)
    assert stopped.exit_code == 130, stopped.output
    log = out / "unfinished" / "rows.jsonl"
    assert f"Interrupted; 2 rows are kept in {log}, and the same command goes on" in stopped.stderr
    assert not (out / "results.json").exists()
    with log.open("a") as file:
        file.write('\n{"of": "cut sho')  # as a killed process leaves it
    shutil.copytree(out, tmp_path / "another")
    monkeypatch.delenv("INTERRUPTED_AT")
    Ring.calls = 0
    again = compared(out, data)
    assert again.exit_code == 0
    assert "note: 2 rows are of a run that was stopped" in again.stderr
    assert Ring.calls < calls - 8  # of Heun and Ancestral none was taken again
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert not (out / "unfinished").exists()
    pictures = ("samples-ring-ve.png", "error_vs_nfe.png", f"samples-{__name__}-Ring.png")
    assert all((out / name).is_file() for name in pictures)
    other = compared(tmp_path / "another", data, "--grid", "uniform")
    assert other.exit_code == 0
    assert "run that was stopped" not in other.stderr  # rows on another grid are others


def test_a_shipped_model_is_compared_by_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder without its data: distances are to its flow, and errors fall as they should."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--model",
        "mnist",
        "--solver",
        "ddim",
        "--nfe",
        "2",
        "--nfe",
        "8",
        "--samples",
        "2",
        "--replicates",
        "2",
        "--reference-steps",
        "8",
        "--device",
        "cpu",
        "--out",
        "out",
        "--json",
    ]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)["comparisons"]
    assert found["against"] == THE_FLOW
    few, many = (row["error"]["mean"] for row in found["rows"])
    assert many < 0.7 * few
    assert found["reference_nfe"] == 8 + 9  # three steps of order 4 take Runge and Kutta's four


def test_a_shipped_model_is_compared_with_data_that_are_named(tmp_path: Path, mnist: Path) -> None:
    images = load_data(mnist, "test", limit=40).values[:, 0].numpy()
    np.save(tmp_path / "images.npy", images)
    arguments = [
        "--model",
        "mnist",
        "--data",
        str(tmp_path / "images.npy"),
        "--solver",
        "ddim",
        "--nfe",
        "9",
        "--samples",
        "5",
        "--replicates",
        "2",
        "--reference-steps",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)["comparisons"]
    assert found["against"] == "held-out data"
    # Samples of the model are about as far from images as other images are.
    assert (
        found["rows"][0]["sliced_wasserstein"]["mean"]
        < 1.5 * found["floor_sliced_wasserstein"]["mean"]
    )


def test_long_names_of_other_programs_are_folded_into_the_table() -> None:
    name = "diffusers:DPMSolverMultistepScheduler:solver_order=3,algorithm_type=dpmsolver"
    model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    data = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare(
        Problem("normal", model, data, dtype=torch.float64),
        {name: DDIM(), "ddim": DDIM()},
        (4,),
        reference=Heun(),
        reference_steps=8,
        samples=4,
        replicates=2,
    )
    text = comparison_text(found)
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("diffusers:DPMSolverMu"))
    pieces = [lines[first][:21], *(line.strip() for line in lines[first + 1 : first + 4])]
    assert "".join(pieces) == name
    assert lines[first].split()[1:3] == ["4", "4"]  # steps and evaluations
