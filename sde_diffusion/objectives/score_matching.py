"""Score matching without the kernel q(x_t|x0): by the divergence of the score alone.

E[½‖s‖² + ∇·s] over x ~ p_t is ½ E‖s − ∇log p_t‖² less a constant, so draws of x_t are enough. They
come from the closed form of a linear SDE, or from paths of any SDE, simulated forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import a_function, an_object, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, check_times, flat_sum
from sde_diffusion.grids import check_grid
from sde_diffusion.integration import integrate
from sde_diffusion.likelihood.divergence import Exact, Hutchinson, signs
from sde_diffusion.models.score import DirectScore, LearnedScore, ScoreModel
from sde_diffusion.noise import Noise
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.scores import Score
from sde_diffusion.sde import SDE, LinearSDE
from sde_diffusion.solver import Solver, check_solver
from sde_diffusion.time_distributions import TimeDistribution

_BLOCK: Final = 32  # draws of a sample's noise at a time


def implicit_loss(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Return ½‖s‖² + ∇·s of the score s(x, t), by its exact divergence, with the graph to s.

    Shapes: x (B, *event), t () or (B,); result (B,), float64.
    Errors: TypeError for a score that is not differentiable in x.
    Source: Hyvärinen 2005.

    >>> implicit_loss(lambda x, t: -x, torch.ones(1, 3), torch.tensor(0.5)).tolist()
    [-1.5]
    """
    _check("implicit_loss", score, x, t)
    exact = Exact()
    s, divergence = exact.evaluate(lambda x: score(x, t), x, exact.draw(x), create_graph=True)
    return 0.5 * flat_sum(s.double().square()) + divergence[:, 0]


