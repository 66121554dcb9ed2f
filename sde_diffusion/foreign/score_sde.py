"""Networks of score_sde (Song et al. 2021) as score models, with the averages of its checkpoints.

What its network is called with and what it predicts differs between its three SDEs, and between
those trained in continuous time and those of N noise levels: a table of five.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import one_of, positive_integer, wrong_type, wrong_value
from sde_diffusion.data.scaling import Affine
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.weights import read_weights
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.models.wrapped import AtTime, ClassLabels, Wrapped, time_of_noise
from sde_diffusion.schedules import LinearBeta, linear_betas
from sde_diffusion.sde import VESDE, VPSDE, LinearSDE, SubVPSDE

_WHAT: Final = "from_score_sde"
_PARALLEL: Final = "module."  # what its checkpoints put before every name

Settings: TypeAlias = Mapping[str, Any]
# (network, config.model, data) -> model
ModelOf: TypeAlias = Callable[[nn.Module, Settings, DataSpec], ScoreModel]


def from_score_sde(
    network: nn.Module, config: Settings, checkpoint: str | Path | None = None
) -> ScoreModel:
    """Return the score model of a network of score_sde, in evaluation mode.

    With alpha and sigma of its SDE and r = σ_max/σ_min, the network is called with, and gives:

    - vpsde and subvpsde in continuous time: 999 t, eps; of vpsde at N steps: k = tN − 1;
    - vesde in continuous time: sigma, the score; at N levels: (N − 1)(1 − log_r(sigma/σ_min)).

    Its VE noise is σ_min rᵗ, which is σ_min at t = 0. Here `VESDE` has x_0 = the data: the model
    is theirs at equal sigma, not at equal t. Data that are not centred lie in [0, 1].

    Arguments:
        network: of the class that the configuration names, bare or in a DataParallel.
        config: its configuration as a dictionary of dictionaries, ``config.to_dict()``.
        checkpoint: its ``.pth`` file, whose averaged weights are filled in; None to keep those of
            the network.

    Errors: TypeError for another configuration; ValueError for an unknown SDE, for an entry that
    is not there and for a checkpoint of another network, which is left as it is.
    Source: Song et al. 2021, appendix C, and its program.
    """
    if not isinstance(config, Mapping):
        got = type(config).__name__
        raise wrong_type(_WHAT, "config", "be a dictionary", got, "pass config.to_dict()")
    bare = network.module if isinstance(network, nn.DataParallel) else network
    name = str(_entry(config, "training", "sde")).lower()
    continuous = bool(_entry(config, "training", "continuous")) or name == "subvpsde"
    one_of(_WHAT, "training.sde", name, sorted({name for name, _ in _READERS}))
    model = _READERS[name, continuous](bare, config, _data(config))
    if checkpoint is not None:
        _fill(bare, checkpoint)
    return model.eval()


def _entry(config: Settings, part: str, name: str) -> Any:  # noqa: ANN401
    found = config.get(part)
    if not isinstance(found, Mapping) or name not in found:
        remedy = "pass the configuration that the network was trained with"
        raise wrong_value(_WHAT, "config", f"have {part}.{name}", "none", remedy)
    return found[name]


def _data(config: Settings) -> DataSpec:
    size, channels = (_entry(config, "data", name) for name in ("image_size", "num_channels"))
    scaling = Affine(-1, 1) if _entry(config, "data", "centered") else Affine(0, 1)
    return DataSpec("score_sde", (channels, size, size), 256, scaling)


# --- what each network is called with ---


def _vp(network: nn.Module, config: Settings, data: DataSpec) -> ScoreModel:
    return _of_eps(network, VPSDE(_beta(config)), data)


def _sub_vp(network: nn.Module, config: Settings, data: DataSpec) -> ScoreModel:
    return _of_eps(network, SubVPSDE(_beta(config)), data)


def _beta(config: Settings) -> LinearBeta:
    return LinearBeta(_entry(config, "model", "beta_min"), _entry(config, "model", "beta_max"))


def _of_eps(network: nn.Module, sde: LinearSDE, data: DataSpec) -> ScoreModel:
    """Return the model of score = −network(x, 999 t)/sigma."""
    return ScoreModel(AtTime(network, _label), sde, "eps", data=data)


def _label(t: Tensor) -> Tensor:
    return 999 * t


def _ddpm(network: nn.Module, config: Settings, data: DataSpec) -> ScoreModel:
    n = _number(config)
    low, high = (_entry(config, "model", name) / n for name in ("beta_min", "beta_max"))
    return ScoreModel.from_timesteps(network, linear_betas(n, low, high), data=data)


def _ve(network: nn.Module, config: Settings, data: DataSpec) -> ScoreModel:
    return of_noise(network, _exploding(config), data=data)


def of_noise(
    network: nn.Module,
    sde: VESDE,
    labels: ClassLabels | None = None,
    data: DataSpec | None = None,
) -> ScoreModel:
    """Return the model of a network that gives the score and is called with sigma >= σ_min.

    Arguments:
        network: called as network(x, sigma) or with labels.
        sde: the noise that it was trained with.
        labels: how it takes class labels; None for one that takes none.
        data: what the samples are, where that is known.
    """
    first = time_of_noise(sde, sde.sigma_min)
    wrapped = AtTime(network, sde.sigma, labels, t_min=first)
    return ScoreModel(wrapped, sde, "score", data=data).train(network.training)


def _levels(network: nn.Module, config: Settings, data: DataSpec) -> ScoreModel:
    sde = _exploding(config)
    return ScoreModel(AtLevels(network, sde, _number(config)), sde, "score", data=data)


def _exploding(config: Settings) -> VESDE:
    return VESDE(_entry(config, "model", "sigma_min"), _entry(config, "model", "sigma_max"))


def _number(config: Settings) -> int:
    n: int = _entry(config, "model", "num_scales")
    positive_integer(_WHAT, "model.num_scales", n, least=2)
    return n


@final
class AtLevels(Wrapped):
    """A network of N noise levels, network(x, j): j = (N − 1)(1 − log_r(sigma/σ_min)), rounded.

    The levels are σ_min r^{1 − j/(N − 1)} with r = σ_max/σ_min, the highest first.

    >>> class Number(nn.Module):
    ...     def forward(self, x, j):
    ...         return j
    >>> levels = AtLevels(Number(), VESDE(0.01, 100.0), 5)
    >>> levels(torch.zeros(2, 1), torch.tensor([0.5, 1.0])).tolist()
    [2, 0]
    """

    def __init__(self, network: nn.Module, sde: VESDE, levels: int) -> None:
        super().__init__(network)
        self.sde = sde
        self.levels = levels

    @property
    def t_min(self) -> float:
        """The time of the least noise, σ_min."""
        return time_of_noise(self.sde, self.sde.sigma_min)

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.log(self.sde.sigma(t.double()) / self.sde.sigma_min)
        share = share / math.log(self.sde.sigma_max / self.sde.sigma_min)
        j = (self.levels - 1) * (1 - share)
        return x, j.round().clamp(0, self.levels - 1).long()


_READERS: Final[Mapping[tuple[str, bool], ModelOf]] = {
    ("vpsde", True): _vp,
    ("vpsde", False): _ddpm,
    ("subvpsde", True): _sub_vp,
    ("vesde", True): _ve,
    ("vesde", False): _levels,
}


# --- a checkpoint: {"model": …, "ema": {"shadow_params": [...]}, …} ---


def _fill(network: nn.Module, path: str | Path) -> None:
    """Fill in the weights and then the averages, a list in the order of the parameters."""
    named = read_weights(path, "model").tensors
    state = {name.removeprefix(_PARALLEL): tensor for name, tensor in named.items()}
    _check_shapes(path, "model", network.state_dict(), state)
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    averages = read_weights(path, "ema.shadow_params").tensors.values()
    averaged = dict(zip(learned, averages, strict=False))
    if len(averages) != len(learned):
        raise _other_network(path, "ema", f"{len(learned)} tensors", str(len(averages)))
    _check_shapes(path, "ema", learned, averaged)
    network.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(averaged[name])


def _check_shapes(
    path: str | Path, part: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    for name in own.keys() | found.keys():
        mine, other = (
            tuple(rows[name].shape) if name in rows else "none" for rows in (own, found)
        )
        if mine != other:
            raise _other_network(path, part, f"{name} of shape {mine}", str(other))


def _other_network(path: str | Path, part: str, rule: str, got: str) -> ValueError:
    remedy = "build the network with the configuration it was trained with"
    return wrong_value(_WHAT, f"{part} of {Path(path).name}", f"have {rule}", got, remedy)
