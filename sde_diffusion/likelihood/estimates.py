"""What the bounds' estimates share: pairs of draws, control variates and refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sde_diffusion._check import an_object, diverged, positive_integer, wrong_type, wrong_value
from sde_diffusion._tensors import check_state, flat_sum
from sde_diffusion.data.checks import check_dequantized
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.dynamics import check_coupling
from sde_diffusion.integration import check_evaluation
from sde_diffusion.likelihood.decoders import Decoder, GaussianDecoder
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE


class Pairs:
    """Sums of terms over pairs of independent draws, and the error that the differences show."""

    def __init__(self, terms: int, x: Tensor) -> None:
        self.total = torch.zeros(terms, len(x), dtype=torch.float64, device=x.device)
        self._variance = torch.zeros_like(self.total[0])

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add both draws of one stratum, each (terms, B) with its weight in it."""
        self.total += one + other
        self._variance += (one - other).sum(0).square()

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the sum of all terms, (B,): E(y₁ − y₂)² = Var(y₁ + y₂)."""
        return self._variance.sqrt()


class Control:
    """The coefficient c of the control variate ‖eps‖² − D, for every sample.

    Near the data ‖eps − eps_θ‖² ≈ ‖eps‖², near the prior it does not depend on it; the best c
    is close to the level E‖eps − eps_θ‖²/D in between. It is read off earlier strata alone, so
    that draws and coefficient are independent: the mean stays what it is, and so does the
    standard error.
    """

    def __init__(self, x: Tensor) -> None:
        self.c = torch.ones(len(x), dtype=torch.float64, device=x.device)
        self._d = x[0].numel()

    def see(self, one: Tensor, other: Tensor) -> None:
        """Follow the level of ‖eps − eps_θ‖², (B,), in a stratum that is done."""
        self.c = 0.5 * self.c + 0.25 * (one + other) / self._d


def uniforms(noise: PerSampleNoise, x: Tensor) -> Tensor:
    """Return a draw uniform on (0, 1) for each sample, (B,) float64 on the CPU."""
    normals = noise.normal(torch.empty(len(x), 1, dtype=torch.float64, device=x.device))
    u: Tensor = torch.special.ndtr(normals[:, 0])
    return u.cpu()


def squares(x: Tensor) -> Tensor:
    """Return ‖x‖² of every sample: (B, *event) → (B,), float64."""
    return flat_sum(x.double().square())


def check_model(what: str, x: Tensor, model: object) -> ScoreLike:
    """Return the score model, refusing what is no state, and models in training or coupled."""
    check_state(what, x)
    if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
        raise wrong_type(
            what,
            "model",
            "be a score model of a LinearSDE",
            type(model).__name__,
            "pass a ScoreModel, or an oracle's .diffused(sde)",
        )
    check_evaluation(what, model)
    check_coupling(what, "model", model)
    return model


def check_decoder(what: str, x: Tensor, decoder: Decoder | None, levels: int | None) -> Decoder:
    """Return the decoder, `GaussianDecoder` if none is given, refusing data that do not fit.

    Arguments:
        what: the function that asks, for the error.
        x: the data; (B, *event).
        decoder: the decoder, if given.
        levels: the levels of dequantized integers, if given.
    """
    decoder = GaussianDecoder() if decoder is None else decoder
    remedy = "pass for example BinDecoder(bin_centres(256)), or drop it"
    an_object(what, "decoder", decoder, Decoder, remedy)
    decoder.check(what, x)
    if levels is not None:
        if not isinstance(decoder, GaussianDecoder):
            raise wrong_value(
                what,
                "levels",
                "be left out with a decoder of levels",
                levels,
                "drop it: that bound needs no offset",
            )
        check_dequantized(what, x, DataSpec("x", tuple(x.shape[1:]), levels))
    return decoder


def check_draws(what: str, draws: int, *, least: int = 2) -> None:
    """Refuse a number of draws that does not make pairs."""
    positive_integer(what, "draws", draws, least=least)
    if draws % 2:
        raise wrong_value(
            what, "draws", "be even: they are drawn in pairs", draws, f"pass draws={draws + 1}"
        )


def totals(
    what: str, terms: Mapping[str, Tensor], x: Tensor, levels: int | None
) -> tuple[Tensor, Tensor]:
    """Return nats and bits per dimension of the terms of −log p.

    Arguments:
        what: the function that asks, for the error.
        terms: the terms by name; (B,) each, nats.
        x: the data; (B, *event).
        levels: the levels of dequantized integers, for their offset; None for none.

    Shapes: both (B,), float64.
    Errors: FloatingPointError naming the term that is not finite.
    """
    for name, term in terms.items():
        if not bool(term.isfinite().all()):
            raise diverged(
                what,
                f"the {name} term",
                "be finite",
                float(term.sum()),
                "look for NaN or huge numbers in the model's output",
            )
    nats = -sum(terms.values(), torch.zeros(()))
    offset = 0.0 if levels is None else math.log2(levels / 2)
    return nats, -nats / (x[0].numel() * math.log(2)) + offset
