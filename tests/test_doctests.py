"""The examples in the docstrings run, and every public class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import sde_diffusion
from sde_diffusion import solvers

MODULES = [
    name
    for package in (sde_diffusion, solvers)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if "__main__" not in name
]


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_examples_run(name: str) -> None:
    if name.startswith("sde_diffusion.exchange."):
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.failed == 0


@pytest.mark.parametrize("home", [sde_diffusion, solvers], ids=["core", "solvers"])
def test_every_public_class_has_an_example(home) -> None:
    classes = [getattr(home, name) for name in home.__all__]
    without = [
        c.__name__
        for c in classes
        if inspect.isclass(c) and not inspect.isabstract(c) and ">>>" not in (c.__doc__ or "")
    ]
    # Protocols and bases, whose examples are those of the classes that follow them; results,
    # whose examples are those of the functions that return them.
    results = {
        "Solution",
        "LogLikelihood",
        "Bound",
        "DiscreteBound",
        "DiscreteLogLikelihood",
        "Evaluation",
        "Inverse",
        "LatentLogLikelihood",
        "Ledger",
        "Reconstruction",
        "SamplerDensity",
    }
    assert sorted(set(without) - {"Monitor", "Solver", "OneStep"} - results) == []
