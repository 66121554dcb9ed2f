"""The house form of an error: what was expected, what came, what to do."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Final

_MOST: Final = 80  # characters of a value that a message shows
_REASON: Final = 400  # characters of another error's message, which shows values in its turn


class Reason(str):
    """Words that are no value, such as another error's message, of which more is shown."""


def shown(value: object) -> str:
    r"""Return a value as messages show it: a text as it is, anything else as its repr.

    At most 80 characters, the first and the last of them, all printable; 400 of a `Reason`, on
    one line.

    >>> found = shown("a\x1b[31m" + 100 * "b")
    >>> found[:12], len(found)
    ('a\\x1b[31mbbb', 80)
    """
    if isinstance(value, Reason):
        return _cut(printable(" ".join(value.split())), _REASON)
    return _cut(printable(value if isinstance(value, str) else _repr(value)), _MOST)


def printable(text: str) -> str:
    """Return the text with escapes for characters that move a terminal's cursor or colours."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        return f"a {type(value).__name__} too large to show"


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = (most - 3) // 2
    return f"{text[: most - 3 - tail]} … {text[-tail:]}"


def _text(what: str, argument: str, rule: str, got: object, remedy: str) -> str:
    named = _cut(printable(argument), _REASON)  # a path, or words of the user's
    return printable(f"{what}: {named} must {rule}, got {shown(got)}; {remedy}")


def wrong_value(what: str, argument: str, rule: str, got: object, remedy: str) -> ValueError:
    """Return a ``ValueError`` for an argument of the right type and an impossible value.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument, or of several.
        rule: what it must do or be, in the words that follow "must".
        got: the value; a text stands as it is, anything else as its repr; at most 80
            characters are shown, more of a `Reason`.
        remedy: what to do or to write instead.
    """
    return ValueError(_text(what, argument, rule, got, remedy))


def wrong_type(what: str, argument: str, rule: str, got: object, remedy: str) -> TypeError:
    """Return a ``TypeError`` for an argument that is the wrong kind of object.

    Arguments: those of `wrong_value`.
    """
    return TypeError(_text(what, argument, rule, got, remedy))


def diverged(what: str, argument: str, rule: str, got: object, remedy: str) -> FloatingPointError:
    """Return a ``FloatingPointError`` for a computation that left the finite numbers.

    Arguments: those of `wrong_value`.
    """
    return FloatingPointError(_text(what, argument, rule, got, remedy))


def positive_integer(
    what: str, argument: str, got: object, *, least: int = 1, most: int | None = None
) -> None:
    """Refuse anything that is not an integer of at least ``least``, and of at most ``most``.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        least: the smallest integer allowed.
        most: the largest one; None for no limit.
    """
    example = 20 if least == 1 and most is None else least
    remedy = f"pass for example {argument}={example}"
    if isinstance(got, bool) or not isinstance(got, Integral):
        raise wrong_type(what, argument, "be an integer", got, remedy)
    if int(got) < least:
        raise wrong_value(what, argument, f"be at least {least}", got, remedy)
    if most is not None and int(got) > most:
        remedy = f"pass for example {argument}={least + 1}"
        raise wrong_value(what, argument, f"be at most {most}", got, remedy)


def positive_number(what: str, argument: str, got: object, remedy: str | None = None) -> None:
    """Refuse anything that is not a finite number above zero.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        remedy: what to pass instead; 1.0 if not given.
    """
    remedy = f"pass {argument}=1.0" if remedy is None else remedy
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise wrong_type(what, argument, "be a number", got, remedy)
    if not 0 < got < float("inf"):
        raise wrong_value(what, argument, "be finite and above 0", got, remedy)


def real_number(what: str, argument: str, got: object, remedy: str) -> None:
    """Refuse anything that is not a number; it may be infinite.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        remedy: what to pass instead.
    """
    if isinstance(got, bool) or not isinstance(got, Real):
        raise wrong_type(what, argument, "be a number", kind_of(got), remedy)


def number(what: str, argument: str, got: float, remedy: str) -> None:
    """Refuse anything that is not a finite number.

    Arguments: those of `real_number`.
    """
    real_number(what, argument, got, remedy)
    if not math.isfinite(got):
        raise wrong_value(what, argument, "be finite", got, remedy)


def an_object(
    what: str, argument: str, got: object, kind: type | tuple[type, ...], remedy: str
) -> None:
    """Refuse what is no object of a class: another, the class in its place, or its name.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        kind: the class, or several.
        remedy: what to pass instead.
    """
    if isinstance(got, type) or not isinstance(got, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        rule = f"be a {' or a '.join(one.__name__ for one in kinds)} object"
        raise wrong_type(what, argument, rule, kind_of(got), remedy)


def a_function(what: str, argument: str, got: object, form: str, remedy: str) -> None:
    """Refuse what cannot be called.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        form: what it is called with and what it returns, such as "(x, t) -> score".
        remedy: what to pass instead.
    """
    if not callable(got):
        raise wrong_type(what, argument, f"be a callable {form}", kind_of(got), remedy)


def kind_of(got: object) -> str:
    """Return what an object is: a class by its name, a text as it is written, else its type.

    >>> kind_of("posterior"), kind_of(int), kind_of([1])
    ("'posterior'", 'the class int', 'list')
    """
    if isinstance(got, type):
        return f"the class {got.__name__}"
    return _repr(got) if isinstance(got, str) else type(got).__name__


def check_path(what: str, argument: str, got: object) -> Path:
    """Return the path, refusing what is none."""
    if not isinstance(got, (str, os.PathLike)):
        remedy = "pass a text or a pathlib.Path"
        raise wrong_type(what, argument, "be a path", kind_of(got), remedy)
    return Path(got)


def check_shape(what: str, shape: object) -> None:
    """Refuse what is no shape (B, *event) of samples."""
    remedy = "pass for example shape=(4, 3, 32, 32): 4 samples of 3 × 32 × 32"
    rule = "be a row of integers (B, *event)"
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise wrong_type(what, "shape", rule, shape, remedy)
    if not shape:
        raise wrong_value(what, "shape", rule, shape, remedy)
    for size in shape:
        positive_integer(what, "shape", size)


def one_of(what: str, argument: str, got: object, names: Iterable[str]) -> None:
    """Refuse a name that is not one of ``names``.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        names: the values allowed; the error suggests the first.
    """
    known = list(names)
    if got not in known:
        raise wrong_value(
            what, argument, f"be one of {', '.join(known)}", got, f"pass {argument}={known[0]!r}"
        )
