"""The divergence ∇·v of a velocity, exactly or by random probes, from one call of the velocity.

Products with the Jacobian J = ∂v/∂x come from reverse mode, zᵀJ, or forward mode, J z; both have
the quadratic form zᵀJz of Hutchinson's estimator.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal, TypeVar, cast, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.models.exact import Gaussian, turn_rows
from sde_diffusion.noise import PerSampleNoise

_CHANGED: Final = "a tensor that the derivative needs was changed in place"

Velocity = Callable[[Tensor], Tensor]
Mode = Literal["reverse", "forward"]
Law = Literal["rademacher", "gaussian"]
MODES: Final[tuple[Mode, ...]] = ("reverse", "forward")
LAWS: Final[tuple[Law, ...]] = ("rademacher", "gaussian")
DivergenceT = TypeVar("DivergenceT", bound="Divergence")


class Divergence(ABC):
    """A way to find ∇·v from one call of v: one or more columns whose mean is the divergence."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """The number of estimates of one sample's divergence."""

    @abstractmethod
    def probes(self, x: Tensor) -> Tensor:
        """Return the random vectors z, (B, P, *event), to be kept along a trajectory."""

    @abstractmethod
    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return v at x and the estimates of ∇·v in float64.

        Both are detached, unless ``create_graph`` asks for their graph, to x where it requires
        gradients and to the parameters. Grad and inference modes of the caller do not matter.

        Shapes: x (B, *event), z (B, P, *event); v (B, *event), estimates (B, columns).
        Errors: TypeError for a velocity without a graph to x.
        """

    @abstractmethod
    def error(self, integral: Tensor) -> Tensor:
        """Return the standard error of the mean over columns, NaN where unknown.

        Shapes: (B, columns) → (B,).
        """

    def correction(self, z: Tensor, growth: Callable[[Tensor], Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return what to subtract from the integrals of the columns, of mean 0, if anything.

        ``growth`` takes the variances of a Gaussian's principal axes to the logarithm of the
        factor by which the flow has stretched each axis.

        Shapes: z (B, P, *event); growth (D,) → (D,); result (B, columns).
        """
        return None


