"""log|det| of the Jacobian of a sampler's map: exactly, or by random probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion.likelihood.divergence import error_of_mean, signs
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.sampling.sampler_map import SamplerMap


class Volume(NamedTuple):
    """F(z), estimates of log|det J|, what is known of their errors, and where the map folds.

    Arguments:
        x: the samples F(z); (B, *event).
        columns: estimates of log|det J|, whose mean counts; (B, C), float64.
        remainder: what the last product moved their mean by; (B,), float64.
        fold: the first step, from 1, at which the map folds; 0 for none; (B,), int64.
    """

    x: Tensor
    columns: Tensor
    remainder: Tensor
    fold: Tensor


class LogDet(ABC):
    """A way to find log|det ∂F/∂z|."""

    @abstractmethod
    def evaluate(self, map_: SamplerMap, z: Tensor) -> Volume:
        """Return F(z), log|det J| and the first steps at which the map folds."""

    @abstractmethod
    def error(self, columns: Tensor) -> Tensor:
        """Return the standard error of the mean over columns, (B, C) → (B,)."""


@final
@dataclass(frozen=True)
class ExactLogDet(LogDet):
    """log|det J| by the D columns of J, which forward mode finds along one solve.

    A one-step solver's F is a composition of its steps, whose Jacobians are J_k J_{k−1}⁻¹ with
    J_k = ∂x_k/∂z, and F is one-to-one only where all of them are. The map folds at the first of
    them with a real eigenvalue ≤ 0: on the straight way (1 − τ) I + τ M from the identity to such
    an M the determinant vanishes, once or, where its sign is the same again, more often. A
    multistep method's later steps depend on more than x_k, so that only J itself is looked at.

    NFE: the solver's, for 1024/D samples at a time.

    >>> ExactLogDet().error(torch.zeros(2, 1)).tolist()
    [0.0, 0.0]
    """

    def evaluate(self, map_: SamplerMap, z: Tensor) -> Volume:
        folds = _Folds(z)
        x, j = map_.jacobian(z, folds.see if map_.composed else None)
        if not map_.composed:
            folds.see(torch.arange(len(z)), map_.steps, j)
        return Volume(x, torch.linalg.slogdet(j)[1][:, None], j.new_zeros(len(z)), folds.found)

    def error(self, columns: Tensor) -> Tensor:
        return columns.new_zeros(len(columns))


@final
class _Folds:
    """The first step at which the map of each sample folds, as its Jacobians go by."""

    def __init__(self, z: Tensor) -> None:
        b = len(z)
        d = z[0].numel()
        with torch.inference_mode(mode=False):
            self.identity = torch.eye(d, dtype=torch.float64, device=z.device)
            self.j = self.identity.repeat(b, 1, 1)
            self.found = torch.zeros(b, dtype=torch.int64, device=z.device)
        self.slack = _slack(z)

    def see(self, index: Tensor, k: int, j: Tensor) -> None:
        """Take the J_k of the samples ``index``."""
        index = index.to(j.device)
        step = torch.linalg.solve(self.j[index], j, left=False)
        found = self.found[index]
        found = torch.where((found == 0) & _turned(step, self.slack), k, found)
        # A map that has folded is followed no further: its J may have no inverse.
        self.j[index] = torch.where((found > 0)[:, None, None], self.identity, j)
        self.found[index] = found


def _slack(z: Tensor) -> float:
    """Return the |Im λ|/|λ| below which rounding may have split a double real eigenvalue."""
    return float(10 * torch.finfo(z.dtype).eps ** 0.5)


def _turned(m: Tensor, slack: float) -> Tensor:
    """Return whether a real eigenvalue of each matrix is ≤ 0: (B, D, D) → (B,)."""
    # None is where vᵀMv > 0 for all v, which is quick to see.
    turned: Tensor = torch.linalg.cholesky_ex(m + m.mT)[1] != 0
    rest = turned.nonzero()[:, 0]
    turned[rest] = _nonpositive(torch.linalg.eigvals(m[rest]), slack)
    return turned


def _nonpositive(eigenvalues: Tensor, slack: float) -> Tensor:
    real = eigenvalues.imag.abs() <= slack * eigenvalues.abs()
    found: Tensor = (real & (eigenvalues.real <= 0)).any(1)
    return found


@final
@dataclass(frozen=True)
class ArnoldiLogDet(LogDet):
    """log det J = tr log J by Hutchinson's zᵀ(log J)z, log J by Arnoldi's method, H for J.

    ``products`` products J v per probe span a Krylov space with an orthonormal basis V from
    z/√D, and zᵀ(log J)z ≈ D e₁ᵀ log(H) e₁, H = VᵀJV. Along a one-step solver J is the product of
    its steps' Jacobians: each near the identity, so that a few products do, with probes of its
    own. Probes are of independent signs; sample i draws them from ``seed`` and ``first`` + i.

    The map folds where an eigenvalue of H, a Ritz value, is real and ≤ 0. Those at the edges of a
    spectrum are found first, the one that passes 0 in a fold among them, but what no probe has a
    part in is not seen, and a J far from symmetric may be refused though it does not fold.

    Lanczos' method for ½ tr log(JᵀJ) asks for twice the products, is blind to the sign, and
    squares the condition of J: after 10 iterations for a U-Net whose J had a condition of 1600
    its error was 33 nats where this method's was 1.3, within its standard error.

    Arguments:
        probes: the number of probes of each sample.
        products: products with J for each probe, at most D.
        seed: the seed of the probes.
        first: the index of the first sample in its data set.

    NFE: the solver's times ``products``, for all probes at once.

    Source: Saad 1992 (functions of matrices); Ubaru, Chen & Saad 2017 (with Lanczos).

    >>> from sde_diffusion import Gaussian, ProbabilityFlow, VPSDE, uniform
    >>> from sde_diffusion.solvers import DDIM
    >>> model = Gaussian(torch.zeros(9), torch.eye(9)).diffused(VPSDE())
    >>> map_ = SamplerMap("example", ProbabilityFlow(VPSDE(), model), DDIM(), uniform(3))
    >>> z = torch.zeros(1, 9, dtype=torch.float64)
    >>> exact, found = (f.evaluate(map_, z).columns for f in (ExactLogDet(), ArnoldiLogDet(1)))
    >>> torch.allclose(exact, found)
    True
    """

    probes: int = 8
    products: int = 8
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        positive_integer("ArnoldiLogDet", "probes", self.probes)
        positive_integer("ArnoldiLogDet", "products", self.products)
        check_seed("ArnoldiLogDet", self.seed)

    def evaluate(self, map_: SamplerMap, z: Tensor) -> Volume:
        b = len(z)
        d = z[0].numel()
        k = self.probes
        noise = PerSampleNoise.numbered(mix(self.seed, Purpose.LOG_DET), self.first, b)
        each = torch.arange(b).repeat_interleave(k)
        x = z[each]
        map_ = map_.rows(each)
        fold = torch.zeros(b, dtype=torch.int64, device=z.device)
        total, shorter = torch.zeros(2, b, k, dtype=torch.float64, device=z.device)
        for step, piece in enumerate(map_.pieces(), 1):
            u = signs(noise.normal(torch.empty(b, k, d, device=z.device))).flatten(0, 1)
            x, h = _arnoldi(piece, x, u / math.sqrt(d), min(self.products, d))
            form, ritz = _log_form(h)
            total = total + d * form.reshape(b, k)
            if len(h[0]) > 1:
                shorter = shorter + d * _log_form(h[:, :-1, :-1])[0].reshape(b, k)
            turned = _nonpositive(ritz, _slack(z)).reshape(b, k).any(1)
            fold = torch.where((fold == 0) & turned, step if map_.composed else map_.steps, fold)
        remainder = (total - shorter).mean(1).abs()
        return Volume(x[::k], total, remainder, fold)

    def error(self, columns: Tensor) -> Tensor:
        return error_of_mean(columns)


def _arnoldi(map_: SamplerMap, x: Tensor, u: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return F(x) and H = VᵀJV, V = (v_0 … v_{m−1}) the orthonormal basis of u, J u, …, J^{m−1} u.

    Shapes: u (B, D) of length 1; H (B, m, m) in float64. Where the space ends early V has columns
    of zeros and H ones on the diagonal, whose logarithms add nothing.
    """
    v = [u.double()]
    h = u.new_zeros(len(u), m, m, dtype=torch.float64)
    rounding = 100 * torch.finfo(x.dtype).eps
    end = x
    for j in range(m):
        # w = J v_j
        end, product = map_.product(x, v[j].to(x.dtype).reshape(x.shape))
        w = product.flatten(1).double()
        # h_ij = v_i·w, w ← w − h_ij v_i for i ≤ j; twice, as once leaves rounding errors in w
        for i, basis in [*enumerate(v)] * 2:
            along = (basis * w).sum(1)
            h[:, i, j] += along
            w = w - along[:, None] * basis
        # h_jj = 1 where v_j = 0, beyond the end of the space
        h[:, j, j] += v[j].square().sum(1) < 0.5
        length = w.square().sum(1).sqrt()
        alive = length > rounding * h[:, :, j].square().sum(1).sqrt()
        # h_{j+1,j} = ‖w‖, v_{j+1} = w/h_{j+1,j}
        if j + 1 < m:
            h[:, j + 1, j] = torch.where(alive, length, 0.0)
            v.append(torch.where(alive[:, None], w / length[:, None], 0.0))
    return end, h


def _log_form(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return e₁ᵀ log(H) e₁ and H's eigenvalues: (B, m, m) → (B,), (B, m)."""
    eigenvalues, vectors = torch.linalg.eig(h)
    first = torch.zeros_like(eigenvalues)
    first[:, 0] = 1
    weights = vectors[:, 0] * torch.linalg.solve(vectors, first)
    return (weights * eigenvalues.log()).sum(1).real, eigenvalues
