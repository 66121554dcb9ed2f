"""A solver is found through its export alone: by tests, `verify`, benchmarks and the menu."""

from __future__ import annotations

import math

import pytest

from sde_diffusion import solvers
from sde_diffusion.cli import menu
from sde_diffusion.cli._solvers import exported, of_any_ode, solver_class
from sde_diffusion.dynamics import ODE
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import (
    Ancestral,
    Corrector,
    Heun,
    Langevin,
    PredictorCorrector,
    catalogue,
)

INSTANCES = catalogue.instances()
CLASSES = sorted({type(solver) for solver in INSTANCES.values()}, key=lambda kind: kind.__name__)


def test_every_exported_name_is_measured_or_documented_as_not() -> None:
    parts = {type(getattr(s, "corrector", None)) for s in INSTANCES.values()}
    measured = {kind.__name__ for kind in {*CLASSES} | parts | {Corrector}}
    exported = set(solvers.__all__)
    assert exported == (measured & exported) | set(catalogue.unmeasured())
    assert not measured & set(catalogue.unmeasured())


@pytest.mark.parametrize("name", INSTANCES)
def test_a_name_is_the_call_that_makes_the_solver(name) -> None:
    made: Solver = eval(name, {**vars(solvers), "inf": math.inf})
    assert made == INSTANCES[name]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_solver_has_defaults(kind) -> None:
    assert kind() == kind()


def test_the_text_of_a_solver_leaves_out_what_is_the_default() -> None:
    made = PredictorCorrector(Ancestral(eta=0.5), Langevin())
    assert catalogue.text(made) == "PredictorCorrector(predictor=Ancestral(eta=0.5))"
    assert catalogue.text(Heun()) == "Heun()"


def test_a_class_without_a_list_is_measured_in_its_default_instance() -> None:
    class Mine(Solver):
        dynamics = ODE

        def steps(self, *_):
            yield from ()

    assert list(catalogue.instances_of(Mine)) == ["Mine()"]
    Mine.certified = ({"order": 2},)
    with pytest.raises(TypeError, match="takes no arguments"):
        catalogue.instances_of(Mine)


def test_the_menu_has_every_solver() -> None:
    """Both tables are read from the source, so that help does not wait for torch."""
    kinds = {name: solver_class(name) for name in menu.SOLVER_NAMES}
    solving = {getattr(solvers, name) for name in solvers.__all__}
    assert set(kinds.values()) == {kind for kind in solving if hasattr(kind, "steps")}
    odes = {name for name, kind in kinds.items() if kind().dynamics is ODE}
    assert set(menu.ODE_SOLVER_NAMES) == odes


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("heun", Heun()),
        ("ancestral:eta=0.5", Ancestral(eta=0.5)),
        ("ancestral:0.5", Ancestral(eta=0.5)),
        ("torchdiffeq:rk4", solvers.TorchDiffEq("rk4")),
        (
            "torchdiffeq:rk4,rtol=1e-3,options={'step_size': 0.1}",
            solvers.TorchDiffEq("rk4", rtol=1e-3, options={"step_size": 0.1}),
        ),
        ("adams-bashforth:order=3", solvers.AdamsBashforth(3)),
    ],
)
def test_arguments_stand_behind_a_colon(name, made) -> None:
    assert menu.solver(name) == made


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (
            "adams-bashforth:ordr=3",
            TypeError,
            r"be arguments of adams-bashforth \(order\), got .*"
            "'ordr'; write --solver adams-bashforth:order=2",
        ),
        ("heun:3", TypeError, r"be arguments of heun \(none\)"),
        ("adams-bashforth:order=9", ValueError, "order must be 1, 2, 3 or 4, got 9"),
        ("adams-bashforth:order=[3", ValueError, "hold numbers, words or literals"),
        ("adams-bashforth:order=open('x')", ValueError, "hold numbers, words or literals"),
        ("heun:)+f(", ValueError, "hold numbers, words or literals"),
    ],
)
def test_wrong_arguments_are_refused(name, error, text) -> None:
    with pytest.raises(error, match=text):
        menu.solver(name)


def test_a_tolerance_is_any_adaptive_solvers() -> None:
    assert menu.solver("torchdiffeq:bosh3", 1e-3) == solvers.TorchDiffEq("bosh3", 1e-3, 1e-3)
    made = menu.solver("dormand-prince:max_steps=9", 1e-3)
    assert made == solvers.DormandPrince(1e-3, 1e-3, 9)


def test_the_solvers_of_any_ode_are_found_without_loading_them() -> None:
    """The command line reads a line of the source; what it finds is what the classes say."""
    own = {name for name in exported() if solver_class(name)().dynamics is ODE}
    assert of_any_ode() & set(exported()) == own
