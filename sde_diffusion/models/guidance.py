"""Classifier-free guidance: the score of a class, pushed away from the score of all data.

With c the conditional and u the unconditional prediction, guidance takes (1+w) c − w u. The
weights add up to 1 and all predictions are one another's affine images, so this is one rule for
eps, x0, v, score and velocity. It is the score of p_t(x|c)^{1+w} p_t(x)^{−w} at every t, and yet
no sampler that follows it samples that density: `sample_tilted` says by how much.

Source: Ho & Salimans 2022; Karras et al. 2024 (any worse model as the unconditional one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import an_object, real_number, wrong_type, wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted
from sde_diffusion.models.conditioned import paired
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.wrapped import NULL
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE

if TYPE_CHECKING:
    from sde_diffusion.data.spec import DataSpec

Weight: TypeAlias = "float | Callable[[Tensor], Tensor]"  # a number, or t -> w(t) in t's shape
At: TypeAlias = "Level | Levels | None"
# (model, x, t, level) -> one of its forms
Form: TypeAlias = Callable[[ScoreLike, Tensor, Tensor, At], Tensor]


@final
class Guided(ScoreLike):
    """The guided score (1+w) s_c − w s_0 of two score models, with the methods of `ScoreModel`.

    w = 0 is the conditional model and w = −1 the unconditional one, bit for bit; the other one is
    not evaluated where w(t) is one of these numbers. Two conditions of one network are evaluated
    in one call on a batch twice as large.

    Shapes: x (B, *event), t () or (B,); every method returns x's shape.
    NFE: 1 an evaluation, which costs one row of a network per sample where w is 0 or −1, else 2.
    Errors: TypeError for what is no score model; ValueError for models of different SDEs or a
    weight that is not finite.
    Source: Ho & Salimans 2022, equation 6.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> one, all_ = (Gaussian(torch.full((1,), m), torch.eye(1)).diffused(VPSDE()) for m in (1, 0))
    >>> t = torch.tensor(0.0, dtype=torch.float64)
    >>> Guided(one, all_, 2.0)(torch.zeros(1, 1), t).item()  # the score of N(3, 1)
    3.0
    """

    sde: LinearSDE

    def __init__(
        self, conditional: ScoreLike, unconditional: ScoreLike, weight: Weight = 1.0
    ) -> None:
        for name, model in (("conditional", conditional), ("unconditional", unconditional)):
            if not isinstance(model, ScoreLike) or not isinstance(model.sde, LinearSDE):
                raise wrong_type(
                    "Guided",
                    name,
                    "be a score model",
                    type(model).__name__,
                    "pass a ScoreModel, or an oracle's .diffused(sde)",
                )
            if isinstance(model, ScoreModel) and model.needs_labels:
                raise wrong_value(
                    "Guided",
                    name,
                    "have labels, of a network without a null class",
                    "none",
                    f"pass model.given(labels), or {NULL}",
                )
        if conditional.sde != unconditional.sde:
            got = f"{conditional.sde} and {unconditional.sde}"
            raise wrong_value(
                "Guided",
                "conditional, unconditional",
                "have one SDE",
                got,
                "train them with the same",
            )
        if not callable(weight):
            _check_weight("Guided", weight)
        self.conditional = conditional
        self.unconditional = unconditional
        self.weight = weight
        self.sde = conditional.linear_sde()

    @property
    def device(self) -> torch.device:
        """Where the models compute."""
        return self.conditional.device

    @property
    def data(self) -> DataSpec | None:
        """What the samples are, where the conditional model tells."""
        return self.conditional.data

    @property
    def predicts(self) -> bool:
        return self.conditional.predicts and self.unconditional.predicts

    @property
    def prediction(self) -> str:
        return self.conditional.prediction

    @property
    def row_by_row(self) -> bool:
        return self.conditional.row_by_row and self.unconditional.row_by_row

    @property
    def coupling(self) -> str:
        """How data met noise in training: "independent" only if it was so for both models."""
        kinds = (model.coupling for model in self._models)
        return next((kind for kind in kinds if kind != "independent"), "independent")

    @property
    def variance(self) -> str:
        """That of the conditional model, whose learned variance the guided steps have."""
        return self.conditional.variance

    @property
    def t_min(self) -> float | None:
        return max((m.t_min for m in self._models if m.t_min is not None), default=None)

    def in_training(self) -> bool:
        return any(model.in_training() for model in self._models)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        own = (p for model in self._models for p in model.parameters(recurse))
        yield from {id(p): p for p in own}.values()  # two conditions of one network share them

    def rows(self, index: Tensor) -> Guided:
        """Return the guided score of the samples ``index`` of the batch, with their labels."""
        c, u = (model.rows(index) for model in self._models)
        same = c is self.conditional and u is self.unconditional
        return self if same else Guided(c, u, self.weight)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided score, so that the guided model itself is a score."""
        return self.score(x, t)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return (1+w) s_c − w s_0."""
        return self._mixed(lambda m, x, t, _: m(x, t), x, t)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return (1+w) eps_c − w eps_0."""
        return self._mixed(_eps, x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return (1+w) x0_c − w x0_0, which may well lie outside the data's range."""
        return self._mixed(lambda m, x, t, _: m.denoise(x, t), x, t)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity of the probability flow of the guided score."""
        return self._mixed(lambda m, x, t, _: m.velocity(x, t), x, t)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        if not self.predicts:
            return converted(form, "x0", self.denoise(x, t), x, at)

        def read(model: ScoreLike, x: Tensor, t: Tensor, at: At) -> Tensor:
            return model.predict(form, x, t, at)  # type: ignore[arg-type]  # there is one

        return self._mixed(read, x, t, at)

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a guided form, and the fraction of the conditional model's learned variance."""
        if self.variance != "learned":
            return super().with_fraction(form, x, t)
        fractions: list[Tensor] = []

        def read(model: ScoreLike, x: Tensor, t: Tensor, _at: At) -> Tensor:
            if model.variance != "learned":
                return model.predict(form, x, t, Levels(self.sde.alpha(t), self.sde.sigma(t)))
            found, fraction = model.with_fraction(form, x, t)
            fractions.append(fraction)
            return found

        # Of two conditions in one batch the conditional ones stand first.
        mixed = self._mixed(read, x, t)
        return mixed, fractions[0][: len(x)]

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return eps_c and eps_0."""
        return self._both(_eps, x, t, None)

    @property
    def _models(self) -> tuple[ScoreLike, ScoreLike]:
        return self.conditional, self.unconditional

    def _mixed(self, read: Form, x: Tensor, t: Tensor, at: At = None) -> Tensor:
        own = self.weight
        w = own(t) if callable(own) else torch.tensor(own, dtype=torch.float64)
        if w.ndim == 0 and float(w) in (0.0, -1.0):
            return read(self.unconditional if w else self.conditional, x, t, at)
        c, u = self._both(read, x, t, at)
        # Not lerp nor addcmul, which round otherwise at the end of a batch than inside.
        return c + expand(w, x) * (c - u)

    def _both(self, read: Form, x: Tensor, t: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Return a form of the conditional and of the unconditional model."""
        both = self._one_network(len(x))
        if both is None:
            return read(self.conditional, x, t, at), read(self.unconditional, x, t, at)
        at = Levels(*map(_twice, at)) if isinstance(at, Levels) else at
        c, u = read(both, _twice(x), _twice(t), at).chunk(2)
        return c, u

    def _one_network(self, n: int) -> ScoreModel | None:
        """Return the model of both conditions in one batch, None where the networks are two."""
        c, u = self._models
        if not (isinstance(c, ScoreModel) and isinstance(u, ScoreModel)):
            return None
        if c.network is u.network or c.prediction != u.prediction:
            return None
        both = paired(c.network, u.network, n)
        return None if both is None else c._around(both)


def guided(
    model: ScoreModel,
    labels: Tensor | int | None = None,
    weight: Weight = 1.0,
    **conditions: object,
) -> Guided:
    """Return a conditional model, guided: one network call an evaluation, on 2B rows.

    The unconditional score is that of the label −1, "no class", and of no other condition, which
    the model knows where it was trained with label dropout. A negative prompt takes its place in
    ``Guided(model.given(text="a seven"), model.given(text="a one"), weight)``.

    Arguments:
        model: of a network with classes or other conditions.
        labels: of the samples; None for none.
        weight: w, or a function of t.
        conditions: what `LearnedScore.given` takes by name, such as text="a seven".

    Shapes: labels () or (B,), integers.
    Errors: TypeError for anything but a ScoreModel; ValueError for a network without classes, or
    without a label for none.

    >>> from sde_diffusion import load, sample
    >>> from sde_diffusion.solvers import DDIM
    >>> sevens = guided(load("digits"), 7, weight=0.5)
    >>> sample(sevens, DDIM(), (2, 1, 8, 8), steps=3).nfe
    3
    """
    if not isinstance(model, ScoreModel):
        raise wrong_type(
            "guided",
            "model",
            "be a ScoreModel",
            type(model).__name__,
            "use Guided(conditional, unconditional, weight)",
        )
    config = model.network_config
    if labels is not None and config is not None and not config.get("classes"):
        raise wrong_value(
            "guided",
            "model",
            "have classes",
            "a network without",
            "train one with labels, or use Guided of two models",
        )
    if labels is None and not conditions:
        remedy = "pass a label, or for example text='a seven'"
        raise wrong_value("guided", "labels", "be there, or another condition", None, remedy)
    if labels is not None and not model.knows_none:
        raise wrong_value(
            "guided",
            "model",
            "know a label for none",
            "a network without a null class",
            f"{NULL}, or use Guided of two models",
        )
    none = model if labels is None else model.given(-1)
    return Guided(model.given(labels, **conditions), none, weight)


@final
@dataclass(frozen=True)
class GuidanceInterval:
    """The weight w(t) = w where low < sigma/alpha ≤ high, else 0: guidance at some levels only.

    Arguments:
        sde: the SDE of the guided models.
        weight: w, at the levels in between.
        low: the level sigma/alpha above which there is guidance.
        high: the level up to which there is guidance.

    Shapes: t () or (B,) → the same.
    Errors: ValueError unless 0 ≤ low < high and w is finite.
    Source: Kynkäänniemi et al. 2024.

    >>> from sde_diffusion import EDMSDE  # whose t is sigma in other units, and alpha 1
    >>> w = GuidanceInterval(EDMSDE(), 2.0, low=0.2, high=3.0)
    >>> w(EDMSDE().time(-torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64).log())).tolist()
    [0.0, 2.0, 0.0]
    """

    sde: LinearSDE
    weight: float
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        an_object("GuidanceInterval", "sde", self.sde, LinearSDE, "pass model.sde")
        for name, value in (("low", self.low), ("high", self.high)):
            real_number("GuidanceInterval", name, value, "pass for example 0.2, 3.0")
        if not 0 <= self.low < self.high:
            raise wrong_value(
                "GuidanceInterval",
                "low, high",
                "satisfy 0 <= low < high",
                f"{self.low}, {self.high}",
                "pass for example 0.2, 3.0",
            )
        _check_weight("GuidanceInterval", self.weight)

    def __call__(self, t: Tensor) -> Tensor:
        """Return w(t)."""
        s = self.sde.sigma(t) / self.sde.alpha(t)
        return self.weight * ((s > self.low) & (s <= self.high)).to(s.dtype)


def _check_weight(what: str, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise wrong_type(what, "weight", "be a number, or a function of t", weight, "pass 1.0")
    if not math.isfinite(weight):
        raise wrong_value(what, "weight", "be finite", weight, "pass for example 1.0")


def _eps(model: ScoreLike, x: Tensor, t: Tensor, _at: At) -> Tensor:
    return model.eps(x, t)


def _twice(values: Tensor) -> Tensor:
    """Return values of one batch for two copies of it; one for all stays one."""
    return torch.cat([values, values]) if values.ndim else values
