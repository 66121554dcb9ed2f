"""One Brownian path W: the same values in whatever order, and with whatever steps, it is asked."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, positive_number, wrong_type, wrong_value
from sde_diffusion._seeds import PathPurpose, check_seed, mix
from sde_diffusion._tensors import expand
from sde_diffusion.grids import check_grid
from sde_diffusion.noise import Noise, PerSampleNoise, WhiteNoise

T = TypeVar("T")
_SAME = 2.0**-40  # of the path's length: a grid's time computed in another way is that time


class _Stretch(NamedTuple):
    """The path over [a, b]: dw = W_b − W_a, and the mean h of W above its chord, once known.

    ``lo`` and ``hi`` are the places of a and b among the grid's times; inside a cell, those of
    the cell's ends.
    """

    a: float
    b: float
    dw: Tensor
    h: Tensor | None
    lo: int
    hi: int


def _shares(a: float, m: float, b: float) -> tuple[float, float]:
    """Return the shares of [a, m] and [m, b] in [a, b]."""
    return (m - a) / (b - a), (b - m) / (b - a)


class _Skeleton(NamedTuple):
    """What the paths of all states have in common: seeds, the grid's times, the finest cell."""

    seed: int
    streams: Sequence[int] | None  # one a sample, if every sample has a path of its own
    times: Sequence[float]  # rising, from 0
    first: int  # place of the grid's first time
    cell: float  # length of the finest cell

    def place(self, t: float) -> tuple[float, bool]:
        """Return t and False, or the time of the grid that it is but for rounding and True."""
        i = bisect_left(self.times, t)
        near = min(self.times[max(i - 1, 0) : i + 1], key=lambda time: abs(time - t))
        found = abs(near - t) <= min(_SAME * self.times[-1], 0.5 * self.cell)
        return (near if found else t), found

    def middle(self, lo: int, hi: int) -> int:
        """Return the place, counted along the grid, that is divisible by most twos.

        So a coarser solve, over every 2ᵏ-th time, meets no other time. (Time 0 ahead of the grid
        is at place −1.)
        """
        lo = lo - self.first
        last = hi - self.first - 1
        k = (lo ^ last).bit_length() - 1
        return self.first + (last >> k << k)


def _too_near(t: float, s: float) -> ValueError:
    return wrong_value(
        "BrownianPath",
        "t, s",
        "be further apart than the finest cell",
        f"{t!r} and {s!r}",
        "pass for example depth=48",
    )


