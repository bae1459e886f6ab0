"""Plain data from YAML or JSON text that may come from a stranger.

YAML can say far more than a settings file needs, and some of it is dangerous: with aliases a kilobyte stands for gigabytes, tags make other
types than the text shows, and nesting without end exhausts the stack. All of that is refused before anything is built.
"""

import json

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, ScalarEvent

from wire.errors import SpecError

DOCUMENT_CHARACTERS = 256 << 10
"""Longest text that is read."""

DEPTH = 32
"""Deepest nesting of lists and mappings that is read."""


def parse_document(text: str, source: str) -> object:
    """Read one document of YAML 1.2, which JSON is too: `on` is a key and 1e-3 a number, as people expect.

    Args:
        text: The document.
        source: What to call it in errors, such as its path.

    Returns:
        Mappings, lists, text, numbers, booleans, dates and None.

    Raises:
        SpecError: The text is not YAML, is too long or too deep, has a key twice, or uses aliases, tags or an older YAML.
    """
    if len(text) > DOCUMENT_CHARACTERS:
        raise SpecError(f"{source}: must have at most {DOCUMENT_CHARACTERS} characters, got {len(text)}.")
    try:
        # JSON first: YAML takes the two halves of an escaped emoji for two characters, and is slow.
        return json.loads(text, object_pairs_hook=_keys_once)
    except (ValueError, RecursionError):
        return _parse_yaml(text, source)


def _keys_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(document := dict(pairs)) < len(pairs):
        raise ValueError("YAML names the key and its line")
    return document


def _parse_yaml(text: str, source: str) -> object:
    try:
        _refuse_tricks(text, source)
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        # ValueError: a date or number that has the form of one and is none, such as 2020-13-45.
        raise SpecError(f"{source}: must be YAML or JSON: {' '.join(str(error).split())}") from error


def _refuse_tricks(text: str, source: str) -> None:
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if problem := _trick(event, depth):
            raise SpecError(f"{source}: {problem} in line {event.start_mark.line + 1}.")


def _trick(event: object, depth: int) -> str:
    match event:
        case AliasEvent():
            return f"must not use aliases, got *{event.anchor}"
        case CollectionStartEvent() if depth > DEPTH:
            return f"must be nested at most {DEPTH} deep, got {depth}"
        case CollectionStartEvent() | ScalarEvent() if event.tag is not None:
            return f"must not use tags, got {event.tag}"
        case DocumentStartEvent() if event.version not in (None, (1, 2)):
            return f"must be YAML 1.2, got {'.'.join(map(str, event.version))}"
    return ""
