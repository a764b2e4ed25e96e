"""The registry over Argo: one in a backend's domain, that frontends in other domains tell of their devices.

It is a `Directory` of its domain as well. A record's domid is the one that Xen has written into the message. Records
live as long as the registry and the domain that registered them; after a restart frontends notice by the registry's
state that it has forgotten them, and register again (`metadata.argo`).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import select as selecting
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from xenvirtio.channels.argo import ArgoChannel
from xenvirtio.channels.argo_pulse import Pulse
from xenvirtio.channels.argo_ring import ArgoMessage
from xenvirtio.channels.argo_wake import TimerWake, Wake
from xenvirtio.errors import ConfigurationError, HypervisorError, PeerProtocolError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.metadata import argo_wire as wire
from xenvirtio.metadata.argo_wire import PULSE_PORT, REGISTRY_PORT, Cursor, Kind, State
from xenvirtio.metadata.directory import RECORDS_MAX, DeviceRecord, check_record, select
from xenvirtio.metadata.nonsense import NonsenseLog
from xenvirtio.xen.capabilities import ArgoAddress, Hypervisor

log = logging.getLogger("xenvirtio.metadata")

LISTENERS_MAX = 8
"""Of one domain: who is told of changes. The ninth takes the place of the one heard of longest ago."""

PULSE_S = 2.0
"""How often it is looked which domains have ended, and which have come."""

WAKE_S = 0.05
"""Metadata looks by timer, and leaves Xen's one event of the domain to channels that carry data."""


class Records:
    """What all domains have registered, and how often that has changed. Without I/O."""

    def __init__(self, life: int) -> None:
        self.state = State(life, 0)
        self._records: dict[tuple[DomId, str], DeviceRecord] = {}

    def register(self, record: DeviceRecord) -> str | None:
        """Keep a record; return why not, when not."""
        key = record.domid, record.name
        if self._records.get(key) == record:
            return None
        if key not in self._records and sum(domid == record.domid for domid, _ in self._records) >= RECORDS_MAX:
            return f"allowed: {RECORDS_MAX} records of one domain"
        self._records[key] = record
        self._change()
        return None

    def withdraw(self, domid: DomId, name: str) -> None:
        if self._records.pop((domid, name), None) is not None:
            self._change()

    def forget_domain(self, domid: DomId) -> None:
        gone = [key for key in self._records if key[0] == domid]
        for key in gone:
            del self._records[key]
        if gone:
            self._change()

    def visible_to(self, domid: DomId, registry: DomId) -> list[DeviceRecord]:
        """A domain sees its own records and those of the registry's domain; that domain sees all."""
        sees_all = domid == registry
        return select([r for r in self._records.values() if sees_all or r.domid in (domid, registry)], None)

    def _change(self) -> None:
        self.state = State(self.state.life, self.state.changes + 1)


