"""The neuron grammar: text to the neurons that are scored, and back.

    neuron    = component | ("max" | "min" | "mean") "(" component {"," component} ")"
    component = ["-"] (layer ":" channels | dictionary "[" channels "]") ["@" position]
    layer     = module ["[" call "]"] ["#" element]
    dictionary = ("direction" | "sae") "(" layer ',"' file '")'
    channels  = number | number "-" number | "*"
    position  = "center" | row "x" column | token | "cls"

A range or ``*`` at the top stands for one neuron a channel; inside a composite, for its components.
A module whose name has other characters than letters, digits, ``_``, ``.``, ``-`` and ``/`` stands
in double quotes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from polylight.errors import InputError, nearest

Operation = Literal["", "max", "min", "mean"]
OPERATIONS: tuple[Operation, ...] = ("", "max", "min", "mean")

_COMPOSITE = re.compile(r"(?P<operation>\w+)\((?P<components>.*)\)")
_ADDRESS = re.compile(
    r"(?:\"(?P<quoted>[^\"]+)\"|(?P<module>[^:@,()\[\]#\"]+))"
    r"(?:\[(?P<call>\d+)\])?(?:#(?P<element>[\w.]+))?"
)
_LAYER = r"(?:\"[^\"]+\"|[^:@,()\"])+"
_DICTIONARY = re.compile(rf"(?P<kind>direction|sae)\((?P<read>{_LAYER}),\"(?P<file>[^\"]+)\"\)")
_CHANNELS = r"\*|\d+|\d+-\d+"
_PART = re.compile(
    rf"(?P<sign>-?)(?:(?P<layer>{_LAYER}):(?P<channels>{_CHANNELS})"
    rf"|(?P<dictionary>{_DICTIONARY.pattern})\[(?P<vectors>{_CHANNELS})\])"
    r"(?:@(?P<position>center|cls|\d+x\d+|\d+))?"
)
# What lies outside of double quotes, or a pair of them with what is inside.
_PIECES = re.compile(r"\"[^\"]*\"?|[^\"]+")
_PLAIN_NAME = re.compile(r"[\w./-]+")
_FORMS = (
    "write layer:channel, such as blocks.4:17, blocks.4:0-63, blocks.4:*, blocks.4:17@center, "
    "blocks.4:17@3x5, -blocks.4:17, max(blocks.4:3,blocks.4:77), min(...), mean(...), "
    'direction(blocks.4,"vectors.safetensors")[0-63] or sae(blocks.4,"encoder.safetensors")[3]'
)


class DictionaryFile(NamedTuple):
    """Vectors in the activation space of a layer, which are scored as its channels are."""

    kind: Literal["direction", "sae"]
    file: str
    """Path of the directions, or of the encoder."""


class Address(NamedTuple):
    """Where a layer's activation comes from: a module, one of its calls, a part of its output."""

    module: str
    call: int | None = None
    """Which call of the module, from 0; None for the last."""
    element: str = ""
    """Index or key of what it returns, such as 0, 1.0 or hidden; empty for a single tensor."""
    dictionary: DictionaryFile | None = None
    """What reads the activation; None for the layer itself."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address.

        Raises:
            InputError: If it is malformed.
        """
        reader = _DICTIONARY.fullmatch(text)
        if reader is not None:
            kind: Literal["direction", "sae"] = "sae" if reader["kind"] == "sae" else "direction"
            dictionary = DictionaryFile(kind, reader["file"])
            return cls.parse(reader["read"])._replace(dictionary=dictionary)
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise InputError(
                f"'{text}' is no layer: write its name, such as blocks.4, blocks.4[0] for the "
                "first of several calls, attn#0 for an element of what it returns, and names with "
                'other characters in double quotes, such as "my layer".'
            )
        call = None if match["call"] is None else int(match["call"])
        return cls(match["quoted"] or match["module"], call, match["element"] or "")

    def __str__(self) -> str:
        """The address as the grammar writes it."""
        name = self.module if _PLAIN_NAME.fullmatch(self.module) else f'"{self.module}"'
        call = "" if self.call is None else f"[{self.call}]"
        layer = f"{name}{call}{'#' if self.element else ''}{self.element}"
        if self.dictionary is None:
            return layer
        return f'{self.dictionary.kind}({layer},"{self.dictionary.file}")'

    @property
    def measured(self) -> str:
        """The layer whose statistics count here: that of a dictionary, and of every call."""
        return str(self._replace(call=None, dictionary=None))


