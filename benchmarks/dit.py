"""Seconds of a forward pass of the transformer, beside those of diffusers and azula of its shape.

Run it as `python benchmarks/dit.py`; it takes about a minute on one core. All have the same
patches, width, depth and heads. diffusers' has tables of its own for time and class in every
block; azula's modulates and gates once a block and normalises queries and keys. Ratios are taken
turn by turn; it fails where ours takes more than 1.1 of diffusers' time in the median.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import torch
from _common import Spread, interleaved, options, parsed, peer, ratio, table, write
from torch import nn

from sde_diffusion import DiT
from sde_diffusion.nets.cost import flops
from sde_diffusion.nets.patches import samples_of, tokens_of
from sde_diffusion.nets.positions import coordinates

CHANNELS: Final = 4
PATCH: Final = 2
CLASSES: Final = 10
_SLOWEST: Final = 1.1  # of diffusers' time


class Case(NamedTuple):
    """A shape of network, and what goes through it."""

    side: int
    width: int
    depth: int
    heads: int
    batch: int


QUICK: Final = (Case(4, 24, 1, 2, 2),)
FULL: Final = (Case(16, 192, 6, 3, 16), Case(32, 384, 4, 6, 2))


def ours(case: Case) -> tuple[nn.Module, Callable[[], Any]]:
    """Return our network and a forward pass of it."""
    network = DiT(CHANNELS, (PATCH, PATCH), case.width, case.depth, case.heads, classes=CLASSES)
    x, labels = inputs(case)
    c = torch.full((case.batch,), 0.5)
    return network, lambda: network(x, c, labels)


def diffusers(module: Any, case: Case) -> tuple[nn.Module, Callable[[], Any]]:  # noqa: ANN401
    """Return DiTTransformer2DModel and a forward pass of it."""
    network = module.DiTTransformer2DModel(
        num_attention_heads=case.heads,
        attention_head_dim=case.width // case.heads,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=case.depth,
        sample_size=case.side,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
    )
    x, labels = inputs(case)
    k = torch.full((case.batch,), 500)
    return network, lambda: network(x, k, labels)


def azula(module: Any, case: Case) -> tuple[nn.Module, Callable[[], Any]]:  # noqa: ANN401
    """Return azula's DiT, which takes tokens, and a forward pass with the patches around it."""
    features = CHANNELS * PATCH**2
    network = module.DiT(
        features,
        features,
        mod_features=case.width,
        pos_channels=2,
        hid_channels=case.width,
        hid_blocks=case.depth,
        attention_heads=case.heads,
    )
    x, _ = inputs(case)
    patch = (PATCH, PATCH)
    at = coordinates([case.side // PATCH] * 2, x)
    e = torch.ones(case.batch, case.width)

    def forward() -> Any:  # noqa: ANN401
        return samples_of(network(tokens_of(x, patch), e, pos=at), patch, x.shape[2:])

    return network, forward


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states and labels."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(case.batch, CHANNELS, case.side, case.side, generator=draws)
    return x, torch.arange(case.batch) % CLASSES


def measured(case: Case, repeats: int) -> dict[str, Any]:
    """Return weights, and ratios of our seconds, turn by turn, to those of every peer."""
    built = {"sde_diffusion": ours(case)}
    for name, module, build in (
        ("diffusers", peer("diffusers"), diffusers),
        ("azula", peer("azula.nn.dit"), azula),
    ):
        if not isinstance(module, str):
            built[name] = build(module, case)
    for network, _ in built.values():
        network.eval()
    with torch.no_grad():
        seconds = interleaved({name: forward for name, (_, forward) in built.items()}, repeats)
    own = seconds["sde_diffusion"]
    weights = {
        n: sum(p.numel() for p in network.parameters()) for n, (network, _) in built.items()
    }
    return {
        "seconds": {name: Spread.of(found) for name, found in seconds.items()},
        "ratios": {name: ratio(own, found) for name, found in seconds.items()},
        "weights": weights,
        "flops": flops(built["sde_diffusion"][0], (CHANNELS, case.side, case.side)),
    }


def main() -> None:
    """Print the table, and fail where ours is slower than it may be."""
    chosen = parsed(options(__doc__))
    rows = []
    results = []
    slow = []
    for case in QUICK if chosen.quick else FULL:
        found = measured(case, 2 if chosen.quick else 9)
        shape = f"{CHANNELS}×{case.side}², {case.depth} of {case.width}, {case.batch} samples"
        for name, spread in found["seconds"].items():
            share = found["ratios"][name]
            rows.append(
                (shape, name, f"{found['weights'][name]:,}", spread.show(), share.show(".2f"))
            )
        if "diffusers" in found["ratios"] and found["ratios"]["diffusers"].median > _SLOWEST:
            slow.append(shape)
        spreads = ("seconds", "ratios")
        plain = {part: {n: asdict(s) for n, s in found[part].items()} for part in spreads}
        results.append({"case": case._asdict()} | found | plain)
    table("A forward pass", ["shape", "network", "weights", "seconds", "ours over it"], rows)
    write(chosen.out, rows=results)
    if slow and not chosen.quick:
        sys.exit(f"ours takes more than {_SLOWEST} of diffusers' time: {', '.join(slow)}")


if __name__ == "__main__":
    main()
