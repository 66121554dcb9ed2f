"""Oracles: data whose score, density, posterior mean and samples are known in closed form.

With data ∑ w_k N(m_k, C_k), the marginal at t is ∑ w_k N(α m_k, α² C_k + σ² I). In the eigenbasis
C_k = Q diag(v) Qᵀ everything is elementwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Self, final, overload

import torch
from torch import Tensor

from sde_diffusion._check import kind_of, number, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_state, check_times, expand, moved
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import Number, converted
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.scores import ScoreLike
from sde_diffusion.sde import LinearSDE


def fit_gaussian(samples: Tensor, shrinkage: float = 0.1) -> Gaussian:
    """Return the Gaussian of the samples' mean and covariance, for a control variate.

    Its covariance is (1 − a) C + a (tr C/D) I with a = ``shrinkage``: few samples, or pixels that
    never vary, make C itself singular.

    Shapes: samples (N, *event).

    >>> fit_gaussian(torch.tensor([[-1.0], [1.0]])).variances.item()
    2.0
    """
    if not isinstance(samples, Tensor) or not samples.ndim:
        remedy = "pass the training data, (N, *event)"
        raise wrong_type("fit_gaussian", "samples", "be rows", kind_of(samples), remedy)
    number("fit_gaussian", "shrinkage", shrinkage, "pass 0.1")
    if not 0 <= shrinkage <= 1:
        raise wrong_value("fit_gaussian", "shrinkage", "lie in [0, 1]", shrinkage, "pass 0.1")
    if len(samples) < 2:
        raise wrong_value(
            "fit_gaussian", "samples", "be two or more", len(samples), "pass the training data"
        )
    flat = samples.flatten(1).double()
    identity = torch.eye(flat.shape[1], dtype=torch.float64, device=samples.device)
    covariance = torch.cov(flat.T).reshape(identity.shape)
    ball = covariance.diagonal().mean() * identity
    return Gaussian(samples.double().mean(0), torch.lerp(covariance, ball, shrinkage))


_TILE = 16  # rows multiplied at once: a fixed shape keeps a sample's bits apart from its batch


class Oracle:
    """A Gaussian mixture with any event shape, in the eigenbasis of each component.

    It answers on the device of the states that it is asked about: its arrays are put there once.

    Arguments:
        weights: of the components, positive; (K,).
        means: of the components; (K, *event).
        variances: along the principal axes of each component; (K, D).
        bases: the axes, as columns; (K, D, D), or None where they are those of the event.
    """

    __repr__ = shown

    def __init__(
        self, weights: Tensor, means: Tensor, variances: Tensor, bases: Tensor | None
    ) -> None:
        self.event = tuple(means.shape[1:])
        self.dimension = math.prod(self.event)
        self.weights = weights / weights.sum()
        self.means = means.flatten(1)
        self.variances = variances
        self.bases = bases
        self._turned_means = self.means if bases is None else _turn(self.means, bases)
        self._elsewhere: dict[torch.device, Self] = {}

    def to(self, device: torch.device | str) -> Self:
        """Return the oracle with its arrays on a device; itself where they are there."""
        if device == self.device:
            return self
        there = torch.empty(0, device=device).device  # "cuda" with its number
        if there == self.device:
            return self
        if there not in self._elsewhere:
            made = copy.copy(self)
            made._elsewhere = {}
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(made, name, value.to(there))
            self._elsewhere[there] = made
        return self._elsewhere[there]

    @property
    def device(self) -> torch.device:
        """Where the oracle's arrays are."""
        return self.means.device

    @overload
    def diffused(self, sde: LinearSDE) -> ExactScore: ...
    @overload
    def diffused(self, sde: MatrixLinearSDE) -> MatrixExactScore: ...
    def diffused(self, sde: LinearSDE | MatrixLinearSDE) -> ExactScore | MatrixExactScore:
        """Return the exact score model of this data under ``sde``."""
        if isinstance(sde, MatrixLinearSDE):
            return MatrixExactScore(self, sde)
        return ExactScore(self, sde)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of every dimension of the data, float64.

        Shapes: both ``event``.

        >>> mean, std = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], stds=[0.75, 0.75]).moments()
        >>> mean.item(), std.item()
        (0.0, 1.25)
        """
        mean = self.weights @ self.means
        within = self.variances
        if self.bases is not None:  # the diagonal of Q Λ Qᵀ
            within = (self.bases.square() @ self.variances[:, :, None])[:, :, 0]
        variance = self.weights @ (within + (self.means - mean).square())
        return mean.reshape(self.event), variance.sqrt().reshape(self.event)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of the data.

        Shapes: (B, *event) → (B,). Units: nats.
        """
        one = torch.ones((), dtype=torch.float64)
        return self._beside(x)._components(x, one, 0 * one)[2].logsumexp(1).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x) of the data.

        Shapes: (B, *event), and the result's.
        """
        rows, log_joint = self._component_scores(x)
        found = self._mean_over_components(log_joint, rows)
        return found.reshape(x.shape).to(x.dtype)

    def _component_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of every component, (B, K, D), and log(w_k N(x; k)), (B, K)."""
        one = torch.ones((), dtype=torch.float64)
        o = self._beside(x)
        r, variance, log_joint = o._components(x, one, 0 * one)
        return o._turn_back(-r / variance), log_joint

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n draws of the data in float64, drawn where the generator is."""
        if generator.device != self.device:
            return self.to(generator.device).sample(n, generator).to(self.device)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            n, self.dimension, generator=generator, dtype=torch.float64, device=self.device
        )
        z = z * self.variances[k].sqrt()
        if self.bases is not None:
            z = (self.bases[k] @ z[:, :, None])[:, :, 0]
        return (self.means[k] + z).reshape(n, *self.event)

    def _beside(self, x: Tensor) -> Self:
        """Return the oracle on the device of the states."""
        check_state("oracle", x)
        return self.to(x.device)

    def _components(
        self, x: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return r = Qᵀ(x − α m), its variances α²v + σ² and log(w_k N(x; k)).

        Shapes: (B, K, D), (B or 1, K, D), (B, K).
        """
        if tuple(x.shape[1:]) != self.event:
            raise wrong_value(
                "oracle",
                "x",
                f"have the event shape {self.event}",
                tuple(x.shape[1:]),
                "reshape it",
            )
        if isinstance(alpha, Tensor):
            expand(alpha, x)  # refuses another number of times than of samples
        flat = x.flatten(1).double()
        a = self._coefficient(alpha)
        s = self._coefficient(sigma)
        turned = flat[:, None] if self.bases is None else _turn_tiles(flat, self.bases)
        r = turned - a * self._turned_means
        variance = a * a * self.variances + s * s
        log_density = -0.5 * (r**2 / variance + variance.log()).sum(2)
        constant = 0.5 * self.dimension * math.log(2 * math.pi)
        return r, variance, log_density - constant + self.weights.log()

    def _coefficient(self, c: Number) -> Number:
        """Return (B,) numbers as (B, 1, 1) beside the arrays; one for all goes as it is."""
        if not isinstance(c, Tensor):
            return c
        if c.ndim == 0 and c.device.type == "cpu":
            return c.double()
        return moved(c, self.device, torch.float64).reshape(-1, 1, 1)

    def _mean_over_components(self, log_joint: Tensor, rows: Tensor) -> Tensor:
        """Return Σ_k p(k|x) rows_k: (B, K), (B, K, D) → (B, D)."""
        return (log_joint.softmax(1)[:, :, None] * rows).sum(1)

    def _turn_back(self, rows: Tensor) -> Tensor:
        """Return Q rows for each component: (B, K, D)."""
        if self.bases is None:
            return rows
        return turn_rows(rows, self.bases.mT)


