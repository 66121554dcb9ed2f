"""Score models: a network, the SDE it was trained for and what its output means.

All predictions are one another's linear images: with x_t = alpha x0 + sigma eps,
score = −eps/sigma, x0 = (x_t − sigma eps)/alpha, v = alpha eps − sigma x0, flow = eps − x0.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import (
    an_object,
    kind_of,
    one_of,
    positive_number,
    wrong_type,
    wrong_value,
)
from sde_diffusion._shown import Size, as_call
from sde_diffusion._tensors import check_state, check_times, expand, per_sample
from sde_diffusion.coefficients import Level, Levels
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.forms import FORMS, check_told, converted, edm_form, joined
from sde_diffusion.matrix_sde import MatrixLinearSDE
from sde_diffusion.models.calls import check_failed
from sde_diffusion.models.conditioned import Enclosing, Labelled, bare, filled, rows_of
from sde_diffusion.models.wrapped import NULL, AtNoise, AtTime, AtTimesteps, ClassLabels, Wrapped
from sde_diffusion.nets.conditions import Condition, ConditionalNetwork
from sde_diffusion.schedules import DiscreteBeta
from sde_diffusion.scores import ScoreLike, check_floating, check_result, tensor_in
from sde_diffusion.sde import EDMSDE, SDE, VPSDE, LinearSDE, RectifiedFlow

PREDICTIONS: Final = (*FORMS, "edm")
VARIANCES: Final = ("fixed", "learned")
COUPLINGS: Final = ("independent", "optimal-transport")


def config_of(network: nn.Module) -> dict[str, Any] | None:
    """Return a network's ``config``, None where it tells none."""
    # Any module may be the network, and one that is not ours need not have any.
    config = getattr(network, "config", None)
    return config if isinstance(config, dict) else None


def noise_number(model: LearnedScore, t: Tensor) -> Tensor:
    """Return what a network is told of a time: t, or ¼ ln(sigma/alpha) for "edm"; in t's shape."""
    sde = model.linear_sde()
    return 0.25 * (sde.sigma(t) / sde.alpha(t)).log() if model.prediction == "edm" else t


_SPELLINGS: Final = {  # of other programs, for what is called here by the first name
    "eps": ("epsilon", "noise", "pred_noise"),
    "x0": ("sample", "x_0", "x_start", "xstart", "start_x", "pred_x0", "pred_x_start"),
    "v": ("v_prediction", "velocity", "pred_v"),
    "flow": ("flow_prediction", "flow_matching", "rectified_flow"),
}


def _check_prediction(what: str, prediction: object, names: Iterable[str]) -> None:
    """Refuse an unknown prediction, and say how the name of another program is spelled here."""
    for ours, theirs in _SPELLINGS.items():
        if prediction in theirs:
            rule = f"be one of {', '.join(names)}"
            raise wrong_value(what, "prediction", rule, prediction, f"pass prediction={ours!r}")
    one_of(what, "prediction", prediction, names)


