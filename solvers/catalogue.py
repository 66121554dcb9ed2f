"""Every exported solver, in the instances whose orders are certified.

A class lists them in ``certified``, as keyword arguments; its default instance stands for a class
without it. That is all there is to do for tests, `sde-diffusion verify` and benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final

from sde_diffusion import solvers
from sde_diffusion.solver import Solver

# Parts of solvers whose order no closed form gives: a step sees the whole batch.
_UNMEASURED: Final = frozenset({"SongLangevin"})


def instances() -> dict[str, Solver[Any]]:
    """Return the certified instances of all exported solvers, by the text that makes them.

    >>> [name for name in instances() if name.startswith("DPMSolverPP(")]
    ['DPMSolverPP(order=1)', 'DPMSolverPP(order=2)', 'DPMSolverPP(order=3)']
    """
    found = dict[str, Solver[Any]]()
    for kind in _classes():
        found |= instances_of(kind)
    return found


def unmeasured() -> list[str]:
    """Return the exported names that have no order to certify, for the reason they document."""
    return sorted({kind.__name__ for kind in _classes() if not instances_of(kind)} | _UNMEASURED)


def _classes() -> list[type[Any]]:
    found = (getattr(solvers, name) for name in sorted(solvers.__all__, key=str.lower))
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Solver)]


def instances_of(kind: type[Any]) -> dict[str, Solver[Any]]:
    """Return the certified instances of one class, by the text that makes them."""
    return {_call(kind, arguments): kind(**arguments) for arguments in kind.certified}


def text(made: object) -> str:
    """Return the call that makes a settings object, without what is the default.

    >>> from sde_diffusion.solvers import Langevin
    >>> text(Langevin(snr=0.16, count=2))
    'Langevin(count=2)'
    """
    if not is_dataclass(made) or isinstance(made, type):
        return repr(made)
    values = {f.name: vars(made)[f.name] for f in fields(made) if f.init}
    usual = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(made)
    }
    return _call(type(made), {k: v for k, v in values.items() if v != usual[k]})


def _call(kind: type[Any], arguments: Mapping[str, object]) -> str:
    inner = ", ".join(f"{name}={text(value)}" for name, value in arguments.items())
    return f"{kind.__name__}({inner})"
