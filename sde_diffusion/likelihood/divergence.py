"""The divergence ∇·v of a velocity, exactly or by random probes, from one call of the velocity.

Products with the Jacobian J = ∂v/∂x come from reverse mode, zᵀJ, or forward mode, J z; both have
the quadratic form zᵀJz of Hutchinson's estimator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, cast, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type, wrong_value
from sde_diffusion._seeds import Purpose, mix
from sde_diffusion.likelihood.jacobian import Graph, Velocity, forward_mode, measured
from sde_diffusion.models.exact import Gaussian, turn_rows
from sde_diffusion.noise import PerSampleNoise

Mode = Literal["reverse", "forward"]
ProbeDistribution = Literal["rademacher", "gaussian"]
MODES: Final[tuple[Mode, ...]] = ("reverse", "forward")
PROBE_DISTRIBUTIONS: Final[tuple[ProbeDistribution, ...]] = ("rademacher", "gaussian")


class Divergence(ABC):
    """A way to find ∇·v from one call of v: one or more columns whose mean is the divergence."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """The number of estimates of one sample's divergence."""

    @abstractmethod
    def draw(self, x: Tensor) -> Tensor:
        """Return the random vectors z, (B, P, *event), to be kept along a trajectory."""

    @abstractmethod
    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return v at x and the estimates of ∇·v in float64.

        Grad and inference modes of the caller do not matter.

        Arguments:
            velocity: v of x at one time.
            x: the state; (B, *event).
            z: what `draw` returned; (B, P, *event).
            create_graph: whether both have a graph, to the parameters and to x if it requires it.

        Shapes: v (B, *event), estimates (B, columns).
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
    >>> Exact().evaluate(lambda x: x**2, x, Exact().draw(x))[1]
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

    def draw(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 1, *x.shape[1:])

    def evaluate(
        self,
        velocity: Velocity,
        x: Tensor,
        z: Tensor,  # noqa: ARG002
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        d = x[0].numel()
        if self.mode == "forward":
            v, products = forward_mode("Exact", velocity, x, _units(x, 0, d), create_graph)
            parts = [_diagonal(products, 0, d)]
        else:
            with measured() as sizes:
                graph = Graph("Exact", velocity, x, create_graph)
            chunk = self._chunk(x, sizes)
            parts = []
            v = graph.v
            for start in range(0, d, chunk):
                # A product alone rounds otherwise than among others, so a last one has company.
                begin = max(0, min(start, d - 2))
                stop = min(start + chunk, d)
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
            with measured() as sizes:
                Graph("Exact", velocity, x, create_graph=False)
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

    For a symmetric J the variance of one probe is 2 Σ_{i≠j} J_ij² with independent signs
    ("rademacher") and 2 Σ_ij J_ij² with normals. Sample i draws from ``seed`` and ``first`` + i.

    A Gaussian near the data as ``control`` reduces it: that Gaussian's own flow has a Jacobian G
    that depends on time alone, and ∫ (zᵀGz − tr G) dt = Σ_i [(u_iᵀz)² − 1] log(s_i(1)/s_i(0)),
    for its axes u_i with the deviations s_i, is the `correction`, which needs no product with J.

    Arguments:
        probes: the number of probes of each sample.
        seed: the seed of the probes.
        first: the index of the first sample in its data set.
        law: the distribution of the probes, "rademacher" or "gaussian".
        mode: "reverse" for zᵀJ, "forward" for Jz.
        control: a Gaussian near the data, as a control variate; none by default.

    Source: Hutchinson 1989; Grathwohl et al. 2019 (FFJORD).

    >>> Hutchinson(probes=4).draw(torch.zeros(2, 3)).abs().sum().item()
    24.0
    """

    probes: int = 1
    seed: int = 0
    first: int = 0
    law: ProbeDistribution = "rademacher"
    mode: Mode = "reverse"
    control: Gaussian | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_probes("Hutchinson", self.probes, self.seed, self.first)
        _check_choice("Hutchinson", "law", self.law, PROBE_DISTRIBUTIONS)
        _check_choice("Hutchinson", "mode", self.mode, MODES)
        if self.control is not None and not isinstance(self.control, Gaussian):
            raise wrong_type(
                "Hutchinson",
                "control",
                "be a Gaussian",
                type(self.control).__name__,
                "pass fit_gaussian(samples)",
            )

    @property
    def columns(self) -> int:
        return self.probes

    def draw(self, x: Tensor) -> Tensor:
        normals = _normals(x, self.probes, self.seed, self.first)
        return normals if self.law == "gaussian" else signs(normals)

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        vectors = z.transpose(0, 1)
        if self.mode == "forward":
            v, products = forward_mode("Hutchinson", velocity, x, vectors, create_graph)
        else:
            graph = Graph("Hutchinson", velocity, x, create_graph)
            v = graph.v
            products = graph.products(vectors, last=True)
        return _result(v, _dot(products, vectors).T, create_graph)

    def error(self, integral: Tensor) -> Tensor:
        return error_of_mean(integral)

    def correction(self, z: Tensor, growth: Callable[[Tensor], Tensor]) -> Tensor | None:
        if self.control is None:
            return None
        event = tuple(z.shape[2:])
        if event != self.control.event:
            raise wrong_value(
                "Hutchinson",
                "control",
                f"have the event shape {event}",
                self.control.event,
                "fit it to this data",
            )
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

    Arguments:
        sketch: the number of probes S, and the rank of the basis Q.
        probes: the number of probes g of each sample.
        seed: the seed of all probes.
        first: the index of the first sample in its data set.

    Source: Meyer et al. 2021.

    >>> a, x = torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.zeros(1, 2)  # of rank 1
    >>> estimator = HutchPlusPlus(sketch=1, probes=1)
    >>> round(estimator.evaluate(lambda x: x @ a, x, estimator.draw(x))[1].item(), 5)
    5.0
    """

    sketch: int = 4
    probes: int = 1
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        positive_integer("HutchPlusPlus", "sketch", self.sketch)
        _check_probes("HutchPlusPlus", self.probes, self.seed, self.first)

    @property
    def columns(self) -> int:
        return self.probes

    def draw(self, x: Tensor) -> Tensor:
        return signs(_normals(x, self.sketch + self.probes, self.seed, self.first))

    def evaluate(
        self, velocity: Velocity, x: Tensor, z: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        graph = Graph("HutchPlusPlus", velocity, x, create_graph)
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


def _result(v: Tensor, columns: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    return (v, columns) if create_graph else (v.detach(), columns.detach())


def _units(x: Tensor, begin: int, stop: int) -> Tensor:
    """Return unit vectors ``begin`` … ``stop`` − 1 for every sample: (K, B, *event)."""
    units = x.new_zeros(stop - begin, x.shape[0], x[0].numel())
    _diagonal(units, begin, stop).fill_(1)
    return units.reshape(-1, *x.shape)


def _diagonal(products: Tensor, begin: int, stop: int) -> Tensor:
    """Return the entries ``begin`` … ``stop`` − 1 of the diagonal: (K, B, *event) → (B, K)."""
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


def _check_probes(what: str, probes: int, seed: int, first: int) -> None:
    positive_integer(what, "probes", probes)
    positive_integer(what, "seed", seed, least=0)
    positive_integer(what, "first", first, least=0)


def _check_choice(what: str, argument: str, got: object, names: Sequence[str]) -> None:
    if got not in names:
        raise wrong_value(
            what, argument, f"be {' or '.join(names)}", repr(got), f"pass {argument}={names[0]!r}"
        )
