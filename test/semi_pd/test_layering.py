# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and what no module may do, read off the source text.

    vocabulary <- policy
    vocabulary <- mechanism
    vocabulary, mechanism <- inside the children
    everything <- composition

The overlay of ``sglang.srt`` imports upstream only, but for the calls it makes
once a Semi-PD flag is on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "python"
PACKAGE = SOURCES / "sglang" / "semi_pd"
OVERLAY = SOURCES / "sglang" / "srt" / "server_args.py"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

VOCABULARY = {
    "control.split_offer",
    "errors",
    "launch.flag_rules",
    "sm_allocation",
    "slo_types",
    "utils",
    "workers.messages",
}
POLICY = {
    "control.arrival_turn",
    "control.control_pace",
    "control.control_steps",
    "control.decision_inputs",
    "control.decision_log",
    "control.latency_model",
    "control.outlook_policy",
    "control.slo_policy",
    "control.sliding_window",
    "control.split_outlook",
    "control.split_search",
    "control.work_under_way",
    "metrics_aggregator",
    "metrics_collector",
    "slo_algorithm",
}
MOST_LINES = 300
"""A longer file is more than one thing: see the code map for names of parts."""


FORBIDDEN_IN_PURE = {"torch", "zmq", "sglang.srt", "_thread", "subprocess", "socket"}
FORBIDDEN_FUNCTIONS = {"eval", "exec"}
FORBIDDEN_METHODS = {"recv_pyobj", "send_pyobj"}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_for_types_only(node: ast.AST) -> bool:
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and getattr(test, "id", "") == "TYPE_CHECKING"


def imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what is imported at run time; ``from a import b`` gives ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_level_only and isinstance(node, ast.FunctionDef)):
            yield from imports(node, top_level_only=top_level_only)


def ours(names: Iterator[str]) -> set[str]:
    """Which of our modules are among the imported names."""
    prefix = "sglang.semi_pd."
    return {
        module
        for name in names
        for module in MODULES
        if (name + ".").startswith(f"{prefix}{module}.") and module != "__init__"
    }


def is_under(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("module", sorted(VOCABULARY & MODULES.keys()))
def test_vocabulary_imports_vocabulary_only(module: str) -> None:
    assert ours(imports(parse(MODULES[module]))) <= VOCABULARY


@pytest.mark.parametrize("module", sorted(POLICY & MODULES.keys()))
def test_policy_imports_vocabulary_and_policy_only(module: str) -> None:
    assert ours(imports(parse(MODULES[module]))) <= VOCABULARY | POLICY


@pytest.mark.parametrize("module", sorted((VOCABULARY | POLICY) & MODULES.keys()))
def test_pure_modules_need_no_torch_socket_or_sglang(module: str) -> None:
    used = [
        name
        for name in imports(parse(MODULES[module]))
        if is_under(name, FORBIDDEN_IN_PURE)
    ]
    assert not used


def test_package_itself_imports_nothing() -> None:
    assert not list(imports(parse(MODULES["__init__"])))


def test_overlay_imports_upstream_only() -> None:
    names = list(imports(parse(OVERLAY), top_level_only=True))
    assert not ours(iter(names))
    assert ours(imports(parse(OVERLAY))) == {"config", "hooks", "launch.refusal"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_unpickles_evaluates_or_opens_a_shell(module: str) -> None:
    tree = parse(MODULES[module])
    assert not [name for name in imports(tree) if is_under(name, FORBIDDEN_IMPORTS)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        place = f"line {call.lineno}"
        assert getattr(call.func, "id", "") not in FORBIDDEN_FUNCTIONS, place
        assert getattr(call.func, "attr", "") not in FORBIDDEN_METHODS, place
        assert "shell" not in [keyword.arg for keyword in call.keywords], place


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_names_its_licence_and_purpose(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(parse(MODULES[module]))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_is_short(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES


def test_what_is_noted_on_requests_is_listed_in_one_place() -> None:
    listed = ast.get_docstring(parse(MODULES["workers.__init__"]))
    assert listed is not None
    sources = (path.read_text(encoding="utf-8") for path in MODULES.values())
    used = {
        name for text in sources for name in re.findall(r"\breq\.(semi_pd_\w+)", text)
    }
    assert used == set(re.findall(r"^``(semi_pd_\w+)``", listed, re.MULTILINE))
