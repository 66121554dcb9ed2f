"""What stands in a pickle, without doing what it says: names, numbers, texts and their nesting.

A pickle is a program: it names functions of any module and calls them. Here each call is kept as
`Made`, its function a text and its arguments values, so that nothing of a file is ever imported,
called or built. The instructions are listed by the standard library's `pickletools`; those that
only programs before Python 3 wrote, as text, are refused.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, final

_MOST: Final = 300_000  # instructions; a network of 700 modules has a third of that
_LONGEST_NUMBER: Final = 16  # bytes
_PLAIN: Final = (str, int, float, bytes, bool, type(None))
_MARK: Final = object()


class PickleRefusedError(ValueError):
    """A pickle that is damaged, or that holds what is not read."""


@final
@dataclass(frozen=True)
class Name:
    """The name of a class or function, "module.name", which is not imported."""

    text: str


@final
@dataclass(eq=False)
class Made:
    """What a call would have made.

    Arguments:
        name: the function, "module.name".
        arguments: what it would have been called with.
        state: what the result's attributes would have been set to.
        items: the keys and values that would have been put into the result.
        elements: those of a list.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


def read_pickle(
    data: bytes, start: int = 0, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    """Return the value of the pickle at ``start``, and where it ends.

    Dictionaries, lists, tuples and plain values are themselves, a set is a list, and everything
    else is a `Name` or `Made`.

    Arguments:
        data: the bytes of the file.
        start: where the pickle begins.
        persistent: what stands for an object that the pickle has by its id alone.

    Errors: PickleRefusedError, a ValueError.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, (2.0, None)]}, protocol=2))[0]
    {'a': [1, (2.0, None)]}
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine(persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of texts with escapes that are none
            for opcode, argument, _ in islice(pickletools.genops(stream), _MOST):
                if opcode.name == "STOP":
                    return machine.result(), stream.tell()
                machine.do(opcode.name, argument)
    except PickleRefusedError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, Warning) as error:
        message = f"is damaged ({type(error).__name__}: {str(error)[:80]})"
        raise PickleRefusedError(message) from error
    message = f"has more than {_MOST} instructions"
    raise PickleRefusedError(message)


class _Machine:
    """The stack, the marks on it and the memory of a pickle."""

    def __init__(self, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.persistent = persistent

    def result(self) -> Any:  # noqa: ANN401  (whatever stands in the file)
        (value,) = self.stack
        return value

    def do(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _SKIPPED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self.push_value(argument)
        elif name in _PUT:
            self.memory[len(self.memory) if argument is None else argument] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memory[argument])
        elif name in _TUPLES:
            self.push_tuple(_TUPLES[name])
        elif name in _METHODS:
            _METHODS[name](self, argument)
        else:
            message = f"holds the instruction {name}, which is not read"
            raise PickleRefusedError(message)

    def push_value(self, value: Any) -> None:  # noqa: ANN401
        if isinstance(value, int) and value.bit_length() > 8 * _LONGEST_NUMBER:
            message = f"holds a whole number of {value.bit_length()} bits"
            raise PickleRefusedError(message)
        self.stack.append(value)

    def push_tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError(count)
        parts = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(parts)

    def mark(self, _: object) -> None:
        self.stack.append(_MARK)

    def since_mark(self) -> list[Any]:
        """Return and remove what stands above the last mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                message = "has no mark where one is needed"
                raise PickleRefusedError(message)
        parts = self.stack[place + 1 :]
        del self.stack[place:]
        return parts

    def tuple_of_marked(self, _: object) -> None:
        self.stack.append(tuple(self.since_mark()))

    def append(self, _: object) -> None:
        value = self.stack.pop()
        self.extend([value])

    def appends(self, _: object) -> None:
        self.extend(self.since_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Made):
            target = target.elements
        if not isinstance(target, list):
            message = f"puts elements into a {type(target).__name__}"
            raise PickleRefusedError(message)
        target.extend(values)

    def set_item(self, _: object) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.set([key, value])

    def set_items(self, _: object) -> None:
        self.set(self.since_mark())

    def set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Made):
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            message = f"puts {len(pairs)} keys and values into a {type(target).__name__}"
            raise PickleRefusedError(message)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # A key made of nested tuples can take for ever to hash.
            if not isinstance(key, _PLAIN):
                message = f"has a {type(key).__name__} for a key"
                raise PickleRefusedError(message)
            target[key] = value

    def named(self, argument: str) -> None:
        self.stack.append(Name(argument.replace(" ", ".", 1)))

    def named_by_stack(self, _: object) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            message = "has no text for a name"
            raise PickleRefusedError(message)
        self.stack.append(Name(f"{module}.{name}"))

    def call(self, _: object) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            message = "calls what is no name, or without arguments"
            raise PickleRefusedError(message)
        self.stack.append(Made(function.text, arguments))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, Made):
            message = f"gives a state to a {type(made).__name__}"
            raise PickleRefusedError(message)
        made.state = state

    def by_id(self, _: object) -> None:
        identity = self.stack.pop()
        if self.persistent is None:
            message = "holds an object that stands elsewhere"
            raise PickleRefusedError(message)
        self.stack.append(self.persistent(identity))


_SKIPPED: Final = {"PROTO", "FRAME"}
_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_VALUES: Final = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINSTRING", "SHORT_BINSTRING"),
}
_PUT: Final = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET: Final = {"BINGET", "LONG_BINGET"}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_by_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.by_id,
}
