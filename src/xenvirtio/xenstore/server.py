"""The XenStore server as a function: a connection and a request go in, the reply comes out.

Watch events that a request causes are queued on the connections they concern. Sockets, rings, threads and the clock
are somewhere else (`serve` for sockets). Checks come in this order: known operation, privilege, transaction, handler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import DomId
from xenvirtio.xenstore.connection import Connection, LeftBehind
from xenvirtio.xenstore.domains import CONTROL_DOMID, DomainHost, Domains, NoHypervisor
from xenvirtio.xenstore.operations import OPERATIONS
from xenvirtio.xenstore.path import INTRODUCE_DOMAIN, RELEASE_DOMAIN, is_special, resolve
from xenvirtio.xenstore.permissions import DOMID_ANY, Access, Permissions, access_of, parse_permissions
from xenvirtio.xenstore.profile import FULL, Profile
from xenvirtio.xenstore.quota import UNLIMITED, Quota, WriteRate, exceeds
from xenvirtio.xenstore.recorder import NoRecorder, Recorder
from xenvirtio.xenstore.request import Operation, Request
from xenvirtio.xenstore.transaction import StaleTransaction, Transaction
from xenvirtio.xenstore.tree import Change, Tree, View, change_of, remove
from xenvirtio.xenstore.watch import Group, Watch, WatchIndex
from xenvirtio.xenstore.wire import PAYLOAD_MAX, Feature, Message, MessageType, RefusedError, error_payload

EVENT_LIFETIME_S = 20.0
"""An unprivileged client that has not taken an event for so long loses it; without this a guest that stopped reading
holds memory for ever."""

OFFERED_FEATURES = Feature.ERROR | Feature.WATCH_DEPTH | Feature.DOMID_ANY


class XenStoreServer:
    """A complete XenStore without I/O.

    `clock` returns seconds and never goes back. `host` is asked about domains and told to serve rings. `log` receives
    what an operator may want to read (CONTROL `print`).
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        host: DomainHost | None = None,
        features: Feature = OFFERED_FEATURES,
        profile: Profile = FULL,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._operations: dict[int, Operation] = {kind: OPERATIONS[kind] for kind in profile.operations}
        self._profile = profile
        self._clock = clock
        self.host: DomainHost = host if host is not None else NoHypervisor()
        self.log = log
        self.logs_requests = False
        self.tree = Tree()
        self.domains = Domains(features)
        self._recorder: Recorder = NoRecorder()
        self.watches: WatchIndex[Connection] = WatchIndex()
        self._connections: dict[int, dict[Connection, None]] = {}
        self.open_transactions = 0
        self._rate = WriteRate()
        self._with_output: dict[Connection, None] = {}
        self._undelivered: list[tuple[Connection, Iterable[bytes]]] = []
        """Events, as payloads, that the request in hand has caused: they follow its reply. Those of watches are made
        when they are queued: one commit may cause hundreds of megabytes of them, for a client that has no room."""
        self._left_behind: dict[int, LeftBehind] = {}
        for path, entries in _INITIAL_TREE:
            self.tree.put(path, b"", parse_permissions(entries))

    def record_to(self, recorder: Recorder) -> None:
        """Tell this one from now on of every change that a restart has to find again."""
        self._recorder = self.tree.recorder = self.domains.recorder = recorder

    @property
    def recorder(self) -> Recorder:
        """Who is told; a ring's carrier tells it where the ring's streams stand."""
        return self._recorder

    # -- connections

    def connect(self, domid: DomId, *, privileged: bool | None = None, kept: bool | None = None) -> Connection:
        """Return a new connection. One of the control domain is privileged unless said otherwise.

        `kept`: it is the domain's ring, and outlives the server; taken to be so unless it is privileged. The watches,
        transactions and streams that the domain had before a restart (`snapshot.restore`) become its own again, and
        each watch fires when events may have been lost.
        """
        is_privileged = domid == CONTROL_DOMID if privileged is None else privileged
        is_kept = not is_privileged if kept is None else kept
        connection = Connection(domid, privileged=is_privileged, kept=is_kept)
        domain = self.domains.find(domid)
        if domain is not None and domain.target is not None:
            connection.speaks_for |= {domain.target}
        self._connections.setdefault(domid, {})[connection] = None
        left = self._left_behind.pop(domid, None) if connection.kept else None
        if left is not None:
            self._adopt(connection, left)
            self._deliver()
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection with its watches and transactions. Its nodes stay: they belong to the domain."""
        if connection.is_closed:
            return
        connection.is_closed = True
        self.reset(connection)
        of_domain = self._connections[connection.domid]
        del of_domain[connection]
        if not of_domain:
            del self._connections[connection.domid]
        self._with_output[connection] = None  # so that whoever carries its bytes notices

    def reset(self, connection: Connection) -> None:
        """Drop the watches and transactions of a connection."""
        for watch in list(connection.watches.values()):
            self.remove_watch(connection, watch)
        for number in list(connection.transactions):
            self.take_transaction(connection, number).abort()

    def keep_for(self, domid: int, left: LeftBehind) -> None:
        """Keep what a domain had before a restart until it connects."""
        self._left_behind[domid] = left

    def left_behind(self) -> dict[int, LeftBehind]:
        """Return what is still kept for domains that have not connected."""
        return dict(self._left_behind)

    def connections_of(self, domid: int) -> list[Connection]:
        return list(self._connections.get(domid, ()))

    def all_connections(self) -> list[Connection]:
        return [connection for of_domain in self._connections.values() for connection in of_domain]

    def take_ready(self) -> list[Connection]:
        """Return the connections that got something to send, or were closed, since the last call."""
        ready = list(self._with_output)
        self._with_output.clear()
        return ready

    def read_delay_s(self, connection: Connection) -> float:
        """Return how long not to take requests from a connection: 0.0 for none, inf until it has read its replies."""
        if connection.privileged:
            return 0.0
        quota = self.quota_of(connection)
        if exceeds(connection.outgoing.replies, quota.outstanding):
            return math.inf
        if len(connection.outgoing) and exceeds(self.memory_of(connection), quota.memory):
            return math.inf
        return self._rate.wait_s(connection.domid, self._clock())

    def expire_events(self, connection: Connection) -> int:
        """Drop what an unprivileged client has left unread for EVENT_LIFETIME_S; return how many events."""
        if connection.privileged:
            return 0
        return connection.outgoing.expire_events(self._clock() - EVENT_LIFETIME_S)

    # -- requests

    def handle(self, connection: Connection, message: Message) -> Message:
        """Return the reply to a request, and queue the events it causes."""
        reply = self._reply(connection, message)
        self._deliver()
        return reply

    def receive(self, connection: Connection, message: Message) -> None:
        """Handle a request and queue its reply before the events it causes, in `connection.outgoing`."""
        reply = self._reply(connection, message)
        if self.logs_requests:
            self.log(f"{connection!r} {message} -> {reply}")
        connection.outgoing.push_reply(reply, self._clock())
        self._with_output[connection] = None
        self._deliver()

    def _reply(self, connection: Connection, message: Message) -> Message:
        operation = self._operations.get(message.type)
        if operation is None:
            echo = (message.request_id, message.transaction_id) if self._profile.echoes_unknown else (0, 0)
            return Message(MessageType.ERROR, *echo, error_payload("ENOSYS"))
        try:
            payload = self._execute(operation, connection, message)
            if len(payload) > PAYLOAD_MAX:
                raise RefusedError("E2BIG", operation.kind.name)
        except RefusedError as refusal:
            return Message(MessageType.ERROR, message.request_id, message.transaction_id, error_payload(refusal.name))
        return Message(message.type, message.request_id, message.transaction_id, payload)

    def _execute(self, operation: Operation, connection: Connection, message: Message) -> bytes:
        if operation.privileged and not connection.privileged:
            raise RefusedError("EACCES", operation.kind.name)
        transaction: Transaction | None = None
        number = 0 if operation.ignores_transaction else message.transaction_id
        if number:
            transaction = connection.transactions.get(number)
            if transaction is None:
                raise RefusedError("ENOENT", operation.kind.name, f"transaction {number}")
        view: View = self.tree if transaction is None else transaction
        request = Request(self, connection, operation.kind, message.payload, view, transaction, number)
        try:
            return operation.handler(request)
        except RefusedError as refusal:
            if transaction is not None and refusal.name in ("ENOSPC", "ENOMEM"):
                transaction.poison(refusal.name)
            raise
        finally:
            if self.tree.conflicts:
                self._charge(connection)

    # -- what the handlers use

    def quota_of(self, connection: Connection) -> Quota:
        """Return the bounds of a connection."""
        return UNLIMITED if connection.privileged else self.domains.quota_of(connection.domid)

    def features_of(self, connection: Connection) -> Feature:
        """Return the features a connection may use: a domain's own, all that the server offers for others."""
        domain = None if connection.privileged else self.domains.find(connection.domid)
        return self.domains.features if domain is None else domain.features

    def domain_exists(self, domid: DomId) -> bool:
        """May a node's permissions name this domain?"""
        return domid in (CONTROL_DOMID, DOMID_ANY) or self.domains.is_introduced(domid) or self.host.exists(domid)

    def memory_of(self, connection: Connection) -> int:
        """Return what a connection and its domain's nodes take of the memory quota."""
        return self.tree.bytes_owned(connection.domid) + connection.memory_bytes

    def changed(self, request: Request, changes: Iterable[Change]) -> None:
        """Tell watches now, or at the commit of the request's transaction."""
        if request.transaction is not None:
            request.transaction.note(changes)
            return
        self.fire(changes)

    def written(self, request: Request, path: str) -> None:
        """As `changed`, for a node that is there: who may see it is only looked up when somebody watches."""
        if request.transaction is not None:
            self.changed(request, [change_of(request.view, path)])
            return
        groups = self.watches.groups_at(path)
        if groups:
            self._queue_events(groups, change_of(self.tree, path))

    def start_transaction(self, connection: Connection) -> int:
        """Return the number of a new transaction of this connection."""
        connection.last_transaction_id += 1
        number = connection.last_transaction_id & 0xFFFFFFFF or 1
        bound = self.quota_of(connection).transaction_nodes
        self.put_transaction(connection, number, Transaction(self.tree, bound))
        return number

    def put_transaction(self, connection: Connection, number: int, transaction: Transaction) -> None:
        connection.transactions[number] = transaction
        self.open_transactions += 1
        if connection.kept:
            self._recorder.transaction_opened(connection.domid, number)

    def take_transaction(self, connection: Connection, number: int) -> Transaction:
        self.open_transactions -= 1
        if connection.kept:
            self._recorder.transaction_closed(connection.domid, number)
        return connection.transactions.pop(number)

    def commit(self, connection: Connection, transaction: Transaction) -> None:
        """Commit, already taken out of its connection.

        Raises:
            RefusedError: as `Transaction.commit`; ENOSPC too, when the domain would own more nodes than it may: each
                of several transactions counted without what the others create.
        """
        bound, domid = self.quota_of(connection).nodes, connection.domid
        if bound and transaction.nodes_gained(domid) > 0 and transaction.nodes_owned(domid) > bound:
            transaction.poison("ENOSPC")
        self.fire(transaction.commit())

    def add_watch(self, connection: Connection, watch: Watch[Connection], *, fires: bool = True) -> None:
        """Register a watch and fire it once."""
        connection.add_watch(watch)
        self.watches.add(watch)
        if connection.kept:
            self._recorder.watch_added(connection.domid, watch.registered, watch.token, watch.depth)
        if fires:
            self._undelivered.append((connection, [watch.event(watch.path)]))

    def remove_watch(self, connection: Connection, watch: Watch[Connection]) -> None:
        connection.remove_watch(watch)
        self.watches.remove(watch)
        if connection.kept:
            self._recorder.watch_removed(connection.domid, watch.registered, watch.token)

    def fire(self, changes: Iterable[Change]) -> None:
        """Queue an event for each watch that matches and whose client may read there."""
        for change in changes:
            self._queue_events(self.watches.groups_at(change.path, subtree=change.subtree_watches), change)

    def _queue_events(self, groups: Iterable[Group[Connection]], change: Change) -> None:
        for group in groups:
            if _may_see(group.watcher, change.readable_by):
                self._undelivered.append((group.watcher, _payloads(group.reached(), change.path)))

    # -- the life of domains

    def introduce(self, domid: DomId, gfn: int, port: int) -> None:
        """Serve a domain's ring; one that is introduced already gets it rebound and reset, and no event.

        Raises:
            RefusedError: EINVAL, the ring cannot be served.
        """
        try:
            self.host.connect(domid, gfn, port)
        except HypervisorError as error:
            raise RefusedError("EINVAL", f"INTRODUCE of domain {domid}: {error}") from error
        domain = self.domains.know(domid)
        domain.gfn, domain.port = gfn, port
        if not domain.is_introduced:
            domain.is_introduced = True
            self._fire_special(INTRODUCE_DOMAIN, domid)
        self.domains.changed(domid)
        self._deliver()

    def domain_shut_down(self, domid: DomId) -> None:
        """A domain has stopped but still exists: tell once."""
        domain = self.domains.find(domid)
        if domain is not None and domain.is_introduced and not domain.is_shutdown_announced:
            domain.is_shutdown_announced = True
            self.domains.changed(domid)
            self._fire_special(RELEASE_DOMAIN, domid)
            self._deliver()

    def domain_destroyed(self, domid: DomId) -> None:
        """A domain is gone, or released: close its connections, remove what it owned, tell.

        Who keeps time calls this; also for a domain that was never introduced.
        """
        domain = self.domains.find(domid)
        for connection in self.connections_of(domid):
            self.disconnect(connection)
        for agent in sorted(domain.agents) if domain is not None else ():
            self.set_target(agent, None)
        self._left_behind.pop(domid, None)
        self.domains.forget(domid)
        self._rate.forget(domid)
        self._remove_traces(domid)
        if domain is not None and domain.is_introduced:
            self.host.disconnect(domid)
            self._fire_special(RELEASE_DOMAIN, domid)
        self._deliver()

    def set_target(self, domid: DomId, target: DomId | None) -> None:
        """Let a domain speak for another one (its device model does)."""
        domain = self.domains.introduced(domid)
        if domain.target is not None and (former := self.domains.find(domain.target)) is not None:
            former.agents.discard(domid)
        domain.target = target
        if target is not None:
            self.domains.introduced(target).agents.add(domid)
        self.domains.changed(domid)
        for connection in self.connections_of(domid):
            connection.speaks_for = frozenset({domid} if target is None else {domid, target})

    def _adopt(self, connection: Connection, left: LeftBehind) -> None:
        connection.stream = left.stream
        connection.last_transaction_id = left.last_transaction_id
        for number in left.transactions:
            self.put_transaction(connection, number, StaleTransaction(self.tree))
        for registered, token, depth in left.watches:
            path = resolve(registered, connection.home, special=True, length_max=0)
            self.add_watch(connection, Watch(connection, path, registered, token, depth), fires=left.may_lack_events)

    def _remove_traces(self, domid: DomId) -> None:
        for path in self.tree.paths_naming(domid):
            node = self.tree.find(path)
            if node is None or path == "/" or is_special(path):
                continue  # gone with its directory; and the root outlives any owner
            if node.permissions[0].domid == domid:
                self.fire(remove(self.tree, path))
            else:
                self.tree.strip(path, domid)
        self.tree.conflicts = 0  # nobody's fault who could pay

    def _fire_special(self, name: str, domid: DomId) -> None:
        node = self.tree.find(name)
        lists = (node.permissions,) if node is not None else ()
        for watch, event in self.watches.special_events(name, domid):
            if _may_see(watch.watcher, lists):
                self._undelivered.append((watch.watcher, [event]))

    def _charge(self, connection: Connection) -> None:
        """Let a domain pay for having made transactions of others fail. Writing while one is open costs nothing: or
        any guest could slow all the others down by leaving one open."""
        self.tree.conflicts = 0
        if not connection.privileged:
            self._rate.charge(connection.domid, self._clock())

    def _has_room(self, connection: Connection) -> bool:
        """May more events (those of one change) wait for this client? One that does not read loses them beyond its
        memory quota, as with C xenstored: others decide how many there are."""
        if connection.privileged or not len(connection.outgoing):
            return True
        return not exceeds(self.memory_of(connection), self.quota_of(connection).memory)

    def _deliver(self) -> None:
        if not self._undelivered:
            return
        now_s = self._clock()
        for connection, events in self._undelivered:
            if not connection.is_closed and self._has_room(connection):
                connection.outgoing.push_events(events, now_s)
                self._with_output[connection] = None
        self._undelivered.clear()


_INITIAL_TREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("/", ("n0",)),
    ("/tool", ("n0",)),
    ("/tool/xenstored", ("n0",)),
    (INTRODUCE_DOMAIN, ("n0",)),
    (RELEASE_DOMAIN, ("n0", "r32757")),
)


def _payloads(watches: Iterable[Watch[Connection]], path: str) -> Iterator[bytes]:
    return (watch.event(path) for watch in watches)


def _may_see(connection: Connection, lists: Iterable[Permissions]) -> bool:
    if connection.privileged:
        return True
    speaks_for = connection.speaks_for
    return any(access_of(permissions, speaks_for) & Access.READ for permissions in lists)
