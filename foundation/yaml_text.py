"""YAML from outside: plain values of a bounded size, or one kind of error.

An alias in itself never ends, nine lines of aliases in aliases are a thousand million entries, and a tag may ask for an
object. So a text is composed first, what it would come to is counted, and only then are values made of it.
"""

import re
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_ENTRIES = 100_000  # aliases count as often as they are used
DEEPEST = 50
_PREFIX = "tag:yaml.org,2002:"
_TAGS = {
    _PREFIX + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it, is 5 x faster


class Loader(_SafeLoader):
    """SafeLoader that reads `1e-8` as a number; YAML 1.1 reads a string."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


class YamlTextError(ValueError):
    """A text that is not YAML, or asks for more than plain values of a bounded size."""


def compose(text: str) -> yaml.Node | None:
    """The nodes of a document, with their places; None for an empty one.

    Raises:
        YamlTextError: saying what is wrong, and in which line.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlTextError(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        _check_depth(text)
        node: yaml.Node | None = yaml.compose(text, Loader=Loader)
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a command line may hold bytes that are no text
        raise YamlTextError(str(error)) from None
    _check(node)
    return node


def _check_depth(text: str) -> None:
    """Before nodes are made: libyaml's composer calls itself for every level, and 50,000 of them end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise YamlTextError(f"it is nested in more than {DEEPEST} levels")


def _check(root: yaml.Node | None) -> None:
    entries, left = 0, [] if root is None else [(root, 1)]
    while left:
        node, depth = left.pop()
        entries += 1
        line = f"line {node.start_mark.line + 1}: "
        if entries > MAX_ENTRIES:
            raise YamlTextError(
                f"{line}it comes to more than {MAX_ENTRIES:,} entries, aliases as often as they are used"
            )
        if depth > DEEPEST:
            raise YamlTextError(f"{line}it is nested in more than {DEEPEST} levels")
        if node.tag not in _TAGS:
            raise YamlTextError(f"{line}the tag {node.tag!r} is none of a plain value")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise YamlTextError(f"{line}a key is no text")
                left += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            left += [(item, depth + 1) for item in node.value]


def value_of(node: yaml.Node | None) -> Any:
    """Of a node that `compose` has checked.

    Raises:
        YamlTextError: for a scalar that is none of its type, such as the 31st of February.
    """
    if node is None:
        return None
    try:
        return Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise YamlTextError(str(error)) from None


def load(text: str) -> Any:
    """The plain value of a document. Raises YamlTextError."""
    return value_of(compose(text))