class LearnedScore(nn.Module, ScoreLike, ABC):
    """A score that a network gives: what can be trained, averaged and saved."""

    prediction: str  # what the network's output means
    row_by_row = True
    variance: str = "fixed"
    coupling: str = "independent"
    data: DataSpec | None = None

    def __init__(self, network: nn.Module, data: DataSpec | None) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise wrong_type(
                type(self).__name__,
                "network",
                "be a torch.nn.Module",
                type(network).__name__,
                "wrap your function in a Module",
            )
        if data is not None:
            remedy = 'pass for example DataSpec("points", (2,), None)'
            an_object(type(self).__name__, "data", data, DataSpec, remedy)
        self.network = network
        self.data = data

    def __repr__(self) -> str:
        names = ("network", "sde", "prediction", "data")
        values = (Size(self.network), self.sde, self.prediction, self.data)
        return as_call(type(self).__name__, dict(zip(names, values, strict=True)))

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters (the CPU if it has none)."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def network_config(self) -> dict[str, Any] | None:
        """The network's ``config``, None where it tells none."""
        return config_of(bare(self.network))

    @property
    def classes(self) -> int | None:
        """The number of classes in the network's ``config``, None where it has or tells none."""
        return (self.network_config or {}).get("classes")

    @property
    def labels(self) -> Tensor | None:
        """The class labels that are filled in, None where there are none."""
        return self.network.labels if isinstance(self.network, Labelled) else None

    @property
    def t_min(self) -> float | None:
        """The first time that the network was made for, where it is one of another program."""
        return self.network.t_min if isinstance(self.network, Enclosing) else None

    def in_training(self) -> bool:
        return self.training

    def in_double(self) -> Self:
        return copy.deepcopy(self).double()

    def given(self, labels: Tensor | int | None = None, **conditions: object) -> Self:
        """Return the model conditioned on labels and more, sharing this one's network.

        Each other condition is one for all samples, or has a row for each; None stands for
        nothing, and those that are not named stay as they are.

        Arguments:
            labels: classes of the samples, −1 for none; integers, () or (B,).
            conditions: by the names that the network takes: ``text``, one or a list; ``vector``
                (B, size) and ``image`` (B, channels, *axes), NaN for what is not known;
                ``context``, tokens of another encoder (B, L, size), masked ones NaN.

        Errors: TypeError or ValueError, by name, for what the network does not take.
        """
        network = self.network
        if conditions:
            network = filled(network, self._encoded(conditions))
        if labels is not None:
            there = self._labels(labels)
            network = Labelled(
                network.network if isinstance(network, Labelled) else network, there
            )
        return self if network is self.network else self._around(network)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """The conditions beside labels that the network takes, by name."""
        network = bare(self.network)
        return network.conditions if isinstance(network, ConditionalNetwork) else {}

    def _encoded(self, values: Mapping[str, object]) -> dict[str, Tensor]:
        """Return conditions as the network takes them, where it computes."""
        known = self.conditions
        like = next(self.parameters())
        found = {}
        for name, value in values.items():
            if name not in known:
                rule = f"be one of {', '.join(('labels', *known))}, which the network takes"
                remedy = (
                    f"build the network with {name}=8, or fill in arguments of a network of "
                    "your own with Conditioned(network, tensors)"
                )
                raise wrong_value(type(self).__name__, "conditions", rule, name, remedy)
            rows = known[name].rows(value).to(like.device)
            found[name] = rows.to(like.dtype) if rows.is_floating_point() else rows
        return found

    def _labels(self, labels: Tensor | int) -> Tensor:
        """Return labels as the network takes them, where it computes."""
        try:
            given = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            rule = "be one integer, or one a sample"
            remedy = "pass for example torch.tensor([3, 1, 4])"
            raise wrong_type(
                type(self).__name__, "labels", rule, kind_of(labels), remedy
            ) from error
        if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1:
            raise wrong_value(
                type(self).__name__,
                "labels",
                "be one integer, or one a sample",
                f"{given.dtype} of shape {tuple(given.shape)}",
                "pass for example torch.tensor([3, 1, 4])",
            )
        # Of labels on a GPU the range is left to the network: to look at them waits for it.
        if given.numel() and given.device.type == "cpu":
            self._check_classes(given)
        return given.to(self.device).long()  # once, rather than at every step

    def _check_classes(self, labels: Tensor) -> None:
        """Refuse labels of no class, and -1 where the network knows no label for none."""
        known = self.classes
        if known is None:
            return
        rule = f"be classes 0 … {known - 1}"
        least = -1 if self.knows_none else 0
        wrong = labels[(labels < least) | (labels >= known)].flatten()
        if len(wrong) and self.knows_none:
            got = int(wrong[0])
            rule = f"{rule}, or -1 for none"
            raise wrong_value(type(self).__name__, "labels", rule, got, "pass one of these")
        if len(wrong):
            got = int(wrong[0])
            rule = f"{rule}, of a network without a null class"
            remedy = f"pass one of these, or {NULL}"
            raise wrong_value(type(self).__name__, "labels", rule, got, remedy)

    @property
    def knows_none(self) -> bool:
        """Whether the label -1, for none, means something to the network."""
        labels = self._inner.labels if isinstance(self._inner, Wrapped) else None
        return labels is None or labels.null is not None

    @property
    def needs_labels(self) -> bool:
        """Whether labels have to be given before it is called."""
        return not self.knows_none and not isinstance(self.network, Labelled)

    @property
    def _inner(self) -> nn.Module:
        """The network, without labels that are filled in."""
        return self.network.network if isinstance(self.network, Labelled) else self.network

    def rows(self, index: Tensor) -> Self:
        """Return the model for the samples ``index`` of the batch, with their conditions."""
        network = rows_of(self.network, index)
        return self if network is self.network else self._around(network)

    @abstractmethod
    def _around(self, network: nn.Module) -> Self:
        """Return the same model of another network."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score, so that the model itself is a score."""


