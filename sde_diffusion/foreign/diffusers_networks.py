"""How the networks of diffusers are called: their labels, their embeddings, their timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import kind_of, wrong_type, wrong_value
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.foreign.diffusers_schedulers import Told
from sde_diffusion.models.conditioned import Conditioned
from sde_diffusion.models.wrapped import ClassLabels

_WHAT: Final = "from_diffusers"
_EMBEDDINGS: Final = "encoder_hidden_states"
# (network, embeddings, null) -> the network called as net(x, c, labels), and its labels
Caller: TypeAlias = Callable[
    [Any, Tensor | None, int | None], tuple[nn.Module, ClassLabels | None]
]


def told_of(
    network: Any,  # noqa: ANN401  (of diffusers)
    embeddings: Tensor | None,
    null: int | None,
    data: DataSpec | None,
) -> Told:
    """Return what a network of diffusers tells of itself.

    Arguments:
        network: one of a class in `NETWORKS`.
        embeddings: what a conditional network is given, (L, E), or (B, L, E) for each sample its
            own; None for no condition.
        null: the label that means none to it; None if it knows no such label.
        data: what the samples are, where that is known.

    Errors: ValueError for a network that asks for more than that.
    """
    called, labels = NETWORKS[type(network).__name__](network, embeddings, null)
    config = network.config
    inputs = config["in_channels"]
    outputs = inputs if config["out_channels"] is None else config["out_channels"]
    if outputs not in (inputs, 2 * inputs):
        rule = f"be {inputs} as in_channels, or {2 * inputs} with a learned variance"
        raise _asks_for_more("out_channels", rule, outputs)
    dtype = torch.long if config.get("time_embedding_type") == "learned" else torch.float32
    return Told(called, labels, "fixed" if outputs == inputs else "learned", dtype, data)


def _asks_for_more(name: str, rule: str, got: object) -> ValueError:
    return wrong_value(
        _WHAT, name, rule, got, "wrap it in a module of (x, k), for ScoreModel.from_timesteps"
    )


def _unet(
    network: Any,  # noqa: ANN401
    embeddings: Tensor | None,
    null: int | None,
) -> tuple[nn.Module, ClassLabels | None]:
    _check_none(network, embeddings)
    return network, _labels(network, null)


def _dit(
    network: Any,  # noqa: ANN401
    embeddings: Tensor | None,
    null: int | None,
) -> tuple[nn.Module, ClassLabels | None]:
    """Return a DiT, which has one row more than classes for none."""
    _check_none(network, embeddings)
    count = network.config["num_embeds_ada_norm"]
    return network, ClassLabels(count, count if null is None else null, "class_labels")


def _conditional(
    network: Any,  # noqa: ANN401
    embeddings: Tensor | None,
    null: int | None,
) -> tuple[nn.Module, ClassLabels | None]:
    config = network.config
    for name in ("addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if config.get(name) is not None:
            raise _asks_for_more(name, "be None", config[name])
    blocks = (*config["down_block_types"], config["mid_block_type"], *config["up_block_types"])
    width = config["cross_attention_dim"]
    _check_tensor(embeddings)
    attends = any("CrossAttn" in str(block) for block in blocks)
    if attends and embeddings is None:
        raise wrong_value(
            _WHAT,
            "embeddings",
            f"be given, of shape (L, {width}), to a network that attends to them",
            "none",
            "pass embeddings= to load or from_diffusers; a command takes --model module:function "
            "of one that returns such a model",
        )
    if embeddings is not None and (embeddings.ndim not in (2, 3) or embeddings.shape[-1] != width):
        raise wrong_value(
            _WHAT,
            "embeddings",
            f"have shape (L, {width}), or (B, L, {width}) with one condition for each sample",
            tuple(embeddings.shape),
            "pass those of the prompts",
        )
    if embeddings is not None and embeddings.ndim == 3:
        return Conditioned(network, {_EMBEDDINGS: embeddings}), _labels(network, null)
    return WithEmbeddings(network, embeddings), _labels(network, null)


@final
class WithEmbeddings(nn.Module):
    """A conditional network of diffusers with its condition filled in, one for all samples.

    Shapes: embeddings (L, E), or None for a network that attends to none.
    """

    embeddings: Tensor | None

    def __init__(self, network: nn.Module, embeddings: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("embeddings", embeddings)
        self.train(network.training)

    def forward(self, x: Tensor, k: Tensor, class_labels: Tensor | None = None) -> object:
        """Return network(x, k) of the condition."""
        rows = self.embeddings
        rows = None if rows is None else rows.to(x.dtype).expand(len(x), *rows.shape)
        return self.network(x, k, encoder_hidden_states=rows, class_labels=class_labels)


def _check_tensor(embeddings: object) -> None:
    if embeddings is not None and not isinstance(embeddings, Tensor):
        remedy = "pass torch.as_tensor(embeddings)"
        raise wrong_type(_WHAT, "embeddings", "be a tensor", kind_of(embeddings), remedy)


def _check_none(network: object, embeddings: Tensor | None) -> None:
    _check_tensor(embeddings)
    if embeddings is not None:
        raise wrong_value(
            _WHAT,
            "embeddings",
            f"be left out for {type(network).__name__}, which takes none",
            tuple(embeddings.shape),
            "call from_diffusers(network, scheduler)",
        )


def _labels(network: Any, null: int | None) -> ClassLabels | None:  # noqa: ANN401
    """Return how a U-Net takes labels: a table of num_class_embeds rows, the null class in it."""
    rows = network.config["num_class_embeds"]
    if network.config["class_embed_type"] is not None:
        got = network.config["class_embed_type"]
        raise _asks_for_more("class_embed_type", "be None, for a table of classes", got)
    if rows is None:
        return None
    return ClassLabels(rows - 1 if null == rows - 1 else rows, null, "class_labels")


NETWORKS: Final[Mapping[str, Caller]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _conditional,
    "DiTTransformer2DModel": _dit,
}