@final
class ExactScore(ScoreLike):
    """The exact score model of an oracle under a linear SDE, with the methods of `ScoreModel`.

    Shapes: x (B, *event), t () or (B,); computed in float64, returned in x's dtype.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> model = Gaussian(torch.zeros(1), torch.ones(1, 1)).diffused(VPSDE())
    >>> t = torch.tensor(0.3, dtype=torch.float64)
    >>> round(model(torch.full((1, 1), 2.0), t).item(), 6)
    -2.0
    """

    sde: LinearSDE
    prediction = "x0"
    row_by_row = True

    def __init__(self, oracle: Oracle, sde: LinearSDE) -> None:
        if not isinstance(sde, LinearSDE):
            raise wrong_type(
                "diffused",
                "sde",
                "be a LinearSDE or a MatrixLinearSDE",
                type(sde).__name__,
                "pass for example VPSDE()",
            )
        self.oracle = oracle
        self.sde = sde

    def to(self, device: torch.device | str) -> ExactScore:
        """Return the score of the oracle with its arrays on a device."""
        return ExactScore(self.oracle.to(device), self.sde)

    @property
    def device(self) -> torch.device:
        """Where the oracle's arrays are, and samples of it are made."""
        return self.oracle.device

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x)."""
        return self.score(x, t)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x) = −Σ p(k|x) (α²C_k + σ²I)⁻¹(x − α m_k)."""
        o, (r, variance, log_joint) = self._parts(x, t)
        rows = o._turn_back(-r / variance)
        return o._mean_over_components(log_joint, rows).reshape(x.shape).to(x.dtype)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:  # noqa: ARG002
        return converted(form, "x0", self._x0(x, at.alpha, at.sigma), x, at)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[eps | x_t] = −sigma ∇ log p_t(x)."""
        check_times(type(self).__name__, t)
        return -expand(self.sde.sigma(t), x) * self.score(x, t)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t] = Σ p(k|x) (m_k + α C_k (α²C_k + σ²I)⁻¹(x − α m_k))."""
        check_times(type(self).__name__, t)
        return self._x0(x, self.sde.alpha(t), self.sde.sigma(t))

    def _x0(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return E[x0 | x_t = x] at alpha and sigma of t: floats, or tensors () or (B,)."""
        o = self.oracle._beside(x)
        r, variance, log_joint = o._components(x, alpha, sigma)
        a = o._coefficient(alpha)
        rows = o._turn_back(a * o.variances * r / variance)
        x0 = o._mean_over_components(log_joint, o.means + rows)
        return x0.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(x).

        Shapes: (B, *event) → (B,). Units: nats.
        """
        _, (_, _, log_joint) = self._parts(x, t)
        return log_joint.logsumexp(1).to(x.dtype)

    def sample(self, n: int, t: Tensor, generator: torch.Generator) -> Tensor:
        """Return n draws of x_t in float64."""
        x0 = self.oracle.sample(n, generator)
        eps = torch.randn(
            x0.shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return self.sde.perturb(x0, t, eps.to(x0.device))

    def marginal(self, t: Tensor) -> Oracle:
        """Return the distribution of x_t, itself a mixture, at a 0-d time."""
        a = self.sde.alpha(t)
        s = self.sde.sigma(t)
        o = self.oracle
        means = (a * o.means).reshape(-1, *o.event)
        return Oracle(o.weights, means, a**2 * o.variances + s**2, o.bases)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the probability flow's exact map of x from t to s, in float64.

        For one Gaussian every coordinate of the eigenbasis, less its mean, scales like its
        standard deviation. In one dimension the flow keeps quantiles: F_s(x_s) = F_t(x_t).

        Errors: ValueError for a mixture of several in more than one dimension.
        """
        o = self.oracle
        if len(o.weights) > 1:
            if o.dimension > 1:
                raise wrong_value(
                    "flow",
                    "oracle",
                    "be one Gaussian or one-dimensional",
                    f"{len(o.weights)} components in {o.dimension} dimensions",
                    "integrate with a tight tolerance instead",
                )
            return self._quantile(self._cdf(x, t), s, x)
        o, (r, variance, _) = self._parts(x, t)
        a = self.sde.alpha(s).double()
        later = a**2 * o.variances + self.sde.sigma(s).double() ** 2
        rows = o._turn_back(r * (later / variance).sqrt())
        return (a * o.means + rows[:, 0]).reshape(x.shape)

    def _cdf(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F_t(x) of one-dimensional data: (B, 1) → (B, 1)."""
        o, (r, variance, _) = self._parts(x, t)
        z = (r / variance.sqrt())[:, :, 0]
        phi: Tensor = torch.special.ndtr(z)
        return (phi * o.weights).sum(1, keepdim=True)

    def _quantile(self, level: Tensor, t: Tensor, near: Tensor) -> Tensor:
        """Return the x with F_t(x) = level, by bisection."""
        reach = 40 * (1 + float(near.abs().max()) + float(self.sde.sigma(t)))
        low, high = (torch.full_like(level, sign * reach) for sign in (-1, 1))
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = self._cdf(middle, t) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Oracle, tuple[Tensor, Tensor, Tensor]]:
        """Return the oracle on the device of x, and its components there."""
        check_times(type(self).__name__, t)
        oracle = self.oracle._beside(x)
        return oracle, oracle._components(x, self.sde.alpha(t), self.sde.sigma(t))


@final
class MatrixExactScore(ScoreLike):
    """The exact score of an oracle's data under a matrix-linear SDE, in all parts of the state.

    x_t has the mixture Σ w_k N(A m_k, A C_k Aᵀ + Σ ⊗ I) with A = Φ ⊗ I on the data's parts, a
    dense (n·E)² matrix: for few dimensions. It costs an eigendecomposition for each time.

    Shapes: x (B, n·C, *rest), t () or (B,); computed in float64, returned in x's dtype.

    >>> from sde_diffusion import CriticallyDampedLangevin, Gaussian
    >>> model = Gaussian(torch.zeros(1), torch.ones(1, 1)).diffused(CriticallyDampedLangevin())
    >>> t = torch.tensor(1.0, dtype=torch.float64)  # nearly N(0, I) N(0, ¼ I)
    >>> [round(v, 1) for v in model(torch.ones(1, 2), t)[0].tolist()]
    [-1.0, -4.0]
    """

    row_by_row = True

    def __init__(self, oracle: Oracle, sde: MatrixLinearSDE) -> None:
        if not oracle.event or oracle.event[0] % sde.data_parts:
            rule = f"be data of {sde.data_parts} equal parts along their first dimension"
            remedy = "pass one of an event that the parts divide, or another SDE"
            raise wrong_value("diffused", "oracle", rule, oracle.event, remedy)
        self.oracle = oracle
        self.sde: MatrixLinearSDE = sde

    def to(self, device: torch.device | str) -> MatrixExactScore:
        """Return the score of the oracle with its arrays on a device."""
        return MatrixExactScore(self.oracle.to(device), self.sde)

    @property
    def device(self) -> torch.device:
        """Where the oracle's arrays are, and samples of it are made."""
        return self.oracle.device

    def marginal(self, t: Tensor) -> Oracle:
        """Return the distribution of x_t, itself a mixture, at a 0-d time."""
        means, variances, bases = self._eigen(t)
        event = self.sde.start(self.oracle.means.reshape(-1, *self.oracle.event)).shape[1:]
        return Oracle(self.oracle.weights, means.reshape(-1, *event), variances, bases)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x) = −Σ p(k|x) P_k⁻¹(x − A m_k)."""
        rows, log_joint = self._components(x, t)
        found = (log_joint.softmax(1)[:, :, None] * rows).sum(1)
        return found.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(x) of the whole state.

        Shapes: (B, n·C, *rest) → (B,). Units: nats.
        """
        return self._components(x, t)[1].logsumexp(1).to(x.dtype)

    def sample(self, n: int, t: Tensor, generator: torch.Generator) -> Tensor:
        """Return n draws of x_t in float64."""
        x0 = self.oracle.sample(n, generator)
        shape = self.sde.start(x0).shape
        eps = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
        return self.sde.perturb(x0, t, eps.to(x0.device))

    def _eigen(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, variances and axes of the components at each time.

        Shapes: t () or (B,); results (…, K, D), (…, K, D), (…, K, D, D) of D = n·E elements.
        """
        o = self.oracle
        phi, noise = (m.to(o.device) for m in self.sde.moments(t))
        p = self.sde.data_parts
        each = torch.eye(o.dimension // p, dtype=torch.float64, device=o.device)
        a = torch.kron(phi[..., :p].contiguous(), each)
        axes = torch.diag_embed(o.variances.sqrt())
        root = a[..., None, :, :] @ (axes if o.bases is None else o.bases @ axes)
        noise = torch.kron(noise.contiguous(), each)[..., None, :, :]
        variances, bases = torch.linalg.eigh(root @ root.mT + noise)
        means = (a[..., None, :, :] @ o.means[:, :, None])[..., 0]
        return means, variances, bases

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of every component, and log(w_k N(x; k)).

        Shapes: (B, K, D), (B, K).
        """
        check_state(type(self).__name__, x)
        if t.ndim == 0:
            return self.marginal(t)._component_scores(x)
        expand(t, x)  # refuses another number of times than of samples
        means, variances, bases = (m.to(x.device) for m in self._eigen(t))
        r = ((x.flatten(1).double()[:, None] - means)[:, :, None] @ bases)[:, :, 0]
        log_density = -0.5 * (r**2 / variances + (2 * math.pi * variances).log()).sum(2)
        rows = ((-r / variances)[:, :, None] @ bases.mT)[:, :, 0]
        return rows, log_density + self.oracle.weights.to(x.device).log()


@final
class Gaussian(Oracle):
    """The Gaussian N(mean, covariance) with any covariance.

    Shapes: mean (*event); covariance (D, D) with D the number of elements of the event.
    Errors: ValueError for a covariance that is not symmetric and positive definite.

    >>> data = Gaussian(torch.zeros(2), torch.eye(2))
    >>> data.log_prob(torch.zeros(1, 2, dtype=torch.float64)).item()
    -1.8378770664093453
    """

    def __init__(
        self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence[Sequence[float]]
    ) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64, device=mean.device)
        variances, bases = _eigenbasis("Gaussian", covariance[None], mean.numel())
        one = torch.ones(1, dtype=torch.float64, device=mean.device)
        super().__init__(one, mean[None], variances, bases)


