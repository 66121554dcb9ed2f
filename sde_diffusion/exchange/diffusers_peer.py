"""Schedulers of diffusers as solvers, on the exact times of any grid."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Final, final

import torch
from torch import Tensor

from sde_diffusion._check import Reason, wrong_value
from sde_diffusion.exchange.noise_levels import EDMRun, FlowRun, LevelsRun, kept, repeated
from sde_diffusion.exchange.peers import Eps, Peer, Run, named
from sde_diffusion.foreign.installed import program
from sde_diffusion.sde import LinearSDE

# What a scheduler is told where it knows the word: to clip nothing, and to end at the grid's end.
_USUAL: Final[Mapping[str, object]] = {
    "clip_sample": False,
    "final_sigmas_type": "sigma_min",
    "timestep_spacing": "leading",
    "skip_prk_steps": True,
}


# Those without betas, whose noise levels are set.
_BY_LEVELS: Final[Mapping[str, type[LevelsRun]]] = {
    "EDMEulerScheduler": EDMRun,
    "EDMDPMSolverMultistepScheduler": EDMRun,
    "FlowMatchEulerDiscreteScheduler": FlowRun,
    "FlowMatchHeunDiscreteScheduler": FlowRun,
}


@final
class DiffusersPeer(Peer):
    """A scheduler of diffusers on the times of the grid.

    One over betas has the grid itself for its training lattice: training step k is the grid's
    time n − k, so that n inference steps meet every time exactly and end at the grid's end, not at
    α = 1. The flow of any linear SDE is that of a VP one in x/√(α² + σ²), with the same eps. Those
    of EDM and of flow matching are set to the grid's noise levels, see `LevelsRun`.

    Arguments:
        kind: the name of the class.
        settings: of the scheduler, such as ``{"solver_order": 3}``.

    Errors: ValueError without diffusers, for another name, or for a scheduler that does not
    evaluate at the times that it is given.

    >>> from sde_diffusion import VPSDE, Gaussian, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, DiffusersPeer("DDIMScheduler"), (4, 2), steps=10).nfe
    10
    """

    def __init__(self, kind: str, settings: Mapping[str, Any] | None = None) -> None:
        library = program("diffusers", "diffusers")
        known = [name for name in dir(library) if name.endswith("Scheduler")]
        near = difflib.get_close_matches(kind, known, n=1)
        if kind not in known:
            remedy = (
                f"did you mean {near[0]}?" if near else "see its documentation for their names"
            )
            raise wrong_value(
                "--peer", "diffusers", "be followed by a scheduler of diffusers", kind, remedy
            )
        self.kind = kind
        self.settings = dict(settings or {})
        # Strangers' classes are told by their names alone.
        self._class: Any = getattr(library, kind)
        self._words = inspect.signature(self._class.__init__).parameters
        if "trained_betas" not in self._words and kind not in _BY_LEVELS:
            rule = f"take trained_betas, or be one of {', '.join(_BY_LEVELS)}"
            raise self._refused(rule, "another")
        own = inspect.signature(self._class.step).parameters.values()
        asked = [word.name for word in own if word.default is word.empty]
        if asked[1:4] != ["model_output", "timestep", "sample"] or len(asked) > 4:
            rule = "step by (model_output, timestep, sample)"
            raise self._refused(rule, ", ".join(asked[1:]))
        for word in self.settings:
            if word not in self._words:
                rule = f"take settings of {', '.join(self._words)[6:]}"
                raise self._refused(rule, word)

    @property
    def name(self) -> str:
        """The name of the class, with the settings."""
        return named("diffusers", self.kind, self.settings)

    def make(self, sde: LinearSDE, grid: Tensor) -> Run:
        if self.kind in _BY_LEVELS:
            scheduler = self._class(**{**self._usual(), **self.settings})
            run = _BY_LEVELS[self.kind](scheduler, sde, grid)
            if run.sigmas is None:
                raise self._miscounted(len(grid) - 1, len(scheduler.sigmas))
            return run
        return self._over_betas(sde, grid)

    def _over_betas(self, sde: LinearSDE, grid: Tensor) -> Run:
        n = len(grid) - 1
        alpha, sigma = sde.alpha(grid), sde.sigma(grid)
        radius = (alpha.square() + sigma.square()).sqrt()
        alphas = (alpha / radius).square().flip(0)
        scheduler = self._on(alphas)
        # Some keep y = x/α with noise σ/α, the others x/√(α² + σ²).
        scaled = float(scheduler.init_noise_sigma) != 1
        unit = alpha if scaled else radius
        sigmas = None
        if "sigmas" in vars(scheduler):
            sigmas = repeated(sigma / alpha, len(scheduler.sigmas))
            if sigmas is None:
                raise self._miscounted(n, len(scheduler.sigmas))
        places = [n - int(step) for step in scheduler.timesteps]

        def run(eps: Eps, x: Tensor) -> Tensor:
            scheduler.set_timesteps(n)  # it forgets the run before
            if sigmas is not None:
                scheduler.sigmas = sigmas
            y = kept(x / float(unit[0]))
            for i, step in zip(places, scheduler.timesteps, strict=True):
                seen = scheduler.scale_model_input(y, step).as_subclass(Tensor)
                found = eps(seen * float(radius[i]), grid[i])
                y = scheduler.step(found, step, y).prev_sample
            return y.as_subclass(Tensor) * float(unit[-1])

        return run

    def _on(self, alphas: Tensor) -> Any:  # noqa: ANN401  (a scheduler)
        """Return the scheduler with these ᾱ, set to take all steps from n to 1."""
        n = len(alphas) - 1
        ratios = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
        for offset in (1, 0):  # one of the two makes "leading" mean n, n − 1, …, 1
            spaced = {"steps_offset": offset} if "steps_offset" in self._words else {}
            scheduler = self._class(
                num_train_timesteps=n + 1,
                trained_betas=(1 - ratios).numpy(),
                **{**self._usual(), **spaced, **self.settings},
            )
            # In float64, where diffusers rounds the betas and σ/α to float32.
            scheduler.alphas_cumprod = alphas
            for word in ("one", "final_alpha_cumprod"):  # ᾱ before the first step
                if word in vars(scheduler):
                    vars(scheduler)[word] = alphas[0]
            try:
                scheduler.set_timesteps(n)
            except ValueError as error:
                rule = f"take all {n} steps of its lattice"
                raise self._refused(rule, Reason(error)) from error
            at = scheduler.timesteps.double()
            whole = bool((at == at.round()).all())
            if whole and at[0] == n and set(at.tolist()) == set(range(1, n + 1)):
                return scheduler
        got = f"{', '.join(f'{float(k):.4g}' for k in at[:3])}, … of {n}"
        rule = "evaluate at the times of the grid, n to 1, and no others"
        raise self._refused(rule, got)

    def _usual(self) -> dict[str, object]:
        return {word: value for word, value in _USUAL.items() if word in self._words}

    def _miscounted(self, n: int, got: int) -> ValueError:
        return self._refused(f"keep {n + 1} or {2 * n} noise levels", str(got))

    def _refused(self, rule: str, got: str) -> ValueError:
        remedy = "pass another, such as diffusers:DPMSolverMultistepScheduler"
        return wrong_value(f"diffusers:{self.kind}", "scheduler", rule, got, remedy)
