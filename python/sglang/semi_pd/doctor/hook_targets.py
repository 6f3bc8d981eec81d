# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD hooks in SGLang, and whether it is there: both read off source text.

A server checks at its start that each hook was applied. This is the same question asked
in milliseconds, before anything is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

_UPSTREAM = "sglang.srt."
_NAME = re.compile(r"sglang\.srt(\.\w+)+")


def ours(package: Path) -> list[str]:
    """The dotted names that modules of ``package`` hand to SGLang's hook registry."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if f'"{_UPSTREAM}' in text and "ook" in text:
            found |= _targets(ast.parse(text))
    return sorted(found)


def missing(targets: Iterable[str], sglang_root: str) -> list[str]:
    """Those of ``targets`` that SGLang's source does not define."""
    return [target for target in targets if not _is_defined(target, Path(sglang_root))]


def _targets(tree: ast.Module) -> set[str]:
    """Names in dictionaries' keys and in constants that are hooked by themselves."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    expressions: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            expressions += [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Call) and _method(node) == "register":
            expressions += node.args[:1]
    texts = [_text(expression, constants) for expression in expressions]
    return {text for text in texts if _NAME.fullmatch(text)}


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _text(node: ast.expr, constants: Mapping[str, object]) -> str:
    """The value of a string expression made of literals and module constants."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return str(constants.get(node.id, ""))
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) for part in node.values)
    return ""


def _is_defined(target: str, root: Path) -> bool:
    parts = target.split(".")[1:]
    for end in range(len(parts) - 1, 0, -1):
        module = root.joinpath(*parts[:end]).with_suffix(".py")
        if not module.is_file():
            module = root.joinpath(*parts[:end], "__init__.py")
        if module.is_file():
            return _defines(_source(module), parts[end:], root)
    return False


@lru_cache
def _source(module: Path) -> str:
    return module.read_text(encoding="utf-8")


def _defines(text: str, names: list[str], root: Path) -> bool:
    """Whether the module has the name, its own or imported, or the class the method."""
    top = re.search(rf"^(?:async def|def|class) {names[0]}\b", text, re.MULTILINE)
    if len(names) == 1:
        return top is not None or _imported_from(text, names[0]) is not None
    if top is None:
        return False
    header, body = _class_parts(text, top.end())
    if re.search(rf"^    (?:async )?def {names[1]}\b", body, re.MULTILINE):
        return True
    return any(
        _is_inherited(text, base, names[1], root) for base in re.findall(r"\w+", header)
    )


def _class_parts(text: str, place: int) -> tuple[str, str]:
    """The bases of the class whose name ends at ``place``, and its body."""
    colon = text.index(":", place)
    end = re.compile(r"^\S", re.MULTILINE).search(text, text.index("\n", colon))
    # A signature may close in the first column: what follows a bracket still belongs.
    while end is not None and end.group() in ")]}":
        end = re.compile(r"^\S", re.MULTILINE).search(text, end.end())
    return text[place:colon], text[colon : end.start() if end else len(text)]


def _is_inherited(text: str, base: str, method: str, root: Path) -> bool:
    """Whether a base class, of this module or an imported one, has the method."""
    if re.search(rf"^class {base}\b", text, re.MULTILINE):
        return _defines(text, [base, method], root)
    module = _imported_from(text, base)
    return module is not None and _is_defined(f"{module}.{base}.{method}", root)


def _imported_from(text: str, name: str) -> str | None:
    importing = rf"^from (sglang\.[\w.]+) import (?:\([^)]*?)?[^()\n]*\b{name}\b"
    found = re.search(importing, text, re.MULTILINE)
    return found[1] if found is not None else None
