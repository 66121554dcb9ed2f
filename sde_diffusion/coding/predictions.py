"""The network's x̂0 as whole numbers that an encoder and a decoder agree on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from sde_diffusion._check import diverged, wrong_value
from sde_diffusion.coding.normals import Integers
from sde_diffusion.coding.varints import read_varint, read_varints, varints
from sde_diffusion.coding.whole_chain import WholeChain
from sde_diffusion.scores import ScoreLike

# A prediction this near to half a whole number is written into the file, as another machine might
# round it the other way. Predictions of the shipped models differ by 1e-11 at most between batch
# sizes and numbers of threads, a ten-thousandth of it.
GUARD: Final = 2.0**-23
_LARGEST: Final = 2.0**40


@final
class Predictor:
    """x̂0(x_k) times its scale, rounded to whole numbers.

    It is computed in float64, whatever the model's own dtype.

    Arguments:
        model: the score model.
        whole: its chain.
        times: of the chain's states, 0 first; (N + 1,).
        event: the shape of a sample.
        batch_size: samples at once.
        told: called with the number of samples after every evaluation.
        what: the function that asks, for the error.
    """

    def __init__(
        self,
        model: ScoreLike,
        whole: WholeChain,
        times: torch.Tensor,
        event: tuple[int, ...],
        batch_size: int,
        told: Callable[[int], object],
        what: str = "compress",
    ) -> None:
        self._model = model.in_double()
        self._whole = whole
        self._times = times
        self._event = event
        self._batch_size = batch_size
        self._told = told
        self._what = what

    def at(self, state: Integers, k: int) -> tuple[Integers, NDArray[np.bool_]]:
        """Return the rounded predictions at x_k, and which may be rounded otherwise elsewhere.

        Shapes: state and both results (n, D).
        Errors: FloatingPointError for predictions that are not finite.
        """
        parts = [
            self._evaluated(state[first : first + self._batch_size], k)
            for first in range(0, len(state), self._batch_size)
        ]
        scaled = np.concatenate(parts).reshape(state.shape) * self._whole.scales[k - 1]
        if not (np.abs(scaled) < _LARGEST).all():
            raise diverged(
                self._what,
                "the prediction",
                "be finite",
                f"{scaled.flat[np.abs(scaled).argmax()]} at step {k}",
                "look for NaN or huge numbers in the model's output",
            )
        below = np.floor(scaled)
        near = np.abs(scaled - below - 0.5) < GUARD
        return np.rint(scaled).astype(np.int64), near

    def _evaluated(self, state: Integers, k: int) -> NDArray[np.float64]:
        x = torch.from_numpy(state * self._whole.cells[k - 1]).reshape(-1, *self._event)
        with torch.no_grad():
            x0_hat = self._model.denoise(x.to(self._model.device), self._times[k])
        self._told(len(state))
        found: NDArray[np.float64] = x0_hat.double().cpu().numpy()
        return found


@final
class Exceptions:
    """Predictions that a file tells, by their place in the order in which they are made."""

    def __init__(self, places: Integers | None = None, values: Integers | None = None) -> None:
        none = np.zeros(0, np.int64)
        self.places = none if places is None else places
        self.values = none if values is None else values

    def add(self, first: int, chosen: NDArray[np.bool_], values: Integers) -> None:
        """Tell the chosen ones of an array whose first element has the place ``first``."""
        where = chosen.ravel().nonzero()[0]
        self.places = np.append(self.places, first + where)
        self.values = np.append(self.values, values.ravel()[where])

    def apply(self, first: int, values: Integers) -> Integers:
        """Return an array of predictions with those that are told."""
        low, high = np.searchsorted(self.places, [first, first + values.size])
        told = values.ravel().copy()
        told[self.places[low:high] - first] = self.values[low:high]
        return told.reshape(values.shape)

    def to_bytes(self) -> bytes:
        """Return the number of them, the steps from place to place and the values, as bytes."""
        steps = np.diff(self.places, prepend=0).tolist()
        turned = [2 * v if v >= 0 else -2 * v - 1 for v in self.values.tolist()]
        pairs = zip(steps, turned, strict=True)
        numbers = [len(steps), *(number for pair in pairs for number in pair)]
        return varints(*numbers)

    @classmethod
    def from_bytes(cls, data: memoryview) -> tuple[Exceptions, memoryview]:
        """Return them and the bytes that follow.

        Errors: ValueError for bytes that end before.
        """
        count, data = read_varint(data)
        numbers, data = read_varints(data, 2 * count)
        steps = numbers[::2]
        if not all(steps[1:]) or sum(steps) >= 2**62:
            rule = "tell predictions in their order"
            raise wrong_value("decompress", "block", rule, "another order", "get the file again")
        places = np.cumsum(np.array(steps, np.int64))
        values = [n // 2 if n % 2 == 0 else -(n + 1) // 2 for n in numbers[1::2]]
        return cls(places, np.array(values, np.int64)), data


@final
class Sum:
    """A checksum of arrays in any order."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, values: Integers, place: int) -> None:
        """Add an array that belongs to a place."""
        crc = zlib.crc32(values.astype("<i8").tobytes(), place & 0xFFFFFFFF)
        self.value = (self.value + crc) & 0xFFFFFFFF