class ArgoRegistry:
    """Serves `partners` in a thread of its own from the start until `close`; domains that come later as well."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        domid: DomId,
        partners: Iterable[DomId],
        *,
        port: ArgoPort = REGISTRY_PORT,
        pulse_port: ArgoPort = PULSE_PORT,
        pulse_s: float = PULSE_S,
        wake: Wake | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`domid` is this domain's own number.

        Raises:
            HypervisorError: no Argo, or another registry runs in this domain (EEXIST).
        """
        self._domid = domid
        self._wanted = tuple(dict.fromkeys([domid, *partners]))  # programs of this domain ask like any other
        self._pulse_port = pulse_port
        self._pulse_s = pulse_s
        self._clock = clock
        self._records = Records(secrets.randbits(64))
        self._listeners: dict[DomId, OrderedDict[ArgoPort, None]] = {}
        self._pulses: dict[DomId, Pulse] = {}
        self._nonsense = NonsenseLog()
        self._lock = threading.Lock()
        self._changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closed = False
        self._argo = hypervisor.open_argo()
        self._channel = ArgoChannel(self._argo, wake if wake is not None else TimerWake(WAKE_S), port)
        try:
            self._look_for_domains()
        except BaseException:
            self._channel.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="argo-registry", daemon=True)
        self._thread.start()

    # -- this domain's side

    def register(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        check_record(name, type, fields)
        with self._lock:
            problem = self._records.register(DeviceRecord(name, type, self._domid, dict(fields)))
        if problem is not None:
            raise ConfigurationError(f"metadata: {name}", "one record too many", problem)

    def withdraw(self, name: str) -> None:
        with self._lock:
            self._records.withdraw(self._domid, name)

    def find(self, *, type: str | None = None) -> list[DeviceRecord]:
        with self._lock:
            self._clear_changed()
            return select(self._records.visible_to(self._domid, self._domid), type)

    def fileno(self) -> int:
        return self._changed

    def wait_changed(self, timeout_s: float) -> bool:
        poll = selecting.poll()
        poll.register(self._changed, selecting.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for pulse in self._pulses.values():
            pulse.close()
        self._channel.close()
        os.close(self._changed)
        os.close(self._stop)

    def __enter__(self) -> ArgoRegistry:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _clear_changed(self) -> None:
        try:
            os.eventfd_read(self._changed)
        except BlockingIOError:
            pass

    # -- serving

    def _serve(self) -> None:
        poll = selecting.poll()
        poll.register(self._stop, selecting.POLLIN)
        poll.register(self._channel.fileno(), selecting.POLLIN)
        told = self._records.state
        looked_s = self._clock()
        while not self._is_closed:
            poll.poll(self._pulse_s * 1000)
            try:
                self._take_messages()
                if self._clock() - looked_s >= self._pulse_s:
                    looked_s = self._clock()
                    self._look_for_domains()
            except HypervisorError as error:  # what one domain caused must not end the others' registry
                log.error("registry: %s", error)
            if told != self._records.state:
                told = self._records.state
                self._tell_changed()

    def _take_messages(self) -> None:
        """Answer what is there now; what keeps coming waits until the others had their turn."""
        for _ in range(256):
            message = self._channel.receive()
            if message is None:
                return
            try:
                number, rest = wire.parse_number(message.data)
                self._answer(message, number, rest)
            except PeerProtocolError as error:
                self._nonsense.report(message.sender.domid, f"message {message.kind:#x}", str(error))

    def _answer(self, message: ArgoMessage, number: int, rest: bytes) -> None:
        sender, kind, body = message.sender, Kind.DONE, b""
        if sender.domid not in self._pulses:
            return  # it ended meanwhile
        with self._lock:
            if message.kind == Kind.REGISTER:
                try:
                    problem = self._records.register(wire.parse_record(rest, sender.domid))
                except PeerProtocolError as error:
                    problem = str(error)
                if problem is not None:
                    kind, body = Kind.REFUSED, wire.encode_reason(problem)
            elif message.kind == Kind.WITHDRAW:
                self._records.withdraw(sender.domid, wire.parse_name(rest))
            elif message.kind == Kind.FIND:
                type, after = wire.parse_find(rest)
                kind, body = Kind.RECORDS, wire.encode_records(self._found(sender.domid, type, after))
            elif message.kind != Kind.HELLO:
                raise PeerProtocolError("is no request")
            self._listen(sender)
            answer = wire.encode_answer(number, self._records.state, body)
        self._send(answer, sender, kind)

    def _found(self, domid: DomId, type: str, after: Cursor) -> list[DeviceRecord]:
        records = select(self._records.visible_to(domid, self._domid), type or None)
        return [record for record in records if (record.domid, record.name) > (after.domid, after.name)]

    def _listen(self, sender: ArgoAddress) -> None:
        ports = self._listeners.setdefault(sender.domid, OrderedDict())
        ports[sender.port] = None
        ports.move_to_end(sender.port)
        while len(ports) > LISTENERS_MAX:
            ports.popitem(last=False)

    def _tell_changed(self) -> None:
        os.eventfd_write(self._changed, 1)
        message = wire.encode_answer(0, self._records.state)
        for domid, ports in list(self._listeners.items()):
            for port in list(ports):
                if not self._send(message, ArgoAddress(domid, port), Kind.CHANGED):
                    ports.pop(port, None)

    def _send(self, data: bytes, to: ArgoAddress, kind: Kind) -> bool:
        """Send if there is room: one who does not take its answers asks again. False when nobody is there any more, or
        Xen refuses for another reason: what a domain makes of its ring must not end the registry for the others."""
        try:
            self._channel.send(data, to, kind)
        except HypervisorError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ESRCH, errno.EMSGSIZE):
                self._nonsense.report(to.domid, f"port {to.port:#x}", str(error))
            return False
        return True

    # -- domains that come and go

    def _look_for_domains(self) -> None:
        for domid in self._wanted:
            pulse = self._pulses.get(domid)
            if pulse is None:
                self._welcome(domid)
            elif pulse.has_ended():
                del self._pulses[domid]
                self._channel.drop_partner(domid)
                self._listeners.pop(domid, None)
                with self._lock:
                    self._records.forget_domain(domid)
                log.info("domain %d has ended; its records are gone", domid)
                self._welcome(domid)

    def _welcome(self, domid: DomId) -> None:
        try:
            self._channel.add_partner(domid)
            self._pulses[domid] = Pulse(self._argo, self._pulse_port, domid)
        except HypervisorError as error:
            self._channel.drop_partner(domid)
            if error.errno != errno.ESRCH:  # ESRCH: not there yet
                raise
