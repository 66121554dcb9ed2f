"""Samplers of other programs as solvers: on the same grid, the same noise and the same counter."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sde_diffusion._check import Reason, diverged, wrong_type, wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.grids import uniform
from sde_diffusion.noise import Noise, WhiteNoise
from sde_diffusion.sde import VPSDE, LinearSDE
from sde_diffusion.solver import Solver

Eps: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> eps, t 0-d float64
Run: TypeAlias = Callable[[Eps, Tensor], Tensor]  # (eps, x at grid[0]) -> x at grid[-1]
_OTHER_DRAWS: Final = (torch.rand, torch.rand_like, torch.randint, torch.normal, torch.bernoulli)


class Peer(Solver[ReverseSDE], ABC):
    """Another program's sampler as a solver, whose order is measured and not declared.

    A subclass gives `make`. The sampler runs as it is: its evaluations are counted where it calls
    the score, and what it draws by `torch.randn` comes from the noise of the solve. One that
    draws solves the reverse SDE, and else the probability flow.
    """

    dynamics = ReverseSDE

    @property
    @abstractmethod
    def name(self) -> str:
        """The program's own name of the sampler."""

    @abstractmethod
    def make(self, sde: LinearSDE, grid: Tensor) -> Run:
        """Return the whole solve as a function of eps and of the state at grid[0].

        Arguments are the SDE whose eps it is and the times, falling; (steps + 1,), float64.
        """

    @cached_property
    def draws(self) -> bool:
        """Whether the end depends on the normals: some samplers draw and multiply them by 0."""
        x = torch.zeros(1, 3, dtype=torch.float64)
        ends = []
        for noise in (_Zeros(), WhiteNoise(0)):
            run = self.make(VPSDE(), uniform(3, 0.9, 0.1))
            with _Served(self.name, noise, x):
                ends.append(run(lambda x_t, _: 0.0 * x_t, x))
        return not torch.equal(*ends)

    def __repr__(self) -> str:
        return self.name

    def steps(
        self, dynamics: ReverseSDE, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[Tensor]:
        """Yield the state at the grid's end alone."""
        known = linear(self.name, dynamics)
        run = self.make(known.sde, grid)

        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            return dynamics.score.predict("eps", x_t.to(x.dtype), t, known.level(t))

        try:
            with _Served(self.name, noise if self.draws else _Zeros(), x):
                found = run(eps, x)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            # weights that cannot be solved for
            remedy = "use other steps, or another sampler"
            raise diverged(self.name, "x", "stay finite", Reason(error), remedy) from error
        yield found.to(x.dtype)


def named(program: str, kind: str, settings: Mapping[str, object]) -> str:
    """Return the name of a sampler of a program as --peer has it, with its settings."""
    told = ",".join(f"{word}={value}" for word, value in settings.items())
    return f"{program}:{kind}" + (f":{told}" if told else "")


@final
class _Zeros(Noise):
    """No noise at all."""

    def normal(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@final
class FunctionPeer(Peer):
    """A function of k-diffusion's signature as a solver: function(denoiser, y, sigmas).

    It is called with y = x/α at grid[0] and sigmas = σ/α at the times of the grid, and returns
    y at the last. It calls denoiser(y, sigma) = E[x0 | x0 + sigma eps = y], with sigma a number,
    () or (B,), the same for all samples; keyword arguments are left out of account.

    >>> from sde_diffusion import VPSDE, Gaussian, sample
    >>> def euler(denoiser, y, sigmas):
    ...     for sigma, lower in zip(sigmas, sigmas[1:]):
    ...         y = y + (lower - sigma) * (y - denoiser(y, sigma)) / sigma
    ...     return y
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, FunctionPeer(euler), (4, 2), steps=10).nfe
    10
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        if not callable(function) or isinstance(function, type):
            raise wrong_type(
                "FunctionPeer",
                "function",
                "be a function (denoiser, y, sigmas) -> y",
                function,
                "name one such as k_diffusion.sampling:sample_euler",
            )
        self.function = function

    @property
    def name(self) -> str:
        """The function's module and name."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def make(self, sde: LinearSDE, grid: Tensor) -> Run:
        alpha = sde.alpha(grid)
        sigmas = sde.sigma(grid) / alpha
        quiet = {"disable": True}  # the bar of k-diffusion's functions
        settings = quiet if "disable" in inspect.signature(self.function).parameters else {}

        def run(eps: Eps, x: Tensor) -> Tensor:
            def denoiser(y: Tensor, sigma: Tensor | float, **_: object) -> Tensor:
                s = torch.as_tensor(sigma).detach().cpu().double().reshape(-1)[0]
                near = int((sigmas - s).abs().argmin())
                known = bool((sigmas[near] - s).abs() <= 1e-6 * s)  # as float32 has it
                t = grid[near] if known else sde.time(-s.log())
                found = eps(y * expand(sde.alpha(t), y), t)
                return y - expand(sde.sigma(t) / sde.alpha(t), y) * found

            y = self.function(denoiser, x / float(alpha[0]), sigmas.to(x), **settings)
            return y * float(alpha[-1])

        return run


class _Served(TorchFunctionMode):
    """Normals of a noise, where a program asks the global generator for them."""

    def __init__(self, name: str, noise: Noise, x: Tensor) -> None:
        super().__init__()
        self.name = name
        self.noise = noise
        self.x = x

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  (torch's signature)
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        if func in (torch.randn, torch.randn_like):
            shape = _shape(func, args, given)
            if shape == self.x.shape:
                return self.noise.normal(self.x)
            got = f"normals of shape {tuple(shape)}"
            raise self._refused(got)
        if func in _OTHER_DRAWS:
            raise self._refused(func.__name__)
        return func(*args, **given)

    def _refused(self, got: str) -> ValueError:
        return wrong_value(
            self.name,
            "draws",
            f"be normals of the states' shape {tuple(self.x.shape)}",
            got,
            "pass another sampler, whose noise can be that of ours",
        )


def _shape(
    func: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]
) -> torch.Size:
    if func is torch.randn_like:
        found: torch.Size = (args[0] if args else given["input"]).shape
        return found
    size = given.get("size", args)
    return torch.Size(size[0] if size and not isinstance(size[0], int) else size)
