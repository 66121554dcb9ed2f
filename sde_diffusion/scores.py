"""What answers at (x, t): one base class for learned, exact, guided and plain scores.

A score is ∇ log p_t(x) of the marginals of an SDE. Where the SDE is linear, eps, x0 and v are its
other forms (`forms`), and a model that has one of them without a division gives that.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import a_function, number, wrong_type, wrong_value
from sde_diffusion._shown import shown
from sde_diffusion._tensors import check_device, check_state, check_times, expand
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.forms import converted, turned
from sde_diffusion.sde import SDE, LinearSDE

if TYPE_CHECKING:
    from sde_diffusion.data.spec import DataSpec

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> ∇ log p_t(x)


class ScoreLike(ABC):
    """A score ∇ log p_t(x) of the marginals of ``sde``, with its other forms.

    A subclass sets ``sde`` and gives ``__call__``; everything else has a default. One whose
    network predicts eps, x0 or v overrides `predict` and sets ``predicts``.

    Shapes: x (B, *event), t () or (B,); every form returns x's shape.

    >>> from sde_diffusion import VPSDE
    >>> class Normal(ScoreLike):  # the score of N(0, 1), which VP keeps
    ...     sde = VPSDE()
    ...     def __call__(self, x, t):
    ...         return -x
    >>> round(Normal().denoise(torch.ones(1, 1), torch.tensor(0.0)).item(), 6)
    1.0
    """

    sde: SDE

    __repr__ = shown

    if TYPE_CHECKING:
        # A subclass may give these in any way: on the class, as a property or by assignment.
        @property
        def device(self) -> torch.device:
            """Where it computes."""

        @property
        def predicts(self) -> bool:
            """Whether `predict` gives eps, x0 and v as they are, not made of the score."""

        @property
        def prediction(self) -> str:
            """What the others are made of: "score", "eps", "x0", "v", "flow" or "edm"."""

        @property
        def row_by_row(self) -> bool:
            """Whether (B,) times are surely taken row by row; else a solve looks at it once."""

        @property
        def variance(self) -> str:
            """Whether it is "fixed" or "learned", and then told by `with_fraction`."""

        @property
        def coupling(self) -> str:
            """How data met noise in training: "independent" where it is a score at all."""

        @property
        def data(self) -> DataSpec | None:
            """What the samples are, where that is known."""

        @property
        def t_min(self) -> float | None:
            """The first time it was made for, None for the usual: see `first_time`."""

        @property
        def classes(self) -> int | None:
            """The number of classes that it can be conditioned on, None where there are none."""
    else:
        device = torch.device("cpu")
        predicts = False
        prediction = "score"
        row_by_row = False
        variance = "fixed"
        coupling = "independent"
        data = None
        t_min = None
        classes = None

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at (x, t)."""

    def in_training(self) -> bool:
        """Return whether a network in it is in training mode."""
        return False

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: ARG002
        """Yield what can be learned in it."""
        return iter(())

    def in_double(self) -> ScoreLike:
        """Return the score with float64 weights, where it has weights."""
        return self

    def rows(self, index: Tensor) -> Self:  # noqa: ARG002  (nothing here belongs to one sample)
        """Return the score of the samples ``index`` of the batch.

        Override it where the score holds something for each sample, such as labels.
        """
        return self

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        """Return eps, x0 or v = alpha eps − sigma x0 at (x, t).

        Arguments:
            form: "eps", "x0" or "v".
            x: the states; (B, *event).
            t: their time in [0, 1]; () or (B,).
            at: alpha and sigma at t, as numbers or as tensors of t's shape.
        """
        score = check_result(type(self).__name__, self(x, t), x)
        return converted(form, "score", score, x, at)

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return eps, x0 or v, and the learned variance's fraction v in [0, 1], of one pass.

        Errors: ValueError for a model of a fixed variance.
        """
        raise wrong_value(
            type(self).__name__,
            "variance",
            "be 'learned' to have a fraction",
            self.variance,
            "train ScoreModel(network, sde, variance='learned')",
        )

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[eps | x_t]."""
        return self.predict("eps", x, t, self._levels(x, t))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t]."""
        return self.predict("x0", x, t, self._levels(x, t))

    def jump(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the state at s of the one at t by one step: alpha_s x0 + sigma_s eps (DDIM).

        A score holds x0 and eps as they are at t; a `FewStepModel` has learned those with which
        the step is exact. At s = t the result is x, bit for bit.

        Arguments:
            x: the states; (B, *event).
            t: their times; () or (B,).
            s: the times to go to; () or (B,).
        """
        sde = self.linear_sde()
        at = self._levels(x, t)
        return turned(x, self.predict("v", x, t, at), at, sde.alpha(s), sde.sigma(s))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity of the probability flow, rate x − ½ g² s."""
        check_times(type(self).__name__, t)
        sde = self.linear_sde()
        push = expand(0.5 * sde.g(t) ** 2, x) * self(x, t)
        return expand(sde.rate(t), x) * x - push

    def linear_sde(self) -> LinearSDE:
        """Return the SDE, refusing one without alpha and sigma."""
        if not isinstance(self.sde, LinearSDE):
            raise wrong_type(
                type(self).__name__,
                "sde",
                "be a LinearSDE, for alpha and sigma",
                type(self.sde).__name__,
                "ask for the score alone",
            )
        return self.sde

    def _levels(self, x: Tensor, t: Tensor) -> Levels:
        check_state(type(self).__name__, x)
        check_times(type(self).__name__, t)
        sde = self.linear_sde()
        return Levels(sde.alpha(t), sde.sigma(t))


class AroundScore(ScoreLike, ABC):
    """A score made of the score ``model``, and like it in all that it does not say otherwise."""

    model: ScoreLike

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def data(self) -> DataSpec | None:
        return self.model.data

    @property
    def t_min(self) -> float | None:
        return self.model.t_min

    @property
    def row_by_row(self) -> bool:
        return self.model.row_by_row

    @property
    def coupling(self) -> str:
        return self.model.coupling

    def in_training(self) -> bool:
        return self.model.in_training()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.model.parameters(recurse)


def first_time(score: ScoreLike, given: float | None = None) -> float:
    """Return the time at which likelihoods begin: that given, else the score's own t_min or 1e-5.

    Sampling ends by default at the score's own t_min or the SDE's cutoff.
    """
    if given is not None:
        number("likelihood", "t_min", given, "pass for example t_min=1e-5")
        return given
    return 1e-5 if score.t_min is None else score.t_min


@final
class FunctionScore(ScoreLike):
    """A function (x, t) ↦ ∇ log p_t(x) as a score of ``sde``, and what it returns is checked.

    It is converted to x's dtype.

    Arguments:
        function: the score; (B, *event) and () or (B,) to (B, *event). A network may be one, also
            one that returns a tuple with the score first, or an object with it as ``.sample``.
        sde: the SDE whose marginals it is the score of.
        device: where it computes; the CPU if not given.

    Errors: TypeError for what is no function or no SDE; at a call, TypeError for a result that is
    no tensor of floating point, ValueError for another shape.

    >>> from sde_diffusion import VPSDE
    >>> score = FunctionScore(lambda x, t: -x[:, 0], VPSDE())
    >>> score(torch.ones(3, 2), torch.tensor(0.5))
    Traceback (most recent call last):
    ValueError: score: result must have the shape (3, 2) of x, got (3,); return one number for \
