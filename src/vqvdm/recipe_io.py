"""Recipe files: finding, layering and writing them. Everything here is plain values; `recipe.py` gives them types.

Layers, each over the one before: the dataclasses' defaults, the file named by `base:`, the file itself, the overrides.
Beside the values goes a record of where each key was set, so that a message can name the file or override at fault.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vqvdm.errors import InputError
from vqvdm.files import write_text
from vqvdm.structure import did_you_mean, origin

_PACKAGED = Path(__file__).parent / "recipes"
_SUFFIXES = (".yaml", ".yml")

_MOST = 50_000  # characters of a recipe, what its aliases repeat counted each time
_DEEPEST = 30  # tables and lists within each other
_TOO_DEEP = f"more than {_DEEPEST} tables or lists within each other"

Values = dict[str, Any]


def packaged_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def read(name_or_path: str | Path, overrides: Sequence[str] = ()) -> tuple[Values, dict[str, str]]:
    """The layered values of a recipe, and the origin of each dotted key.

    Args:
        name_or_path: a packaged name ("toy"), a YAML file, or a run's folder, which holds `recipe.yaml`.
        overrides: `key=value` with dotted keys; values are YAML (`1e-3`, `[64, 128]`, `null`).

    Raises:
        InputError: no such recipe, not YAML, a circle of bases, or an override that cannot be placed.
    """
    path = _find(name_or_path, Path())
    values: Values = {}
    origins = {"": _shown(path)}
    for layer in _with_bases(path):
        content = _parse_file(layer)
        content.pop("base", None)
        if layer != path:
            content.pop("name", None)
            content.pop("description", None)
        _merge(values, content, origins, _shown(layer))
    values.setdefault("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    for override in overrides:
        _override(values, override, origins)
    return values, origins


def write(path: Path, values: Values) -> None:
    """Write `values` as YAML, atomically; lists of scalars stand on one line."""
    write_text(path, dump(values))


def dump(values: Values) -> str:
    """`values` as YAML text, in their own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Block mappings, lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's floats (`1e-3` is a number), an error for a key given twice, and bounds.

    Aliases repeat a part in a few characters, and parts of parts: a kilobyte may stand for more than fits on earth.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._measure(node, {})
        return node

    def _measure(self, node: yaml.Node, known: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
        """Characters and depth of what a node stands for; `known` holds those of others, None while at one."""
        if node not in known:
            known[node] = None
            inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes, depths = [1 + len(node.value)], [0]
            if not isinstance(node, yaml.ScalarNode):
                sizes, depths = map(list, zip((1, 0), *(self._measure(part, known) for part in inner), strict=True))
            known[node] = sum(sizes), 1 + max(depths)
        if (measured := known[node]) is None:
            raise _problem(node, "an alias of what it lies in")
        if measured[0] > _MOST:
            raise _problem(node, f"more than {_MOST:,} characters, aliases written out; no recipe is so long")
        if measured[1] > _DEEPEST:
            raise _problem(node, _TOO_DEEP)
        return measured

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level > _DEEPEST:  # already here, as the scanner takes the longer the deeper it is
            raise yaml.scanner.ScannerError(None, None, _TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem(key, "a key is a name, not a list or a table")
            if key.value in seen:
                raise _problem(key, f"key {key.value!r} twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(node: yaml.Node, words: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, words, node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _find(name_or_path: str | Path, folder: Path, asked_by: str = "") -> Path:
    """The file that is meant; relative paths start at `folder`, messages with `asked_by`."""
    text = str(name_or_path)
    path = folder / text
    if os.path.isfile(path):  # unlike Path's, also of names that no system can have
        return path
    if os.path.isdir(path) and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    names = packaged_names()
    if text in names:
        return _PACKAGED / f"{text}.yaml"
    if "=" in text:
        raise InputError(f"{text!r} is a change to a recipe; before it name the recipe: {', '.join(names)}")
    if os.sep in text and not text.endswith(_SUFFIXES):  # meant is a run
        there = "has no recipe.yaml, so it is no run" if os.path.isdir(path) else "is not there"
        raise InputError(f"{asked_by}{text} {there}; a training makes a run: vqvdm train tokenizer RECIPE --run {text}")
    kind = "no recipe file" if text.endswith(_SUFFIXES) else "no recipe named"
    raise InputError(
        f"{asked_by}{kind} {text!r}{did_you_mean(text, names) or ';'} packaged recipes: {', '.join(names)} "
        "(or give a YAML file or a run's folder)"
    )


def _with_bases(path: Path) -> list[Path]:
    """The file and its chain of `base:` files, undermost first."""
    chain = [path]
    while (base := _parse_file(chain[0]).get("base")) is not None:
        if not isinstance(base, str):
            raise InputError(f"{_shown(chain[0])}: base is {base!r}, but must be a recipe's name or path")
        below = _find(base, chain[0].parent, f"{_shown(chain[0])}: ")
        if below in chain:
            circle = " -> ".join(_shown(step) for step in reversed([below, *chain]))
            raise InputError(f"{_shown(path)}: its bases go round in a circle: {circle}")
        chain.insert(0, below)
    return chain


def _parse_file(path: Path) -> Values:
    try:
        with path.open(encoding="utf-8") as file:
            content = _parse(file.read(_MOST + 1))
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{_shown(path)}{line}: not valid YAML: {error.problem}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{_shown(path)}: not a YAML text file: {error}") from error
    except OSError as error:
        raise InputError(f"{_shown(path)}: cannot be read: {error.strerror}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{_shown(path)}: a recipe is a table of `key: value` lines, but this is {content!r:.60}")
    return content


def _parse(text: str) -> Any:
    """What YAML says. Raises `YAMLError`, or `ValueError` (a date of no calendar, a number that is none)."""
    if len(text) > _MOST:
        raise ValueError(f"more than {_MOST:,} characters; no recipe is so long")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _merge(below: Values, above: Values, origins: dict[str, str], source: str, key: str = "") -> None:
    """Lay `above` over `below`, table by table, in place."""
    for name, value in above.items():
        dotted = f"{key}.{name}" if key else str(name)
        origins[dotted] = source
        if isinstance(value, dict):
            table = below.get(name)
            below[name] = table if isinstance(table, dict) else {}
            _merge(below[name], value, origins, source, dotted)
        else:
            below[name] = value


def _override(values: Values, override: str, origins: dict[str, str]) -> None:
    """Place one `key=value`, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {override!r}: write it as key=value, such as tokenizer.training.steps=500")
    try:
        value = _parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"override {override!r}: the value is not valid YAML") from error
    *tables, last = key.strip().split(".")
    table = values
    for depth, name in enumerate(tables, start=1):
        above = ".".join(tables[:depth])
        if name not in table:
            table[name], origins[above] = {}, f"override {override!r}"
        inner = table[name]
        if not isinstance(inner, dict):
            was = "null" if inner is None else repr(inner)
            where = origin(origins, above)
            raise InputError(f"override {override!r}: {above} is {was} in {where}, so it has no {last!r}")
        table = inner
    table[last] = value
    origins[key.strip()] = f"override {override!r}"


def _shown(path: Path) -> str:
    return f"recipe {path.stem!r}" if path.parent == _PACKAGED else str(path)
