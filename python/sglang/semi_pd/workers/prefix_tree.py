# SPDX-License-Identifier: Apache-2.0
"""The prefix cache as data: what a radix tree holds, and putting it into another.

A successor of the prefill worker starts with an empty tree and owns the pages of its
predecessor's. After both workers died, what the rows of the dead held can be kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from sglang.semi_pd.workers.slots import pages_of
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPath:
    """One path from the root of a tree to a leaf.

    Attributes:
        token_ids: all tokens of the path; an array travels at the speed of a copy.
        slots: their KV slots, int64, shape (len(token_ids),).
        extra_key: the namespace of the path.
        priority: of its leaf.
    """

    token_ids: array[int]
    slots: Slots
    extra_key: str | None
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StillLent:
    """The part of a prefix cache that a running request borrows.

    Attributes:
        lender, number: of its loan.
        token_ids, extra_key: where it lies in the tree.
    """

    lender: int
    number: int
    token_ids: array[int]
    extra_key: str | None


def export_paths(tree: RadixCache) -> list[CachedPath]:
    """Every path of ``tree``, the least recently used first.

    Waits for the device: the slots are copied from there, once.
    """
    leaves: list[list[TreeNode]] = []
    nodes: list[TreeNode] = []
    stack: list[list[TreeNode]] = [[child] for child in _children(tree.root_node)]
    while stack:
        path = stack.pop()
        nodes.append(path[-1])
        below = [[*path, child] for child in _children(path[-1])]
        if not below:
            leaves.append(path)
        stack.extend(below)
    slots = _slots_on_host(nodes)
    leaves.sort(key=lambda path: path[-1].last_access_time)
    return [_path(path, slots) for path in leaves]


def import_paths(tree: RadixCache, paths: Iterable[CachedPath]) -> int:
    """Put paths into ``tree``; returns how many tokens are new to it.

    The pages must be the worker's whose tree it is. Paths that begin alike, as exported
    ones do, share their pages; of two sequences that only say the same, the first stays
    and the pages of the second are the caller's to free.
    """
    paths = list(paths)
    if not paths:
        return 0
    # One copy to the device; the tree clones what it keeps.
    together = torch.from_numpy(np.concatenate([path.slots for path in paths]))
    slots = together.to(tree.device).split([len(path.slots) for path in paths])
    added = 0
    for path, value in zip(paths, slots, strict=True):
        key = RadixKey(path.token_ids, path.extra_key)
        before = tree.insert(
            InsertParams(key=key, value=value, priority=path.priority)
        ).prefix_len
        added += len(path.token_ids) // tree.page_size * tree.page_size - before
    return added


def cached_pages(tree: BasePrefixCache) -> Slots:
    """The pages of everything in the tree, ascending; waits for the device."""
    if not tree.is_tree_cache() or not tree.root_node.children:
        return np.empty(0, np.int64)
    return pages_of(tree.all_values_flatten().cpu(), tree.page_size)


def cached_tokens(tree: BasePrefixCache, req: Req) -> int:
    """Tokens at the start of a request that the tree has, in whatever slots."""
    tokens = (req.origin_input_ids + req.output_ids)[: req.kv_committed_len]
    found = tree.match_prefix(MatchPrefixParams(key=RadixKey(tokens, req.extra_key)))
    return len(found.device_indices)


def _children(node: TreeNode) -> Iterable[TreeNode]:
    children: Iterable[TreeNode] = node.children.values()
    return children


def _slots_on_host(nodes: list[TreeNode]) -> dict[int, Slots]:
    """The slots of each node, by its id; one copy for all of them."""
    if not nodes:
        return {}
    values = [node.value for node in nodes]
    together = torch.cat(values).cpu().numpy().astype(np.int64)
    ends = np.cumsum([len(value) for value in values])
    parts = np.split(together, ends[:-1])
    return {node.id: part for node, part in zip(nodes, parts, strict=True)}


def _path(nodes: list[TreeNode], slots: dict[int, Slots]) -> CachedPath:
    tokens = array("q")
    for node in nodes:
        tokens.extend(node.key.raw_token_ids())
    leaf = nodes[-1]
    return CachedPath(
        token_ids=tokens,
        slots=np.concatenate([slots[node.id] for node in nodes]),
        extra_key=leaf.key.extra_key,
        priority=leaf.priority,
    )
