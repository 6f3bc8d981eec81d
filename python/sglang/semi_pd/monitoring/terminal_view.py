# SPDX-License-Identifier: Apache-2.0
"""An instance as text in a terminal; also readable without colours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text
from sglang.semi_pd.monitoring.history import changes
from sglang.semi_pd.monitoring.instance_view import InstanceView, Latency, Shares

PREFILL, DECODE, FREE = "blue", "dark_orange", "grey37"
GOOD, BAD, SOFT = "green", "red", "grey62"
STATE_COLOURS = {
    "running": "dark_cyan",
    "leased": "grey58",
    "cached": "medium_purple",
    "free": FREE,
}
_LEVELS = "▁▂▃▄▅▆▇█"
_SPARKS, _EVENTS = 24, 5


class Bar:
    """A line of coloured blocks, as wide as there is room.

    Args:
        parts: length and colour of each part, in units of ``total``.
    """

    def __init__(self, parts: Iterable[tuple[float, str]], total: float) -> None:
        self._parts, self._total = list(parts), max(total, 1e-9)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        width, drawn, length = options.max_width, 0, 0.0
        # Parts differ in shape too, for terminals and readers without colours.
        for (part, colour), shape in zip(self._parts, "█▓▒▚▞" * 2, strict=False):
            length += part
            end = min(width, round(width * length / self._total))
            yield Segment(shape * (end - drawn), Style(color=colour))
            drawn = max(drawn, end)
        yield Segment("░" * (width - drawn), Style(color=FREE))
        yield Segment.line()


class TerminalView:
    """Renders one look after the other; remembers what curves and events need."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last: InstanceView | None = None
        self._events: deque[tuple[str, str, str]] = deque(maxlen=_EVENTS)
        self._ttft: deque[float | None] = deque(maxlen=_SPARKS)
        self._tpot: deque[float | None] = deque(maxlen=_SPARKS)

    def frame(self, view: InstanceView) -> RenderableType:
        """The whole picture of one look."""
        self._remember(view)
        parts = [
            self._head(view),
            _panel("split and memory", _split_and_memory(view)),
            _panel("latencies", self._latencies(view)),
            _panel("load", _load(view)),
            _panel("moves and decisions", _control(view)),
        ]
        if self._events:
            parts.append(_panel("events", self._happened()))
        return Group(*parts)

    def _remember(self, view: InstanceView) -> None:
        now = time.strftime("%H:%M:%S")
        if self._last is not None:
            for kind, text in changes(self._last, view):
                self._events.append((now, kind, text))
        self._ttft.append(view.ttft.judged_ms)
        self._tpot.append(view.tpot.judged_ms)
        self._last = view

    def _head(self, view: InstanceView) -> RenderableType:
        colour = f"bold {GOOD}" if view.is_running else f"bold {BAD}"
        facts = f"  {self._url}  generation {view.moves.generation}"
        first = Text.assemble(
            ("Semi-PD ", "bold"),
            ("running" if view.is_running else "not running", colour),
            (facts, SOFT),
        )
        second = Text("  ", no_wrap=True, overflow="ellipsis")
        for one in view.workers:
            ended = "" if one.is_alive else " ended"
            second.append(f"{one.name} {one.pid}{ended}  ", BAD if ended else SOFT)
        return Group(first, second)

    def _latencies(self, view: InstanceView) -> Table:
        table = Table(box=None, expand=True, header_style=SOFT, pad_edge=False)
        table.add_column("ms", style=SOFT)
        for percentile in view.ttft.percentiles_ms:
            table.add_column(f"P{percentile}", justify="right")
        table.add_column("target", justify="right")
        table.add_column("samples", justify="right")
        table.add_column(f"P{view.ttft.judged} so far", justify="left", ratio=1)
        table.add_row("TTFT", *_latency_cells(view.ttft), _sparks(self._ttft))
        table.add_row("TPOT", *_latency_cells(view.tpot), _sparks(self._tpot))
        return table

    def _happened(self) -> Table:
        grid = _grid(8, 10, None)
        for at, kind, text in self._events:
            grid.add_row(at, kind, Text(text))
        return grid


