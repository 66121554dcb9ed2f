"""A pretend CUDA device where there is none: it computes on the CPU and refuses what CUDA would.

    with pretend_cuda() as log:
        sample(load("digits", device="cuda"), DDIM(), (2, 1, 8, 8), steps=10)
    print(log.table())  # kernels, copies and waits, with the lines that make them

A `DeviceTensor` says that it is on cuda:0 and runs every operator on the CPU tensor in it, its
``elem``. For PyTorch's C++ it is on the meta device; autograd, forward mode, vmap, autocast, the
fused AdamW and torch.save go through. Devices that mix are refused but where CUDA takes them: one
0-d CPU tensor in a pointwise operator, 0-d values, CPU indices, copies. So are a generator of
another device, and ``numpy()``. A seed draws other numbers than on the CPU. The sync debug mode
"error" is obeyed.

Logged are
    "kernel"  an operator that launches at least one,
    "sync"    the host waits: item, bool, nonzero, a mask as an index, linalg's checks, a copy
              without non_blocking,
    "h2d", "d2h"  copies from and to the host,
    "fp64"    a kernel on 64 float64 numbers or more,
    "global"  a draw from the device's default generator.

It is slow, counts operators and not kernels (a group norm launches 3), and says nothing of
numerics, streams, memory, torch.compile, CUDA graphs or NCCL. What it lets pass may still fail on
a GPU; what it refuses does.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
META = torch.device("meta")
WATCHED = ("/sde_diffusion/", "/solvers/", "/cli/", "/benchmarks/")  # whose lines are told

_PROPERTIES = SimpleNamespace(name="pretend", total_memory=2**30, major=9, minor=0)
_GENERATOR = torch.Generator
_SAVE = torch.save
_ENGINE = torch.autograd._engine_run_backward


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Launch nothing, as views do.
_FREE = _names(
    "empty empty_like empty_strided new_empty new_empty_strided detach alias lift_fresh"
    " _unsafe_view view _reshape_alias set_ is_same_size resize_"
)
# Read a number of the device, or a size that depends on one.
_WAITS = _names(
    "_local_scalar_dense is_nonzero equal nonzero masked_select _unique2 unique_dim bincount"
    " unique_consecutive _linalg_check_errors repeat_interleave _linalg_eigvals linalg_eig"
)
_INDEXING = _names("index index_put_ index_put _index_put_impl_ _unsafe_index")
_NUMBERS = _names("where fill_ masked_fill masked_fill_ _to_copy")  # take any 0-d CPU tensors
_MOVES = _names("copy_ _fused_adamw_ lift_fresh")
_CONSTRUCTORS = (torch.tensor, torch.as_tensor, torch.asarray)
# What autocast computes in half precision, and in float32, as far as networks use it.
_HALF = _names(
    "conv1d conv2d conv3d conv_transpose2d linear matmul __matmul__ bmm mm addmm baddbmm einsum"
    " scaled_dot_product_attention"
)
_FULL = _names(
    "softmax log_softmax group_norm layer_norm exp log pow sum prod norm rsqrt mse_loss cumsum"
    " softplus expm1 log1p"
)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_LOG: list[Log] = []  # of the devices in use; the last counts
_RNG: list[torch.Tensor] = []  # the states of their default generators


class DeviceMismatch(RuntimeError):
    """What CUDA would refuse."""

    def __init__(self, func, got: str) -> None:
        super().__init__(f"{func}: {got}, at {_caller()}")


class Waited(RuntimeError):
    """A wait where the sync debug mode forbids it."""

    def __init__(self, op: str, where: str) -> None:
        super().__init__(f"called a synchronizing CUDA operation: {op} at {where}")


class NotOnTheHost(TypeError):
    """NumPy asked of a tensor on the device."""

    def __init__(self) -> None:
        super().__init__("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")


class Event(NamedTuple):
    kind: str
    op: str
    numel: int
    where: str  # the line of the package; empty for kernels


class Log:
    """What happened on the device, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.debug = False

    def add(self, kind: str, op: str, numel: int = 1) -> None:
        where = _caller() if kind != "kernel" else ""
        self.events.append(Event(kind, op, numel, where))
        if kind == "sync" and self.debug:
            raise Waited(op, where)

    def copied(self, kind: str, op: str, numel: int, *, blocking: bool) -> None:
        self.add(kind, op, numel)
        if blocking:  # the copy is followed by a wait for the stream
            self.add("sync", f"{op} ({kind})", numel)

    def counts(self, since: int = 0, until: int | None = None) -> Counter[str]:
        return Counter(event.kind for event in self.events[since:until])

    def places(self, kind: str, since: int = 0, until: int | None = None) -> Counter[str]:
        events = self.events[since:until]
        return Counter(f"{e.where} {e.op}" for e in events if e.kind == kind)

    def table(self, most: int = 12) -> str:
        lines = [f"{kind:7}{n:6}" for kind, n in sorted(self.counts().items())]
        for kind in ("sync", "h2d", "d2h", "fp64", "global"):
            top = self.places(kind).most_common(most)
            lines += [f"  {kind:6} {n:5} × {place}" for place, n in top]
        return "\n".join(lines)


