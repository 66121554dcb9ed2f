"""What decides every digit of an evaluation of log-likelihoods, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, final

from sde_diffusion._check import positive_integer, positive_number, wrong_value

BOUNDS: Final = ("flow", "elbo", "vlb")
DIVERGENCES: Final = ("hutchinson", "hutch++", "exact")
DEQUANTIZATIONS: Final = ("uniform", "truncated-normal", "none")
VARIABLES: Final = ("angle", "time", "log-snr")
MODES: Final = ("auto", "reverse", "forward")
_CHOICES: Final = {
    "divergence": DIVERGENCES,
    "dequantization": DEQUANTIZATIONS,
    "variable": VARIABLES,
    "mode": MODES,
}


@final
@dataclass(frozen=True)
class EvaluationSettings:
    """How log-likelihoods are computed; all of it is JSON, and decides every digit.

    ``bounds`` are of "flow", "elbo" and "vlb". The flow runs from ``t_min`` in ``variable``, by
    steps of ``tolerance`` where the solver adapts them, with ``probes`` in the mode of
    differentiation ``mode`` (see `Evaluator.decided` for "auto"). Integers get ``draws`` of the
    noise of ``dequantization``; with "none", which the flow cannot have, elbo and vlb are of the
    levels themselves, at the centres of their bins. ``times`` draws of (t, eps), an even number,
    make the elbo and, of (k, eps), the vlb, of ``steps`` steps. ``batch_size`` matters by rounding
    only.

    Errors: ValueError or TypeError for what is none of these.

    >>> EvaluationSettings(("flow", "elbo"), probes=4).probes
    4
    """

    bounds: tuple[str, ...] = ("flow",)
    tolerance: float | None = None
    t_min: float = 1e-5
    variable: str = "angle"
    divergence: str = "hutchinson"
    probes: int = 2
    mode: str = "auto"
    dequantization: str = "uniform"
    draws: int = 1
    times: int = 32
    steps: int | None = None
    batch_size: int = 64
    seed: int = 0

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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise wrong_value(
                    what,
                    name,
                    f"be one of {', '.join(choices)}",
                    repr(getattr(self, name)),
                    f"pass {choices[0]!r}",
                )
        for name in ("probes", "draws", "batch_size"):
            positive_integer(what, name, getattr(self, name))
        positive_integer(what, "times", self.times, least=2)
        if self.times % 2:
            raise wrong_value(
                what,
                "times",
                "be even: they are drawn in pairs",
                self.times,
                f"pass times={self.times + 1}",
            )
        if self.dequantization == "none" and "flow" in self.bounds:
            raise wrong_value(
                what,
                "dequantization",
                "be some for the flow, a density",
                "none",
                "pass uniform, or leave out the flow",
            )
        positive_integer(what, "seed", self.seed, least=0)
        positive_number(what, "t_min", self.t_min)
        if self.tolerance is not None:
            positive_number(what, "tolerance", self.tolerance)
        if self.steps is not None:
            positive_integer(what, "steps", self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"bounds": list(self.bounds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that `to_json` wrote."""
        return cls(**dict(values) | {"bounds": tuple(values["bounds"])})