@final
@dataclass(frozen=True)
class Exact(Divergence):
    """The exact divergence, from D products with the Jacobian.

    Reverse mode forms as many products at once, two or more, as fit into ``memory`` if each needs
    as much as the graph itself, which is more than it does. Forward mode forms all D at once,
    whatever their size: it would have to call the velocity again for every chunk.

    Units: ``memory`` in bytes, beside the graph's own.

    >>> x = torch.ones(1, 3, dtype=torch.float64)
    >>> Exact().evaluate(lambda x: x**2, x, Exact().probes(x))[1]
    tensor([[6.]], dtype=torch.float64)
    """

    memory: int = 2**30
    mode: Mode = "reverse"

    def __post_init__(self) -> None:
        positive_integer("Exact", "memory", self.memory)
        _check_choice("Exact", "mode", self.mode, MODES)

    @property
    def columns(self) -> int:
        return 1

    def probes(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 1, *x.shape[1:])

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        d = x[0].numel()
        if self.mode == "forward":
            v, products = _forward("Exact", velocity, x, _units(x, 0, d), create_graph)
            parts = [_diagonal(products, 0, d)]
        else:
            with _measured() as sizes:
                graph = _Graph("Exact", velocity, x, create_graph)
            chunk, parts, v = self._chunk(x, sizes), [], graph.v
            for start in range(0, d, chunk):
                # A product alone rounds otherwise than among others, so a last one has company.
                begin, stop = max(0, min(start, d - 2)), min(start + chunk, d)
                found = _diagonal(graph.products(_units(x, begin, stop)), begin, stop)
                # A copy: a view would keep all the products.
                parts.append(found[:, start - begin :].clone())
        # Summed in one go, so that the chunks leave no trace in the rounding.
        trace = torch.cat(parts, 1).sum(1, keepdim=True, dtype=torch.float64)
        return _result(v, trace, create_graph)

    def error(self, integral: Tensor) -> Tensor:
        return integral.new_zeros(len(integral))

    def _crowded(self, velocity: Velocity, x: Tensor) -> bool:
        """Return whether ``memory`` is known to be too small for all products at once."""
        try:
            with _measured() as sizes:
                _Graph("Exact", velocity, x, create_graph=False)
        except (RuntimeError, TypeError):  # no reverse mode, which tells the size
            return False
        return self._chunk(x, sizes) < x[0].numel()

    def _chunk(self, x: Tensor, sizes: dict[int, int]) -> int:
        """Return how many products to form at once, each beside its own vector."""
        need = sum(sizes.values()) + 2 * x.numel() * x.element_size()
        return max(2, self.memory // need)


@final
@dataclass(frozen=True)
class Hutchinson(Divergence):
    """Hutchinson's estimator ∇·v ≈ zᵀJz with probes z fixed along the trajectory.

    z is of independent signs, law "rademacher", or "gaussian"; its variance for a symmetric J is
    2 Σ_{i≠j} J_ij² or 2 Σ_ij J_ij². Sample i draws from ``seed`` and ``first`` + i alone.

    A Gaussian near the data as ``control`` reduces it: that Gaussian's own flow has a Jacobian G
    that depends on time alone, and ∫ (zᵀGz − tr G) dt = Σ_i [(u_iᵀz)² − 1] log(s_i(1)/s_i(0)),
    for its axes u_i with the deviations s_i, is the `correction`, at no cost.

    Source: Hutchinson 1989; Grathwohl et al. 2019 (FFJORD).

    >>> Hutchinson(probes=4).probes(torch.zeros(2, 3)).abs().sum().item()
    24.0
    """

    number: int
    seed: int
    first: int
    law: Law
    mode: Mode
    control: Gaussian | None = field(repr=False)

    def __init__(
        self,
        probes: int = 1,
        seed: int = 0,
        first: int = 0,
        law: Law = "rademacher",
        mode: Mode = "reverse",
        control: Gaussian | None = None,
    ) -> None:
        _check_probes("Hutchinson", probes, seed, first)
        _check_choice("Hutchinson", "law", law, LAWS)
        _check_choice("Hutchinson", "mode", mode, MODES)
        if control is not None and not isinstance(control, Gaussian):
            raise wrong_type("Hutchinson", "control", "be a Gaussian", type(control).__name__,
                             "pass fit_gaussian(samples)")  # fmt: skip
        values = {"number": probes, "seed": seed, "first": first, "law": law, "mode": mode}
        for name, value in (values | {"control": control}).items():
            object.__setattr__(self, name, value)

    @property
    def columns(self) -> int:
        return self.number

    def probes(self, x: Tensor) -> Tensor:
        normals = _normals(x, self.number, self.seed, self.first)
        return normals if self.law == "gaussian" else signs(normals)

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        vectors = z.transpose(0, 1)
        if self.mode == "forward":
            v, products = _forward("Hutchinson", velocity, x, vectors, create_graph)
        else:
            graph = _Graph("Hutchinson", velocity, x, create_graph)
            v, products = graph.v, graph.products(vectors, last=True)
        return _result(v, _dot(products, vectors).T, create_graph)

    def error(self, integral: Tensor) -> Tensor:
        return error_of_mean(integral)

    def correction(self, z: Tensor, growth: Callable[[Tensor], Tensor]) -> Tensor | None:
        if self.control is None:
            return None
        event = tuple(z.shape[2:])
        if event != self.control.event:
            raise wrong_value("Hutchinson", "control", f"have the event shape {event}",
                              self.control.event, "fit it to this data")  # fmt: skip
        flat = z.flatten(2).flatten(0, 1).double()
        bases = cast("Tensor", self.control.bases).to(z.device)  # which every Gaussian has
        squares = turn_rows(flat[:, None], bases)[:, 0].square()
        grown = growth(self.control.variances[0].to(z.device))
        return ((squares - 1) * grown).sum(1).reshape(z.shape[:2])


@final
@dataclass(frozen=True)
class HutchPlusPlus(Divergence):
    """Hutch++: tr J ≈ tr(QᵀJQ) + gᵀ(I − QQᵀ)J(I − QQᵀ)g, with Q an orthonormal basis of JᵀS.

    S has ``sketch`` probes and g runs over ``probes`` others, in 2 ``sketch`` + ``probes``
    products with one graph, hence in reverse mode. Exact where J has rank ``sketch`` or less;
    where much of J is a multiple of I, as in the flow of images, `Hutchinson`'s signs do better
    for the same work. ``create_graph`` takes Q as given, which leaves gradients unbiased.

    Source: Meyer et al. 2021.

    >>> a, x = torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.zeros(1, 2)  # of rank 1
    >>> estimator = HutchPlusPlus(sketch=1, probes=1)
    >>> round(estimator.evaluate(lambda x: x @ a, x, estimator.probes(x))[1].item(), 5)
    5.0
    """

    sketch: int
    number: int
    seed: int
    first: int

    def __init__(self, sketch: int = 4, probes: int = 1, seed: int = 0, first: int = 0) -> None:
        positive_integer("HutchPlusPlus", "sketch", sketch)
        _check_probes("HutchPlusPlus", probes, seed, first)
        values = {"sketch": sketch, "number": probes, "seed": seed, "first": first}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def columns(self) -> int:
        return self.number

    def probes(self, x: Tensor) -> Tensor:
        return signs(_normals(x, self.sketch + self.number, self.seed, self.first))

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        graph = _Graph("HutchPlusPlus", velocity, x, create_graph)
        vectors = z.transpose(0, 1)
        range_ = graph.products(vectors[: self.sketch]).detach().flatten(2)
        # (B, D, sketch), in float64 for dtypes that have no QR.
        q = torch.linalg.qr(range_.permute(1, 2, 0).double())[0].to(x.dtype)
        g = vectors[self.sketch :].flatten(2).permute(1, 2, 0)
        rest = g - q @ (q.mT @ g)
        both = torch.cat([q, rest], 2).permute(2, 0, 1).reshape(-1, *x.shape)
        forms = _dot(graph.products(both, last=True), both)
        k = q.shape[2]
        return _result(graph.v, (forms[:k].sum(0) + forms[k:]).T, create_graph)

    def error(self, integral: Tensor) -> Tensor:
        return error_of_mean(integral)


def fastest(
    divergence: DivergenceT, velocity: Velocity, x: Tensor, repeats: int = 3
) -> tuple[DivergenceT, str]:
    """Return the divergence in the mode that takes less time on this batch, and the two times.

    The modes are timed in turn, ``repeats`` times, each by its best. One that the velocity does
    not go through is not taken, nor forward mode if `Exact` has no memory for it.

    Errors: TypeError for a velocity without a derivative in x.
    """
    if not isinstance(divergence, (Exact, Hutchinson)):
        return divergence, f"{type(divergence).__name__} has no mode to choose"
    if isinstance(divergence, Exact) and divergence._crowded(velocity, x):
        shown = "reverse mode: forward mode would form all products at once, beyond the memory"
        return _in_mode(divergence, "reverse"), shown
    z = divergence.probes(x)
    times: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    failed: dict[Mode, Exception] = {}
    for _ in range(repeats):
        for mode in [mode for mode in MODES if mode not in failed]:
            try:
                times[mode].append(_seconds(_in_mode(divergence, mode), velocity, x, z))
            except (RuntimeError, TypeError) as error:
                failed[mode] = error
    if len(failed) == len(MODES):
        raise failed["reverse"]
    best, other = sorted(MODES, key=lambda mode: (mode in failed, min(times[mode], default=0.0)))
    shown = f"{best} mode: {1e3 * min(times[best]):.3g} ms an evaluation, {other} "
    if other in failed:
        shown += f"impossible ({str(failed[other]).splitlines()[0]})"
    else:
        shown += f"{1e3 * min(times[other]):.3g} ms"
    return _in_mode(divergence, best), shown


def _in_mode(divergence: DivergenceT, mode: Mode) -> DivergenceT:
    """Return the divergence in another mode, each field as it is."""
    same = copy.copy(divergence)
    object.__setattr__(same, "mode", mode)
    return same


def _seconds(divergence: Divergence, velocity: Velocity, x: Tensor, z: Tensor) -> float:
    """Return the time of one evaluation."""
    _wait(x.device)
    begin = time.perf_counter()
    divergence.evaluate(velocity, x, z)
    _wait(x.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@final
class _Graph:
    """The velocity at x with its graph, for products with the Jacobian in reverse mode."""

    def __init__(self, what: str, velocity: Velocity, x: Tensor, create_graph: bool) -> None:
        self.what, self.create_graph = what, create_graph
        leaf = _leaf(x, create_graph)
        with _tracking():
            self.x = leaf if leaf.requires_grad else leaf.requires_grad_()
            self.v = velocity(self.x)
        if not self.v.requires_grad:
            raise _no_derivative(what)

    def products(self, vectors: Tensor, *, last: bool = False) -> Tensor:
        """Return uᵀJ for every u: (K, B, *event) → (K, B, *event)."""
        batched = len(vectors) > 1
        with _tracking():
            found = torch.autograd.grad(
                self.v, self.x, vectors if batched else vectors[0], is_grads_batched=batched,
                retain_graph=self.create_graph or not last, create_graph=self.create_graph,
                allow_unused=True,
            )[0]  # fmt: skip
        if found is None:
            raise _no_derivative(self.what)
        return found if batched else found[None]


def _forward(
    what: str, velocity: Velocity, x: Tensor, vectors: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """Return v and J u for every u: (K, B, *event) → (B, *event), (K, B, *event)."""

    def checked(x: Tensor) -> Tensor:
        v = velocity(x)
        if forward_ad.unpack_dual(v).tangent is None:  # type: ignore[no-untyped-call]
            raise _no_derivative(what)
        return v

    _load_forward_mode()
    leaf = _leaf(x, create_graph)
    with _tracking() if create_graph else torch.no_grad():

        def product(u: Tensor) -> tuple[Tensor, Tensor]:
            found = torch.func.jvp(checked, (leaf,), (u,))
            return found[0], found[1]

        if len(vectors) == 1:
            v, found = product(vectors[0])
            return v, found[None]
        v, found = torch.vmap(product, out_dims=(None, 0))(vectors)  # type: ignore[arg-type]
        return v, found


@cache
def _load_forward_mode() -> None:
    """Let torch load its rules for forward mode, which warns of torch's own compiler."""
    one = torch.ones(())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        torch.func.jvp(torch.sin, (one,), (one,))


@contextmanager
def _tracking() -> Iterator[None]:
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


@contextmanager
def _measured() -> Iterator[dict[int, int]]:
    """Yield the bytes of every storage that the graph made inside keeps, less the parameters'."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> tuple[Tensor, int]:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach(), tensor._version  # not the tensor: a cycle, never collected

    def restore(kept: tuple[Tensor, int]) -> Tensor:
        tensor, version = kept
        if tensor._version != version:  # autograd leaves this check to its hooks
            raise RuntimeError(_CHANGED)
        return tensor

    with saved_tensors_hooks(keep, restore):
        yield sizes


def _leaf(x: Tensor, create_graph: bool) -> Tensor:
    """Return x itself where its graph is asked for, and else a copy without one."""
    # Without gradients, as in the forward of an autograd.Function, x has no graph to join.
    if create_graph and x.requires_grad and torch.is_grad_enabled():
        return x
    with torch.inference_mode(mode=False):
        return x.detach().clone()


def _result(v: Tensor, columns: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    return (v, columns) if create_graph else (v.detach(), columns.detach())


def _units(x: Tensor, begin: int, stop: int) -> Tensor:
    """Return unit vectors ``begin`` … ``stop`` − 1 for every sample: (K, B, *event)."""
    units = x.new_zeros(stop - begin, x.shape[0], x[0].numel())
    _diagonal(units, begin, stop).fill_(1)
    return units.reshape(-1, *x.shape)


def _diagonal(products: Tensor, begin: int, stop: int) -> Tensor:
    """Return the numbers ``begin`` … ``stop`` − 1 on the diagonal: (K, B, *event) → (B, K)."""
    return products.flatten(2)[:, :, begin:stop].diagonal(dim1=0, dim2=2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of two (K, B, *event) in float64: (K, B)."""
    return (a * b).flatten(2).sum(2, dtype=torch.float64)


def _normals(x: Tensor, number: int, seed: int, first: int) -> Tensor:
    noise = PerSampleNoise.numbered(mix(seed, Purpose.PROBES), first, x.shape[0])
    shape = (x.shape[0], number, *x.shape[1:])
    return noise.normal(torch.empty(shape, dtype=x.dtype, device=x.device))


def signs(normals: Tensor) -> Tensor:
    """Return −1 where a normal is below 0, else 1."""
    return torch.where(normals < 0, -torch.ones_like(normals), torch.ones_like(normals))


def error_of_mean(integral: Tensor) -> Tensor:
    """Return the standard error of the mean over columns: (B, columns) → (B,)."""
    k = integral.shape[1]
    if k == 1:  # one probe says nothing of its own error
        return integral.new_full((len(integral),), math.nan)
    # Summed by hand: torch's std of one row rounds otherwise than that of many.
    squares = (integral - integral.mean(1, keepdim=True)).square().sum(1)
    return (squares / (k * (k - 1))).sqrt()


def _no_derivative(what: str) -> TypeError:
    return wrong_type(what, "velocity", "be differentiable in x", "a detached tensor",
                      "remove no_grad or detach")  # fmt: skip


def _check_probes(what: str, probes: int, seed: int, first: int) -> None:
    positive_integer(what, "probes", probes)
    positive_integer(what, "seed", seed, least=0)
    positive_integer(what, "first", first, least=0)


def _check_choice(what: str, argument: str, got: object, names: Sequence[str]) -> None:
    if got not in names:
        raise wrong_value(what, argument, f"be {' or '.join(names)}", repr(got),
                          f"pass {argument}={names[0]!r}")  # fmt: skip
