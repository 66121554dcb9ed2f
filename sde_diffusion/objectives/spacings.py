"""How the quantiles u of the times of a batch are drawn from [0, 1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, NamedTuple, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import positive_integer
from sde_diffusion._shown import shown


class Spaced(NamedTuple):
    """Quantiles u in [0, 1), and the weights that make means over them unbiased.

    Shapes: both (n,), float64.
    """

    u: Tensor
    weight: Tensor


class Spacing(nn.Module, ABC):
    """How the quantiles of a batch are drawn from [0, 1); what it learns is in its buffers."""

    __repr__ = shown

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        """Return n quantiles; means weighted by their weights are those of uniform ones."""

    def observe(self, u: Tensor, losses: Tensor) -> None:
        """Record the losses at the quantiles of the last draw.

        Shapes: both (n,).
        """


@final
class Stratified(Spacing):
    """u_i = (i + U_i)/n: one uniform draw in each of n equal parts of [0, 1).

    Over a batch in random order each is uniform. The variance of the batch mean of a smooth
    function is O(n⁻³), that of n independent draws O(n⁻¹).

    >>> (Stratified().draw(4, torch.Generator().manual_seed(0)).u * 4).floor().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        u = (_places(n, generator) + _uniform(n, generator)) / n
        return Spaced(u, torch.ones_like(u))


@final
class Independent(Spacing):
    """n independent uniform draws.

    >>> Independent().draw(4, torch.Generator().manual_seed(0)).weight.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def draw(self, n: int, generator: torch.Generator) -> Spaced:
        u = _uniform(n, generator)
        return Spaced(u, torch.ones_like(u))


@final
class Antithetic(Spacing):
    """u_i = (U + i/n) mod 1: one uniform draw, and the others at equal distances from it.

    The authors' code calls it "antithetic", their paper a low-discrepancy sampler. Pairs u and
    1 − u would cancel the part of a function that is odd about ½ alone; equal distances cancel
    all its Fourier components but those whose number of periods is a multiple of n. The variance
    of the batch mean of a smooth f is ((f(1) − f(0))/n)²/12, to leading order.

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
    """Quantiles in equal parts j of [0, 1) with p_j ∝ √E[L²] over the last losses seen in each.

    p is uniform until every part has ``history`` losses, and after that a mixture with a
    thousandth of the uniform distribution. A draw has the weight 1/(K p_j), which keeps means
    unbiased. The draws are stratified in p. For a chain the ``bins`` are its steps.

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