class LayerShape(NamedTuple):
    """What a layer offers to be chosen from."""

    channels: int
    size: tuple[int, ...]
    """Height and width, or one length; empty for a vector output. Of tokens that are patches of
    the image in rows, height and width too."""
    depth: int = 0
    """Order in which the layers of the network finish."""
    prefix: int = 0
    """Tokens before those of the patches: the class token, registers."""


@dataclass(frozen=True)
class Component:
    """One channel, or one position of it.

    ``position`` is None for the mean over positions (of tokens, over those of patches), "center",
    (row, column), the number of a token or "cls".
    """

    layer: str
    channel: int
    sign: Literal[1, -1] = 1
    position: Literal["center", "cls"] | tuple[int, int] | int | None = None

    def __str__(self) -> str:
        """The component as the grammar writes it."""
        place = self.position
        said = f"{place[0]}x{place[1]}" if isinstance(place, tuple) else place
        where = "" if place is None else f"@{said}"
        is_dictionary = _DICTIONARY.fullmatch(self.layer) is not None
        channel = f"[{self.channel}]" if is_dictionary else f":{self.channel}"
        return f"{'-' if self.sign < 0 else ''}{self.layer}{channel}{where}"

    def flat_position(self, shape: LayerShape) -> int:
        """Index of the position in the flattened map of the layer.

        Args:
            shape: What the layer offers.

        Returns:
            An index; -1 for the mean over all that lie behind the ``prefix``.
        """
        place, size = self.position, shape.size
        if place is None or not size:
            return -1
        if place == "cls":
            return 0
        if isinstance(place, int):
            return place
        width = size[-1]
        row, column = (
            (size[0] // 2 if len(size) > 1 else 0, width // 2) if place == "center" else place
        )
        return shape.prefix + row * width + column


@dataclass(frozen=True)
class Neuron:
    """What is scored: one component or a composite. ``str()`` gives the normalised text."""

    components: tuple[Component, ...]
    operation: Operation = ""

    def __str__(self) -> str:
        """The neuron as the grammar writes it, without spaces."""
        inner = ",".join(map(str, self.components))
        return f"{self.operation}({inner})" if self.operation else inner

    def deepest_layer(self, layers: Mapping[str, LayerShape]) -> str:
        """Name the layer in which images of the neuron are compared.

        In whatever order the components are written, it is the same.
        """
        return max({c.layer for c in self.components}, key=lambda name: (layers[name].depth, name))


@dataclass(frozen=True)
class _Pattern:
    """A component whose channels are still a range; the last of it is None for ``*``."""

    component: Component
    last: int | None
    text: str

    def expand(self, layers: Mapping[str, LayerShape]) -> list[Component]:
        """One component for each channel of the range."""
        shape = layers[self.component.layer]
        last = shape.channels - 1 if self.last is None else self.last
        if last >= shape.channels:
            raise InputError(
                f"neuron '{self.text}' asks for channel {last}, but layer "
                f"'{self.component.layer}' has channels 0 to {shape.channels - 1}."
            )
        self._check_position(shape)
        return [replace(self.component, channel=c) for c in range(self.component.channel, last + 1)]

    def _check_position(self, shape: LayerShape) -> None:
        """Refuse a position or a token that the layer does not have."""
        place = self.component.position
        wrong = False
        if isinstance(place, tuple):
            row, column = place
            wrong = len(shape.size) != 2 or row >= shape.size[0] or column >= shape.size[1]
        elif isinstance(place, int):
            wrong = not shape.size or place >= shape.prefix + math.prod(shape.size)
        elif place == "cls":
            wrong = not shape.prefix
        if wrong:
            size = "x".join(map(str, shape.size)) or "no positions"
            tokens = f" and {shape.prefix} tokens before them" if shape.prefix else ""
            raise InputError(
                f"neuron '{self.text}' asks for position {self.text.rpartition('@')[2]}, but the "
                f"output of layer '{self.component.layer}' has {size}{tokens} at this image size."
            )


def _parse_component(text: str) -> _Pattern:
    match = _PART.fullmatch(text)
    if match is None:
        hint = ""
        if _DICTIONARY.fullmatch(text.removeprefix("-")):
            hint = f"no index is given; '{text}[*]' means all of them. "
        elif not set(":[(") & set(text):
            hint = f"no channel is given; '{text}:*' means all of them. "
        raise InputError(f"'{text}' is no neuron: {hint}{_FORMS[0].upper()}{_FORMS[1:]}.")
    channels = match["channels"] or match["vectors"]
    first, _, last = channels.partition("-")
    if last and int(last) < int(first):
        raise InputError(f"'{text}' has an empty channel range; did you mean {last}-{first}?")
    place = match["position"]
    position: Literal["center", "cls"] | tuple[int, int] | int | None = None
    if place == "center":
        position = "center"
    elif place == "cls":
        position = "cls"
    elif place and "x" in place:
        row, column = map(int, place.split("x"))
        position = (row, column)
    elif place:
        position = int(place)
    return _Pattern(
        Component(
            str(Address.parse(match["layer"] or match["dictionary"])),
            0 if first == "*" else int(first),
            -1 if match["sign"] else 1,
            position,
        ),
        None if first == "*" else int(last or first),
        text,
    )


def _parse(text: str) -> tuple[Operation, list[_Pattern]]:
    pieces = _PIECES.findall(text)
    text = "".join(p if p.startswith('"') else re.sub(r"\s+", "", p) for p in pieces)
    match = _COMPOSITE.fullmatch(text)
    if match is None or _DICTIONARY.fullmatch(text):
        return "", [_parse_component(text)]
    for operation in OPERATIONS[1:]:
        if match["operation"] == operation:
            return operation, [_parse_component(p) for p in _split(match["components"])]
    close = nearest(match["operation"], OPERATIONS[1:])
    raise InputError(f"'{match['operation']}' in '{text}' is no composite; {close}.")


def _split(text: str) -> list[str]:
    """Split at commas that stand neither in double quotes nor in parentheses."""
    parts, depth = [""], 0
    for piece in _PIECES.findall(text):
        if piece.startswith('"'):
            parts[-1] += piece
            continue
        for letter in piece:
            depth += (letter == "(") - (letter == ")")
            if letter == "," and not depth:
                parts.append("")
            else:
                parts[-1] += letter
    return parts


def layers_of(expressions: Sequence[str]) -> list[str]:
    """Name the layers that neuron expressions read, each once, in the order they appear.

    Args:
        expressions: Neuron expressions.

    Returns:
        Layer names.

    Raises:
        InputError: If there is no expression, or one is malformed.
    """
    if not expressions:
        raise InputError(f"no neurons are asked for; {_FORMS}.")
    return list(dict.fromkeys(p.component.layer for text in expressions for p in _parse(text)[1]))


def parse_neurons(expressions: Sequence[str], layers: Mapping[str, LayerShape]) -> list[Neuron]:
    """Expand neuron expressions to neurons.

    Args:
        expressions: Neuron expressions.
        layers: Channels and output size of every layer that they read (:func:`layers_of`).

    Returns:
        The neurons in the order asked for, each once.

    Raises:
        InputError: If an expression is malformed, or a channel or position is out of range.
    """
    neurons: list[Neuron] = []
    for text in expressions:
        operation, patterns = _parse(text)
        components = [component for pattern in patterns for component in pattern.expand(layers)]
        if operation:
            neurons.append(Neuron(tuple(components), operation))
        else:
            neurons.extend(Neuron((component,)) for component in components)
    return list(dict.fromkeys(neurons))
