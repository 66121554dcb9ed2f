"""Where the lines of metrics of a run go beside metrics.jsonl: a program of one's own choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from sde_diffusion._check import Reason, wrong_type, wrong_value
from sde_diffusion._shown import shown


class Logger(ABC):
    """What is told the metrics of a run as they come.

    Of several processes the first alone tells it.

    >>> class Losses(Logger):
    ...     def __init__(self):
    ...         self.found = []
    ...
    ...     def log(self, step, values):
    ...         if "loss" in values:
    ...             self.found.append((step, values["loss"]))
    >>> losses = Losses()
    >>> losses.log(100, {"loss": 0.5})
    >>> losses.found
    [(100, 0.5)]
    """

    __repr__ = shown

    def begin(self, step: int) -> None:  # noqa: B027  (a logger may do without)
        """Begin after a step, 0 for a fresh run: what a resumed one logged later comes again."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of a line of metrics by name: of ``log_every`` steps, or of monitors.

        Arguments:
            step: the number of the step.
            values: "loss", "grad_norm", "learning_rate" and "seconds", or what the monitors
                returned: JSON values.
        """

    def close(self) -> None:  # noqa: B027  (a logger may do without)
        """End: the run has, or is stopped."""


@final
class TensorBoard(Logger):
    """The numbers of a run as scalars of TensorBoard, in a folder that it reads.

    Those of monitors stand under "evaluation/", and those of a list under their place in it.

    Errors: ValueError, where the package is missing, that says what to install.

    >>> issubclass(TensorBoard, Logger)  # as in train(…, loggers=[TensorBoard("runs/board")])
    True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            rule = "be installed"
            remedy = "type pip install 'sde_diffusion[tensorboard]'"
            raise wrong_value(
                "TensorBoard", "the package tensorboard", rule, Reason(error), remedy
            ) from error
        self._open: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, step: int) -> None:
        self._writer = self._open(str(self.folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, number in numbers(values):
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def numbers(values: Mapping[str, Any] | Sequence[Any], above: str = "") -> Iterator[Any]:
    """Yield the numbers among JSON values with their names, those inside others after a slash.

    >>> list(numbers({"loss": 0.5, "by_level": {"loss": [1.0, 2.0]}, "picture": "a.png"}))
    [('loss', 0.5), ('by_level/loss/0', 1.0), ('by_level/loss/1', 2.0)]
    """
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for key, value in items:
        name = f"{above}{key}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)):
            yield from numbers(value, f"{name}/")


def check_loggers(loggers: Sequence[Logger]) -> None:
    """Refuse what is no `Logger`."""
    for logger in loggers:
        if not isinstance(logger, Logger):
            remedy = "subclass sde_diffusion.Logger, with a method log(step, values)"
            raise wrong_type("train", "loggers", "be Loggers", type(logger).__name__, remedy)
