"""The one place where times and coefficients meet states."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._check import kind_of, wrong_type, wrong_value


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Return the coefficient ``c`` in a form that multiplies the state ``x``.

    A 0-d coefficient stays what it is: PyTorch treats it as a scalar, so it neither changes the
    dtype of ``x`` nor needs to live on its device. A ``(B,)`` coefficient is cast and reshaped.

    Shapes: c () or (B,); x (B, *event); result () or (B, 1, …, 1).
    """
    if not isinstance(c, Tensor):
        check_times("time", c)
    if c.ndim == 0:
        return c
    if c.ndim != 1 or c.shape[0] != x.shape[0]:
        raise wrong_value(
            "time",
            "t",
            f"have shape () or ({x.shape[0]},) for this state",
            tuple(c.shape),
            "pass one time, or one time per sample",
        )
    return moved(c, x.device, x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))


def moved(c: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return ``c`` on a device in a dtype; what comes from the CPU does not wait for a GPU."""
    if c.device.type == "cpu":
        return c.to(dtype=dtype).to(device=device, non_blocking=True)
    return c.to(device=device, dtype=dtype)


def plus(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Return x + c y, in one pass over the states where ``c`` is a number.

    Shapes: x, y (B, *event); c () or (B,).
    """
    return x + expand(c, x) * y if c.ndim else torch.add(x, y, alpha=float(c))


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` as one number per sample on the device of ``x``, in float32 at least.

    In bfloat16 the 1000 times k/1000 are 506 numbers, and a network sees its time alone.

    A 0-d CPU time is written by a fill, which does not wait for the GPU.

    Shapes: t () or (B,); result (B,).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if t.ndim == 0 and t.device == x.device:
        return t.to(dtype).expand(x.shape[0])
    if t.ndim == 0:
        return torch.full((x.shape[0],), float(t), dtype=dtype, device=x.device)
    return moved(t, x.device, dtype)


def check_state(what: str, x: Tensor, name: str = "x") -> None:
    """Refuse a state that is not a floating-point tensor (B, *event)."""
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise wrong_type(what, name, "be a torch.Tensor", got, f"use torch.as_tensor({name})")
    if not x.is_floating_point():
        remedy = f"convert it with {name}.float()"
        raise wrong_type(what, name, "have a floating-point dtype", str(x.dtype), remedy)
    if x.ndim < 2 or x.shape[0] == 0:
        raise wrong_value(
            what,
            name,
            "have shape (B, *event) with B at least 1",
            tuple(x.shape),
            f"add the missing dimension, for example {name}[:, None] or {name}[None]",
        )


def check_times(what: str, t: object) -> None:
    """Refuse what is no tensor of times."""
    if not isinstance(t, Tensor):
        remedy = "pass torch.tensor(0.5, dtype=torch.float64), or one time for each sample"
        raise wrong_type(what, "t", "be a torch.Tensor", kind_of(t), remedy)


def check_device(what: str, device: object) -> torch.device:
    """Return the device, refusing what names none."""
    if isinstance(device, torch.device):
        return device
    try:
        return torch.device(device if isinstance(device, str) else "none")
    except RuntimeError as error:
        rule = "be a device of torch"
        raise wrong_type(what, "device", rule, kind_of(device), "pass 'cpu' or 'cuda'") from error


def check_dtype(what: str, dtype: object) -> None:
    """Refuse what is no dtype of states."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        rule = "be a floating-point dtype of torch"
        raise wrong_type(what, "dtype", rule, kind_of(dtype), "pass dtype=torch.float32")


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of every sample, outside any graph.

    Shapes: (B, *event) → (B,), float64.
    """
    return (x.detach().double() ** 2).flatten(1).sum(1).div(math.prod(x.shape[1:])).sqrt()


def flat_sum(x: Tensor) -> Tensor:
    """Return the sum over the event dimensions: (B, *event) → (B,)."""
    return x.flatten(1).sum(1)
