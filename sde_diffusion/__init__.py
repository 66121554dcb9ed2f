"""Score-based generative modelling with stochastic differential equations, in numbers to trust.

Everything public is found here and loaded when first used, so that the command line answers at
once: ``from sde_diffusion import VPSDE, ReverseSDE, sample``. Solvers live in
`sde_diffusion.solvers`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sde_diffusion._distributed import Processes
    from sde_diffusion.auditing import audit
    from sde_diffusion.bounds import (
        BinDecoder,
        Bound,
        GaussianDecoder,
        LevelDecoder,
        elbo,
        score_form,
    )
    from sde_diffusion.brownian import BrownianPath
    from sde_diffusion.chain import (
        AnalyticVariance,
        Chain,
        ForwardVariance,
        LearnedVariance,
        PosteriorVariance,
    )
    from sde_diffusion.checkpoint import describe, load, load_direct, save_model
    from sde_diffusion.data import Dataset, DataSpec, load_data
    from sde_diffusion.ddpm import DiscreteBound, vlb
    from sde_diffusion.dequantization import (
        DiscreteLogLikelihood,
        TruncatedNormal,
        Uniform,
        discrete_log_prob,
        importance_weighted,
    )
    from sde_diffusion.divergence import Exact, Hutchinson, HutchPlusPlus, fastest, fit_gaussian
    from sde_diffusion.encoding import Reconstruction, decode, encode, interpolate, reconstruct
    from sde_diffusion.evaluation import Evaluation, evaluate
    from sde_diffusion.evaluation_settings import EvaluationSettings
    from sde_diffusion.evaluator import Evaluator
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
    from sde_diffusion.guidance import GuidanceInterval, Guided, guided
    from sde_diffusion.integration import OneStep, Solution, Solver, integrate, sample
    from sde_diffusion.inversion import FixedPoint, Inverse, Newton, sampler_inverse
    from sde_diffusion.ledger import Ledger
    from sde_diffusion.likelihood import LogLikelihood, log_prob
    from sde_diffusion.log_det import ArnoldiLogDet, ExactLogDet
    from sde_diffusion.losses import denoising_loss, explicit_loss
    from sde_diffusion.monitors import HeldOutBound, LossByLevel, Monitor, SamplePicture
    from sde_diffusion.multistep import Multistep, Step
    from sde_diffusion.nets import MLP, UNet
    from sde_diffusion.noise import Noise, PerSampleNoise, WhiteNoise
    from sde_diffusion.objectives import Denoising, Explicit, Objective, objective_of
    from sde_diffusion.oracles import Gaussian, GaussianMixture
    from sde_diffusion.post_hoc import reconstruct_average
    from sde_diffusion.reverse import ODE, ProbabilityFlow, ReverseSDE
    from sde_diffusion.sampler_density import (
        SamplerDensity,
        check_injective,
        first_fold,
        sampler_log_prob,
    )
    from sde_diffusion.scaling import Affine, Logit
    from sde_diffusion.schedules import (
        Beta,
        CosineBeta,
        DiscreteBeta,
        LinearBeta,
        cosine_betas,
        linear_betas,
        scaled_linear_betas,
        sigmoid_betas,
        zero_terminal_snr,
    )
    from sde_diffusion.score import DirectScore, ScoreModel
    from sde_diffusion.score_matching import (
        Implicit,
        Paths,
        Sliced,
        implicit_loss,
        sliced_loss,
    )
    from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, LinearSDE, RectifiedFlow, SubVPSDE
    from sde_diffusion.thresholding import DynamicThreshold, StaticThreshold
    from sde_diffusion.tilting import Tilted, sample_tilted
    from sde_diffusion.training import TrainingConfig, train
    from sde_diffusion.tuning import audited, tuned
    from sde_diffusion.variables import Angle, LogSNR, Time
    from sde_diffusion.variational import Variational, fit_dequantizer
    from sde_diffusion.variational_loss import Hybrid, Vlb

_HOME = {
    "_distributed": ("Processes",),
    "auditing": ("audit",),
    "bounds": ("BinDecoder", "Bound", "GaussianDecoder", "LevelDecoder", "elbo", "score_form"),
    "brownian": ("BrownianPath",),
    "chain": ("AnalyticVariance", "Chain", "ForwardVariance", "LearnedVariance",
              "PosteriorVariance"),
    "checkpoint": ("describe", "load", "load_direct", "save_model"),
    "data": ("DataSpec", "Dataset", "load_data"),
    "ddpm": ("DiscreteBound", "vlb"),
    "dequantization": ("DiscreteLogLikelihood", "TruncatedNormal", "Uniform", "discrete_log_prob",
                       "importance_weighted"),
    "divergence": ("Exact", "HutchPlusPlus", "Hutchinson", "fastest", "fit_gaussian"),
    "encoding": ("Reconstruction", "decode", "encode", "interpolate", "reconstruct"),
    "evaluation": ("Evaluation", "evaluate"),
    "evaluation_settings": ("EvaluationSettings",),
    "evaluator": ("Evaluator",),
    "grid_fitting": ("optimised",),
    "grids": ("Denoised", "angular", "cosine", "exponential", "karras", "lattice", "leading",
              "linspace", "log_snr", "polynomial", "quadratic", "recommended", "sigmoid",
              "trailing", "uniform"),
    "guidance": ("GuidanceInterval", "Guided", "guided"),
    "integration": ("OneStep", "Solution", "Solver", "integrate", "sample"),
    "inversion": ("FixedPoint", "Inverse", "Newton", "sampler_inverse"),
    "ledger": ("Ledger",),
    "likelihood": ("LogLikelihood", "log_prob"),
    "log_det": ("ArnoldiLogDet", "ExactLogDet"),
    "losses": ("denoising_loss", "explicit_loss"),
    "monitors": ("HeldOutBound", "LossByLevel", "Monitor", "SamplePicture"),
    "multistep": ("Multistep", "Step"),
    "nets": ("MLP", "UNet"),
    "noise": ("Noise", "PerSampleNoise", "WhiteNoise"),
    "objectives": ("Denoising", "Explicit", "Objective", "objective_of"),
    "oracles": ("Gaussian", "GaussianMixture"),
    "post_hoc": ("reconstruct_average",),
    "reverse": ("ODE", "ProbabilityFlow", "ReverseSDE"),
    "sampler_density": ("SamplerDensity", "check_injective", "first_fold", "sampler_log_prob"),
    "scaling": ("Affine", "Logit"),
    "schedules": ("Beta", "CosineBeta", "DiscreteBeta", "LinearBeta", "cosine_betas",
                  "linear_betas", "scaled_linear_betas", "sigmoid_betas", "zero_terminal_snr"),
    "score": ("DirectScore", "ScoreModel"),
    "score_matching": ("Implicit", "Paths", "Sliced", "implicit_loss", "sliced_loss"),
    "sde": ("EDMSDE", "SDE", "VESDE", "VPSDE", "LinearSDE", "RectifiedFlow", "SubVPSDE"),
    "thresholding": ("DynamicThreshold", "StaticThreshold"),
    "tilting": ("Tilted", "sample_tilted"),
    "training": ("TrainingConfig", "train"),
    "tuning": ("audited", "tuned"),
    "variables": ("Angle", "LogSNR", "Time"),
    "variational": ("Variational", "fit_dequantizer"),
    "variational_loss": ("Hybrid", "Vlb"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "EDMSDE", "MLP", "ODE", "SDE", "VESDE", "VPSDE", "Affine", "AnalyticVariance", "Angle",
    "ArnoldiLogDet", "Beta", "BinDecoder", "Bound", "BrownianPath", "Chain", "CosineBeta",
    "DataSpec", "Dataset", "Denoised", "Denoising", "DirectScore", "DiscreteBeta", "DiscreteBound",
    "DiscreteLogLikelihood", "DynamicThreshold", "Evaluation", "EvaluationSettings", "Evaluator",
    "Exact", "ExactLogDet", "Explicit", "FixedPoint", "ForwardVariance", "Gaussian",
    "GaussianDecoder", "GaussianMixture", "GuidanceInterval", "Guided", "HeldOutBound",
    "HutchPlusPlus", "Hutchinson", "Hybrid", "Implicit", "Inverse", "LearnedVariance", "Ledger",
    "LevelDecoder", "LinearBeta", "LinearSDE", "LogLikelihood", "LogSNR", "Logit", "LossByLevel",
    "Monitor", "Multistep", "Newton", "Noise", "Objective", "OneStep", "Paths", "PerSampleNoise",
    "PosteriorVariance", "ProbabilityFlow", "Processes", "Reconstruction", "RectifiedFlow",
    "ReverseSDE", "SamplePicture", "SamplerDensity", "ScoreModel", "Sliced", "Solution", "Solver",
    "StaticThreshold", "Step", "SubVPSDE", "Tilted", "Time", "TrainingConfig", "TruncatedNormal",
    "UNet", "Uniform", "Variational", "Vlb", "WhiteNoise", "angular", "audit", "audited",
    "check_injective", "cosine", "cosine_betas", "decode", "denoising_loss", "describe",
    "discrete_log_prob", "elbo", "encode", "evaluate", "explicit_loss", "exponential", "fastest",
    "first_fold", "fit_dequantizer", "fit_gaussian", "guided", "implicit_loss",
    "importance_weighted", "integrate", "interpolate", "karras", "lattice", "leading",
    "linear_betas", "linspace", "load", "load_data", "load_direct", "log_prob", "log_snr",
    "objective_of", "optimised", "polynomial", "quadratic", "recommended", "reconstruct",
    "reconstruct_average", "sample", "sample_tilted", "sampler_inverse", "sampler_log_prob",
    "save_model", "scaled_linear_betas", "score_form", "sigmoid", "sigmoid_betas", "sliced_loss",
    "trailing", "train", "tuned", "uniform", "vlb", "zero_terminal_snr",
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