def sliced_loss(score: Score, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
    """Return ½‖s‖² + zᵀ∇(zᵀs), whose mean over random signs z is `implicit_loss`.

    Arguments:
        score: the score s as a function of x and t.
        x: the states; (B, *event).
        t: their times; () or (B,).
        noise: where the signs are drawn.

    Shapes: result (B,), float64.
    Errors: TypeError for a score that is not differentiable in x.
    Source: Song et al. 2020 (Sliced score matching), equation 8, with reduced variance.

    >>> from sde_diffusion import WhiteNoise
    >>> sliced_loss(lambda x, t: -x, torch.ones(1, 3), torch.tensor(0.5), WhiteNoise(0)).tolist()
    [-1.5]
    """
    _check("sliced_loss", score, x, t)
    an_object("sliced_loss", "noise", noise, Noise, "pass for example WhiteNoise(0)")
    s, form = Hutchinson().evaluate(
        lambda x: score(x, t), x, signs(noise.normal(x))[:, None], create_graph=True
    )
    return 0.5 * flat_sum(s.double().square()) + form[:, 0]


def _check(what: str, score: Score, x: Tensor, t: Tensor) -> None:
    """Refuse parts of another kind."""
    a_function(what, "score", score, "(x, t) -> score", "pass a ScoreModel or a function")
    check_state(what, x)
    check_times(what, t)


@final
@dataclass(frozen=True, eq=False)
class Paths(TimeDistribution):
    """The times of a grid from 0 on, with equal probabilities, and x_t along simulated paths.

    ``solver`` is one of the forward SDE, such as `EulerMaruyama`; x_t has its error. ``grid``
    rises from 0, where the data are.

    Errors: ValueError for a grid that does not rise from 0.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.solvers import EulerMaruyama
    >>> paths = Paths(EulerMaruyama(), torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64))
    >>> paths.time(VPSDE(), torch.tensor([0.2, 0.5, 0.9]), 0.0).tolist()
    [0.1, 1.0, 1.0]
    """

    solver: Solver[Any]
    grid: Tensor

    __repr__ = shown

    def __post_init__(self) -> None:
        check_solver("Paths", self.solver)
        check_grid(self.grid)
        if float(self.grid[0]) != 0:
            raise wrong_value(
                "Paths",
                "grid",
                "rise from 0, where the data are",
                f"{float(self.grid[0]):.4g} … {float(self.grid[-1]):.4g}",
                "pass for example uniform(100, 0.0, 1.0)",
            )

    def time(self, sde: SDE, u: Tensor, t_min: float) -> Tensor:  # noqa: ARG002  (the grid's)
        steps = len(self.grid) - 1
        return self.grid[(u.cpu() * steps).long().clamp(max=steps - 1) + 1]

    def density(self, sde: SDE, t: Tensor, t_min: float) -> Tensor:  # noqa: ARG002
        return torch.full_like(t, 1 / (len(self.grid) - 1))

    def check(self, sde: SDE) -> None:
        """Refuse an SDE whose horizon is before the grid's last time."""
        end = float(self.grid[-1])
        if end > sde.horizon:
            raise wrong_value(
                "Paths",
                "grid",
                f"end at the SDE's horizon {sde.horizon} at most",
                end,
                "leave out its later times",
            )

    def states(self, sde: SDE, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Return x_t of every sample of x0 at its own time of the grid.

        Arguments:
            sde: the SDE of the paths.
            x0: the data, at time 0; (B, *event).
            t: times of the grid; (B,).
            noise: the Brownian increments of the paths.

        Shapes: result (B, *event).
        """
        k = torch.searchsorted(self.grid, t.cpu().double() - 1e-12)
        found = x0.clone()

        def keep(step: int, _: Tensor, x: Tensor) -> None:
            found[k == step] = x[k == step]

        # To the end of the grid, so that what is drawn of a sample's noise is not its batch's.
        with torch.no_grad():
            integrate(sde, self.solver, x0, self.grid, noise=_InBlocks(noise), callback=keep)
        return found


@final
class _InBlocks(Noise):
    """The normals of another noise, drawn for many steps at once: every call costs."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._block = torch.empty(0, 0)
        self._next = 0

    def normal(self, x: Tensor) -> Tensor:
        if self._next == self._block.shape[1]:
            block = x.new_empty(x.shape[0], _BLOCK, *x.shape[1:])
            self._block = self._noise.normal(block)
            self._next = 0
        self._next += 1
        return self._block[:, self._next - 1]


class Marginal(Objective, ABC):
    """A loss on draws of x_t that needs no kernel; times may be those of `Paths`, for any SDE.

    A linear SDE's loss is 1 + (2 sigma²/D) (½‖s‖² + ∇·s), which has the mean of the denoising loss
    of the perceptual weight, whatever the score: E‖eps‖²/D = 1. Without sigma it is
    (2t/D) (½‖s‖² + ∇·s): sigma² grows like t.
    """

    @abstractmethod
    def matching(self, score: Score, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Return ½‖s‖² + ∇·s or an estimate of it.

        Arguments:
            score: the score s as a function of x and t.
            x: the states; (B, *event).
            t: their times; (B,).
            noise: where an estimate draws its probes.

        Shapes: result (B,).
        """

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        self._check_times(model.sde)

    def check_direct(self, model: DirectScore) -> None:
        self._check_times(model.sde)

    def _check_times(self, sde: SDE) -> None:
        if isinstance(self.distribution, Paths):
            self.distribution.check(sde)
        elif not isinstance(sde, LinearSDE):
            raise self._no_kernel()

    def _no_kernel(self) -> TypeError:
        return wrong_type(
            type(self).__name__,
            "law",
            "be Paths where sde is not linear",
            type(self.distribution).__name__,
            "pass Paths(EulerMaruyama(), uniform(100, 0.0, 1.0))",
        )

    def _states(self, sde: SDE, batch: Batch) -> Tensor:
        if isinstance(self.distribution, Paths):
            return self.distribution.states(sde, batch.x0, batch.t, batch.noise)
        if isinstance(sde, LinearSDE):
            return sde.perturb(batch.x0, batch.t, batch.eps)
        raise self._no_kernel()

    def forward(self, model: LearnedScore, batch: Batch) -> Tensor:
        sde = model.sde
        x0 = batch.x0
        t = batch.t
        x = self._states(sde, batch)
        loss = self.matching(model, x, t, batch.noise) * (2 / x0[0].numel())
        if isinstance(sde, LinearSDE):
            return 1 + sde.sigma(t).square().to(loss) * loss
        return t.to(loss) * loss


@final
class Implicit(Marginal):
    """Implicit score matching: `implicit_loss`, of D products with the score's Jacobian.

    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> from sde_diffusion.time_distributions import UniformTimes
    >>> Implicit(UniformTimes(), Stratified(), 1e-5).t_min
    1e-05
    """

    def matching(self, score: Score, x: Tensor, t: Tensor, noise: Noise) -> Tensor:  # noqa: ARG002
        return implicit_loss(score, x, t)


@final
class Sliced(Marginal):
    """Sliced score matching: `sliced_loss`, of one product with the score's Jacobian.

    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> from sde_diffusion.time_distributions import UniformTimes
    >>> Sliced(UniformTimes(), Stratified(), 1e-5).t_min
    1e-05
    """

    def matching(self, score: Score, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        return sliced_loss(score, x, t, noise)
