"""Score-based generative modelling with stochastic differential equations, in numbers to trust.

Everything public is found here and loaded when first used, so that the command line answers at
once: ``from sde_diffusion import VPSDE, ReverseSDE, sample``. Solvers live in
`sde_diffusion.solvers`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sde_diffusion.brownian import BrownianPath
    from sde_diffusion.checkpoint import describe, load, save_model
    from sde_diffusion.data import Dataset, DataSpec, load_data
    from sde_diffusion.divergence import (
        Exact,
        HutchPlusPlus,
        Hutchinson,
        fastest,
        fit_gaussian,
    )
    from sde_diffusion.grid_fitting import optimised
    from sde_diffusion.grids import (
        Denoised,
        angular,
        cosine,
        exponential,
        karras,
        lattice,
        leading,
        linspace,
        log_snr,
        polynomial,
        quadratic,
        recommended,
        sigmoid,
        trailing,
        uniform,
    )
    from sde_diffusion.integration import OneStep, Solution, Solver, integrate, sample
    from sde_diffusion.likelihood import LogLikelihood, log_prob
    from sde_diffusion.losses import denoising_loss
    from sde_diffusion.multistep import Multistep, Step
    from sde_diffusion.nets import MLP, UNet
    from sde_diffusion.noise import Noise, PerSampleNoise, WhiteNoise
    from sde_diffusion.oracles import Gaussian, GaussianMixture
    from sde_diffusion.reverse import ODE, ProbabilityFlow, ReverseSDE
    from sde_diffusion.schedules import (
        Beta,
        CosineBeta,
        DiscreteBeta,
        LinearBeta,
        cosine_betas,
        linear_betas,
    )
    from sde_diffusion.score import ScoreModel
    from sde_diffusion.sde import (
        EDMSDE,
        SDE,
        VESDE,
        VPSDE,
        LinearSDE,
        RectifiedFlow,
        SubVPSDE,
    )
    from sde_diffusion.thresholding import DynamicThreshold, StaticThreshold
    from sde_diffusion.training import TrainingConfig, train
    from sde_diffusion.variables import Angle, LogSNR, Time

_HOME = {
    "brownian": ("BrownianPath",),
    "checkpoint": ("describe", "load", "save_model"),
    "data": ("DataSpec", "Dataset", "load_data"),
    "divergence": ("Exact", "HutchPlusPlus", "Hutchinson", "fastest", "fit_gaussian"),
    "grid_fitting": ("optimised",),
    "grids": ("Denoised", "angular", "cosine", "exponential", "karras", "lattice", "leading",
              "linspace", "log_snr", "polynomial", "quadratic", "recommended", "sigmoid",
              "trailing", "uniform"),
    "integration": ("OneStep", "Solution", "Solver", "integrate", "sample"),
    "likelihood": ("LogLikelihood", "log_prob"),
    "losses": ("denoising_loss",),
    "multistep": ("Multistep", "Step"),
    "nets": ("MLP", "UNet"),
    "noise": ("Noise", "PerSampleNoise", "WhiteNoise"),
    "oracles": ("Gaussian", "GaussianMixture"),
    "reverse": ("ODE", "ProbabilityFlow", "ReverseSDE"),
    "schedules": ("Beta", "CosineBeta", "DiscreteBeta", "LinearBeta", "cosine_betas",
                  "linear_betas"),
    "score": ("ScoreModel",),
    "sde": ("EDMSDE", "SDE", "VESDE", "VPSDE", "LinearSDE", "RectifiedFlow", "SubVPSDE"),
    "thresholding": ("DynamicThreshold", "StaticThreshold"),
    "training": ("TrainingConfig", "train"),
    "variables": ("Angle", "LogSNR", "Time"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "EDMSDE", "MLP", "ODE", "SDE", "VESDE", "VPSDE", "Angle", "Beta", "BrownianPath", "CosineBeta",
    "DataSpec", "Dataset", "Denoised", "DiscreteBeta", "DynamicThreshold", "Exact", "Gaussian",
    "GaussianMixture", "HutchPlusPlus", "Hutchinson", "LinearBeta", "LinearSDE", "LogLikelihood",
    "LogSNR", "Multistep", "Noise", "OneStep", "PerSampleNoise", "ProbabilityFlow",
    "RectifiedFlow", "ReverseSDE", "ScoreModel", "Solution", "Solver", "StaticThreshold", "Step",
    "SubVPSDE", "Time", "TrainingConfig", "UNet", "WhiteNoise", "angular", "cosine",
    "cosine_betas", "denoising_loss", "describe", "exponential", "fastest", "fit_gaussian",
    "integrate", "karras", "lattice", "leading", "linear_betas", "linspace", "load", "load_data",
    "log_prob", "log_snr", "optimised", "polynomial", "quadratic", "recommended", "sample",
    "save_model", "sigmoid", "trailing", "train", "uniform",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        message = f"module 'sde_diffusion' has no attribute {name!r}"
        raise AttributeError(message)
    # No module carries the name of a public function: importing it would hide the function.
    value: object = getattr(importlib.import_module(f"sde_diffusion.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
