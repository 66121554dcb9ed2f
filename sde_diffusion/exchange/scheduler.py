"""Our solvers as schedulers of diffusers, for its pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import Reason, diverged, one_of, wrong_value
from sde_diffusion._seeds import check_seed
from sde_diffusion._tensors import check_state
from sde_diffusion.exchange.described import described, solver_from
from sde_diffusion.exchange.paused import PausedSolve
from sde_diffusion.exchange.plan import PlannedEvaluation, evaluations
from sde_diffusion.exchange.streams import Generators, noise_for
from sde_diffusion.foreign.diffusers_schedulers import PREDICTIONS
from sde_diffusion.foreign.installed import missing
from sde_diffusion.grids import check_grid, recommended
from sde_diffusion.integration import check_falling
from sde_diffusion.lattices import leading, linspace, trailing
from sde_diffusion.models.wrapped import AtTimesteps
from sde_diffusion.schedules import DiscreteBeta
from sde_diffusion.scores import check_result
from sde_diffusion.sde import VPSDE
from sde_diffusion.solver import Solver

try:
    from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
except ImportError as error:
    raise ImportError(missing("diffusers", error)) from error

GRIDS: Final = ("recommended", "leading", "trailing", "linspace")
_WHAT: Final = "SolverScheduler"
_AGAIN: Final = "call set_timesteps, then step once for each of timesteps, in their order"


@final
class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # without types
    """A fixed-step solver as a scheduler of diffusers, for pipelines of networks net(x, k).

    The solver runs as in `sample`; where it asks for the network, the pipeline answers. So
    ``timesteps`` has an entry k = tN − 1 for each evaluation, several in a step of Heun, and
    `step` returns the state at which the network is evaluated next, at last the sample. A
    pipeline may change it between two steps of a `OneStep` or `Multistep` solver, which goes on
    from there; within a step, or with another solver, a change is refused.

    An output of twice the channels has a learned variance in its second half, which is left out.
    Nothing is clipped.

    Arguments:
        solver: any solver with fixed steps; or its description, as a configuration has it.
        num_train_timesteps: N, the number of betas.
        beta_start: the first beta of a schedule by name.
        beta_end: the last beta of a schedule by name.
        beta_schedule: a name of diffusers, such as "linear" or "squaredcos_cap_v2".
        trained_betas: the betas themselves instead.
        prediction_type: what the network predicts: "epsilon", "sample" or "v_prediction".
        rescale_betas_zero_snr: whether the betas are rescaled so that the last state is all noise.
        grid: "recommended" for the solver's own, or "leading", "trailing" or "linspace".
        seed: of the solver's noise, where the pipeline hands no generator to `step`.

    Errors: ImportError without diffusers; TypeError for what is no solver; ValueError for a
    solver that chooses its steps, or for another name.

    >>> from sde_diffusion.solvers import Heun
    >>> scheduler = SolverScheduler(Heun())
    >>> scheduler.set_timesteps(10)
    >>> len(scheduler.timesteps), scheduler.timesteps[0].item()
    (20, 999.0)
    """

    init_noise_sigma = 1.0

    def __init__(
        self,
        solver: Solver[Any] | Mapping[str, Any],
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        grid: str = "recommended",
        seed: int = 0,
    ) -> None:
        one_of(_WHAT, "prediction_type", prediction_type, PREDICTIONS)
        one_of(_WHAT, "grid", grid, GRIDS)
        check_seed(_WHAT, seed)
        self.solver = solver if isinstance(solver, Solver) else solver_from(solver)
        betas = None if trained_betas is None else [float(beta) for beta in trained_betas]
        schedule = {
            "num_train_timesteps": num_train_timesteps,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "beta_schedule": beta_schedule,
            "trained_betas": betas,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
        }
        made = DDPMScheduler(**schedule).betas
        self.sde = VPSDE(DiscreteBeta(made))
        self.alphas_cumprod = torch.cumprod(1 - made, 0)
        self.register_to_config(
            solver=described(self.solver),
            prediction_type=prediction_type,
            grid=grid,
            seed=seed,
            **schedule,
        )
        self.order = 1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(made) - 1, -1, -1)
        self._grid = torch.empty(0)
        self._plan = list[PlannedEvaluation]()
        self._k = list[float]()
        self._solve: PausedSolve | None = None
        evaluations(_WHAT, self.solver, self.sde, recommended(self.sde, 4, solver=self.solver))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        *,
        grid: Tensor | None = None,
    ) -> None:
        """Set the steps of the solver, and ``timesteps``, one for each of its evaluations.

        Arguments:
            num_inference_steps: the number of steps n, along the grid that the configuration says.
            device: of ``timesteps``.
            grid: the times instead, falling from noise to data; (n + 1,), float64.
        """
        if (grid is None) == (num_inference_steps is None):
            got = "neither" if grid is None else "both"
            rule = "be given, one of the two"
            raise wrong_value(
                _WHAT, "num_inference_steps, grid", rule, got, "call set_timesteps(20)"
            )
        self._grid = self._times(int(num_inference_steps or 0)) if grid is None else grid
        check_grid(self._grid)
        check_falling(_WHAT, self._grid)
        self._plan = evaluations(_WHAT, self.solver, self.sde, self._grid)
        self._solve = None
        t = torch.tensor([e.t for e in self._plan], dtype=torch.float64)
        _, k = AtTimesteps(nn.Identity(), len(self)).inputs(t, t)
        whole = bool((k == k.round()).all())
        # Pipelines and their networks take an integer as it is, and a fraction as float32.
        k = k.long() if whole else k.float()
        self._k = k.tolist()
        self.timesteps = k.to(device)
        self.num_inference_steps = len(self._grid) - 1
        self.order = max(len(t) // self.num_inference_steps, 1)

    def _times(self, steps: int) -> Tensor:
        spacings = {"leading": leading, "trailing": trailing, "linspace": linspace}
        if self.config.grid in spacings:
            return spacings[self.config.grid](len(self), steps)
        # No network of timesteps was trained below t = 1/N.
        return recommended(self.sde, steps, end=1 / len(self), solver=self.solver)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:  # noqa: ARG002
        """Return the state itself, which a variance-preserving network takes as it is."""
        return sample

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Return the state at which the network is evaluated next, at last the sample.

        Arguments:
            model_output: of the network at (sample, timestep); (B, C, …), or (B, 2C, …) with a
                learned variance.
            timestep: the next of ``timesteps``.
            sample: what the last step returned, at first the noise; (B, C, …).
            eta: what DDIM pipelines pass; the solver sets its own noise, so 0.
            use_clipped_model_output: what DDIM pipelines pass; nothing is clipped.
            generator: of the solver's noise, read once at the first step; or one a sample.
            return_dict: whether the state stands in an object, as ``prev_sample``.

        Errors: ValueError for another timestep than the next one, or a sample that was changed
        where the solver cannot take it; FloatingPointError where the state is not finite.
        """
        if eta or use_clipped_model_output:
            rule = "be left at 0 and None"
            remedy = "set the noise by the solver, as in Ancestral(eta=1.0)"
            got = f"{eta}, {use_clipped_model_output}"
            raise wrong_value(_WHAT, "eta, use_clipped_model_output", rule, got, remedy)
        check_state(_WHAT, sample)
        channels = sample.shape[1]
        if model_output.shape[1] == 2 * channels:
            model_output = model_output[:, :channels]
        output = check_result(_WHAT, model_output, sample)
        if self._solve is None:
            self._solve = self._begun(float(timestep), sample, generator)
        solve = self._solve
        self._check_next(float(timestep), solve)
        self._take(sample, solve)
        solve.answer(output)
        if not bool(torch.isfinite(solve.x).all()):
            got = Reason(f"NaN or infinity after timestep {float(timestep):g}")
            remedy = "look at the network's output, or use more steps"
            raise diverged(_WHAT, "sample", "stay finite", got, remedy)
        self._solve = None if solve.done else solve
        # A copy, so that what a pipeline changes in place is seen as a change.
        found = solve.x.clone()
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _begun(self, timestep: float, sample: Tensor, generator: Generators) -> PausedSolve:
        """Return the solve from a timestep on: the first, or a later one at which a step begins.

        Pipelines that start from a noisy image leave out the first timesteps.
        """
        if not self._plan:
            raise wrong_value(_WHAT, "timesteps", "be set before a step", "none", _AGAIN)
        starts = [i for i, e in enumerate(self._plan) if e.at_state and self._k[i] == timestep]
        if not starts:
            raise self._unexpected(timestep, self._k[0])
        grid, plan = self._from(starts[0])
        noise = noise_for(sample, self.config.seed, generator)
        prediction = PREDICTIONS[self.config.prediction_type]
        return PausedSolve(self.solver, self.sde, prediction, plan, sample.clone(), grid, noise)

    def _from(self, first: int) -> tuple[Tensor, list[PlannedEvaluation]]:
        """Return the grid and the evaluations of a solve that leaves out the first ones."""
        if first == 0:
            return self._grid, self._plan
        grid = self._grid[self._plan[first].step :]
        plan = evaluations(_WHAT, self.solver, self.sde, grid)
        if [e.t for e in plan] != [e.t for e in self._plan[first:]]:
            raise wrong_value(
                _WHAT,
                "timestep",
                f"be the first, {self._k[0]:g}: this solver starts otherwise than it goes on",
                self._k[first],
                "pass AngularAdams(order=3) or DDIM() to start from a noisy image",
            )
        return grid, plan

    def _check_next(self, timestep: float, solve: PausedSolve) -> None:
        due = self._k[len(self._k) - len(solve.plan) + solve.answered]
        if timestep != due:
            raise self._unexpected(timestep, due)

    def _unexpected(self, timestep: float, due: float) -> ValueError:
        rule = f"be the next of timesteps, {due:g}"
        return wrong_value(_WHAT, "timestep", rule, timestep, _AGAIN)

    def _take(self, sample: Tensor, solve: PausedSolve) -> None:
        """Let the solve go on from the sample, where a pipeline has changed it."""
        same = sample.shape == solve.x.shape and sample.dtype == solve.x.dtype
        if same and torch.equal(sample, solve.x):
            return
        if not same or not solve.editable:
            raise wrong_value(
                _WHAT,
                "sample",
                "be what the last step returned",
                "another one",
                "leave it, or pass a solver of one evaluation a step, such as AngularAdams()",
            )
        solve.edit(sample.clone())

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = alpha x0 + sigma eps at t = (k + 1)/N, for the timesteps k.

        Shapes: samples and noise (B, *event), timesteps () or (B,).
        """
        t = (timesteps.double() + 1) / len(self)
        return self.sde.perturb(original_samples, t, noise)
