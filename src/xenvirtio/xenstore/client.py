"""The XenStore client: blocking calls with a timeout, and events for a selector loop.

Threads may share one client. Whoever waits reads for all (`_await`); a small thread of the client's own does nothing
but connect again after the server went away. What a caller sees of that: calls wait, transactions answer EAGAIN (so
`transact` starts them over), and every watch fires.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from xenvirtio.channels import Channel
from xenvirtio.errors import PeerProtocolError, UsageError, XenStoreError
from xenvirtio.xenstore.client_core import ClientCore, ClientState, Reply, WatchEvent, watch_payload
from xenvirtio.xenstore.connect import Connector, connect_default, connect_path
from xenvirtio.xenstore.wire import HEADER_SIZE, PAYLOAD_MAX, MessageType, split_strings

Result = TypeVar("Result")

RETRY_FIRST_S = 0.05
RETRY_MOST_S = 1.0
TRANSACTION_ATTEMPTS = 50
"""How often `transact` starts over. Without a bound two parties that write one node in loops hang each other."""

TRANSACTION_ID_MAX = 0xFFFFFFFF

CHUNKS_AT_ONCE = 16
"""Taken in before anybody looks at the clock again: a server that never stops sending must not hold a caller."""

LIST_PARTS_MAX = 10_000
"""Parts of one directory asked for, restarts included: a list that changes for ever must not hold us for ever."""


class Operations:
    """What can be done with nodes, the same inside and outside of a transaction."""

    def _call(self, kind: MessageType, path: str, *rest: bytes, raw: bytes | None = None) -> bytes:
        raise NotImplementedError

    def read_bytes(self, path: str) -> bytes:
        """Return a node's value.

        Raises:
            XenStoreError: ENOENT, EACCES, EINVAL; ETIMEDOUT when the server does not answer.
        """
        return self._call(MessageType.READ, path)

    def read(self, path: str) -> str:
        """Return a node's value as text."""
        return self.read_bytes(path).decode("utf-8", "surrogateescape")

    def read_optional(self, path: str) -> str | None:
        """Return a node's value as text, None when there is no such node."""
        try:
            return self.read(path)
        except XenStoreError as error:
            if error.name == "ENOENT":
                return None
            raise

    def exists(self, path: str) -> bool:
        """Is there such a node?"""
        return self.read_optional(path) is not None

    def write(self, path: str, value: str | bytes | int) -> None:
        """Set a node's value; the node and its directories are made when absent."""
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        self._call(MessageType.WRITE, path, raw=text)

    def mkdir(self, path: str) -> None:
        """Make a node with an empty value unless it is there."""
        self._call(MessageType.MKDIR, path)

    def rm(self, path: str) -> None:
        """Remove a node with all below it. An absent one in an existing directory is fine."""
        self._call(MessageType.RM, path)

    def directory(self, path: str) -> list[str]:
        """Return the names of a node's children."""
        try:
            names = self._call(MessageType.DIRECTORY, path)
        except XenStoreError as error:
            if error.name != "E2BIG":
                raise
            names = self._list_in_parts(path)
        return [name.decode("utf-8", "surrogateescape") for name in split_strings(names)]

    def get_permissions(self, path: str) -> list[str]:
        """Return the entries, such as `n0` and `r5`; the first names the owner."""
        return [entry.decode("ascii", "replace") for entry in split_strings(self._call(MessageType.GET_PERMS, path))]

    def set_permissions(self, path: str, entries: Iterable[str]) -> None:
        """Replace the entries."""
        self._call(MessageType.SET_PERMS, path, *(entry.encode() for entry in entries))

    def _list_in_parts(self, path: str) -> bytes:
        names, generation = bytearray(), b""
        for _ in range(LIST_PARTS_MAX):
            part = self._call(MessageType.DIRECTORY_PART, path, str(len(names)).encode())
            now, separator, rest = part.partition(b"\0")
            if not separator or not rest:
                raise PeerProtocolError("DIRECTORY_PART without a list")
            if names and now != generation:
                names.clear()  # it changed under us: from the start
                continue
            generation = now
            names += rest
            if names == b"\0" or names.endswith(b"\0\0"):
                return bytes(names[:-1])
        raise XenStoreError("EAGAIN", "DIRECTORY_PART", path)


