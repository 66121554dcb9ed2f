"""What is of another kind is refused at every public entry, in one sentence of the house.

`ENTRIES` names every public function and class that takes a model, a solver, a grid, noise or
another part of a solve, with one right call; `WRONG` has for each kind of part what people pass in
its place. A test below reads the signatures, so that a new entry without a row fails.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import sde_diffusion
from sde_diffusion import (
    VPSDE,
    AnalyticVariance,
    Angle,
    BinDecoder,
    BrownianPath,
    Chain,
    ClassLabels,
    Conditioned,
    ConvolutionalAutoencoder,
    Dataset,
    DataSpec,
    Denoising,
    DiscreteBeta,
    EvaluationSettings,
    Exact,
    Gaussian,
    GaussianAutoencoder,
    Guided,
    LatentModel,
    LearnedVariance,
    LinearAutoencoder,
    LogSNR,
    Paths,
    PerSampleNoise,
    PosteriorVariance,
    ProbabilityFlow,
    ReflectedDiffusion,
    ReflectedPoints,
    ReverseSDE,
    ScoreModel,
    Time,
    TrainingConfig,
    Variational,
    WhiteNoise,
    autoencoder_loss,
    guided,
    integrate,
    latent_log_prob,
    lattice,
    linear_betas,
    log_prob,
    sample,
    uniform,
    vlb,
)
from sde_diffusion.cli.main import main
from sde_diffusion.coding import compress, decompress
from sde_diffusion.diagnostics.comparison import Problem, compare
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, DDPM, DormandPrince, EulerMaruyama, Heun


class Half(nn.Module):
    """Half of what it is given."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return 0.5 * x


