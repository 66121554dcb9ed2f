"""The times at which a training batch looks: how numbers fill [0, 1), and the law they go to.

A `Spacing` draws u in [0, 1), a `TimeLaw` takes u to t. What an objective minimises is stated by
its own law and weight; times drawn by another law count with the ratio of the densities, so that
the choice changes how noisy the gradient is, and not what it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import positive_integer, positive_number, wrong_value
from sde_diffusion.grids import check_lambda
from sde_diffusion.sde import LinearSDE


class TimeLaw(ABC):
    """A law of t on [t_min, horizon]."""

    @abstractmethod
    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        """Return the u-quantile of the law, float64, for ``u`` in [0, 1]."""

    @abstractmethod
    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        """Return the density at t, in t's shape."""


@final
@dataclass(frozen=True)
class UniformTimes(TimeLaw):
    """Times uniform on [t_min, horizon].

    >>> from sde_diffusion import VPSDE
    >>> UniformTimes().time(VPSDE(), torch.tensor([0.0, 0.5]).double(), 0.5).tolist()
    [0.5, 0.75]
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        return t_min + (sde.horizon - t_min) * u

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        return torch.full_like(t, 1 / (sde.horizon - t_min))


@final
@dataclass(frozen=True)
class LikelihoodTimes(TimeLaw):
    """Times with density r(t) = g²/(sigma² Z) on [t_min, horizon].

    g²/sigma² = −2 dλ/dt for every linear SDE, so the draw is uniform in λ = log(alpha/sigma) and
    Z = 2(λ(t_min) − λ(horizon)). For the VP-SDE this is B(t) = log1p(expm1(B(t_min)) e^{uZ}).
    Under r, Z ‖eps − eps_θ‖² estimates ∫ (g²/sigma²) ‖eps − eps_θ‖² dt with no weight left in it.

    Source: Song et al. 2021, "Maximum likelihood training", section 5.1 (VP).

    >>> from sde_diffusion import EDMSDE
    >>> half = torch.tensor([0.5]).double()
    >>> round(LikelihoodTimes().time(EDMSDE(80.0), half, 1e-4).item(), 12)  # the geometric mean
    0.01
    """

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        # Rounding may carry the inverse a hair outside the interval, where sigma may be 0.
        return sde.time(first + (last - first) * u).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        return (sde.g(t) / sde.sigma(t)) ** 2 / (2 * (first - last))


def log_snr_range(sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
    """Return λ(t_min) and λ(horizon), 0-d float64."""
    ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
    check_lambda("TimeLaw", sde, t_min, sde.horizon)
    first, last = sde.lambda_(ends)
    return first, last


@final
@dataclass(frozen=True)
class LogNormalTimes(TimeLaw):
    """Times at which ln s = ln(sigma/alpha) is N(mean, std²), kept to [t_min, horizon].

    Errors: ValueError for a std that is not positive, or where the SDE's levels have less than a
    millionth of the law.
    Source: Karras et al. 2022, table 1 (training).

    >>> from sde_diffusion import EDMSDE
    >>> half = torch.tensor([0.5]).double()
    >>> t = LogNormalTimes().time(EDMSDE(80.0), half, 1e-9)
    >>> round(math.log(80 * t.item()), 4)
    -1.2
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        positive_number("LogNormalTimes", "std", self.std)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        first, last = log_snr_range(sde, t_min)
        z = _between(u, *self._ends(sde, t_min))
        lambda_ = (-self.mean - self.std * z).clamp(last, first)
        return sde.time(lambda_).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        z = (-sde.lambda_(t) - self.mean) / self.std
        speed = 0.5 * (sde.g(t) / sde.sigma(t)) ** 2  # −dλ/dt
        return _gaussian(z) * speed / (self.std * _mass(*self._ends(sde, t_min)))

    def _ends(self, sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
        first, last = log_snr_range(sde, t_min)
        return (-first - self.mean) / self.std, (-last - self.mean) / self.std


@final
@dataclass(frozen=True)
class LogitNormalTimes(TimeLaw):
    """Times at which ln(t/(1 − t)) is N(mean, std²), kept to [t_min, horizon].

    On `RectifiedFlow` that is ln(sigma/alpha), and the law is `LogNormalTimes` of this mean.

    Errors: as `LogNormalTimes`.
    Source: Esser et al. 2024 (Stable Diffusion 3), section 3.1.

    >>> from sde_diffusion import RectifiedFlow
    >>> half = torch.tensor([0.5]).double()
    >>> round(LogitNormalTimes().time(RectifiedFlow(), half, 1e-3).item(), 12)
    0.5
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        positive_number("LogitNormalTimes", "std", self.std)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:
        z = _between(u, *self._ends(sde, t_min))
        return torch.sigmoid(self.mean + self.std * z).clamp(t_min, sde.horizon)

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:
        inside = t.clamp(max=1 - 2**-53)  # at 1 it is 0/0
        z = (inside.logit() - self.mean) / self.std
        mass = _mass(*self._ends(sde, t_min))
        return _gaussian(z) / (inside * (1 - inside) * self.std * mass)

    def _ends(self, sde: LinearSDE, t_min: float) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([t_min, sde.horizon], dtype=torch.float64)
        low, high = (ends.logit() - self.mean) / self.std
        return low, high


@final
@dataclass(frozen=True)
class LatticeTimes(TimeLaw):
    """The times of steps 1 … N of a chain, horizon · k/N, one as likely as another.

    Its density is the probability 1/N of each. It has no t_min: the first time is horizon/N.

    >>> from sde_diffusion import VPSDE
    >>> LatticeTimes(4).time(VPSDE(), torch.tensor([0.0, 0.3, 0.99]).double(), 0.0).tolist()
    [0.25, 0.5, 1.0]
    """

    steps: int

    def __post_init__(self) -> None:
        positive_integer("LatticeTimes", "steps", self.steps)

    def time(self, sde: LinearSDE, u: Tensor, t_min: float) -> Tensor:  # noqa: ARG002
        return sde.horizon * (torch.floor(u * self.steps) + 1) / self.steps

    def density(self, sde: LinearSDE, t: Tensor, t_min: float) -> Tensor:  # noqa: ARG002
        return torch.full_like(t, 1 / self.steps)


def _gaussian(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _mass(low: Tensor, high: Tensor) -> Tensor:
    """Return the probability that a standard normal number lies in [low, high]."""
    mass: Tensor = torch.special.ndtr(high) - torch.special.ndtr(low)
    if not float(mass) >= 1e-6:  # the difference of two rounded numbers
        raise wrong_value("TimeLaw", "mean, std",
                          "put a millionth of the law or more on [t_min, horizon]",
                          f"{float(mass):.2g}", "move the mean to the SDE's levels")  # fmt: skip
    return mass


def _between(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the u-quantile of a standard normal number kept to [low, high]."""
    z: Tensor = torch.special.ndtri(torch.special.ndtr(low) + _mass(low, high) * u)
    return z.clamp(low, high)


# The laws that need no more than their name.
TIMES: Final[dict[str, TimeLaw]] = {
    "uniform": UniformTimes(),
    "likelihood": LikelihoodTimes(),
    "log-normal": LogNormalTimes(),
    "logit-normal": LogitNormalTimes(),
}


class Spaced(NamedTuple):
    """Numbers u in [0, 1) and what each counts for: weights that make their means unbiased.

    Shapes: both (n,), float64.
    """

    u: Tensor
    weight: Tensor


class Spacing(nn.Module, ABC):
    """How the numbers of a batch fill [0, 1). What it learns is kept in its buffers."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        """Return n numbers, each uniform in law once it is weighted."""

    def observe(self, u: Tensor, losses: Tensor) -> None:
        """Take note of the losses at the numbers of the last draw.

        Shapes: both (n,).
        """


@final
class Stratified(Spacing):
    """u_i = (i + U_i)/n: one uniform number in each of n equal parts of [0, 1).

    Each is uniform over a batch in random order; the mean over the batch varies less than that
    of n independent draws, for a smooth function by the factor 1/n² and more.

    >>> (Stratified().draw(4, torch.Generator().manual_seed(0)).u * 4).floor().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        u = (_places(n, generator) + _uniform(n, generator)) / n
        return Spaced(u, torch.ones_like(u))


@final
class Independent(Spacing):
    """n independent uniform numbers.

    >>> Independent().draw(4, torch.Generator().manual_seed(0)).weight.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        u = _uniform(n, generator)
        return Spaced(u, torch.ones_like(u))


@final
class Antithetic(Spacing):
    """u_i = (U + i/n) mod 1: one uniform number, and the others at equal distances from it.

    The flag of the authors' code is "antithetic", their name "low-discrepancy sampler". Pairs u
    and 1 − u would cancel what is odd about the middle and nothing else; equal distances cancel
    all waves but those of n periods. The batch mean of f varies by ((f(1) − f(0))/n)²/12.

    Source: Kingma et al. 2021 (Variational diffusion models).

    >>> u = Antithetic().draw(4, torch.Generator().manual_seed(0)).u
    >>> [round(gap, 12) for gap in u.sort().values.diff().tolist()]
    [0.25, 0.25, 0.25]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        u = (_uniform(1, generator) + _places(n, generator) / n).remainder(1)
        return Spaced(u, torch.ones_like(u))


@final
class LossAware(Spacing):
    """Numbers in equal parts j of [0, 1) by p_j ∝ √E[L²] over the last losses seen in each.

    p is uniform until every part has ``history`` losses, and keeps a thousandth of the uniform
    law after that. What is drawn counts 1/(K p_j), so that means stay unbiased. The draws fill p
    evenly, as `Stratified` fills the uniform law. For a chain the parts are its steps.

    Source: Nichol & Dhariwal 2021, equation 18 and section 3.3; the floor is their code's.

    >>> spacing = LossAware(2, history=1)
    >>> spacing.observe(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 3.0]))
    >>> [round(p, 5) for p in spacing.probabilities().tolist()]
    [0.25025, 0.74975]
    """

    losses: Tensor  # (K, history), the last one of part j at (seen[j] − 1) mod history
    seen: Tensor  # (K,)

    def __init__(self, bins: int, history: int = 10) -> None:
        super().__init__()
        positive_integer("LossAware", "bins", bins)
        positive_integer("LossAware", "history", history)
        self.register_buffer("losses", torch.zeros(bins, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Return p_1 … p_K."""
        bins, history = self.losses.shape
        p = torch.full_like(self.losses[:, 0], 1 / bins)
        second = self.losses.square().mean(1).sqrt()
        if int(self.seen.min()) < history or float(second.sum()) == 0:
            return p
        return torch.lerp(second / second.sum(), p, 0.001)

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        p = self.probabilities().to(generator.device)
        v, _ = Stratified().draw(n, generator)
        above = p.cumsum(0)
        j = torch.searchsorted(above, v * above[-1], right=True).clamp(max=len(p) - 1)
        # The place within the part; rounding must not carry it into the next.
        inside = ((v * above[-1] - above[j]) / p[j] + 1).clamp(0, 1 - 2**-30)
        return Spaced((j + inside) / len(p), 1 / (len(p) * p[j]))

    def observe(self, u: Tensor, losses: Tensor) -> None:
        bins, history = self.losses.shape
        j = (u.to(self.seen.device) * bins).long().clamp(0, bins - 1)
        j, order = j.sort(stable=True)
        number = torch.bincount(j, minlength=bins)
        rank = torch.arange(len(j), device=j.device) - torch.searchsorted(j, j)
        kept = rank >= number[j] - history  # two of one batch would be written to one place
        place = (self.seen[j] + rank) % history
        values = losses.to(self.losses)[order]
        self.losses[j[kept], place[kept]] = values[kept]
        self.seen += number


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)


def _places(n: int, generator: torch.Generator) -> Tensor:
    return torch.arange(n, dtype=torch.float64, device=generator.device)


# Spacings by name, for an objective that looks at so many different times.
SPACINGS: Final[dict[str, Callable[[int], Spacing]]] = {
    "stratified": lambda _: Stratified(),
    "independent": lambda _: Independent(),
    "antithetic": lambda _: Antithetic(),
    "loss-aware": LossAware,
}