@final
class GaussianMixture(Oracle):
    """The mixture Σ w_k N(m_k, C_k), with full covariances or C_k = std_k² I.

    Arguments:
        weights: w_k, positive, of any sum; (K,).
        means: m_k; (K, *event).
        covariances: C_k; (K, D, D).
        stds: the standard deviations std_k, in place of covariances; (K,).

    Errors: ValueError for weights that are not positive, or unless exactly one of covariances
    and stds is given.

    >>> ring = GaussianMixture.ring(8, radius=1.0, std=0.1)
    >>> ring.means.shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | None = None,
        *,
        stds: Tensor | Sequence[float] | None = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64, device=means.device)
        if weights.ndim != 1 or len(weights) != len(means) or not bool((weights > 0).all()):
            raise wrong_value(
                "GaussianMixture",
                "weights",
                f"be {len(means)} positive numbers, one a mean",
                weights.tolist(),
                "pass torch.ones(K)",
            )
        d = means[0].numel()
        if (covariances is None) == (stds is None):
            got = "both" if stds is not None else "neither"
            raise wrong_value(
                "GaussianMixture",
                "covariances, stds",
                "be given one at a time",
                got,
                "pass stds=[.1] * K for round components",
            )
        if covariances is not None:
            variances, bases = _eigenbasis("GaussianMixture", covariances, d)
            super().__init__(weights, means, variances, bases)
            return
        std = torch.as_tensor(stds, dtype=torch.float64, device=means.device)
        if std.shape != weights.shape or not bool((std > 0).all()):
            raise wrong_value(
                "GaussianMixture",
                "stds",
                f"be {len(means)} positive numbers",
                std.tolist(),
                "pass one per mean",
            )
        super().__init__(weights, means, (std**2)[:, None].expand(-1, d), None)

    @classmethod
    def ring(cls, n: int, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
        """Return n equal components on a circle in the plane."""
        angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        means = radius * torch.stack([angle.cos(), angle.sin()], 1)
        return cls(torch.ones(n), means, stds=[std] * n)


def _eigenbasis(what: str, covariances: Tensor, d: int) -> tuple[Tensor, Tensor]:
    c = covariances.double()
    if c.ndim != 3 or c.shape[1:] != (d, d) or not bool(torch.allclose(c, c.mT)):
        raise wrong_value(
            what,
            "covariance",
            f"be a symmetric ({d}, {d}) matrix",
            tuple(c.shape[1:]),
            "pass for example torch.eye(D)",
        )
    variances, bases = torch.linalg.eigh(c)
    if float(variances.min()) <= 0:
        raise wrong_value(
            what,
            "covariance",
            "be positive definite",
            f"the eigenvalue {float(variances.min()):.3g}",
            "add a small multiple of the identity",
        )
    return variances, bases


def _turn(rows: Tensor, bases: Tensor) -> Tensor:
    """Return rows_k Q_k: (K, D), (K, D, D) → (K, D)."""
    return (rows[:, None] @ bases)[:, 0]


def _turn_tiles(flat: Tensor, bases: Tensor) -> Tensor:
    """Return x Q_k for every component: (B, D), (K, D, D) → (B, K, D)."""
    return turn_rows(flat[:, None].expand(-1, len(bases), -1), bases)


def turn_rows(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return rows_k M_k: (B, K, D), (K, D, D) → (B, K, D).

    Matrix products of another number of rows may round otherwise, so they are all of one shape.
    """
    b, k, d = rows.shape
    padding = rows.new_zeros(-b % _TILE, k, d)
    tiles = torch.cat([rows, padding]).reshape(-1, _TILE, k, d).transpose(1, 2).contiguous()
    return (tiles @ matrices.contiguous()).transpose(1, 2).reshape(-1, k, d)[:b]