class Labelless(nn.Module):
    """Takes no labels."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * x


VP: Final = VPSDE()
CLD: Final = sde_diffusion.CriticallyDampedLangevin()
NORMAL: Final = Gaussian(torch.zeros(2), torch.eye(2))
MODEL: Final = NORMAL.diffused(VP)
FLOW: Final = ProbabilityFlow(VP, MODEL)
GREY: Final = DataSpec("grey", (2,), 17)
SPEC: Final = DataSpec("points", (2,), None)
NETWORK: Final = ScoreModel(MLP(2, width=8), VP, data=SPEC).eval()
BETAS: Final = linear_betas(10)
DISCRETE: Final = NORMAL.diffused(VPSDE(DiscreteBeta(BETAS)))
LABELLED: Final = ScoreModel.from_timesteps(Half(), BETAS, labels=ClassLabels(10, null=10)).eval()
TWO: Final = Dataset(GREY, torch.tensor([[3, 4], [5, 2]], dtype=torch.uint8), None)
X: Final = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
T: Final = torch.tensor(0.5, dtype=torch.float64)
DATA: Final = Dataset(SPEC, X.float(), None)
FALLING: Final = uniform(3, 1.0, 1e-3)
RISING: Final = uniform(3, 1e-3, 1.0)
CHAIN: Final = Chain(DISCRETE.sde, lattice(10))
NOISE: Final = PerSampleNoise.numbered(0, 0, 4)

WRONG: Final[Mapping[str, tuple[object, ...]]] = {
    "model": (3, "digits", Half(), ScoreModel, None, VP),
    "score": (3, "digits", None),
    "solver": ("heun", Heun, 3, abs, None, MODEL),
    "variance": ("posterior", PosteriorVariance, 0.5),
    "decoder": ("bin", BinDecoder, 3),
    "part": ("exact", Exact, 3),
    "grid": (20, [1.0, 0.5], np.array([1.0, 0.5]), "uniform", uniform),
    "noise": (0, "white", WhiteNoise, torch.Generator()),
    "shape": (4, 4.0, "42", (4.0, 2), None, (), (4, "2")),
    "shape!": (4, 4.0, "42", (4.0, 2), None, (4, "2")),
    "flow": (MODEL, "flow", ProbabilityFlow, VP, None, ReverseSDE(VP, MODEL)),
    "dynamics": (MODEL, "flow", ProbabilityFlow, VP, None),
    "sde": ("vp", VPSDE, 3, MODEL),
    "x": ([[0.1, 0.2]], np.zeros((4, 2)), X.long(), 3, None, torch.tensor(1.0)),
    "integer": (2.5, "20", True, [20], -1),
    "number": ("a", None, True, [1.0]),
    "seed": ("0", 1.5, None, -1),
    "dtype": ("float32", float, np.float32),
    "device": (3, "gpu", True),
    "density": ("normal", 3),
    "function": (3, "f"),
    "data": ((2,), "digits", 3),
    "labels": (10, "y", ClassLabels),
    "class": ("3", None, 3.0, np.array([3.5]), torch.zeros(2, 2, dtype=torch.long), 99, -5),
    "class!": ("3", 3.0, np.array([3.5]), torch.zeros(2, 2, dtype=torch.long), 99, -5),
    "network": (torch.add, "net", nn.Linear, 3, None),
    "betas": ([0.1, 0.2], np.linspace(0.1, 0.2, 5), 0.02, DiscreteBeta(BETAS), None),
    "beta": ([0.1, 0.2], BETAS, 0.02, None),
    "word": ("epsilon", None, 3, ["eps"]),
    "t": (0.5, 1, None, "t", np.array(0.5)),
    "time": (999, T, "sigma", None, float, torch.sum),
    "path": (3, None),
    "row": (3, "a", [None], ["1"]),
    "timesteps": ([0, 1], 3, np.arange(10)),
    "number!": ("a", True, [1.0]),
    "solver!": ("heun", Heun, 3, abs, MODEL),
    "score!": (3, "digits"),
    "x!": ([[0.1, 0.2]], np.zeros((4, 2)), 3),
    "objective": ("denoising", Denoising),
    "tensors": (3, [torch.zeros(2)], {"a": 3}, {}, torch.zeros(3), {3: torch.zeros(2)}),
}

ENCODER: Final = ConvolutionalAutoencoder((1, 8, 8), width=8)
LATENT: Final = LatentModel(LinearAutoencoder(torch.eye(2)), MODEL)


def log_p(z: torch.Tensor, first: int) -> Any:  # noqa: ARG001  (of a likelihood without draws)
    return log_prob(z, ProbabilityFlow(VP, LATENT), Heun(), grid=RISING)


Row = tuple[Callable[..., Any], dict[str, Any], dict[str, str]]
SOLVE: Final = {"flow": "flow", "solver": "solver", "grid": "grid"}
STEPS: Final = {"sde": "sde", "steps": "integer", "start": "number!", "end": "number!"}
ENTRIES: Final[dict[str, Row]] = {
    "sample": (
        sample,
        {"model": MODEL, "solver": Heun(), "shape": (4, 2)},
        {"model": "model", "solver": "solver", "shape": "shape", "steps": "integer"}
        | {"grid": "grid", "seed": "seed", "first": "integer", "callback": "function"}
        | {"dtype": "dtype"},
    ),
    "sample_finite": (
        sde_diffusion.sample_finite,
        {"model": MODEL, "solver": Heun(), "shape": (4, 2)},
        {"model": "model", "solver": "solver", "shape": "shape", "steps": "integer"}
        | {"grid": "grid", "seed": "seed", "first": "integer", "dtype": "dtype"},
    ),
    "integrate": (
        integrate,
        {"dynamics": FLOW, "solver": Heun(), "x": X, "grid": FALLING},
        {"dynamics": "dynamics", "solver": "solver", "x": "x", "grid": "grid"}
        | {"noise": "noise", "callback": "function"},
    ),
    "log_prob": (
        sde_diffusion.log_prob,
        {"x": X, "flow": FLOW, "solver": Heun(), "grid": RISING},
        {"x": "x", **SOLVE, "divergence": "part", "prior": "density", "variable": "function"},
    ),
    "hidden_parts_bound": (
        lambda **given: sde_diffusion.hidden_parts_bound(
            **{"divergence": Exact(), "draws": 1, **given}
        ),
        {
            "x": X[:, :1],
            "flow": ProbabilityFlow(CLD, Gaussian(torch.zeros(1), torch.eye(1)).diffused(CLD)),
            "solver": Heun(),
            "noise": NOISE,
            "grid": RISING,
        },
        {"x": "x", **SOLVE, "noise": "noise", "draws": "integer", "divergence": "part"},
    ),
    "elbo": (
        sde_diffusion.elbo,
        {"x": X, "model": MODEL, "draws": 4},
        {"x": "x", "model": "model", "decoder": "decoder", "draws": "integer", "seed": "seed"}
        | {"t_min": "number!"},
    ),
    "vlb": (
        vlb,
        {"x": X, "model": DISCRETE, "grid": lattice(10), "draws": 4},
        {"x": "x", "model": "model", "grid": "grid", "variance": "variance"}
        | {"decoder": "decoder", "draws": "integer", "seed": "seed"},
    ),
    "encode": (
        sde_diffusion.encode,
        {"x": X, "flow": FLOW, "solver": Heun(), "grid": RISING},
        {"x": "x", **SOLVE},
    ),
    "decode": (
        sde_diffusion.decode,
        {"z": X, "flow": FLOW, "solver": Heun(), "grid": FALLING},
        {"z": "x", **SOLVE},
    ),
    "reconstruct": (
        sde_diffusion.reconstruct,
        {"x": X, "flow": FLOW, "solver": Heun(), "grid": RISING},
        {"x": "x", **SOLVE},
    ),
    "interpolate": (
        sde_diffusion.interpolate,
        {"z0": X, "z1": X, "weights": [0.5]},
        {"z0": "x", "z1": "x", "weights": "row"},
    ),
    "sampler_inverse": (
        sde_diffusion.sampler_inverse,
        {"x": X, "flow": FLOW, "solver": DDIM(), "grid": FALLING},
        {"x": "x", **SOLVE, "method": "part"},
    ),
    "sampler_log_prob": (
        sde_diffusion.sampler_log_prob,
        {"z": X, "flow": FLOW, "solver": DDIM(), "grid": FALLING},
        {"z": "x", **SOLVE, "log_det": "part", "prior": "density"},
    ),
    "check_injective": (
        sde_diffusion.check_injective,
        {
            "z": X.reshape(8, 1),
            "flow": ProbabilityFlow(VP, Gaussian(torch.zeros(1), torch.eye(1)).diffused(VP)),
            "solver": DDIM(),
            "grid": FALLING,
        },
        {"z": "x", **SOLVE},
    ),
    "first_fold": (
        sde_diffusion.first_fold,
        {"z": X, "flow": FLOW, "solver": DDIM(), "grid": FALLING},
        {"z": "x", **SOLVE, "log_det": "part"},
    ),
    "optimised": (
        sde_diffusion.optimised,
        {"model": MODEL, "solver": DDIM(), "steps": 2, "shape": (2, 2)},
        {"model": "model", "solver": "solver", "steps": "integer", "shape": "shape"}
        | {"seed": "seed", "dtype": "dtype"},
    ),
    "audit": (
        sde_diffusion.audit,
        {"x": X, "flow": FLOW, "solver": Heun(), "grid": RISING, "divergence": Exact()},
        {"x": "x", **SOLVE, "divergence": "part", "prior": "density", "end": "density"}
        | {"reference": "function", "variable": "function"},
    ),
    "Evaluator": (
        sde_diffusion.Evaluator,
        {"model": NETWORK, "dataset": DATA, "solver": DormandPrince()},
        {"model": "model", "dataset": "data", "solver": "solver", "settings": "part"}
        | {"grid": "grid"},
    ),
    "evaluate": (
        lambda **given: sde_diffusion.evaluate(**{"settings": None, **given}),
        {"model": MODEL, "dataset": DATA, "solver": DormandPrince()},
        {"model": "model", "dataset": "data", "solver": "solver", "settings": "part"}
        | {"grid": "grid"},
    ),
    "recommended": (
        sde_diffusion.recommended,
        {"sde": VP, "steps": 3},
        {**STEPS, "solver": "solver!"},
    ),
    "karras": (sde_diffusion.karras, {"sde": VP, "steps": 3}, STEPS),
    "log_snr": (sde_diffusion.log_snr, {"sde": VP, "steps": 3}, STEPS),
    "angular": (sde_diffusion.angular, {"sde": VP, "steps": 3}, STEPS),
    "cosine": (sde_diffusion.cosine, {"sde": VP, "steps": 3}, STEPS),
    "sigmoid": (sde_diffusion.sigmoid, {"sde": VP, "steps": 3}, STEPS),
    "exponential": (sde_diffusion.exponential, {"sde": VP, "steps": 3}, STEPS),
    "uniform": (uniform, {"steps": 3}, {"steps": "integer", "start": "number"}),
    "denoising_loss": (
        sde_diffusion.denoising_loss,
        {"model": MODEL, "x0": X, "t": T, "eps": X},
        {"model": "model", "x0": "x", "t": "t", "eps": "x", "weighting": "function"},
    ),
    "explicit_loss": (
        sde_diffusion.explicit_loss,
        {"model": MODEL, "exact": MODEL, "x0": X, "t": T, "eps": X},
        {"model": "model", "exact": "model", "x0": "x", "t": "t", "eps": "x"},
    ),
    "implicit_loss": (
        sde_diffusion.implicit_loss,
        {"score": MODEL, "x": X, "t": T},
        {"score": "score", "x": "x", "t": "t"},
    ),
    "sliced_loss": (
        sde_diffusion.sliced_loss,
        {"score": MODEL, "x": X, "t": T, "noise": NOISE},
        {"score": "score", "x": "x", "t": "t", "noise": "noise"},
    ),
    "Guided": (
        Guided,
        {"conditional": MODEL, "unconditional": MODEL},
        {"conditional": "model", "unconditional": "model", "weight": "number"},
    ),
    "guided": (
        guided,
        {"model": LABELLED, "labels": 3},
        {"model": "model", "labels": "class", "weight": "number"},
    ),
    "GuidanceInterval": (
        sde_diffusion.GuidanceInterval,
        {"sde": VP, "weight": 1.0},
        {"sde": "sde", "weight": "number", "low": "number", "high": "number"},
    ),
    "ReverseSDE": (
        ReverseSDE,
        {"sde": VP, "score": MODEL},
        {"sde": "sde", "score": "score", "noise_scale": "number"},
    ),
    "ProbabilityFlow": (
        ProbabilityFlow,
        {"sde": VP, "score": MODEL},
        {"sde": "sde", "score": "score"},
    ),
    "FunctionScore": (
        sde_diffusion.FunctionScore,
        {"function": MODEL, "sde": VP},
        {"function": "score", "sde": "sde", "device": "device"},
    ),
    "ScoreModel": (
        ScoreModel,
        {"network": Half(), "sde": VP},
        {"network": "network", "sde": "sde", "prediction": "word", "data": "data"}
        | {"sigma_data": "number", "variance": "word", "coupling": "word"},
    ),
    "ScoreModel.from_timesteps": (
        ScoreModel.from_timesteps,
        {"network": Half(), "betas": BETAS},
        {"network": "network", "betas": "betas", "prediction": "word", "variance": "word"}
        | {"labels": "labels", "data": "data", "dtype": "dtype", "timesteps": "timesteps"},
    ),
    "ScoreModel.from_denoiser": (
        ScoreModel.from_denoiser,
        {"network": Half()},
        {"network": "network", "sde": "sde", "sigma_min": "number", "labels": "labels"}
        | {"data": "data"},
    ),
    "ScoreModel.from_velocity": (
        ScoreModel.from_velocity,
        {"network": Half()},
        {"network": "network", "noise_at": "integer", "scale": "number", "labels": "labels"}
        | {"data": "data"},
    ),
    "ScoreModel.from_score": (
        ScoreModel.from_score,
        {"network": Half(), "sde": VP},
        {"network": "network", "sde": "sde", "time": "time", "labels": "labels"}
        | {"data": "data"},
    ),
    "ConvolutionalAutoencoder": (
        ConvolutionalAutoencoder,
        {"event": (1, 8, 8)},
        dict.fromkeys(("latent", "width", "blocks"), "integer") | {"event": "shape"},
    ),
    "GaussianAutoencoder": (
        GaussianAutoencoder,
        {"network": ENCODER},
        {"network": "network", "data": "data"},
    ),
    "LatentModel": (
        LatentModel,
        {"autoencoder": LinearAutoencoder(torch.eye(2)), "score": MODEL},
        {"autoencoder": "network", "score": "score"},
    ),
    "ReflectedPoints": (
        ReflectedPoints,
        {"points": torch.full((4, 2), 0.5), "sde": ReflectedDiffusion()},
        {"points": "x", "sde": "sde"},
    ),
    "autoencoder_loss": (
        autoencoder_loss,
        {
            "model": GaussianAutoencoder(ENCODER),
            "x": torch.zeros(2, 1, 8, 8),
            "eps": torch.zeros(2, 4, 2, 2),
        },
        {"model": "score", "x": "x", "eps": "x", "beta": "number"},
    ),
    "latent_log_prob": (
        latent_log_prob,
        {"x": X.double(), "model": LATENT, "log_p": log_p},
        {"x": "x", "model": "score", "log_p": "function"}
        | {"draws": "integer", "seed": "seed", "first": "integer"},
    ),
    "ScoreModel.given": (LABELLED.given, {"labels": 3}, {"labels": "class!"}),
    "DirectScore": (
        sde_diffusion.DirectScore,
        {"network": Half(), "sde": VP},
        {"network": "network", "sde": "sde", "data": "data"},
    ),
    "FewStepModel": (
        sde_diffusion.FewStepModel,
        {"network": Half(), "sde": VP},
        {"network": "network", "sde": "sde", "prediction": "word", "data": "data"}
        | {"sigma_data": "number"},
    ),
    "equal_angles": (sde_diffusion.equal_angles, {"sde": VP, "steps": 3}, STEPS),
    "MatrixScoreModel": (
        sde_diffusion.MatrixScoreModel,
        {"network": Half(), "sde": CLD},
        {"network": "network", "sde": "sde", "data": "data"},
    ),
    "hybrid_loss": (
        sde_diffusion.hybrid_loss,
        {"model": sde_diffusion.MatrixScoreModel(Half(), CLD), "x0": X[:, :1], "t": T, "eps": X},
        {"model": "model", "x0": "x", "t": "t", "eps": "x"},
    ),
    "CriticallyDampedLangevin": (
        sde_diffusion.CriticallyDampedLangevin,
        {},
        {"beta": "beta", "friction": "number", "gamma": "number"},
    ),
    "OrnsteinUhlenbeck": (
        sde_diffusion.OrnsteinUhlenbeck,
        {"rate": ((-1.0,),), "noise": ((1.0,),)},
        {"beta": "beta"},
    ),
    "ClassifierGuided": (
        sde_diffusion.ClassifierGuided,
        {"model": MODEL, "classifier": lambda x, _: x, "labels": torch.tensor([0, 1])},
        {"model": "model", "classifier": "function", "labels": "labels", "weight": "number"},
    ),
    "ClassLabels": (ClassLabels, {"count": 10}, {"count": "integer", "null": "integer"}),
    "Conditioned": (
        Conditioned,
        {"network": Half(), "tensors": {"labels": X}},
        {"network": "network", "tensors": "tensors"},
    ),
    "check_convention": (
        sde_diffusion.check_convention,
        {"model": NETWORK, "data": X.float()},
        {"model": "model", "data": "x", "times": "row", "seed": "seed"},
    ),
    "StaticThreshold": (
        sde_diffusion.StaticThreshold,
        {"model": MODEL},
        {"model": "model", "low": "number", "high": "number"},
    ),
    "DynamicThreshold": (
        sde_diffusion.DynamicThreshold,
        {"model": MODEL},
        {"model": "model", "quantile": "number", "limit": "number"},
    ),
    "load": (
        sde_diffusion.load,
        {"name_or_path": "digits"},
        {"name_or_path": "path", "network": "score!", "sde": "sde", "device": "device"}
        | {"data": "x!"},
    ),
    "read_weights": (sde_diffusion.read_weights, {"path": __file__}, {"path": "path"}),
    "Chain": (Chain, {"sde": DISCRETE.sde, "grid": lattice(10)}, {"sde": "sde", "grid": "grid"}),
    "Denoised": (sde_diffusion.Denoised, {"times": FALLING}, {"times": "grid"}),
    "AnalyticVariance.estimated": (
        AnalyticVariance.estimated,
        {"model": DISCRETE, "x0": X, "chain": CHAIN},
        {"model": "model", "x0": "x", "chain": "sde", "seed": "seed"},
    ),
    "LearnedVariance": (LearnedVariance, {"v": DISCRETE}, {"v": "score"}),
    "DDPM": (DDPM, {}, {"variance": "variance"}),
    "VPSDE": (VPSDE, {}, {"beta": "beta"}),
    "DiscreteBeta": (DiscreteBeta, {"betas": BETAS}, {"betas": "betas"}),
    "zero_terminal_snr": (
        sde_diffusion.zero_terminal_snr,
        {"betas": BETAS},
        {"betas": "betas", "terminal": "number"},
    ),
    "fit_gaussian": (
        sde_diffusion.fit_gaussian,
        {"samples": X},
        {"samples": "score", "shrinkage": "number"},
    ),
    "train": (
        lambda **given: next(sde_diffusion.train(**given)),
        {"model": NETWORK, "dataset": DATA, "config": TrainingConfig(steps=1, batch_size=4)},
        {"model": "model", "dataset": "data", "config": "score", "objective": "objective"},
    ),
    "sample_tilted": (
        sde_diffusion.sample_tilted,
        {"guided": Guided(MODEL, MODEL), "solver": EulerMaruyama(), "shape": (4, 2)},
        {"guided": "model", "solver": "solver", "shape": "shape", "steps": "integer"}
        | {"grid": "grid", "seed": "seed", "dtype": "dtype"},
    ),
    "fastest": (
        sde_diffusion.fastest,
        {"divergence": Exact(), "velocity": torch.sin, "x": X},
        {"divergence": "part", "velocity": "score", "x": "x"},
    ),
    "score_form": (
        sde_diffusion.score_form,
        {"bound": sde_diffusion.elbo(X, MODEL, draws=4), "x": X, "sde": VP},
        {"bound": "part", "x": "x", "sde": "sde"},
    ),
    "Angle": (Angle, {"flow": FLOW, "times": RISING}, {"flow": "flow", "times": "grid"}),
    "LogSNR": (LogSNR, {"flow": FLOW, "times": RISING}, {"flow": "flow", "times": "grid"}),
    "Time": (Time, {"flow": FLOW, "times": RISING}, {"flow": "flow", "times": "grid"}),
    "Paths": (
        Paths,
        {"solver": EulerMaruyama(), "grid": uniform(3, 0.0, 1.0)},
        {"solver": "solver", "grid": "grid"},
    ),
    "BrownianPath": (
        BrownianPath,
        {"seed": 0, "grid": FALLING},
        {"seed": "seed", "grid": "grid"},
    ),
    "DataSpec": (
        DataSpec,
        {"name": "points", "shape": (2,), "levels": None},
        {"shape": "shape!", "levels": "integer"},
    ),
    "EvaluationSettings": (
        EvaluationSettings,
        {},
        {"variance": "word", "decoder": "word", "divergence": "word"},
    ),
    "load_direct": (
        sde_diffusion.load_direct,
        {"name_or_path": "digits"},
        {"name_or_path": "path", "network": "score!", "sde": "sde", "device": "device"},
    ),
    "fit_dequantizer": (
        sde_diffusion.fit_dequantizer,
        {
            "dequantizer": Variational(GREY),
            "dataset": Dataset(GREY, torch.zeros(4, 2).long(), None),
            "model": ScoreModel(MLP(2, width=8), VP, data=GREY).eval(),
            "steps": 1,
            "batch_size": 2,
        },
        {"dequantizer": "part", "dataset": "data", "model": "model", "steps": "integer"},
    ),
    "compress": (
        compress,
        {"model": MODEL, "data": TWO, "steps": 4},
        {"model": "model", "data": "data", "steps": "integer", "block_size": "integer"}
        | {"batch_size": "integer", "callback": "function"},
    ),
    "decompress": (
        decompress,
        {"model": MODEL, "blob": compress(MODEL, TWO, steps=4)},
        {"model": "model", "blob": "row", "batch_size": "integer", "callback": "function"},
    ),
    "prior_mismatch": (
        sde_diffusion.prior_mismatch,
        {"sde": VP, "mean": torch.zeros(2), "std": torch.ones(2)},
        {"sde": "sde"},
    ),
}

# Parameters that are a part of a solve, or bring a network in.
PARTS: Final = {
    *("model", "solver", "flow", "dynamics", "score", "sde", "network", "variance", "decoder"),
    *("grid", "noise", "shape", "divergence", "prior", "betas", "embeddings", "conditional"),
}
# Where a kind is refused by tests of their own, and results, which nobody makes.
ELSEWHERE: Final = {
    "Adaptive",
    "OneStep",
    "Multistep",
    "Solver",  # to be subclassed
    "autoencoder_from_diffusers",  # tests/test_diffusers_autoencoder.py
    "encoder_from_transformers",  # tests/test_transformers_text.py
    "compiled",  # tests/test_precision.py
    "load_latent",  # tests/test_latents.py
    "from_diffusers",  # tests/test_diffusers_models.py
    "from_score_sde",  # tests/test_score_sde.py
    "reconstruct_average",  # tests/test_averages.py
    "save_model",  # tests/test_checkpoint.py
}


def entries() -> list[str]:
    """Return the public functions and classes with such a parameter."""
    found = []
    for name in sde_diffusion.__all__:
        entry = getattr(sde_diffusion, name)
        if callable(entry) and name not in ELSEWHERE:
            words = inspect.signature(entry).parameters
            if PARTS & set(words):
                found.append(name)
    return found


def test_every_public_entry_has_a_row() -> None:
    assert sorted(set(entries()) - set(ENTRIES)) == []


@pytest.mark.parametrize("name", ENTRIES)
def test_another_kind_is_one_sentence(name: str) -> None:
    call, right, kinds = ENTRIES[name]
    if name not in ("read_weights", "train", "load_direct"):
        call(**right)
    for argument, kind in kinds.items():
        for wrong in WRONG[kind]:
            with pytest.raises((TypeError, ValueError)) as refused:
                call(**{**right, argument: wrong})
            said = str(refused.value)
            assert re.fullmatch(r"[^\n]+: [^\n]+ must [^\n]+, got [^\n]*; [^\n]+", said), said


def test_a_class_or_a_name_in_place_of_an_object_is_told_what_to_pass() -> None:
    told = "solver must be a solver object, got Heun; pass for example Heun\\(\\), with its"
    with pytest.raises(TypeError, match=told):
        sample(MODEL, Heun, (4, 2))  # type: ignore[arg-type]
    told = "vlb: variance must be a Variance object, got 'posterior'; pass .*PosteriorVariance"
    with pytest.raises(TypeError, match=told):
        vlb(X, DISCRETE, lattice(10), variance="posterior")  # type: ignore[arg-type]
    told = r"sample: shape must be a row of integers \(B, \*event\), got 4; pass for example"
    with pytest.raises(TypeError, match=told):
        sample(MODEL, Heun(), 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["heun", Heun])
def test_a_comparison_names_what_is_no_solver(wrong: object) -> None:
    problem = Problem("normal", MODEL, torch.randn(16, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="solver must be a solver object"):
        compare(problem, {"it": wrong}, (4,), reference=Heun(), reference_steps=4, samples=4)  # type: ignore[dict-item]


# --- a network that is called otherwise ---


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None])


class Asking(nn.Module):
    def forward(self, x: Tensor, k: Tensor, condition: Tensor) -> Tensor:  # noqa: ARG002
        return x + condition


class Failing(nn.Module):
    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return x + k + None  # type: ignore[operator]


class Table(nn.Module):
    """A table of eleven classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(11, 2)

    def forward(self, x: Tensor, k: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return x + self.rows(y).to(x.dtype)


def test_a_network_of_other_arguments_is_told_what_it_was_called_with() -> None:
    cases: list[tuple[ScoreModel, str]] = [
        (ScoreModel(Keyword(), VP), r"ScoreModel: network must take \(x, t\) in its forward, got"),
        (ScoreModel.from_timesteps(Asking(), BETAS), r"argument: 'condition'; .*Conditioned"),
        (ScoreModel.from_denoiser(Keyword()), r"take \(x, t\) .* forward\(x, t\) calls it"),
        (LABELLED_OTHERWISE, r"ClassLabels: network must take \(x, t, cls=\) .* keyword=…"),
        (
            ScoreModel(Conditioned(Asking(), {"text": X}), VP),
            r"Conditioned: network must take \(x, t, text=\) in its forward, got .*'condition'",
        ),
        (ScoreModel(Labelless(), VP).given(1), r"must take \(x, t, labels\).*labels=ClassLabels"),
    ]
    for model, told in cases:
        with pytest.raises(TypeError, match=told) as refused:
            model.eps(X, T)
        assert isinstance(refused.value.__cause__, TypeError)  # the network's own


LABELLED_OTHERWISE: Final = ScoreModel.from_timesteps(
    Table(), BETAS, labels=ClassLabels(10, null=10, keyword="cls")
)


class Looking(nn.Module):
    """Looks its time up, in a table or by an index."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self.rows = nn.Embedding(10, 2)
        self.table = table

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return x + (self.rows(k) if self.table else self.rows.weight[k]).to(x.dtype)


@pytest.mark.parametrize("table", [True, False])
def test_a_network_that_looks_its_timesteps_up_is_told_the_dtype(table: bool) -> None:
    network = Looking(table=table)
    told = r"dtype must be torch\.long .*, got torch\.float64; pass dtype=torch\.long to from_time"
    with pytest.raises(TypeError, match=told):
        ScoreModel.from_timesteps(network, BETAS).eps(X, T)
    right = ScoreModel.from_timesteps(network, BETAS, dtype=torch.long)
    expected = X + network.rows.weight[4].double()  # t = ½ of 10 steps is the index 4
    assert torch.equal(right.eps(X, T), expected)


def test_an_error_inside_a_network_stays_its_own() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        ScoreModel.from_timesteps(Failing(), BETAS).eps(X[:, :1], T)


@pytest.mark.parametrize("labels", [ClassLabels(10, null=12), ClassLabels(100, null=10)])
def test_labels_beyond_the_networks_table_are_told(labels: ClassLabels) -> None:
    model = ScoreModel.from_timesteps(Table(), BETAS, labels=labels)
    told = "ClassLabels: labels must be rows of the network's table of classes, got"
    with pytest.raises(ValueError, match=told) as refused:
        guided(model, 50 if labels.count > 50 else 3).eps(X, T)
    assert isinstance(refused.value.__cause__, IndexError)
    right = ScoreModel.from_timesteps(Table(), BETAS, labels=ClassLabels(10, null=10))
    assert guided(right, 3, 1.0).eps(X, T).shape == X.shape


def test_a_network_alone_on_the_command_line_is_told_what_to_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = "from torch import nn\nclass Net(nn.Module):\n    pass\nnet = Net()\n"
    (tmp_path / "my_bare_network.py").write_text(module)
    for name in ("my_bare_network:net", "my_bare_network:Net"):
        found = CliRunner().invoke(main, ["sample", "--model", name, "--out", "out"])
        assert found.exit_code == 2
        assert (
            "got the network Net; name a model made of it, such as model = Score" in found.output
        )