each of x
    """

    def __init__(
        self, function: Score, sde: SDE, device: torch.device | str | None = None
    ) -> None:
        if not isinstance(sde, SDE):
            raise wrong_type(
                "FunctionScore", "sde", "be an SDE", type(sde).__name__, "pass for example VPSDE()"
            )
        form = "(x, t) -> score"
        a_function("FunctionScore", "function", function, form, "pass a function or a network")
        self.function = function
        self.sde = sde
        self._device = check_device("FunctionScore", "cpu" if device is None else device)

    @property
    def device(self) -> torch.device:
        return self._device

    def in_training(self) -> bool:
        return isinstance(self.function, nn.Module) and self.function.training

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        if isinstance(self.function, nn.Module):
            yield from self.function.parameters(recurse)

    def in_double(self) -> ScoreLike:
        if not isinstance(self.function, nn.Module):
            return self
        return FunctionScore(copy.deepcopy(self.function).double(), self.sde, self._device)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return check_result("score", tensor_in(self.function(x, t)), x)


def tensor_in(output: object) -> object:
    """Return the tensor in what a network gave: the first of a tuple, or ``.sample`` of an object.

    Anything else is returned as it is, for `check_result` to refuse by name.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    # The networks of other programs, such as diffusers', are used as they are, and wrap their
    # output so: the one place where a stranger is asked for an attribute.
    inside = getattr(output, "sample", None)
    return inside if isinstance(inside, Tensor) else output


def check_result(what: str, found: object, x: Tensor) -> Tensor:
    """Return what a score gave at x, in x's dtype; floating point of x's shape and device."""
    found = check_floating(what, found, x)
    if found.shape != x.shape:
        raise wrong_value(
            what,
            "result",
            f"have the shape {tuple(x.shape)} of x",
            tuple(found.shape),
            "return one number for each of x",
        )
    return found


def check_floating(what: str, found: object, x: Tensor) -> Tensor:
    """Return a tensor in x's dtype, refusing all but floating point on x's device."""
    if isinstance(found, Tensor) and found.dtype == x.dtype and found.device == x.device:
        return found  # `to` would cost more than all else here
    if not isinstance(found, Tensor):
        raise wrong_type(
            what,
            "result",
            "be a tensor",
            type(found).__name__,
            "return it alone, as a torch.Tensor",
        )
    if not found.is_floating_point() or found.device != x.device:
        raise wrong_type(
            what,
            "result",
            f"be of floating point on {x.device}, as x is",
            f"{found.dtype} on {found.device}",
            "convert it before it is returned",
        )
    return found.to(x.dtype)


def score_of(what: str, score: object, sde: SDE) -> ScoreLike:
    """Return a score of the marginals of ``sde``: itself, or a function made one.

    Errors: TypeError for what cannot be called; ValueError for a model of another SDE, whose eps
    and x0 would mean other things here.
    """
    if not isinstance(sde, SDE):
        raise wrong_type(what, "sde", "be an SDE", type(sde).__name__, "pass for example VPSDE()")
    if isinstance(score, ScoreLike):
        if score.sde != sde:
            raise wrong_value(
                what,
                "score",
                f"be of the SDE {sde}",
                f"one of {score.sde}",
                "pass its own .sde, or a function of (x, t) that calls it for its score alone",
            )
        return score
    a_function(what, "score", score, "(x, t) -> score", "pass a ScoreModel or a function")
    function: Any = score
    return FunctionScore(function, sde)
