"""YAML as its version 1.2 means it: https://yaml.org/spec/1.2.2/#103-core-schema.

PyYAML follows 1.1, in which `no` is false, `010` is 8 and `1:30` is 90. Here keys are text, and 10_000 is a number.
Only plain data is read: no tags of other kinds, no key twice, no alias inside itself, no more values than `MOST_VALUES`
with aliases written out.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from sslm.system.errors import one_line

MOST_VALUES = 100_000
LONGEST_NUMBER = 400
"""Number of digits; a float has at most 309 before the point."""
CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", ["<"]),
}
"""Tag -> (what a plain scalar of it looks like, its first characters)."""
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in (*CORE, "str", "seq", "map")}


class BadYaml(ValueError):
    """Text that is no YAML, or none that is taken; says where."""


def load(text: str | bytes, scalars_as_text: bool = False) -> Any:
    """Read plain data.

    >>> load("{a: 1e-3, b: no, c: 010}")
    {'a': 0.001, 'b': 'no', 'c': 10}

    Args:
        text: one document.
        scalars_as_text: leave scalars other than null as they are written, for what knows the type it wants.

    Raises:
        BadYaml: it can't be read, or would be read as something else than it says.
    """
    kind = _TextLoader if scalars_as_text else _Loader
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is not None:
            _count(node, {}, set())
            return loader.construct_document(node)
        return None
    except RecursionError:
        raise BadYaml("its values lie too deep in one another") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYaml(f"line {mark.line + 1 if mark else '?'}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:  # a control character; !!int before what is none
        raise BadYaml(one_line(error)) from None


def dump(tree: Any) -> str:
    """Write plain data so that `load` gives it back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _TextLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a list or has keys itself", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Loader(_TextLoader):
    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > LONGEST_NUMBER:
            raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like another kind of value, in either version of YAML."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        breaks = re.search("[\x85\u2028\u2029]", data)  # PyYAML writes them as they are, and reads them as spaces
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)


_TextLoader.yaml_implicit_resolvers, _Loader.yaml_implicit_resolvers = {}, {}  # none of YAML 1.1's
for _kind, (_pattern, _first) in CORE.items():
    _tag, _regexp = f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag, _regexp, _first)
    _Dumper.add_implicit_resolver(_tag, _regexp, _first)
    if _kind in ("null", "merge"):
        _TextLoader.add_implicit_resolver(_tag, _regexp, _first)
_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Count the values of a node with aliases written out.

    Raises:
        ConstructorError: there are too many, one holds itself, or one has a tag that is not plain data's.
    """
    if id(node) in above:
        raise ConstructorError(None, None, "an alias stands inside of what it names", node.start_mark)
    if id(node) not in known:
        if node.tag not in PLAIN_TAGS:
            raise ConstructorError(None, None, f"the tag {node.tag} is not allowed", node.start_mark)
        above.add(id(node))
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(part, known, above) for part in parts)
        above.discard(id(node))
    if known[id(node)] > MOST_VALUES:
        raise ConstructorError(None, None, f"more than {MOST_VALUES} values", node.start_mark)
    return known[id(node)]
