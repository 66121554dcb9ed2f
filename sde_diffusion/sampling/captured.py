"""A solve that is recorded once and replayed: one launch on a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sde_diffusion._check import Reason, diverged, wrong_type
from sde_diffusion._shown import shown
from sde_diffusion._watch import DivergedError, samples
from sde_diffusion.dynamics import ProbabilityFlow, ReverseSDE
from sde_diffusion.grids import Grid, times_of
from sde_diffusion.integration import Solution, denoiser, tabulated
from sde_diffusion.noise import Noise, NoiseOfRun, PerSampleNoise, noise_of_run
from sde_diffusion.sampling.generate import begun, checked_grid
from sde_diffusion.scores import ScoreLike
from sde_diffusion.solver import Solver, check_solver


@final
class CapturedSampler:
    """`sample` along one grid in one shape, recorded at its first call and replayed by later ones.

    The first call solves step by step and notes which normals the solver asks for. Later calls
    draw these first, into the same memory, and on a GPU then launch the whole loop as one CUDA
    graph: what a step costs the host besides its kernels is paid once. On other devices they run
    the loop. Every call returns what `sample` does with its seed, bit for bit on a CPU; no GPU has
    recorded a graph yet. The network may be `compiled`. The memory holds all draws of a solve, for
    N steps that each draw N states.

    Arguments:
        model: the score model or exact score, in evaluation mode.
        solver: one that looks at no state on the host: not an adaptive one, `TorchDiffEq` or
            `Picard`.
        shape: (B, *event), of the samples of every call.
        steps: along the `recommended` grid of the solver; 20 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        noise: what draws, as in `sample`.
        dtype: of the states.

    Errors: those of `sample`; TypeError for a solver that cannot be recorded.

    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> from sde_diffusion.solvers import EulerMaruyama
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sampler = CapturedSampler(model, EulerMaruyama(), (4, 2), steps=8)
    >>> again = [sampler(seed=seed).x for seed in (0, 1)]
    >>> torch.equal(again[1], sample(model, EulerMaruyama(), (4, 2), steps=8, seed=1).x)
    True
    """

    __repr__ = shown

    def __init__(
        self,
        model: ScoreLike,
        solver: Solver[Any],
        shape: Sequence[int],
        *,
        steps: int | None = None,
        grid: Grid | None = None,
        noise: NoiseOfRun = PerSampleNoise.of_run,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_solver("CapturedSampler", solver)
        if solver.waits:
            rule = "be one that looks at no state on the host"
            got = type(solver).__name__
            remedy = "call sample, or pass a solver of fixed steps such as AngularAdams()"
            raise wrong_type("CapturedSampler", "solver", rule, got, remedy)
        self.model = model
        self.solver = solver
        self.shape = tuple(shape)
        self.grid = checked_grid("CapturedSampler", model, solver, shape, steps, grid)
        self.noise = noise
        self.dtype = dtype
        self._solve: _Recorded | None = None

    def __call__(self, *, seed: int = 0, first: int = 0) -> Solution:
        """Return the samples of a seed.

        Arguments:
            seed: of the prior and of the solver's noise.
            first: the number of the first sample.
        """
        begin = time.perf_counter()
        numbers = range(first, first + self.shape[0])
        noise = noise_of_run("CapturedSampler", self.noise, seed, numbers)
        with torch.no_grad():
            x, dynamics = begun(self.model, self.solver, noise, self.shape, self.grid, self.dtype)
            if self._solve is None:
                self._solve = _Recorded(dynamics, self.solver, self.grid)
                end = self._solve.recorded(x, noise)
            else:
                end = self._solve.replayed(x, noise)
        _check_finite(end)
        solve = self._solve
        return Solution(end, solve.nfe, solve.steps, time.perf_counter() - begin)


def _check_finite(x: Tensor) -> None:
    ill = ~torch.isfinite(x).flatten(1).all(1)
    if bool(ill.any()):
        why = f"NaN or infinity in {samples(ill)}"
        remedy = "call sample, which says at which step"
        error = diverged("CapturedSampler", "x", "stay finite", Reason(why), remedy)
        raise DivergedError(str(error), ill, why)


@final
@dataclass(frozen=True)
class _Asked:
    """A draw that a solver asked for, of an interval of time or of none; `value` is its memory."""

    value: Tensor
    interval: tuple[Tensor, Tensor] | None

    def draw(self, noise: Noise) -> None:
        """Draw it anew, into the same memory."""
        if self.interval is None:
            self.value.copy_(noise.normal(self.value))
        else:
            self.value.copy_(noise.unit(self.value, *self.interval))


@final
class _Recorder(Noise):
    """A noise that keeps what it has drawn."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self.asked = list[_Asked]()

    def normal(self, x: Tensor) -> Tensor:
        return self._kept(self._noise.normal(x), None)

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self._kept(self._noise.unit(x, t, s), (t, s))

    def _kept(self, z: Tensor, interval: tuple[Tensor, Tensor] | None) -> Tensor:
        self.asked.append(_Asked(z.clone(), interval))
        return z


@final
class _Player(Noise):
    """Draws that are there already, in the order in which they were asked for."""

    def __init__(self, asked: Sequence[_Asked]) -> None:
        self._rest = iter(asked)

    def normal(self, x: Tensor) -> Tensor:  # noqa: ARG002  (its memory is that of the record)
        return next(self._rest).value

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # noqa: ARG002
        return next(self._rest).value


@final
class _Recorded:
    """One solve: its start, its draws and, on a GPU, its graph.

    Arguments:
        dynamics: what is solved.
        solver: the solver.
        grid: the times.
    """

    def __init__(
        self, dynamics: ReverseSDE | ProbabilityFlow, solver: Solver[Any], grid: Grid
    ) -> None:
        self._dynamics = dynamics
        self._solver = solver
        self._grid = grid
        self._asked: Sequence[_Asked] = ()
        self._start = torch.empty(0)
        self._end = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.nfe = 0
        self.steps = 0

    def recorded(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the end of a solve from x, whose draws are kept."""
        recorder = _Recorder(noise)
        before = self._dynamics.score.counter.here
        self._start = x.clone()
        end = self._solved(recorder)
        self._asked = recorder.asked
        self.nfe = self._dynamics.score.counter.here - before
        return end

    def replayed(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the end of the same solve from another x, with other draws."""
        self._start.copy_(x)
        for asked in self._asked:
            asked.draw(noise)
        if x.device.type != "cuda":
            return self._solved(_Player(self._asked))
        if self._graph is None:  # the first solve has warmed its kernels up
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._end = self._solved(_Player(self._asked))
        self._graph.replay()
        return self._end.clone()

    def _solved(self, noise: Noise) -> Tensor:
        times = times_of(self._grid)
        denoise = denoiser(self._dynamics, self._grid)
        state = self._start
        self.steps = 0
        with tabulated(self._dynamics, times):
            walk = self._solver.steps(self._dynamics, self._start, times, noise)
            for state in walk:  # noqa: B007  (the last is returned)
                self.steps += 1
            if denoise is None:
                return state
            self.steps += 1
            return denoise(state)