@final
class ScoreModel(LearnedScore):
    """The score s(x, t) = −eps/sigma of a network, and its other forms.

    The network is called as ``network(x, c)`` with one conditioning number per sample: c = t, or
    ¼ ln(sigma/alpha) for ``edm``. The ``edm`` prediction preconditions it in y = x/alpha and
    s = sigma/alpha: x0 = c_skip y + c_out network(c_in y, c_noise), with the coefficients of
    Karras et al.

    A network of another program may be it: of a tuple that it returns the first element is taken,
    of an object its ``.sample``.

    With ``variance="learned"`` the network has twice as many outputs as x has channels, and the
    second half are 2v − 1 of `LearnedVariance`.

    Arguments:
        network: a module called as network(x, c); (B, *event), (B,) to (B, *event).
        sde: the linear SDE of the noise.
        prediction: what the output means: "eps", "x0", "v", "score", "flow" or "edm".
        sigma_data: the standard deviation of the data, for "edm".
        data: what the samples are, where that is known.
        variance: of a chain's reverse steps: "fixed" or "learned".
        coupling: how data met noise in training; after "optimal-transport" eps is no score.

    Shapes: x (B, *event), t () or (B,); every method returns x's shape.
    Errors: TypeError for an SDE that is not linear, ValueError for an unknown name or a network
    with another number of outputs.
    Source: Song et al. 2021; Salimans & Ho 2022 (v); Karras et al. 2022, table 1 (edm); Nichol &
    Dhariwal 2021 (variance).

    >>> import torch
    >>> from sde_diffusion import VPSDE
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x, c):
    ...         return torch.zeros_like(x)
    >>> model = ScoreModel(Zero(), VPSDE(), prediction="x0")  # all data at 0: score −x/sigma²
    >>> model(torch.ones(1, 2), torch.tensor(1.0, dtype=torch.float64)).tolist()
    [[-1.0000431537628174, -1.0000431537628174]]
    """

    sde: LinearSDE
    predicts = True

    def __init__(
        self,
        network: nn.Module,
        sde: LinearSDE,
        prediction: str = "eps",
        *,
        sigma_data: float = 0.5,
        data: DataSpec | None = None,
        variance: str = "fixed",
        coupling: str = "independent",
    ) -> None:
        super().__init__(network, data)
        if not isinstance(sde, LinearSDE):
            matrix = isinstance(sde, MatrixLinearSDE)
            raise wrong_type(
                "ScoreModel",
                "sde",
                "be a LinearSDE",
                type(sde).__name__,
                "pass MatrixScoreModel(network, sde)" if matrix else "pass for example VPSDE()",
            )
        _check_prediction("ScoreModel", prediction, PREDICTIONS)
        one_of("ScoreModel", "variance", variance, VARIANCES)
        one_of("ScoreModel", "coupling", coupling, COUPLINGS)
        positive_number("ScoreModel", "sigma_data", sigma_data)
        self.sde = sde
        self.prediction = prediction
        self.sigma_data = sigma_data
        self.variance = variance
        self.coupling = coupling

    @classmethod
    def from_timesteps(
        cls,
        network: nn.Module,
        betas: Tensor,
        prediction: str = "eps",
        *,
        variance: str = "fixed",
        labels: ClassLabels | None = None,
        data: DataSpec | None = None,
        dtype: torch.dtype = torch.float32,
        timesteps: Tensor | None = None,
    ) -> ScoreModel:
        """Return the model of a DDPM's network(x, k), k = 0 … N − 1 for the betas β_1 … β_N.

        It is exact at the times t = (k + 1)/N of the chain and continuous between them. Sampling
        ends and likelihoods begin at t = 1/N by default: below it nothing was trained.

        Arguments:
            network: called as network(x, k) or with labels; in eval mode as it is handed in.
            betas: β_1 … β_N of the chain it was trained on, before any respacing; (N,). Those of
                a respaced chain go with its map, ``timesteps``.
            prediction: what the output means: "eps", "x0", "v", "score" or "flow".
            variance: "learned" where the second half of its channels is 2v − 1.
            labels: how it takes class labels; None for a network that takes none.
            data: what the samples are, where that is known.
            dtype: of k; torch.long for a network with a table of them.
            timesteps: what the network calls the N steps, (N,); their index k if not given.
        """
        beta = DiscreteBeta(betas)
        n = len(beta.betas)
        wrapped = AtTimesteps(network, n, labels, dtype=dtype, timesteps=timesteps)
        model = cls(wrapped, VPSDE(beta), prediction, variance=variance, data=data)
        return model.train(network.training)

    @classmethod
    def from_denoiser(
        cls,
        network: nn.Module,
        sde: LinearSDE | None = None,
        *,
        prediction: str = "x0",
        sigma_min: float = 0.002,
        labels: ClassLabels | None = None,
        data: DataSpec | None = None,
    ) -> ScoreModel:
        """Return the model of a denoiser network(y, s) = E[x0 | x0 + s eps = y].

        Arguments:
            network: called as network(y, s) with s the standard deviation of the noise, (B,).
            sde: the noise of the model; `EDMSDE()` if not given, whose x is y.
            prediction: what the output means, where it is no x0: "eps", "v", "score" or "flow", of
                the noise of ``sde``.
            sigma_min: the least s that it was trained for: sampling ends and likelihoods begin
                there by default.
            labels: how it takes class labels; None for a network that takes none.
            data: what the samples are, where that is known.
        """
        sde = EDMSDE() if sde is None else sde
        _check_prediction("from_denoiser", prediction, FORMS)
        wrapped = AtNoise(network, sde, labels, sigma_min=sigma_min)
        model = cls(wrapped, sde, prediction, data=data)
        return model.train(network.training)

    @classmethod
    def from_velocity(
        cls,
        network: nn.Module,
        *,
        noise_at: int = 1,
        scale: float = 1.0,
        labels: ClassLabels | None = None,
        data: DataSpec | None = None,
    ) -> ScoreModel:
        """Return the model of a flow matching network(x, scale τ) = E[dx/dτ | x_τ].

        x_τ = (1 − τ) x0 + τ eps and dx/dτ = eps − x0 where noise stands at τ = 1, as here and in
        Stable Diffusion 3; x_τ = τ x0 + (1 − τ) eps and dx/dτ = x0 − eps where it stands at 0.

        Arguments:
            network: called as network(x, scale τ), (B, *event) and (B,) to (B, *event).
            noise_at: the τ of pure noise, 1 or 0 (SiT, Lipman et al.).
            scale: what the network calls τ = 1, such as 1000.
            labels: how it takes class labels; None for a network that takes none.
            data: what the samples are, where that is known.
        """
        one_of("from_velocity", "noise_at", str(noise_at), ("0", "1"))
        positive_number("from_velocity", "scale", scale)
        if noise_at == 1:
            wrapped = AtTime(network, lambda t: scale * t, labels)
        else:
            wrapped = AtTime(network, lambda t: scale * (1 - t), labels, sign=-1)
        return cls(wrapped, RectifiedFlow(), "flow", data=data).train(network.training)

    @classmethod
    def from_score(
        cls,
        network: nn.Module,
        sde: LinearSDE,
        time: Callable[[Tensor], Tensor] = lambda t: t,
        *,
        prediction: str = "score",
        labels: ClassLabels | None = None,
        data: DataSpec | None = None,
    ) -> ScoreModel:
        """Return the model of network(x, time(t)) = ∇ log p_t(x) of the SDE's marginals.

        Arguments:
            network: called as network(x, c), (B, *event) and (B,) to (B, *event).
            sde: the SDE it was trained for.
            time: c of t, such as ``lambda t: 999 * t`` or ``sde.sigma``; (B,) to (B,).
            prediction: what the output means, where it is no score: "eps", "x0", "v" or "flow".
            labels: how it takes class labels; None for a network that takes none.
            data: what the samples are, where that is known.
        """
        _check_prediction("from_score", prediction, FORMS)
        model = cls(AtTime(network, time, labels), sde, prediction, data=data)
        return model.train(network.training)

    def _around(self, network: nn.Module) -> ScoreModel:
        model = ScoreModel(
            network,
            self.sde,
            self.prediction,
            sigma_data=self.sigma_data,
            data=self.data,
            variance=self.variance,
            coupling=self.coupling,
        )
        return model.train(self.training)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score(x, t)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(x) ≈ −eps/sigma."""
        return self.eps(x, t) / expand(-self.sde.sigma(t), x)

    def predict(self, form: str, x: Tensor, t: Tensor, at: Level | Levels) -> Tensor:
        check_state("ScoreModel", x)
        check_times("ScoreModel", t)
        y, c = self._input(x, t)
        try:  # here, where the network is called, so that a step has one call less
            output = self.network(y, c)
        except (TypeError, RuntimeError) as error:
            check_failed("ScoreModel", self.network, x, error)
            raise
        out = self._checked(output, x)
        if self.variance == "learned":
            out = out[:, : x.shape[1]]
        return self._formed(form, out, x, at)

    def with_fraction(self, form: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        check_state("ScoreModel", x)
        if self.variance != "learned":
            return super().with_fraction(form, x, t)
        y, c = self._input(x, t)
        try:
            output = self.network(y, c)
        except (TypeError, RuntimeError) as error:
            check_failed("ScoreModel", self.network, x, error)
            raise
        out, second = self._checked(output, x).chunk(2, dim=1)
        return self._formed(form, out, x, self._levels(x, t)), 0.5 * (second + 1)

    def fraction(self, x: Tensor, t: Tensor) -> Tensor:
        """Return v of σ_k² = exp(v log β_k + (1−v) log β̃_k), what `LearnedVariance` takes."""
        return self.with_fraction("eps", x, t)[1]

    def _input(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network is called with: the state, scaled for "edm", and one number."""
        if self.prediction != "edm":
            return x, per_sample(t, x)
        alpha = self.sde.alpha(t)
        s = self.sde.sigma(t) / self.sde.alpha(t)
        c_in = (s**2 + self.sigma_data**2).rsqrt()
        return expand(c_in / alpha, x) * x, per_sample(noise_number(self, t), x)

    def _checked(self, output: object, x: Tensor) -> Tensor:
        """Return the network's prediction, and behind it the variance's if that is learned."""
        out = check_floating("ScoreModel", tensor_in(output), x)
        channels = x.shape[1] * (2 if self.variance == "learned" else 1)
        if out.shape != (x.shape[0], channels, *x.shape[2:]):
            rule = f"have {channels} outputs for states {tuple(x.shape)}, variance={self.variance}"
            raise wrong_value(
                "ScoreModel",
                "network",
                rule,
                f"the shape {tuple(out.shape)}",
                self._for_outputs(out, x.shape[1]),
            )
        return out

    def _for_outputs(self, out: Tensor, channels: int) -> str:
        """Return what to write for a network of another number of outputs."""
        inner = self._inner
        count = out.shape[1] if out.ndim > 1 else 0
        if self.variance == "learned":
            build = f"build it with outputs={2 * channels}"
            return f"leave out variance='learned', or {build}" if count == channels else build
        if count != 2 * channels:
            return f"build it with outputs={channels}"
        if not isinstance(inner, Wrapped):
            return f"pass variance='learned', or build it with outputs={channels}"
        half = f"a module of net(x, t)[:, :{channels}]"
        if isinstance(inner, AtTimesteps):
            return f"pass variance='learned' where the others are of its variance, else {half}"
        return f"pass {half}, without the others"

    def _formed(self, form: str, out: Tensor, x: Tensor, at: Level | Levels) -> Tensor:
        if self.prediction == "edm":
            check_told("edm", form, at)
            return joined(edm_form(form, at.alpha, at.sigma, self.sigma_data), out, x)
        return converted(form, self.prediction, out, x, at)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the flow's velocity rate x − ½ g² s = rate x + ½ (g²/sigma) eps."""
        check_times("ScoreModel", t)
        half = 0.5 * self.sde.g(t) ** 2 / self.sde.sigma(t)
        return expand(self.sde.rate(t), x) * x + expand(half, x) * self.eps(x, t)