class ClientTransaction(Operations):
    """A transaction under way. Made by `XenStoreClient.transact`."""

    def __init__(self, client: XenStoreClient, number: int, epoch: int) -> None:
        self._client = client
        self.number = number
        self.epoch = epoch

    def _call(self, kind: MessageType, path: str, *rest: bytes, raw: bytes | None = None) -> bytes:
        return self._client._request(kind, path, _payload(path, rest, raw), self.number, self.epoch)


class XenStoreClient(Operations):
    """A connection to XenStore that comes back by itself.

    `connect` is asked for a channel, again and again while there is none.
    """

    def __init__(self, connect: Connector = connect_default, *, timeout_s: float = 10.0) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._core = ClientCore()
        self._channel: Channel | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._disconnected = threading.Condition(self._lock)  # what the connecting thread waits for
        self._is_reading = False
        self._is_closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # wakes the thread that reads
        self._pending = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable while events wait
        self._is_pending_shown = False
        self._ready_set = select.epoll()
        self._ready_set.register(self._pending, select.EPOLLIN)
        self._connector = threading.Thread(target=self._keep_connected, name="xenstore-connect", daemon=True)
        self._connector.start()

    @classmethod
    def at(cls, path: str | Path, *, timeout_s: float = 10.0) -> XenStoreClient:
        """Return a client of the server at a socket or device path."""
        return cls(lambda: connect_path(path), timeout_s=timeout_s)

    def __enter__(self) -> XenStoreClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it. Calls that wait in other threads fail."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            os.eventfd_write(self._wake, 1)
            self._changed.notify_all()
            self._disconnected.notify_all()
        self._connector.join()
        with self._changed:
            while self._is_reading:
                self._changed.wait()
            self._lose_channel()
            self._ready_set.close()
            os.close(self._wake)
            os.close(self._pending)

    @property
    def state(self) -> ClientState:
        return self._core.state

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the server answers; return whether it does."""
        with self._changed:
            return self._await(lambda: self._core.state is ClientState.READY, time.monotonic() + timeout_s)

    # -- events

    def watch(self, path: str, token: str) -> None:
        """Watch a node and all below it; one event follows at once, and one after each reconnection."""
        with self._lock:
            if self._core.has_watch(path, token):
                raise XenStoreError("EEXIST", "WATCH", path)
            self._core.remember_watch(path, token)
        try:
            self._request(MessageType.WATCH, path, watch_payload(path, token))
        except XenStoreError as error:
            if error.name == "EEXIST":
                return  # a reconnection has registered it meanwhile
            with self._lock:
                self._core.forget_watch(path, token)
            raise

    def unwatch(self, path: str, token: str) -> None:
        """Undo a watch; no event of it is delivered any more."""
        with self._lock:
            self._core.forget_watch(path, token)
            self._show_pending()
        try:
            self._request(MessageType.UNWATCH, path, watch_payload(path, token))
        except XenStoreError as error:
            if error.name != "ENOENT":  # a reconnection has left it out already
                raise

    def next_event(self, timeout_s: float) -> WatchEvent | None:
        """Return the next event, None when none came in time."""
        with self._changed:
            self._await(lambda: self._core.has_events, time.monotonic() + timeout_s)
            event = self._core.take_event()
            self._show_pending()
            return event

    def fileno(self) -> int:
        """One descriptor for the life of the client, readable when `pump` is due."""
        return self._ready_set.fileno()

    def pump(self) -> list[WatchEvent]:
        """Take in what has arrived, without blocking; return the events that wait."""
        with self._changed:
            if self._is_closed:
                raise UsageError("the XenStore client is closed")
            if not self._is_reading:
                self._exchange()
            events = list(iter(self._core.take_event, None))
            self._show_pending()
            return events

    # -- transactions

    def transact(self, action: Callable[[Operations], Result], *, attempts: int = TRANSACTION_ATTEMPTS) -> Result:
        """Run `action` in a transaction and return what it returned.

        It runs again on each conflict, so it must do nothing but XenStore operations on what it is given. An exception
        of its own aborts. A server without transactions gets the operations one by one.

        Raises:
            XenStoreError: EAGAIN, each of the attempts ended in a conflict; or what an operation answered.
        """
        for attempt in range(attempts):
            if attempt > 2:
                time.sleep(min(0.001 * attempt, 0.02))
            try:
                return self._attempt(action)
            except XenStoreError as error:
                if error.name != "EAGAIN":
                    raise
        raise XenStoreError("EAGAIN", f"transaction, after {attempts} attempts")

    def _attempt(self, action: Callable[[Operations], Result]) -> Result:
        with self._changed:
            self._await(lambda: self._core.state is ClientState.READY, time.monotonic() + self._timeout_s)
            epoch = self._core.epoch
        try:
            answer = self._request(MessageType.TRANSACTION_START, None, b"\0", epoch=epoch)
        except XenStoreError as error:
            if error.name == "ENOSYS":
                return action(self)
            raise
        number = answer.rstrip(b"\0")
        if not number.isdigit() or not 0 < int(number) <= TRANSACTION_ID_MAX:  # 0 would be no transaction at all
            raise PeerProtocolError(f"a transaction called {number[:20]!r}")
        transaction = ClientTransaction(self, int(number), epoch)
        try:
            result = action(transaction)
        except BaseException:
            self._end(transaction, b"F\0")
            raise
        self._request(MessageType.TRANSACTION_END, None, b"T\0", transaction.number, transaction.epoch)
        return result

    def _end(self, transaction: ClientTransaction, how: bytes) -> None:
        try:
            self._request(MessageType.TRANSACTION_END, None, how, transaction.number, transaction.epoch)
        except XenStoreError:
            pass  # it is over either way

    # -- other operations

    def get_domain_path(self, domid: int) -> str:
        """Return a domain's home."""
        return self._call(MessageType.GET_DOMAIN_PATH, str(domid)).rstrip(b"\0").decode("utf-8", "surrogateescape")

    def is_domain_introduced(self, domid: int) -> bool:
        """Does the server serve this domain? Privileged."""
        return self._call(MessageType.IS_DOMAIN_INTRODUCED, str(domid)).startswith(b"T")

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Have the server serve a domain's ring. Privileged."""
        self._call(MessageType.INTRODUCE, str(domid), str(gfn).encode(), str(port).encode())

    def release(self, domid: int) -> None:
        """Have the server forget a domain. Privileged."""
        self._call(MessageType.RELEASE, str(domid))

    def control(self, *words: str) -> str:
        """Run a CONTROL command and return what it prints. Privileged."""
        answer = self._call(MessageType.CONTROL, words[0], *(word.encode() for word in words[1:]))
        return answer.rstrip(b"\0").decode("utf-8", "replace")

    # -- one request

    def _call(self, kind: MessageType, path: str, *rest: bytes, raw: bytes | None = None) -> bytes:
        return self._request(kind, path, _payload(path, rest, raw))

    def _request(
        self,
        kind: MessageType,
        path: str | None,
        payload: bytes,
        transaction_id: int = 0,
        epoch: int | None = None,
    ) -> bytes:
        """Ask, and return the reply's payload. A request that a lost connection left unanswered is asked again, unless
        it belongs to a transaction (`epoch`), which is lost with it."""
        if len(payload) > PAYLOAD_MAX:
            raise XenStoreError("E2BIG", kind.name, path)
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while True:
                if not self._await(lambda: self._core.state is ClientState.READY, deadline):
                    raise XenStoreError("ETIMEDOUT", kind.name, path)
                if epoch is not None and epoch != self._core.epoch:
                    raise XenStoreError("EAGAIN", kind.name, path)
                reply = self._ask(kind, path, payload, transaction_id, deadline)
                if reply is not None:
                    if reply.error is not None:
                        raise XenStoreError(reply.error, kind.name, path)
                    return reply.payload

    def _ask(
        self, kind: MessageType, path: str | None, payload: bytes, transaction_id: int, deadline: float
    ) -> Reply | None:
        """Return the reply, None when the connection went away first."""
        if self._channel is not None and len(payload) + HEADER_SIZE > self._channel.message_max_bytes:
            raise XenStoreError("E2BIG", kind.name, path)
        epoch = self._core.epoch
        number = self._core.request(kind, payload, transaction_id)
        self._flush()
        found: list[Reply] = []

        def answered() -> bool:
            reply = self._core.take_reply(number)
            if reply is not None:
                found.append(reply)
            return reply is not None or epoch != self._core.epoch or self._channel is None

        if not self._await(answered, deadline):
            self._core.forget(number)
            raise XenStoreError("ETIMEDOUT", kind.name, path)
        return found[0] if found else None

    # -- the channel; all with the lock held

    def _await(self, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait until something is so. One of the waiting threads reads, without the lock, for all of them."""
        try:
            while not is_done():
                if self._is_closed:
                    raise UsageError("the XenStore client is closed")
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                if self._is_reading or self._channel is None:
                    self._changed.wait(remaining)
                else:
                    self._read_for_all(self._channel, remaining)
            return True
        finally:
            self._changed.notify_all()  # somebody else has to read now

    def _read_for_all(self, channel: Channel, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(channel.fileno(), select.POLLIN | (select.POLLOUT if self._core.outgoing else 0))
        poller.register(self._wake, select.POLLIN)
        self._is_reading = True
        self._lock.release()
        try:
            ready = poller.poll(timeout_s * 1000)
        finally:
            self._lock.acquire()
            self._is_reading = False
        if not self._is_closed and any(descriptor == self._wake for descriptor, _ in ready):
            os.eventfd_read(self._wake)
        self._exchange()
        self._changed.notify_all()

    def _exchange(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            for _ in range(CHUNKS_AT_ONCE):
                chunk = channel.receive()
                if not chunk:
                    break
                self._core.feed(chunk)
            if chunk is None:
                self._lose_channel()
        except (OSError, PeerProtocolError):
            self._lose_channel()
        self._flush()
        self._show_pending()
        self._changed.notify_all()

    def _flush(self) -> None:
        outgoing = self._core.outgoing
        try:
            while self._channel is not None and outgoing:
                sent = self._channel.send(outgoing[0])
                if sent == len(outgoing[0]):
                    outgoing.popleft()
                elif sent:
                    outgoing[0] = outgoing[0][sent:]
                else:
                    if self._is_reading:
                        os.eventfd_write(self._wake, 1)  # so that it also waits for room
                    return
        except OSError:
            pass  # the end of the channel shows when it is read

    def _lose_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._ready_set.unregister(channel.fileno())
            channel.close()
            if self._is_reading:
                os.eventfd_write(self._wake, 1)  # it waits for a descriptor that is gone
        self._core.disconnected()
        self._changed.notify_all()
        self._disconnected.notify_all()

    def _show_pending(self) -> None:
        if self._is_closed or self._core.has_events == self._is_pending_shown:
            return
        self._is_pending_shown = self._core.has_events
        if self._is_pending_shown:
            os.eventfd_write(self._pending, 1)
        else:
            os.eventfd_read(self._pending)

    def _keep_connected(self) -> None:
        delay_s = RETRY_FIRST_S
        with self._changed:
            while not self._is_closed:
                if self._core.state is ClientState.READY:
                    delay_s = RETRY_FIRST_S
                    self._disconnected.wait()
                elif self._channel is None and not self._open_channel():
                    self._disconnected.wait(delay_s)
                    delay_s = min(delay_s * 2, RETRY_MOST_S)
                elif not self._finish_handshake():
                    self._lose_channel()

    def _open_channel(self) -> bool:
        self._lock.release()
        try:
            channel = self._connect()
        finally:
            self._lock.acquire()
        if channel is None:
            return False
        self._channel = channel
        self._ready_set.register(channel.fileno(), select.EPOLLIN)
        self._core.connected()
        self._flush()
        return True

    def _finish_handshake(self) -> bool:
        """Wait until the server has answered; False when it did not in time."""
        try:
            return self._await(
                lambda: self._core.state is not ClientState.CONNECTING, time.monotonic() + self._timeout_s
            )
        except UsageError:
            return True  # closed meanwhile


def _payload(path: str, rest: Iterable[bytes], raw: bytes | None) -> bytes:
    head = path.encode("utf-8", "surrogateescape") + b"\0"
    return head + raw if raw is not None else head + b"".join([part + b"\0" for part in rest])
