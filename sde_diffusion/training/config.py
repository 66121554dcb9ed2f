"""The settings of a training run: names and numbers, all of them JSON and TOML.

This module imports no torch, so that the command line shows its help at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from sde_diffusion._check import one_of, positive_integer, positive_number, wrong_type, wrong_value

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "schedule": ("constant", "cosine"),
    "objective": ("denoising", "vlb", "hybrid", "sliced", "implicit"),
    "weighting": (
        "perceptual",
        "likelihood",
        "min-snr",
        "p2",
        "exact",
        "edm",
        "vdm",
        "flow-matching",
        "sd3",
    ),
    "spacing": ("stratified", "independent", "antithetic", "loss-aware"),
    "coupling": ("independent", "optimal-transport"),
    "uncertainty": ("none", "learned"),
    "precision": ("float32", "bfloat16", "float16"),
    "times": ("uniform", "likelihood", "log-normal", "logit-normal"),
}
WIDEST: Final = 12**-0.5  # σ_rel of the mean of all weights


@final
@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run.

    ``warmup`` steps of linear warm-up lead to ``learning_rate``; ``schedule`` keeps it there
    ("constant") or lets it fall to 0 at the last step ("cosine"). ``clip`` is the largest norm of
    the gradient. Times lie in [t_min, horizon]. ``label_dropout`` is the share of labels replaced
    by −1, "no class", in training a network with classes.

    What is minimised is said by ``objective`` and, of "denoising", by ``weighting``; ``times``
    (None: the weighting's own) and ``spacing`` change the gradient's noise alone. ``coupling``
    pairs noise with data, ``uncertainty`` learns a weight for every time, ``chain_steps`` is the
    length of the chain of "vlb", "hybrid" and "exact".

    ``precision`` is that of the network's computations, ``accumulate`` the number of parts in
    which a batch is computed.

    ``ema_decay`` makes the average that is kept as the model; ``ema_half_lives``, in steps, and
    ``ema_widths``, σ_rel of EDM2, make others beside it, with snapshots of the latter every
    ``snapshot_every`` steps. Monitors look every ``evaluate_every`` steps, and ``patience`` of
    these without a better bound end the run. 0 is never, for all three.

    Errors: TypeError or ValueError for a setting out of range, by name.

    >>> TrainingConfig(steps=100).batch_size
    128
    >>> TrainingConfig(steps=0)
    Traceback (most recent call last):
    ValueError: TrainingConfig: steps must be at least 1, got 0; pass for example steps=20
    """

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100
    schedule: str = "constant"
    clip: float = 1.0
    ema_decay: float = 0.999
    weighting: str = "perceptual"
    t_min: float = 1e-5
    label_dropout: float = 0.1
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 50
    objective: str = "denoising"
    times: str | None = None
    spacing: str = "stratified"
    coupling: str = "independent"
    uncertainty: str = "none"
    chain_steps: int = 1000
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    accumulate: int = 1
    ema_half_lives: Sequence[float] = ()
    ema_widths: Sequence[float] = ()
    snapshot_every: int = 0
    evaluate_every: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        what = "TrainingConfig"
        for name in (
            "steps",
            "batch_size",
            "checkpoint_every",
            "log_every",
            "chain_steps",
            "accumulate",
        ):
            positive_integer(what, name, getattr(self, name))
        for name in ("warmup", "seed", "snapshot_every", "evaluate_every", "patience"):
            positive_integer(what, name, getattr(self, name), least=0)
        for name in ("learning_rate", "clip", "t_min"):
            positive_number(what, name, getattr(self, name))
        for name, usual in (("ema_decay", 0.999), ("label_dropout", 0.1)):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise wrong_value(what, name, "lie in [0, 1)", share, f"pass {name}={usual}")
        if not 0 <= self.weight_decay < math.inf:
            raise wrong_value(
                what,
                "weight_decay",
                "be finite and at least 0",
                self.weight_decay,
                "pass weight_decay=0.0",
            )
        for name, choices in CHOICES.items():
            if name != "times" or self.times is not None:  # None: the weighting's own
                one_of(what, name, getattr(self, name), choices)
        for name in ("channels_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise wrong_type(
                    what, name, "be True or False", getattr(self, name), f"pass {name}=False"
                )
        self._check_averages(what)
        if self.patience and not self.evaluate_every:
            raise wrong_value(
                what,
                "evaluate_every",
                "be above 0 for patience to wait on",
                self.evaluate_every,
                "pass evaluate_every=1000",
            )

    def _check_averages(self, what: str) -> None:
        for name in ("ema_half_lives", "ema_widths"):
            numbers = tuple(getattr(self, name))  # JSON and TOML have lists
            for number in numbers:
                positive_number(what, name, number)
            if len(set(numbers)) < len(numbers):
                raise wrong_value(what, name, "differ", numbers, "name each once")
            object.__setattr__(self, name, numbers)
        for width in self.ema_widths:
            if width > WIDEST:
                raise wrong_value(
                    what,
                    "ema_widths",
                    f"be at most {WIDEST}, the plain mean's",
                    width,
                    "pass ema_widths=(0.05, 0.1)",
                )
        if self.snapshot_every and not self.ema_widths:
            raise wrong_value(
                what,
                "snapshot_every",
                "be 0 without ema_widths to keep",
                self.snapshot_every,
                "pass ema_widths=(0.05, 0.1)",
            )