@final
class DirectScore(LearnedScore):
    """The score of any SDE as the output of a network, called as ``network(x, t)``.

    Without alpha and sigma there is no eps and no x0: it makes a `ReverseSDE` or a
    `ProbabilityFlow` for solvers that need neither. `ScoreModel` is for linear SDEs. `Implicit`
    and `Sliced` train it, along `Paths`; `load` reads it from a checkpoint.

    Shapes: x (B, *event), t () or (B,); result like x.
    Errors: TypeError for anything but a network and an SDE.

    >>> from sde_diffusion import MLP, VPSDE, ReverseSDE
    >>> score = DirectScore(MLP(2), VPSDE())
    >>> ReverseSDE(score.sde, score).score(torch.ones(1, 2), torch.tensor(0.5)).tolist()
    [[0.0, 0.0]]
    """

    prediction = "score"

    def __init__(self, network: nn.Module, sde: SDE, *, data: DataSpec | None = None) -> None:
        super().__init__(network, data)
        if not isinstance(sde, SDE):
            raise wrong_type(
                "DirectScore", "sde", "be an SDE", type(sde).__name__, "pass for example VPSDE()"
            )
        self.sde = sde

    def _around(self, network: nn.Module) -> DirectScore:
        return DirectScore(network, self.sde, data=self.data).train(self.training)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        check_state("DirectScore", x)
        try:
            output = self.network(x, per_sample(t, x))
        except (TypeError, RuntimeError) as error:
            check_failed("DirectScore", self.network, x, error)
            raise
        return check_result("DirectScore", tensor_in(output), x)