class _Tree:
    """The path of states of one shape, dtype and device."""

    def __init__(self, skeleton: _Skeleton, x: Tensor, dtype: torch.dtype) -> None:
        self.skeleton = skeleton
        self.shape = x.shape
        self.dtype = dtype
        self.device = x.device
        self.generator = torch.Generator(x.device)
        self.splits: OrderedDict[float, tuple[_Stretch, _Stretch]] = OrderedDict()
        self.last: dict[float, float] = {}  # the time asked for in a finest cell, by its start
        self.draws = self.room = 0
        end = skeleton.times[-1]
        dw = self.draw(PathPurpose.INCREMENT, end).mul_(math.sqrt(end))
        self.whole = _Stretch(0.0, end, dw, None, 0, len(skeleton.times) - 1)

    def draw(self, purpose: int, time: float) -> Tensor:
        """Return the normals of this time, drawn in float32: float64 takes five times as long."""
        seed = mix(self.skeleton.seed, purpose, *struct.unpack("<q", struct.pack("<d", time)))
        z = torch.empty(self.shape, dtype=torch.float32, device=self.device)
        if self.skeleton.streams is None:
            z.normal_(generator=self.generator.manual_seed(seed))
        else:
            for row, stream in zip(z, self.skeleton.streams, strict=True):
                row.normal_(generator=self.generator.manual_seed(seed ^ stream))
        self.draws += 1
        return z.to(self.dtype)

    def increment(self, part: _Stretch, t: float, s: float) -> Tensor:
        """Return the dw of what [t, s] and ``part`` have in common."""
        if t == s:
            return torch.zeros_like(part.dw)
        while part.a < t or s < part.b:
            left, right = self.halves(part, t, s)
            if t < left.b < s:  # W_s − W_t = (W_m − W_t) + (W_s − W_m)
                return self.increment(left, t, s) + self.increment(right, t, s)
            part = left if s <= left.b else right
        return part.dw

    def area(self, part: _Stretch, t: float, s: float) -> tuple[Tensor, Tensor]:
        """Return the dw and the h of what [t, s] and ``part`` have in common."""
        if t == s:
            return torch.zeros_like(part.dw), torch.zeros_like(part.dw)
        while part.a < t or s < part.b or part.hi - part.lo > 1:
            left, right = self.halves(part, t, s)
            m = left.b
            if t < m < s:
                (dw1, h1) = self.area(left, t, s)
                (dw2, h2) = self.area(right, t, s)
                p, q = _shares(max(t, part.a), m, min(s, part.b))
                # ½ dw + h, the mean of W − W_t, is p (½ dw₁ + h₁) + q (dw₁ + ½ dw₂ + h₂).
                return dw1 + dw2, p * (h1 - 0.5 * dw2) + q * (h2 + 0.5 * dw1)
            part = left if s <= m else right
        return part.dw, self.h(part)

    def halves(self, part: _Stretch, t: float, s: float) -> tuple[_Stretch, _Stretch]:
        """Return the halves of ``part``, remembered or drawn again.

        A draw is a function of the seed and the time m alone, so that drawing again changes
        nothing. Several cells are split at a time of the grid, a cell at its middle, and a finest
        cell at the time that is asked for.
        """
        several = part.hi - part.lo > 1
        if several:
            middle = self.skeleton.middle(part.lo, part.hi)
            m = self.skeleton.times[middle]
        elif part.b - part.a > self.skeleton.cell:
            m = 0.5 * (part.a + part.b)
        else:
            m = t if part.a < t else s
            known = self.last.setdefault(part.a, m)
            if known != m:  # both drawn given the cell's ends, they would not know of each other
                raise _too_near(known, m)
        if m in self.splits:
            self.splits.move_to_end(m)
            return self.splits[m]
        found = self.split(part, m, middle) if several else self.split_cell(part, m)
        self.splits[m] = found
        while len(self.splits) > self.room:
            self.splits.popitem(last=False)
        return found

    def split(self, part: _Stretch, m: float, middle: int) -> tuple[_Stretch, _Stretch]:
        """Return the halves of a stretch of several cells."""
        a, b, dw, _, lo, hi = part
        p, q = _shares(a, m, b)
        # The Brownian bridge: W_m − W_a = p dw + d, d ~ N(0, (b − a) p q), and the rest q dw − d.
        d = self.draw(PathPurpose.INCREMENT, m).mul_(math.sqrt((b - a) * p * q))
        left = _Stretch(a, m, torch.add(d, dw, alpha=p), None, lo, middle)
        return left, _Stretch(m, b, (q * dw).sub_(d), None, middle, hi)

    def split_cell(self, part: _Stretch, m: float) -> tuple[_Stretch, _Stretch]:
        """Return the halves of a cell, or of a part of one, with their h.

        Given h, W_m is above the chord by d ~ N(6pq h, (b − a) pq r), r = p³ + q³. Given d too,
        p h₁ + q h₂ = h − ½d =: c and h₁ ~ N(p² c/r, (b − a) p q³/(12 r)).
        """
        a, b, dw, _, lo, hi = part
        p, q = _shares(a, m, b)
        r = p**3 + q**3
        h = self.h(part)
        # d given h, then h₁ = (p²/r) c + q z and h₂ = (q²/r) c − p z, so that p h₁ + q h₂ = c.
        d = self.draw(PathPurpose.INCREMENT, m).mul_(math.sqrt((b - a) * p * q * r))
        d.add_(h, alpha=6 * p * q)
        z = self.draw(PathPurpose.AREA, m).mul_(math.sqrt((b - a) * p * q / (12 * r)))
        c = torch.sub(h, d, alpha=0.5)
        left = _Stretch(a, m, torch.add(d, dw, alpha=p), (p * p / r) * c + q * z, lo, hi)
        return left, _Stretch(m, b, (q * dw).sub_(d), (q * q / r) * c - p * z, lo, hi)

    def h(self, part: _Stretch) -> Tensor:
        """Return the h of a cell, which W on the grid says nothing of, or of a part of one."""
        if part.h is not None:
            return part.h
        return self.draw(PathPurpose.AREA, part.b).mul_(math.sqrt((part.b - part.a) / 12))