def _panel(title: str, content: RenderableType) -> RenderableType:
    return Panel(
        content, title=title, title_align="left", border_style="grey37", padding=(0, 1)
    )


def _split_and_memory(view: InstanceView) -> Table:
    grid = _grid(10, None, 34)
    grid.add_row("asked", _split_bar(view.asked), _split_words(view.asked))
    if view.realised is not None:
        words = _split_words(view.realised)
        grid.add_row("realised", _split_bar(view.realised), words)
    taken = [
        (count, STATE_COLOURS.get(state, "white"))
        for state, count in view.blocks.by_state.items()
        if state != "free"
    ]
    grid.add_row("KV blocks", Bar(taken, view.blocks.total), _block_words(view))
    return grid


def _grid(*widths: int | None) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    for place, width in enumerate(widths):
        style = SOFT if place == 0 else ""
        grid.add_column(width=width, ratio=None if width else 1, style=style)
    return grid


def _split_bar(shares: Shares) -> Bar:
    parts = [(shares.prefill, PREFILL), (shares.decode, DECODE)]
    return Bar(parts, max(100.0, shares.prefill + shares.decode))


def _split_words(shares: Shares) -> Text:
    return Text.assemble(
        (f"prefill {shares.prefill:g} %", PREFILL),
        "  ",
        (f"decode {shares.decode:g} %", DECODE),
    )


def _block_words(view: InstanceView) -> Text:
    blocks = view.blocks
    words = Text(f"{blocks.used}/{blocks.total}")
    for state, count in blocks.by_state.items():
        if state != "free" and count:
            words.append(f"  {state} {count}", STATE_COLOURS.get(state, "white"))
    return words


def _latency_cells(latency: Latency) -> Iterator[Text]:
    for percentile, value_ms in latency.percentiles_ms.items():
        is_judged = percentile == latency.judged
        colour = BAD if latency.is_over_target else GOOD
        shown = "–" if value_ms is None else f"{value_ms:.1f}"
        yield Text(
            shown, f"bold {colour}" if is_judged and value_ms is not None else ""
        )
    yield Text(f"{latency.target_ms:g}")
    yield Text(str(latency.samples), SOFT)


def _sparks(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    highest = max(known, default=0.0) or 1.0
    return "".join(
        " "
        if value is None
        else _LEVELS[min(len(_LEVELS) - 1, int(value / highest * len(_LEVELS)))]
        for value in values
    )


def _load(view: InstanceView) -> Table:
    load = view.load
    grid = _grid(10, None, None, None)
    grid.add_row(
        "requests",
        f"{load.waiting} waiting",
        f"{load.decoding} decoding",
        f"queues: prefill {load.prefill_queue}, decode {load.decode_queue}",
    )
    grid.add_row(
        "rates",
        f"{load.arrivals_per_s:.1f} arrivals/s",
        f"{load.requests_per_s:.1f} done/s",
        f"{load.tokens_per_s:.0f} tokens/s",
    )
    return grid


def _control(view: InstanceView) -> Table:
    moves, control = view.moves, view.control
    grid = _grid(10, None)
    failed = f", {moves.failed} failed ({moves.last_failure})" if moves.failed else ""
    died = f", {moves.worker_deaths} workers died" if moves.worker_deaths else ""
    grid.add_row("moves", Text(f"{moves.done} done{failed}{died}"))
    mode = control.mode if control.is_running else "off"
    grid.add_row("controller", f"{mode}, {control.decisions} decisions")
    if control.last_reason:
        reasons = ", ".join(
            f"{name} {count}" for name, count in sorted(control.reasons.items())
        )
        grid.add_row("last", Text(f"{control.last_reason}: {control.last_split}"))
        grid.add_row("reasons", Text(reasons))
    if control.last_advice:
        grid.add_row("advice", Text(control.last_advice))
    return grid
