"""The directory over Argo as a frontend's domain sees it: what it registers goes to the registry of a backend's domain.

A small thread keeps the two together: every few seconds it asks the registry for its state. A registry that has
restarted knows nothing; then all that this process has registered is registered again. So a registration stands as
long as this process does, or (when the process goes) as long as the registry and this domain do.
"""

from __future__ import annotations

import errno
import logging
import os
import select as selecting
import threading
import time
from collections.abc import Mapping

from xenvirtio.channels.argo import ArgoChannel
from xenvirtio.channels.argo_ring import ArgoMessage
from xenvirtio.channels.argo_wake import TimerWake, Wake
from xenvirtio.errors import ConfigurationError, HypervisorError, PeerProtocolError, ResourceError, UsageError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.metadata import argo_wire as wire
from xenvirtio.metadata.argo_registry import WAKE_S
from xenvirtio.metadata.argo_wire import CLIENT_PORTS, REGISTRY_PORT, Cursor, Kind, State
from xenvirtio.metadata.directory import DeviceRecord, check_record, select
from xenvirtio.metadata.nonsense import NonsenseLog
from xenvirtio.xen.capabilities import ArgoAddress, Hypervisor

log = logging.getLogger("xenvirtio.metadata")

HELLO_S = 2.0
"""How often the registry is asked for its state: how late a restart of it is noticed."""

ANSWER_S = 1.0
"""How long one answer is waited for before the request is sent again."""

FIND_ROUNDS = 1000
"""Answers taken for one `find`: a registry that never comes to an end must not hold us for ever."""


