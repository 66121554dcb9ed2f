"""The house form of an error: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral


def _text(what: str, argument: str, rule: str, got: object, remedy: str) -> str:
    shown = got if isinstance(got, str) else repr(got)
    return f"{what}: {argument} must {rule}, got {shown}; {remedy}"


def wrong_value(what: str, argument: str, rule: str, got: object, remedy: str) -> ValueError:
    """Return a ``ValueError`` for an argument of the right type and an impossible value.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument, or of several.
        rule: what it must do or be, in the words that follow "must".
        got: the value; a text stands as it is, anything else as its repr.
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


def positive_integer(what: str, argument: str, got: object, *, least: int = 1) -> None:
    """Refuse anything that is not an integer of at least ``least``.

    Arguments:
        what: the function or class that refuses.
        argument: the name of the argument.
        got: its value.
        least: the smallest integer allowed.
    """
    remedy = f"pass for example {argument}={20 if least == 1 else least}"
    if isinstance(got, bool) or not isinstance(got, Integral):
        raise wrong_type(what, argument, "be an integer", got, remedy)
    if int(got) < least:
        raise wrong_value(what, argument, f"be at least {least}", got, remedy)


def positive_number(what: str, argument: str, got: object) -> None:
    """Refuse anything that is not a finite number above zero."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise wrong_type(what, argument, "be a number", got, f"pass {argument}=1.0")
    if not 0 < got < float("inf"):
        raise wrong_value(what, argument, "be finite and above 0", got, f"pass {argument}=1.0")


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
