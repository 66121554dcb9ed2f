"""The settings of a training run, all of which JSON and TOML can hold.

This module imports no torch, so that the command line shows its help at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from sde_diffusion._check import one_of, positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion._shown import shown

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
# The settings that name what is minimised; an objective of one's own stands in their place.
OF_OBJECTIVE: Final = (
    "objective",
    "weighting",
    "times",
    "spacing",
    "coupling",
    "uncertainty",
    "chain_steps",
    "t_min",
)
WIDEST: Final = 12**-0.5  # σ_rel of the mean of all weights
SCALES: Final = ("auto", "standardize", "none")  # or A:B


def range_of(scale: str) -> tuple[float, float]:
    """Return the numbers A and B of a scale "A:B".

    Errors: ValueError unless both are finite and A < B.

    >>> range_of("0:255")
    (0.0, 255.0)
    """
    ends = str(scale).split(":")
    try:
        a, b = map(float, ends)
    except ValueError:
        a = b = math.nan
    if not -math.inf < a < b < math.inf:
        rule = f"be {', '.join(SCALES)}, or A:B with numbers A < B"
        raise wrong_value("TrainingConfig", "scale", rule, repr(scale), "pass scale='0:255'")
    return a, b


@final
@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run.

    ``objective`` and, for "denoising", ``weighting`` say what is minimised; ``times`` and
    ``spacing`` change the variance of the gradient alone.

    Arguments:
        steps: optimizer steps of the run.
        batch_size: samples of a step, of all processes together.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        warmup: steps in which the learning rate rises linearly.
        schedule: "constant", or "cosine", which lets the learning rate fall to 0 at the last step.
        clip: the largest norm of the gradient.
        ema_decay: of the moving average of the weights that is kept as the model, a step.
        weighting: the weight w(t) of "denoising", and the distribution of times that goes with it.
        t_min: the least time; times lie in [t_min, horizon].
        label_dropout: the share of labels replaced by −1, "no class".
        seed: of every random draw of the run.
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two lines of metrics.
        objective: "denoising", "vlb", "hybrid", "sliced" or "implicit".
        times: the distribution from which times are drawn; the weighting's own if None.
        spacing: how the quantiles of a batch of times are spread over [0, 1).
        coupling: how noise is paired with data.
        uncertainty: "learned" for a learned weight of every time.
        chain_steps: the number of steps of the chain of "vlb", "hybrid" and "exact".
        precision: of the network's computations; weights stay in float32.
        channels_last: whether convolution weights are laid out with the channels last.
        compile: whether the network is compiled.
        accumulate: parts in which a process computes its share of a batch, one after the other.
        ema_half_lives: in steps, of further averages.
        ema_widths: relative widths σ_rel of EDM2's averages.
        snapshot_every: steps between two snapshots of the averages of ``ema_widths``; 0 for none.
        evaluate_every: steps between two evaluations by the monitors; 0 for none.
        patience: evaluations in a row without a better bound that end the run; 0 for no end.
        scale: of real data: "none" as they are, "standardize" by their mean and standard
            deviation, "A:B" for [A, B] to become [−1, 1], or "auto", which standardizes data that
            the SDE's prior does not cover; all others refuse them. "none" is the default here, as
            `sample` returns what the model sees: ``model.data.decode`` undoes a scaling. The
            command line, whose samples are in the data's units, has "auto".

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
    scale: str = "none"

    __repr__ = shown

    def __post_init__(self) -> None:
        what = "TrainingConfig"
        settings = vars(self)
        for name in (
            "steps",
            "batch_size",
            "checkpoint_every",
            "log_every",
            "chain_steps",
            "accumulate",
        ):
            positive_integer(what, name, settings[name])
        for name in ("warmup", "seed", "snapshot_every", "evaluate_every", "patience"):
            positive_integer(what, name, settings[name], least=0)
        for name, usual in (("learning_rate", 1e-3), ("clip", 1.0), ("t_min", 1e-5)):
            positive_number(what, name, settings[name], f"pass {name}={usual}")
        for name, usual in (("ema_decay", 0.999), ("label_dropout", 0.1)):
            share = settings[name]
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
                one_of(what, name, settings[name], choices)
        if self.scale not in SCALES:
            range_of(self.scale)
        for name in ("channels_last", "compile"):
            if not isinstance(settings[name], bool):
                raise wrong_type(
                    what, name, "be True or False", settings[name], f"pass {name}=False"
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
        averages = {"ema_half_lives": self.ema_half_lives, "ema_widths": self.ema_widths}
        for name, given in averages.items():
            numbers = tuple(given)  # JSON and TOML have lists
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
                    f"be at most {WIDEST}, that of the mean of all weights",
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