class ArgoDirectory:
    """`Directory` by way of the registry in domain `registry`. Any number of threads."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        registry: DomId,
        *,
        timeout_s: float = 10.0,
        port: ArgoPort | None = None,
        registry_port: ArgoPort = REGISTRY_PORT,
        hello_s: float = HELLO_S,
        wake: Wake | None = None,
    ) -> None:
        """`timeout_s`: how long every method waits for a registry that is not there or does not answer.

        Raises:
            HypervisorError: no Argo, no such domain.
        """
        self._to = ArgoAddress(registry, registry_port)
        self._timeout_s = timeout_s
        self._hello_s = hello_s
        self._own: dict[str, tuple[str, dict[str, str]]] = {}
        self._known: State | None = None
        """The registry's state when it was last heard of."""
        self._last_number = 0
        self._answers: dict[int, ArgoMessage | None] = {}
        self._nonsense = NonsenseLog()
        self._lock = threading.Condition()
        self._changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closed = False
        own_port = port if port is not None else ArgoPort(CLIENT_PORTS | os.getpid() & 0xFFFF)
        self._channel = ArgoChannel.open(
            hypervisor, own_port, [registry], wake=wake if wake is not None else TimerWake(WAKE_S)
        )
        self._thread = threading.Thread(target=self._keep, name="argo-directory", daemon=True)
        self._thread.start()

    # -- the directory

    def register(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        """As `Directory.register`; ResourceError when there is no registry in time."""
        check_record(name, type, fields)
        number = self._next_number()
        answer = self._ask(number, Kind.REGISTER, wire.encode_register(number, name, type, fields))
        if answer.kind == Kind.REFUSED:
            reason = answer.data.rstrip(b"\0").decode(errors="replace")
            raise ConfigurationError(f"metadata: {name}", "refused by the registry", reason)
        with self._lock:
            self._own[name] = type, dict(fields)

    def withdraw(self, name: str) -> None:
        check_record(name, "any", {})
        with self._lock:
            self._own.pop(name, None)
        number = self._next_number()
        self._ask(number, Kind.WITHDRAW, wire.encode_withdraw(number, name))

    def find(self, *, type: str | None = None) -> list[DeviceRecord]:
        """As `Directory.find`: this domain's records and those of the registry's domain."""
        self._clear_changed()
        found: list[DeviceRecord] = []
        after = Cursor()
        for _ in range(FIND_ROUNDS):
            number = self._next_number()
            answer = self._ask(number, Kind.FIND, wire.encode_find(number, type or "", after))
            try:
                more, records = wire.parse_records(answer.data)
            except PeerProtocolError as error:
                self._nonsense.report(self._to.domid, "records", str(error))
                break
            found += records
            if not more or not records:
                break
            after = Cursor(records[-1].domid, records[-1].name)
        return select(found, type)

    def fileno(self) -> int:
        return self._changed

    def wait_changed(self, timeout_s: float) -> bool:
        poll = selecting.poll()
        poll.register(self._changed, selecting.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """Leave; what was registered stays."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._lock.notify_all()
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._channel.close()
        os.close(self._changed)
        os.close(self._stop)

    def __enter__(self) -> ArgoDirectory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _clear_changed(self) -> None:
        try:
            os.eventfd_read(self._changed)
        except BlockingIOError:
            pass

    # -- requests

    def _next_number(self) -> int:
        with self._lock:
            self._last_number = self._last_number % 0xFFFFFFFF + 1
            self._answers[self._last_number] = None
            return self._last_number

    def _ask(self, number: int, kind: Kind, data: bytes) -> ArgoMessage:
        """Send a request, again and again, until it is answered; return the answer without its head.

        Raises:
            ResourceError: no answer in time.
        """
        deadline_s = time.monotonic() + self._timeout_s
        why = "does not answer"
        try:
            while (remaining_s := deadline_s - time.monotonic()) > 0:
                refused = self._send(data, kind)
                why = refused or why
                with self._lock:
                    wait_s = min(remaining_s, ANSWER_S / 4 if refused else ANSWER_S)
                    self._lock.wait_for(lambda: self._answers[number] is not None or self._is_closed, wait_s)
                    if self._is_closed:
                        raise UsageError("the Argo directory is closed")
                    answer = self._answers[number]
                if answer is not None:
                    return answer
        finally:
            with self._lock:
                self._answers.pop(number, None)
        raise ResourceError(f"the metadata registry of domain {self._to.domid} {why} ({self._timeout_s:g} s)")

    def _send(self, data: bytes, kind: Kind) -> str | None:
        """Send; return what is in the way, when it may go away."""
        try:
            return None if self._channel.send(data, self._to, kind) else "takes nothing more"
        except HypervisorError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ESRCH):
                return "is not there"
            raise

    # -- the thread

    def _keep(self) -> None:
        poll = selecting.poll()
        poll.register(self._stop, selecting.POLLIN)
        poll.register(self._channel.fileno(), selecting.POLLIN)
        greeted_s = float("-inf")
        while not self._is_closed:
            if time.monotonic() - greeted_s >= self._hello_s:
                greeted_s = time.monotonic()
                self._send_unless_gone(wire.encode_hello(0), Kind.HELLO)
            poll.poll(self._hello_s * 1000)
            try:
                self._take_messages()
            except HypervisorError as error:
                log.error("metadata: %s", error)

    def _take_messages(self) -> None:
        for _ in range(256):
            message = self._channel.receive()
            if message is None:
                return
            self._take(message)

    def _take(self, message: ArgoMessage) -> None:
        if message.sender != self._to:
            return  # the port is the sender's word, so this keeps out mistakes, not the registry's domain itself
        try:
            number, state, rest = wire.parse_answer(message.data)
        except PeerProtocolError as error:
            self._nonsense.report(message.sender.domid, f"message {message.kind:#x}", str(error))
            return
        with self._lock:
            if number in self._answers:
                self._answers[number] = ArgoMessage(message.sender, message.kind, rest)
                self._lock.notify_all()
            before, self._known = self._known, state
            own = list(self._own.items()) if before is not None and before.life != state.life else []
        if before != state:
            os.eventfd_write(self._changed, 1)
        if own:
            log.info("the registry of domain %d has restarted; registering %d records again", self._to.domid, len(own))
        for name, (type, fields) in own:
            self._send_unless_gone(wire.encode_register(0, name, type, fields), Kind.REGISTER)

    def _send_unless_gone(self, data: bytes, kind: Kind) -> None:
        try:
            self._send(data, kind)
        except HypervisorError as error:
            log.error("metadata: %s", error)
