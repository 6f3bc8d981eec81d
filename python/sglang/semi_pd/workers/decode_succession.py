# SPDX-License-Identifier: Apache-2.0
"""What a decode worker runs goes on in the next one; its KV stays where it is.

The old worker decodes until prefill has handed over its last prompt. Then rows and
pages change their owner at once, and one message says how far each request has come.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sglang.semi_pd.utils import InstanceRole, row_label
from sglang.semi_pd.workers.early_adoption import EarlyAdoption
from sglang.semi_pd.workers.handover import find_row, flush, handover_of, socket_of
from sglang.semi_pd.workers.introduction import Acquaintances, Introductions
from sglang.semi_pd.workers.messages import Handover
from sglang.semi_pd.workers.succession_messages import (
    HasLeft,
    Introduce,
    Introduced,
    IsIntroduced,
    LastHandover,
    PassedOn,
)
from sglang.semi_pd.workers.worker_spec import handover_address
from sglang.srt.managers.io_struct import AbortReq, sock_send
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    import zmq
    from sglang.semi_pd.workers.borrowing_cache import Borrowed
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req


class DecodeSuccession(EarlyAdoption):
    """Both ends of a switch, of the decode scheduler."""

    _to_lender: zmq.Socket | None
    _unbuilt: dict[str, Handover]
    """Of requests that are not built yet, by their ids."""

    def init_ipc_channels(self, port_args: object) -> None:
        super().init_ipc_channels(port_args)
        self._unbuilt = {}
        self._rows: dict[int, int] = {}  # by label: what was taken over at once
        self._acquaintances = Acquaintances()
        self._introductions: Introductions | None = None
        self._prefill_has_left = False
        self.is_standby = self.spec.is_standby
        self._predecessor_sends = True
        self._early_aborts: list[AbortReq] = []

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (Introduce, self.introduce),
                (Introduced, self.meet),
                (LastHandover, self._has_last_handover),
                (HasLeft, self._predecessor_has_left),
            ]
        )

    def build(self, request: TokenizedGenerateReqInput) -> None:
        """Have upstream build a request, which then comes to the adoption queue."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Give ended requests back to prefill, as far as forwards allow."""
        raise NotImplementedError

    def row_of(self, handover: Handover) -> int:
        """The row that came with a handover; waits for it if it is on its way."""
        label = row_label(handover.request_id, handover.loan.number)
        row = self._rows.pop(label, None)
        if row is None:
            row = find_row(self.memory.table, label, self.give_back)
        return row

    # The old worker

    def introduce(self, message: Introduce) -> None:
        """Begin to introduce what runs to a successor; it goes on between steps."""
        reqs = [req for req in self._mine() if not req.finished()]
        self._introductions = Introductions(self._socket_to(message.successor), reqs)

    def introduce_more(self) -> None:
        """Once in a turn of the loop."""
        if self._introductions is not None:
            self._introductions.go_on()

    def may_leave(self) -> bool:
        return self._prefill_has_left

    def give_all(self, successor: int) -> list[str]:
        """Every request goes on in the next decode worker, but for those put aside."""
        going = [req for req in self._mine() if not req.finished()]
        handovers = [_passed_on(req) for req in going]
        handovers += self._unbuilt.values()  # their grammars are being compiled
        self.return_unused()
        table = self.memory.table
        heir = table.slot_of(InstanceRole.DECODE, successor)
        table.inherit(self.memory.manifest.slot, heir)
        introductions = self._introductions or Introductions(
            self._socket_to(successor), ()
        )
        introductions.pass_on(handovers)
        socket = introductions.socket
        if socket is not None:
            for req in going:
                if req.to_finish is not None:
                    sock_send(socket, AbortReq(rid=req.rid))
            flush(socket)
        if self._to_lender is not None:
            flush(self._to_lender)
        return [req.rid for req in self.disagg_decode_prealloc_queue.retracted_queue]

    def _mine(self) -> list[Req]:
        adopted = self.disagg_decode_prealloc_queue.adopted
        return [*self.running_batch.reqs, *self.waiting_queue, *adopted]

    def _socket_to(self, successor: int) -> zmq.Socket | None:
        if self.spec.tp_rank != 0:
            return None
        return socket_of(handover_address(self.spec.run_directory, successor))

    def _has_last_handover(self, _: LastHandover) -> None:
        self._prefill_has_left = True

    # The new one

    def meet(self, message: Introduced) -> None:
        """Build requests that still run in the predecessor."""
        for request in message.requests:
            self._acquaintances.expect(request)
            self.build(request)
        if message.are_all:
            known = IsIntroduced(self.spec.generation)
            self.ipc_channels.send_to_detokenizer.send_output(known)

    def take_over(self, message: PassedOn) -> None:
        """Adopt all that the predecessor ran.

        What they say waits until the predecessor's last words have passed the
        detokenizer: they come on another pipe.
        """
        self.is_standby = False
        if self._predecessor_sends:
            self.output_streamer.hold()
        table = self.memory.table
        slot = self.memory.manifest.slot
        self._rows = {found.label: found.row for found in table.labelled_rows(slot)}
        for handover in message.handovers:
            if handover.request is not None:
                self.receive(handover)
                continue
            self.complete(self._acquaintances, handover)
        self._acquaintances.forget()
        early, self._early_aborts = self._early_aborts, []
        for abort in early:
            self.abort_request(abort)

    def complete(self, acquaintances: Acquaintances, handover: Handover) -> None:
        """A request that was built before it changed hands is adopted."""
        known, req = acquaintances.complete(handover)
        self._unbuilt[handover.request_id] = known
        if req is not None:
            self.disagg_decode_prealloc_queue.add(req)

    def note_early(self, abort: AbortReq) -> None:
        """It may be for a request that the predecessor passes on: heard again then."""
        if self.is_standby:
            self._early_aborts.append(abort)

    def _predecessor_has_left(self, _: HasLeft) -> None:
        self._predecessor_sends = False
        self.output_streamer.let_go()


def _passed_on(req: Req) -> Handover:
    """A running request on its way to the next decode worker; its loan stays."""
    borrowed: Borrowed = req.semi_pd_borrowed
    handover = handover_of(req, borrowed.loan, is_settled=borrowed.is_settled)
    return dataclasses.replace(handover, is_passed_on=True)
