"""The two ends of a code benchmark, each in a sandbox of its own: the program that is judged, and the tests.

The tests call the program's functions over a socket, by value. What crosses is one JSON line each way, and the tests
get plain values of Python's own types whatever the program sends, so that the program can forge nothing but a wrong
answer: it sees neither the expected values nor the process that compares. Standard library only.
"""

import builtins
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from io import BufferedRWPair
from types import ModuleType
from typing import Any

CALLS = "__answer__"  # the tests' name for it: __answer__("f")(2) calls the program's f
_MAX_REPLY_BYTES = 32 << 20
_NUMPY_KINDS = "biufcSU"  # no objects
_EXACT = (type(None), bool, int, float, str)
_MAX_DECIMAL_BITS = 10_000  # Python refuses to convert numbers of more than 4300 decimal digits
_MODULE = "program"
ENDED = "the program ended before it answered"


class AnswerError(Exception):
    """The program gave no value; the message says what it did instead."""


class Opaque:
    """A value of a type that does not cross. It is something, and true or not; comparing it is an error."""

    def __init__(self, kind: str, truth: bool) -> None:
        self._kind, self._truth = kind, truth

    def __bool__(self) -> bool:
        return self._truth

    def __eq__(self, other: object) -> bool:
        raise AnswerError(f"the answer holds a {self._kind}, which cannot be compared")

    __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __eq__
    __hash__ = None  # type: ignore[assignment]


def encoded(value: Any) -> Any:
    """`value` for JSON: lists as they are, every other container as {type: content}."""
    if type(value) in _EXACT and not (isinstance(value, int) and value.bit_length() > _MAX_DECIMAL_BITS):
        return value
    if isinstance(value, list):
        return [encoded(item) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encoded(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[encoded(key), encoded(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return _encoded_number(value) or _encoded_other(value)


def _encoded_number(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in _NUMPY_KINDS:
        kind = "array" if isinstance(value, numpy.ndarray) else "scalar"
        return {kind: [value.dtype.str, list(value.shape), encoded(value.ravel().tolist())]}
    if type(value).__module__ in ("fractions", "decimal") and type(value).__name__ in ("Fraction", "Decimal"):
        return {type(value).__name__: str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float(value)}
    if isinstance(value, str):
        return {"str": str.__str__(value)}  # of an Enum str() would write the member's name
    return None


def _encoded_other(value: Any) -> Any:
    if isinstance(value, Iterable):  # iterators, views, deques: their items, in order
        return {"iterator": [encoded(item) for item in value]}
    return {"object": [type(value).__name__, bool(value)]}


def decoded(content: Any) -> Any:
    """The value, whoever wrote it. Raises ValueError, TypeError, KeyError or OverflowError for anything else."""
    if type(content) in _EXACT:
        return content
    if isinstance(content, list):
        return [decoded(item) for item in content]
    ((kind, inner),) = content.items()
    return _DECODERS[kind](inner)


def _items(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError(f"{type(content).__name__} instead of a list")
    return [decoded(item) for item in content]


def _array(content: Any) -> Any:
    import numpy

    name, shape, values = content
    kind = numpy.dtype(str(name))
    if kind.kind not in _NUMPY_KINDS:
        raise ValueError(f"an array of {kind}")
    return numpy.array(_items(values), kind).reshape([int(size) for size in shape])


def _fraction(content: Any) -> Any:
    from fractions import Fraction

    return Fraction(str(content))


def _decimal(content: Any) -> Any:
    from decimal import Decimal

    return Decimal(str(content))


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda content: tuple(_items(content)),
    "set": lambda content: set(_items(content)),
    "frozenset": lambda content: frozenset(_items(content)),
    "dict": lambda content: dict(map(_items, content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda content: range(*map(int, content)),
    "array": _array,
    "scalar": lambda content: _array(content)[()],
    "Fraction": _fraction,
    "Decimal": _decimal,
    "complex": lambda content: complex(*map(float, content)),
    "int": lambda content: int(content, 16),
    "float": float,
    "str": str,
    "iterator": lambda content: iter(_items(content)),
    "object": lambda content: Opaque(str(content[0]), content[1] is True),
}


def run_program(program: str, name: str = "__main__") -> dict[str, Any]:
    """Run it as a file of its own would run; returns its names."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as Python's site module has them
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(program, "program.py", "exec"), module.__dict__)
    return module.__dict__


def serve(program: str, channel: BufferedRWPair) -> None:
    """Run the program, then answer calls of its functions until the other side hangs up.

    It is imported, not started: what it does as `__main__` is no part of its functions.
    """
    names: dict[str, Any] = {}

    def load() -> None:
        try:
            names.update(run_program(program, _MODULE))
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
            names.update(vars(sys.modules[_MODULE]))  # what it defined before it ended itself

    def call(line: bytes) -> Any:
        expression, arguments, keywords = decoded(json.loads(line))
        return eval(expression, names)(*arguments, **keywords)

    reply = _reply(load)
    while True:
        channel.write(reply)
        channel.flush()
        line = channel.readline()
        if not line:
            return
        reply = _reply(partial(call, line))


def _reply(compute: Callable[[], Any]) -> bytes:
    try:
        return json.dumps({"value": encoded(compute())}).encode() + b"\n"
    except BaseException as error:  # SystemExit too: whatever the program does is its answer
        return json.dumps({"raised": f"{type(error).__name__}: {error}"[:500]}).encode() + b"\n"


def run_tests(tests: str, channel: BufferedRWPair) -> None:
    """Run the tests, which call the program through `__answer__`.

    Raises:
        AssertionError: as the tests do.
        SystemExit: with a message, when the program does not load, raises, or ends before it answers.
    """

    def answer(expression: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            request = json.dumps(encoded((expression, arguments, keywords))).encode() + b"\n"
            try:
                channel.write(request)
                channel.flush()
            except OSError:
                raise AnswerError(ENDED) from None
            return _received(channel)

        return call

    try:
        _received(channel)  # the program has loaded
        exec(compile(tests, "tests.py", "exec"), {"__name__": "tests", CALLS: answer})
    except AnswerError as error:
        sys.exit(str(error))


def _received(channel: BufferedRWPair) -> Any:
    try:
        line = channel.readline(_MAX_REPLY_BYTES)
    except OSError:
        line = b""
    if not line.endswith(b"\n"):
        raise AnswerError("the program's reply is too long" if line else ENDED)
    try:
        reply = json.loads(line)
        if "raised" in reply:
            raise AnswerError(str(reply["raised"]))
        return decoded(reply["value"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise AnswerError(f"the program's reply is no value ({type(error).__name__})") from None
