"""Solvers: one file per method or family, all on the `Solver` protocol of `sde_diffusion`."""

from __future__ import annotations

from sde_diffusion.solvers.adams_bashforth import AdamsBashforth
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.dormand_prince import DormandPrince
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.predictor_corrector import (
    AnnealedLangevin,
    Corrector,
    Langevin,
    PredictorCorrector,
    SongLangevin,
)
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion
from sde_diffusion.solvers.runge_kutta import Euler, Heun, RungeKutta4
from sde_diffusion.solvers.torchdiffeq_methods import TorchDiffEq

__all__ = [
    "AdamsBashforth",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DormandPrince",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "PredictorCorrector",
    "ReverseDiffusion",
    "RungeKutta4",
    "SongLangevin",
    "TorchDiffEq",
]