def _caller() -> str:
    """Return the innermost line of the package on the way here, else that of the test."""
    frame, last = sys._getframe(2), "?"
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and "/torch/" not in path:
            for part in WATCHED:
                if part in path:
                    return f"{part[1:]}{path.rsplit(part, 1)[1]}:{frame.f_lineno}"
            last = f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}" if last == "?" else last
        frame = frame.f_back
    return last


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on cuda:0 and whose numbers are in ``elem``."""

    __module__ = "torch"  # its name in fingerprints
    __qualname__ = "Tensor"
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_meta = property(lambda _: False)

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=META,
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self, **_) -> str:
        return f"DeviceTensor({self.elem!r}, device='cuda:0')"

    def __deepcopy__(self, memo):
        made = DeviceTensor(self.elem.detach().clone()).requires_grad_(self.requires_grad)
        made._is_param = isinstance(self, torch.nn.Parameter)
        return memo.setdefault(id(self), made)

    def numpy(self, *_, **__):
        raise NotOnTheHost

    __array__ = numpy

    def tolist(self):
        _LOG[-1].copied("d2h", "tolist", self.numel(), blocking=True)
        return self.elem.tolist()

    def data_ptr(self):
        return self.elem.data_ptr()

    def untyped_storage(self):
        return self.elem.untyped_storage()


def _map(f, value):
    """Return f of everything in nested lists, tuples and dictionaries."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_map(f, v) for v in value])
    if isinstance(value, dict):
        return type(value)((k, _map(f, v)) for k, v in value.items())
    return f(value)


