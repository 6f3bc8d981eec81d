# SPDX-License-Identifier: Apache-2.0
"""The guides' code runs as printed, their links lead somewhere, their flags are true.

A block of Python is run if an HTML comment stands on the line before it:
``<!-- test: light -->`` (no SGLang needed), ``<!-- test: server -->`` (starts one) or
``<!-- test: inside -->`` (runs while that one serves).
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from free_ports import free_port
from sglang.semi_pd import errors
from sglang.semi_pd.launch import flag_rules, typed_flags
from sglang.semi_pd.monitoring import metrics_exporter

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = ("semi_pd_guide.md", "semi_pd_guide_zh.md")
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
EXPECTED = {"light": 2, "server": 1, "inside": 3}
SERVER_TIMEOUT_S = 600

_BLOCK = re.compile(r"^<!-- test: (\w+) -->\n```python\n(.*?)^```", re.M | re.S)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.M | re.S)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_METRIC_ROW = re.compile(r"^\| `(sglang:\w+)` \| (\w+) \| ([^|]+) \|", re.M)
_FLAG_ROW = re.compile(r"^\| `--([a-z-]+)` \| ([^|]+) \|", re.M)


@dataclass(frozen=True)
class Block:
    """One block of code that a guide promises to run."""

    guide: str
    kind: str
    place: int
    code: str

    def __str__(self) -> str:
        return f"{self.guide}-{self.place}"


def text_of(guide: str) -> str:
    return (REPOSITORY / "docs" / guide).read_text(encoding="utf-8")


def blocks(kind: str) -> list[Block]:
    return [
        Block(guide, found, place, code)
        for guide in GUIDES
        for place, (found, code) in enumerate(_BLOCK.findall(text_of(guide)), start=1)
        if found == kind
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_has_the_blocks(guide: str) -> None:
    for kind, count in EXPECTED.items():
        assert len([b for b in blocks(kind) if b.guide == guide]) == count
    kinds = {kind for kind, _ in _BLOCK.findall(text_of(guide))}
    assert kinds == EXPECTED.keys()


@pytest.mark.parametrize("block", blocks("light"), ids=str)
def test_light_block(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.server
@pytest.mark.timeout(SERVER_TIMEOUT_S + 60)
@pytest.mark.parametrize("block", blocks("server")[:1], ids=str)
def test_server_block(block: Block, tiny_model: Path, tmp_path: Path) -> None:
    """In a script of its own, as a user would run it; its last block is a ``with``."""
    inside = [one.code for one in blocks("inside") if one.guide == block.guide]
    code = block.code + textwrap.indent("\n".join(inside), "    ")
    code = code.replace('"MODEL"', repr(str(tiny_model)))
    code = code.replace("= 30000", f"= {free_port()}")
    script = tmp_path / "guide_block.py"
    script.write_text(code, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=SERVER_TIMEOUT_S,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "prefill_TP0" in ended.stdout
    assert "memory in use" in ended.stdout or "内存利用率" in ended.stdout
    for shown in ("prefill_percentage", "violation_episodes", "req/s", "MB"):
        assert shown in ended.stdout, shown


def test_server_blocks_differ_in_what_they_print_only() -> None:
    """So that running one of them speaks for both."""
    for kind in ("server", "inside"):
        codes = {code_without_words(block.code) for block in blocks(kind)}
        assert len(codes) == EXPECTED[kind]


def code_without_words(code: str) -> str:
    code = re.sub(r"#.*", "", code)
    code = re.sub(r'print\("[^"]*"\)', "print()", code)
    return re.sub(r'f"[^"{]*', 'f"', "".join(code.split()))


def test_both_guides_say_the_same() -> None:
    """As far as it can be seen without reading: parts, commands, tables, names."""
    one, other = (skeleton(text_of(guide)) for guide in GUIDES)
    for part, found in one.items():
        assert found == other[part], part


def skeleton(text: str) -> dict[str, object]:
    """What of a guide is the same in any language."""
    prose = _FENCE.sub("", text)
    shell = [block for kind, block in _FENCE.findall(text) if kind == "bash"]
    printed = [block for kind, block in _FENCE.findall(text) if not kind]
    return {
        "levels of headings": re.findall(r"^(#+) ", prose, re.M),
        "commands": [re.sub(r" +#.*", "", block) for block in shell],
        "printed lines": printed,
        "rows of tables": re.findall(r"^(\|).*\|$", prose, re.M),
        "names": sorted(re.findall(r"`([^`\n]+)`", prose)),
        "numbers of tables": [
            sorted(_NUMBER.findall(row)) for row in re.findall(r"^\|.*", prose, re.M)
        ],
    }


@pytest.mark.parametrize("guide", GUIDES)
def test_flag_tables_are_complete_and_true(guide: str) -> None:
    rows = dict(_FLAG_ROW.findall(text_of(guide)))
    assert {f"--{name}" for name in rows} == typed_flags.OUR_FLAGS
    for field, default in flag_rules.SHARES.items():
        assert rows[field.replace("_", "-")] == str(default)
    for field, (_, number, _) in flag_rules.NUMBERS.items():
        if field != "unified_memory_blocks":  # in a server, taken from the model
            assert rows[field.replace("_", "-")] == str(number)


@pytest.mark.parametrize("guide", GUIDES)
def test_metrics_tables_are_complete_and_true(guide: str) -> None:
    rows = [match.groups() for match in _METRIC_ROW.finditer(text_of(guide))]
    assert rows == [
        (
            family.full_name,
            "counter" if family.is_counter else "gauge",
            f"`{family.label}`" if family.label else "–",
        )
        for family in metrics_exporter.FAMILIES
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get, or are given."""
    found = headings(page.read_text(encoding="utf-8"))
    return {slug(title) for _, title in found} | {mark for mark, _ in found if mark}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_where_errors_lead_is_in_both_guides() -> None:
    """At the same part of each: the Chinese one marks its heading with the anchor."""
    english, chinese = (_FENCE.sub("", text_of(guide)) for guide in GUIDES)
    places = {slug(title): place for place, (_, title) in enumerate(headings(english))}
    marked = {mark: place for place, (mark, _) in enumerate(headings(chinese)) if mark}
    leads = anchors_of_errors()
    assert len(leads) > 5
    for lead in leads:
        assert lead in places, f"the English guide has no part #{lead}"
        assert marked.get(lead) == places[lead], f"the Chinese guide, #{lead}"


