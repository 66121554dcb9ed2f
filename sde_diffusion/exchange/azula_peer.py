"""Samplers of azula as solvers, on the exact times of any grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion.exchange.peers import Eps, Peer, Run, named
from sde_diffusion.foreign.installed import program
from sde_diffusion.sde import LinearSDE


@final
class AzulaPeer(Peer):
    """A sampler of azula, whose own time runs evenly from 1 to 0 along the grid.

    Between two times of the grid its time is linear in t.

    Arguments:
        kind: the name of the class.
        settings: of the sampler, such as ``{"order": 3}``.

    Errors: ValueError without azula, for another name or for other settings.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any] | None = None) -> None:
        samplers = program("azula.sample", "azula")
        known = [name for name in samplers.__all__ if name != "Sampler"]
        if kind not in known:
            rule = f"be followed by one of {', '.join(known)}"
            raise wrong_value("--peer", "azula", rule, kind, f"pass azula:{known[0]}")
        self.kind = kind
        self.settings = dict(settings or {})
        self._class: Any = vars(samplers)[kind]
        self._posterior = program("azula.denoise", "azula").DiracPosterior
        try:
            self._class(None, **self.settings)
        except TypeError as error:
            remedy = f"pass azula:{kind} alone, or such as azula:xEABSampler:order=3"
            raise wrong_value(
                self.name, "settings", "be those of the sampler", Reason(error), remedy
            ) from error

    @property
    def name(self) -> str:
        """The name of the class, with the settings."""
        return named("azula", self.kind, self.settings)

    def make(self, sde: LinearSDE, grid: Tensor) -> Run:
        n = len(grid) - 1

        def run(eps: Eps, x: Tensor) -> Tensor:
            denoiser = _Denoiser(self._posterior, sde, grid, eps)
            sampler = self._class(
                denoiser, steps=n, silent=True, dtype=torch.float64, **self.settings
            )
            found: Tensor = sampler(x)
            return found

        return run


@final
class _Denoiser:
    """What a sampler of azula calls: the posterior at its time, and its schedule."""

    def __init__(self, posterior: Any, sde: LinearSDE, grid: Tensor, eps: Eps) -> None:  # noqa: ANN401
        self.posterior = posterior
        self.sde = sde
        self.grid = grid
        self.eps = eps
        times = torch.linspace(1.0, 0.0, len(grid), dtype=torch.float64)
        rows = zip(grid, sde.alpha(grid), sde.sigma(grid), strict=True)
        # So that the adapter costs next to nothing in a step.
        self._known: dict[float, tuple[Tensor, Tensor, Tensor]]
        self._known = dict(zip(times.tolist(), rows, strict=True))

    def __call__(self, x: Tensor, time: Tensor) -> Any:  # noqa: ANN401
        t, alpha, sigma = self._at(time)
        mean = torch.add(x, self.eps(x, t), alpha=-float(sigma)).div_(float(alpha))
        return self.posterior(mean)

    def schedule(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, in the time's shape."""
        _, alpha, sigma = self._at(time)
        return alpha.to(time.device), sigma.to(time.device)

    def _at(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, alpha and sigma at azula's time, which is 1 − i/n at grid[i]."""
        if time.ndim == 0 and (row := self._known.get(float(time))) is not None:
            return row
        n = len(self.grid) - 1
        place = (1 - time.cpu()) * n
        near = place.round()
        i = place.floor().clamp(0, n - 1).long()
        between = torch.lerp(self.grid[i], self.grid[i + 1], place - i)
        t = torch.where((place - near).abs() < 1e-9, self.grid[near.long()], between)
        return t, self.sde.alpha(t), self.sde.sigma(t)
