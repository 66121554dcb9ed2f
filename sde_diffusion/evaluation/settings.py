"""What decides every digit of an evaluation of log-likelihoods, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self, final

from sde_diffusion._check import one_of, positive_integer, positive_number, wrong_value
from sde_diffusion._seeds import check_seed
from sde_diffusion._shown import shown

BOUNDS: Final = ("flow", "elbo", "vlb")
DIVERGENCES: Final = ("hutchinson", "hutch++", "exact")
DEQUANTIZATIONS: Final = ("uniform", "truncated-normal", "none")
VARIABLES: Final = ("angle", "time", "log-snr")
MODES: Final = ("auto", "reverse", "forward")
CHAINS: Final = ("auto", "lattice", "log-snr")
VARIANCES: Final = ("auto", "learned", "forward", "posterior")
DECODERS: Final = ("levels", "bins")
# What version 0.1 always did, and its files do not say.
BEFORE: Final = {"chain": "lattice", "variance": "learned", "decoder": "bins"}


@final
@dataclass(frozen=True)
class EvaluationSettings:
    """How log-likelihoods are computed; all of it is JSON, and decides every digit.

    With the dequantization "none", which the flow cannot have, elbo and vlb are of the levels
    themselves, at the centres of their bins.

    Arguments:
        bounds: of "flow", "elbo" and "vlb".
        tolerance: rtol and atol of an adaptive solver; None for the solver's own.
        t_min: the time at which the flow's solve and the elbo begin; in (0, 1). None for the
            model's own, or 1e-5.
        variable: the variable of the flow's solve, "angle", "time" or "log-snr".
        divergence: "hutchinson", "hutch++" or "exact".
        probes: probes of the divergence for each sample.
        mode: of differentiation, "reverse", "forward" or "auto" (see `Evaluator.decided`).
        dequantization: the noise of integers, "uniform", "truncated-normal" or "none".
        draws: draws of that noise for each sample.
        times: draws of (t, eps) for the elbo and of (k, eps) for the vlb; even, for the vlb 4 at
            least.
        steps: steps of the vlb's chain; None for the DDPM's own, or 1000.
        chain: the times of that chain, "lattice", "log-snr" or "auto" (see `chain_times`).
        variance: of its steps, "learned" or else β_k, "forward" β_k, "posterior" β̃_k or "auto".
        decoder: of the vlb of levels without noise, "levels" (`LevelDecoder`) or "bins".
        batch_size: samples of a batch; it changes results by rounding only.
        seed: the seed of noise, probes and times.

    Errors: ValueError or TypeError for any other value.

    >>> EvaluationSettings(("flow", "elbo"), probes=4).probes
    4
    """

    bounds: tuple[str, ...] = ("flow",)
    tolerance: float | None = None
    t_min: float | None = None
    variable: str = "angle"
    divergence: str = "hutchinson"
    probes: int = 2
    mode: str = "auto"
    dequantization: str = "uniform"
    draws: int = 1
    times: int = 32
    steps: int | None = None
    chain: str = "auto"
    variance: str = "auto"
    decoder: str = "levels"
    batch_size: int = 64
    seed: int = 0

    __repr__ = shown

    def __post_init__(self) -> None:
        what = "EvaluationSettings"
        if not self.bounds or not set(self.bounds) <= set(BOUNDS):
            raise wrong_value(
                what,
                "bounds",
                f"be of {', '.join(BOUNDS)}",
                self.bounds,
                "pass for example ('flow',)",
            )
        _check_choice("divergence", self.divergence, DIVERGENCES)
        _check_choice("dequantization", self.dequantization, DEQUANTIZATIONS)
        _check_choice("variable", self.variable, VARIABLES)
        _check_choice("mode", self.mode, MODES)
        _check_choice("chain", self.chain, CHAINS)
        _check_choice("variance", self.variance, VARIANCES)
        _check_choice("decoder", self.decoder, DECODERS)
        positive_integer(what, "probes", self.probes)
        positive_integer(what, "draws", self.draws)
        positive_integer(what, "batch_size", self.batch_size)
        # What `vlb` asks for is said here by the name of this setting.
        positive_integer(what, "times", self.times, least=4 if "vlb" in self.bounds else 2)
        if self.times % 2:
            raise wrong_value(
                what,
                "times",
                "be even: they are drawn in pairs",
                self.times,
                f"pass {self.times + 1}",
            )
        if self.dequantization == "none" and "flow" in self.bounds:
            raise wrong_value(
                what,
                "dequantization",
                "be some for the flow, a density",
                "none",
                "pass uniform, or leave out the flow",
            )
        check_seed(what, self.seed)
        if self.t_min is not None:
            positive_number(what, "t_min", self.t_min, "pass 1e-5, the usual one")
            if not self.t_min < 1:
                rule = "be below 1, where the data have become noise"
                raise wrong_value(what, "t_min", rule, self.t_min, "pass 1e-5, the usual one")
        if self.tolerance is not None:
            positive_number(what, "tolerance", self.tolerance, "pass 1e-5, the default")
        if self.steps is not None:
            positive_integer(what, "steps", self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that `to_json` wrote, in this version or an earlier one.

        Errors: ValueError for a name that is none of theirs.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            one_of("EvaluationSettings", "a setting", name, known)
        return cls(**BEFORE | dict(values) | {"bounds": tuple(values["bounds"])})


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise wrong_value(
            "EvaluationSettings",
            name,
            f"be one of {', '.join(choices)}",
            repr(value),
            f"pass {choices[0]!r}",
        )