@final
class BrownianPath(Noise):
    """One Brownian path W on [0, end], the same however its times are asked for.

    The path is split by exact bridges, [a, b] at m with p = (m − a)/(b − a) and q = 1 − p:

        W_m − W_a = p (W_b − W_a) + √((b − a) p q) z,    z seeded by m.

    A ``grid`` (of the finest solve, rising or falling) is halved by its indices, so a solve along
    it, or along every 2ᵏ-th of its times, draws once a step. Other times lie in a cell between
    neighbours (without a grid there is one cell, [0, end]), which is halved by time to the length
    end·2^{−depth} and then split at the time itself. Inside cells dw is split jointly with h, the
    mean of W above its chord, by two draws, so that `area` is of the same path. The h of whole
    cells do not depend on W on the grid and are drawn where needed: an area costs one more draw
    for each cell that it spans. A time off the grid costs up to 2·depth draws.

    What is kept are increments, in the state's dtype: values would cancel over short steps, or
    need float64. The normals are float32, so that one path is one path in every dtype. Memory:
    O(log steps) states; off the grid up to 3·depth splits of 4 states, and a float for each time.

    Arguments:
        seed: of the path, an integer in [0, 2⁶⁴).
        grid: the grid of the finest solve, which is drawn once a step; (steps + 1,).
        end: the last time of a path without a grid; 1 by default.
        depth: halvings of a cell down to the finest, of length end·2^{−depth}.

    Errors: TypeError for one time per sample, unless the path is `numbered`; ValueError for times
    outside [0, end], or for two in one finest cell.
    Source: Lévy's midpoint construction; Li et al. 2020 (virtual tree); Foster et al. 2020 (h).

    >>> import torch
    >>> grid = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
    >>> path, x = BrownianPath(3, grid=grid), torch.zeros(1, 2, dtype=torch.float64)
    >>> whole = path.increment(x, grid[0], grid[2])
    >>> parts = path.increment(x, grid[0], grid[1]) + path.increment(x, grid[1], grid[2])
    >>> bool(torch.allclose(whole, parts, atol=1e-14))
    True
    """

    def __init__(
        self, seed: int, *, grid: Tensor | None = None, end: float | None = None, depth: int = 24
    ) -> None:
        check_seed("BrownianPath", seed)
        positive_integer("BrownianPath", "depth", depth)
        if grid is None:
            end = 1.0 if end is None else end
            positive_number("BrownianPath", "end", end)
            times = [0.0, float(end)]
            given = 2
        elif end is not None:
            raise wrong_value(
                "BrownianPath",
                "grid, end",
                "not be given together",
                "both",
                "drop end, the path ends with its grid",
            )
        else:
            check_grid(grid, math.inf)
            times = sorted({0.0, *grid.tolist()})
            given = len(grid)
        self.seed = seed
        self.grid = grid
        self.end = times[-1]
        self.depth = depth
        self._fresh: Noise = WhiteNoise(mix(seed, PathPurpose.FRESH))
        self._numbers: range | None = None
        self._rows: list[BrownianPath] = []
        cell = self.end * 2.0**-depth
        self._skeleton = _Skeleton(seed, None, times, len(times) - given, cell)
        self._tree: _Tree | None = None

    @classmethod
    def numbered(
        cls,
        seed: int,
        first: int,
        count: int,
        *,
        grid: Tensor | None = None,
        end: float | None = None,
        depth: int = 24,
    ) -> BrownianPath:
        """Return the paths of samples first … first + count − 1 of the run ``seed``.

        A sample's path depends on its number only, so that a batch may be split in any way, bit
        for bit, and every sample may ask at times of its own, of shape (B,).

        Arguments:
            seed: of the run, an integer in [0, 2⁶⁴).
            first: the number of the batch's first sample.
            count: the number of samples, B.
            grid: the grid of the finest solve, which is drawn once a step; (steps + 1,).
            end: the last time of paths without a grid; 1 by default.
            depth: halvings of a cell down to the finest, of length end·2^{−depth}.
        """
        path = cls(seed, grid=grid, end=end, depth=depth)
        fresh = PerSampleNoise.numbered(mix(seed, PathPurpose.FRESH), first, count)
        path._fresh = fresh
        path._numbers = range(first, first + count)
        path._skeleton = path._skeleton._replace(streams=fresh.seeds)
        return path

    @property
    def draws(self) -> int:
        """The draws so far, each of a normal for every element of the state asked for."""
        return self._tree.draws if self._tree else 0

    def normal(self, x: Tensor) -> Tensor:
        return self._fresh.normal(x)

    def unit(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if t.ndim or s.ndim:
            return torch.cat(self._by_row(BrownianPath.unit, x, t, s))
        dt = float(s) - float(t)
        tree, low, high = self._between(x, float(t), float(s))
        scale = math.copysign(abs(dt) ** -0.5, dt) if dt else 0.0  # no time, no increment
        return (tree.increment(tree.whole, low, high) * scale).to(x.dtype)

    def increment(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if t.ndim or s.ndim:
            return torch.cat(self._by_row(BrownianPath.increment, x, t, s))
        tree, low, high = self._between(x, float(t), float(s))
        return (tree.increment(tree.whole, low, high) * math.copysign(1.0, s - t)).to(x.dtype)

    def area(self, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if t.ndim or s.ndim:
            dws, areas = zip(*self._by_row(BrownianPath.area, x, t, s), strict=True)
            return torch.cat(dws), torch.cat(areas)
        dt = float(s) - float(t)
        tree, low, high = self._between(x, float(t), float(s))
        dw, h = tree.area(tree.whole, low, high)
        dw = dw * math.copysign(1.0, dt)
        return dw.to(x.dtype), ((0.5 * dw + h) * dt).to(x.dtype)

    def at(self, x: Tensor, t: float) -> Tensor:
        """Return W(t) in the shape and dtype of ``x``."""
        return self.increment(x, *torch.tensor([0.0, t], dtype=torch.float64))

    def _between(self, x: Tensor, t: float, s: float) -> tuple[_Tree, float, float]:
        """Return the tree for states like ``x``, the earlier and the later time."""
        for time in (t, s):
            if not 0 <= time <= self.end:
                raise wrong_value(
                    "BrownianPath",
                    "t",
                    f"lie in [0, {self.end}]",
                    time,
                    "pass end= the largest time, or a longer grid",
                )
        (low, on_grid), (high, too) = map(self._skeleton.place, (min(t, s), max(t, s)))
        off_grid = not (on_grid and too)
        if 0 < abs(s - t) < self._skeleton.cell and (off_grid or low == high):
            raise _too_near(t, s)
        tree = self._tree
        dtype = torch.promote_types(x.dtype, torch.float32)
        if tree is None or (tree.shape, tree.dtype, tree.device) != (x.shape, dtype, x.device):
            self._check_batch(x)
            tree = self._tree = _Tree(self._skeleton, x, dtype)
        # The ways to the last two times and to a new one.
        tree.room = 3 * (len(self._skeleton.times).bit_length() + off_grid * self.depth)
        return tree, low, high

    def _by_row(self, method: Callable[..., T], x: Tensor, t: Tensor, s: Tensor) -> list[T]:
        """Return what every sample's own path answers at its own times."""
        if self._numbers is None:
            raise wrong_type(
                "BrownianPath",
                "t, s",
                "be one time for the whole batch",
                f"shapes {tuple(t.shape)}, {tuple(s.shape)}",
                "use BrownianPath.numbered(seed, first, count)",
            )
        self._check_batch(x)
        expand(s - t, x)  # refuses other shapes
        end = self.end if self.grid is None else None
        self._rows = self._rows or [
            BrownianPath.numbered(self.seed, i, 1, grid=self.grid, end=end, depth=self.depth)
            for i in self._numbers
        ]
        rows = zip(self._rows, torch.split(x, 1), t.expand(len(x)), s.expand(len(x)), strict=True)
        return [method(*row) for row in rows]

    def _check_batch(self, x: Tensor) -> None:
        if self._numbers is not None and len(self._numbers) != x.shape[0]:
            rule = f"have one row for each of the {len(self._numbers)} samples"
            raise wrong_value(
                "BrownianPath",
                "x",
                rule,
                tuple(x.shape),
                "number as many samples as there are rows",
            )