def anchors_of_errors() -> set[str]:
    """Every anchor of the guide that the code names."""
    package = REPOSITORY / "python" / "sglang" / "semi_pd"
    named = re.compile(r"^ *(?:see|SEE)(?:: [\w\[\]]+)? = \"([^\"]+)\"", re.M)
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    assert errors.SemiPDError.see in named.findall("\n".join(texts))
    return {anchor for text in texts for anchor in named.findall(text)}


def headings(text: str) -> list[tuple[str, str]]:
    """Each heading, with the anchor on the line before it, if there is one."""
    return re.findall(r'^(?:<a id="([\w-]+)"></a>\n)?#+ (.+)$', text, re.M)


def test_code_map_names_every_module_and_none_that_is_not_there() -> None:
    listed = (REPOSITORY / "docs" / "code_map.md").read_text(encoding="utf-8")
    python = REPOSITORY / "python"
    package = python / "sglang" / "semi_pd"
    names = re.findall(r"`([\w/]+\.py)`", listed)
    modules = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    assert {str(path.relative_to(package)) for path in modules} <= set(names)
    for name in names:
        examples = REPOSITORY / "examples" / "semi_pd"
        places = (python, python / "sglang", package, examples, REPOSITORY)
        assert any((place / name).is_file() for place in places), name
