# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode: SGLang's scheduler, twice, and how a request changes hands.

What is noted on SGLang's ``Req``; each worker builds one of its own.

``semi_pd_request``
    In both: what the client asked for, as it came; None once it is handed over. From
    ``Arrivals`` and ``adopt``, for ``Handover``, ``Announced`` and ``Introduced``.
``semi_pd_step``
    In prefill: so many tokens of a prompt under way are computed in the next forward.
    From ``PrefillScheduler``, for ``prefill_adder``.
``semi_pd_row_is_rewritten``
    In prefill: its row has been written again since its prompt was computed; may be
    missing. From ``lender.note_rewriting``, for ``PrefillScheduler``.
``semi_pd_borrowed``
    In decode: ``Borrowed``, what is owed for it. From ``DecodeScheduler``, for
    ``BorrowingCache`` and ``DecodeSuccession``.
``semi_pd_adoption``
    In decode: its ``Handover``, and when it was adopted. From ``DecodeScheduler``, for
    ``HandoverTimes``.
"""