def _tensors(value, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for v in value:
            _tensors(v, found)


def _inner(value):
    return value.elem if isinstance(value, DeviceTensor) else value


class Operator(NamedTuple):
    """What the harness knows of an operator."""

    name: str
    launches: bool  # at least one kernel
    pointwise: bool
    seeded: bool  # draws from a generator


@cache
def _operator(func) -> Operator:
    name = func._schema.name.split("::")[1]
    view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
    return Operator(
        name,
        not view and name not in _FREE,
        torch.Tag.pointwise in func.tags,
        torch.Tag.nondeterministic_seeded in func.tags,
    )


def _check_mix(func, op: Operator, args, here: list[torch.Tensor]) -> None:
    """Refuse the CPU tensors ``here`` beside others on the device, unless CUDA takes them."""
    log = _LOG[-1]
    on_device = bool(args) and isinstance(args[0], DeviceTensor)
    if op.name in _INDEXING:
        if not on_device:
            raise DeviceMismatch(func, "indices should be on cpu, got cuda:0")
        for index in (i for i in args[1] if i is not None and not isinstance(i, DeviceTensor)):
            log.copied("h2d", f"{op.name}(cpu index)", index.numel(), blocking=True)
        here = [x for x in args[2:3] if not isinstance(x, DeviceTensor) and x.ndim]
    elif op.name in _MOVES or (op.name in _NUMBERS and not any(x.ndim for x in here)):
        for _ in here if op.name == "where" else ():
            log.copied("h2d", "where(cpu number)", 1, blocking=True)
        return
    elif op.pointwise and len(here) == 1 and not here[0].ndim:
        here = here if op.name.endswith("_") and not on_device else []
    if here:
        shapes = [tuple(x.shape) for x in here]
        raise DeviceMismatch(func, f"expected all tensors on cuda:0, found {shapes} on cpu")


def _note(op: Operator, args, kwargs, there: list[torch.Tensor], *, on_device: bool) -> None:
    """Log what an operator does on the device."""
    log = _LOG[-1]
    first = args[0] if args else None
    own = isinstance(first, DeviceTensor)
    if op.name == "_to_copy" and on_device != own:
        kind = "h2d" if on_device else "d2h"
        log.copied(kind, op.name, first.numel(), blocking=not kwargs.get("non_blocking"))
    elif op.name == "copy_" and own != isinstance(args[1], DeviceTensor):
        blocking = not (len(args) > 2 and args[2])
        log.copied("h2d" if own else "d2h", op.name, args[1].numel(), blocking=blocking)
    elif (there or on_device) and op.launches:
        log.add("kernel", op.name, max((x.numel() for x in there), default=0))
        if any(x.dtype == torch.float64 and x.numel() >= 64 for x in there):
            log.add("fp64", op.name)
    flags = False
    if own and op.name in _INDEXING:
        mask = any(i is not None and i.dtype == torch.bool for i in args[1])
        put = op.name.startswith("index_put")
        # A number put where a mask says so is a masked_fill.
        flags = mask and not (put and len(args) > 2 and not isinstance(args[2], DeviceTensor))
    if flags or (there and op.name in _WAITS):
        log.add("sync", op.name, there[0].numel())


@contextlib.contextmanager
def _own_generator(op: Operator):
    """Draw from the device's default generator, and leave the CPU's as it was."""
    _LOG[-1].add("global", op.name)
    before = torch.get_rng_state()
    torch.set_rng_state(_RNG[-1])
    try:
        yield
    finally:
        _RNG[-1] = torch.get_rng_state()
        torch.set_rng_state(before)


def _run(func, args, kwargs):
    """Run an operator on the CPU tensors inside."""
    op = _operator(func)
    leaves: list[torch.Tensor] = []
    _tensors(args, leaves)
    for value in kwargs.values():
        _tensors(value, leaves)
    there = [x for x in leaves if isinstance(x, DeviceTensor)]
    wanted = kwargs.get("device")
    on_device = bool(there) if wanted is None else torch.device(wanted).type != "cpu"
    if wanted is not None:
        kwargs = kwargs | {"device": CPU}
    if op.name == "_efficientzerotensor":  # forward mode's; below autograd it has no numbers
        func = torch.ops.aten.zeros.default
    if not there and not on_device:
        return func(*args, **kwargs)
    if there and len(there) < len(leaves):
        here = [x for x in leaves if not isinstance(x, DeviceTensor)]
        _check_mix(func, op, args, here)
    _note(op, args, kwargs, there, on_device=on_device)
    own = on_device and op.seeded and kwargs.get("generator") is None
    with _own_generator(op) if own else contextlib.nullcontext():
        out = func(*_map(_inner, tuple(args)), **_map(_inner, kwargs))
    for x in there if op.name.endswith("_") else ():
        if x.shape != x.elem.shape:  # changed in place, as by squeeze_
            torch.Tensor.data.__set__(x, DeviceTensor(x.elem))
    if not on_device or (op.name == "copy_" and not isinstance(args[0], DeviceTensor)):
        return out
    same = {id(x.elem): x for x in there}  # of operators in place

    def wrapped(x):
        if id(x) in same:
            return same[id(x)]
        return DeviceTensor(x) if isinstance(x, torch.Tensor) else x

    return _map(wrapped, out)


class _Operators(TorchDispatchMode):
    """Sees factories and copies from the CPU, which have no `DeviceTensor` as an argument."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _indexed(value):
    """Return "cuda" with its index."""
    if isinstance(value, (str, torch.device)) and str(value) == "cuda":
        return CUDA
    return value


def _wrapped(x) -> bool:
    """Return whether x is a tensor of vmap or jvp around one of the device."""
    if not isinstance(x, torch.Tensor):
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x) and x.is_meta


def _check_generator(func, kwargs, *, own: bool) -> None:
    generator = kwargs.get("generator")
    if generator is None:
        return
    wanted = kwargs.get("device")
    target = ("cuda" if own else "cpu") if wanted is None else torch.device(wanted).type
    if generator.device.type != target:
        raise DeviceMismatch(func.__name__, f"a {generator.device} generator on {target}")


class _Calls(TorchFunctionMode):
    """Sees Python's calls: devices without an index, generators, constructors, ``.data =``."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = _map(_indexed, tuple(args))
        kwargs = _map(_indexed, kwargs or {})
        first = args[0] if args else None
        own = isinstance(first, DeviceTensor) or _wrapped(first)
        _check_generator(func, kwargs, own=own)
        if func == torch.Tensor.device.__get__ and _wrapped(first):
            return CUDA
        where = kwargs.get("device")
        kind = None if where is None else torch.device(where).type
        if kind == "meta":
            with _disable_current_modes():  # the caller's own meta tensors, as of skip_init
                return func(*args, **kwargs)
        if func in _CONSTRUCTORS and kind == "cuda":
            rest = {k: v for k, v in kwargs.items() if k != "device"}
            return first.to(**rest) if own else func(*args, **rest, device=CPU).to(CUDA)
        if func is torch.Tensor.new_tensor and own:
            kwargs = {"dtype": first.dtype} | kwargs | {"device": CPU}
            return torch.tensor(*args[1:], **kwargs).to(CUDA if kind is None else where)
        if func is torch.Tensor.cuda:
            return first if own else first.to(CUDA)
        if own and func in (torch.Tensor.to, torch.Tensor.type_as):  # no copy within the device
            args = _map(_stay, args)
            kwargs = _map(_stay, kwargs)
        if own and func == torch.Tensor.data.__set__:
            first.elem = args[1].elem
        if own and func is torch.Tensor.__setitem__ and isinstance(args[2], (int, float)):
            args = (*args[:2], torch.tensor(args[2], dtype=first.dtype))  # on the CPU, as there
        return func(*_cast(func, args), **_cast(func, kwargs))


def _stay(value):
    """Return the device that a tensor on the pretend one has for PyTorch's C++."""
    return META if isinstance(value, torch.device) and value == CUDA else value


def _cast(func, values):
    """Return what autocast makes of the arguments of a call."""
    name = getattr(func, "__name__", "")
    if (name not in _HALF and name not in _FULL) or not torch.is_autocast_enabled("cuda"):
        return values
    to = torch.get_autocast_dtype("cuda") if name in _HALF else torch.float32

    def cast(v):
        return v.to(to) if isinstance(v, DeviceTensor) and v.dtype in _FLOATS else v

    return _map(cast, values)


class _Kind(type(torch.Generator)):
    """Makes every generator an instance of the pretend ones' class."""

    def __instancecheck__(cls, value):
        return isinstance(value, _GENERATOR)


class _Generator(_GENERATOR, metaclass=_Kind):
    """A generator for cuda:0, whose draws differ from the CPU's; for the CPU, PyTorch's own."""

    device = property(lambda _: CUDA)

    def __new__(cls, device="cpu"):
        return _GENERATOR.__new__(cls if torch.device(device).type == "cuda" else _GENERATOR)

    def __init__(self, device="cpu"):  # noqa: ARG002
        self._seed = 0

    def manual_seed(self, seed: int):
        self._seed = int(seed)
        super().manual_seed((self._seed * 0x9E3779B1 + 0x7F4A7C15) % 2**63)
        return self

    def initial_seed(self) -> int:
        return self._seed


def _seed(seed: int) -> None:
    _RNG[-1] = _Generator("cuda").manual_seed(seed).get_state()


def _backward(*args, **kwargs):
    with _Calls():  # which the call that got here has suspended
        return _ENGINE(*args, **kwargs)


def _save(value, *args, **kwargs):
    """Save what is on the device: CUDA's tensors would come back there without map_location."""
    _SAVE(_map(_inner, value), *args, **kwargs)


def _driver(log: Log) -> dict[str, object]:
    """Return what stands in for functions of torch.cuda."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "set_device": lambda *_: None,
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda *_: log.add("sync", "cuda.synchronize"),
        "get_device_name": lambda *_: "pretend",
        "get_device_properties": lambda *_: _PROPERTIES,
        "get_rng_state": lambda *_: _RNG[-1].clone(),
        "set_rng_state": lambda state, *_: _RNG.__setitem__(-1, state.clone()),
        "manual_seed": _seed,
        "manual_seed_all": _seed,
        "set_sync_debug_mode": lambda mode: setattr(log, "debug", mode in ("error", 2)),
    }


@contextlib.contextmanager
def pretend_cuda():
    """Make cuda:0 exist for a while and give its `Log`."""
    log = Log()
    each = torch.utils._foreach_utils
    _LOG.append(log)
    _RNG.append(_GENERATOR().manual_seed(1).get_state())
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, function in _driver(log).items():
                patch.setattr(torch.cuda, name, function)
            patch.setattr(torch, "Generator", _Generator)
            patch.setattr(torch, "save", _save)
            patch.setattr(torch.autograd, "_engine_run_backward", _backward)
            kinds = [*each._foreach_supported_types, DeviceTensor]
            patch.setattr(each, "_foreach_supported_types", kinds)
            devices = lambda: ["cuda", "meta"]  # noqa: E731
            patch.setattr(each, "_get_foreach_kernels_supported_devices", devices)
            with _Operators(), _Calls():
                yield log
    finally:
        _LOG.pop()
        _RNG.pop()


def current_log() -> Log | None:
    """Return the log of the pretend device in use, None where there is none."""
    return _LOG[-1] if _LOG else None


@contextlib.contextmanager
def cuda_device():
    """Give "cuda" a meaning for a while: the GPU where there is one, else the pretend device.

    Its value is the log of the pretend device, None on a GPU.
    """
    if torch.cuda.is_available():
        yield None
    else:
        with pretend_cuda() as log:
            yield log
