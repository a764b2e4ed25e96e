"""What each operation of the protocol does. Parse the arguments, check, act; the reply payload comes back.

Source: docs/misc/xenstore.txt; where it is silent, what C xenstored answers.
"""

from __future__ import annotations

from xenvirtio.ids import DomId
from xenvirtio.xenstore import control
from xenvirtio.xenstore.path import domain_path, is_special, parent
from xenvirtio.xenstore.permissions import Access, parse_permissions
from xenvirtio.xenstore.quota import Quota, exceeds
from xenvirtio.xenstore.request import Operation, Request
from xenvirtio.xenstore.tree import Node, change_of, create, missing_directories, remove
from xenvirtio.xenstore.watch import Watch
from xenvirtio.xenstore.wire import PAYLOAD_MAX, Feature, MessageType, RefusedError

OK = b"OK\0"

DOMID_FIRST_RESERVED = 0x7FF0


# -- nodes


def _directory(request: Request) -> bytes:
    return _node(request, Access.READ).listing()


def _directory_part(request: Request) -> bytes:
    path, offset_text = request.strings(2)
    node = request.find(request.path(path), Access.READ)
    offset = _number(request, offset_text)
    listing = node.listing()
    head = str(node.generation).encode() + b"\0"
    room = PAYLOAD_MAX - len(head) - 1  # the last NUL says that the list is complete
    if len(listing) - offset <= room:
        return head + listing[offset:] + b"\0"
    return head + listing[offset : listing.rindex(b"\0", offset, offset + room) + 1]


def _read(request: Request) -> bytes:
    return _node(request, Access.READ).value


def _get_perms(request: Request) -> bytes:
    node = request.find(request.single_path(special=True), Access.READ)
    return "".join(f"{entry}\0" for entry in node.permissions).encode()


def _write(request: Request) -> bytes:
    text, separator, value = request.payload.partition(b"\0")
    if not separator:
        raise request.refuse("EINVAL", "no value")
    path = request.path(text)
    node = request.view.find(path)
    if node is None:
        _create(request, path, value)
        return OK
    request.require(node, path, Access.WRITE)
    _check_size(request, node, len(value) - len(node.value))
    request.view.put(path, value, node.permissions)
    request.server.written(request, path)
    return OK


def _mkdir(request: Request) -> bytes:
    path = request.single_path()
    if _exists(request, path):
        request.find(path, Access.WRITE)
    else:
        _create(request, path, b"")
    return OK


def _rm(request: Request) -> bytes:
    path = request.single_path()
    try:
        request.find(path, Access.WRITE)
    except RefusedError as refusal:
        directory = parent(path)
        if refusal.name == "ENOENT" and directory is not None and _exists(request, directory):
            return OK
        raise
    if path == "/":
        raise request.refuse("EINVAL", path)
    request.server.changed(request, remove(request.view, path))
    return OK


def _set_perms(request: Request) -> bytes:
    text, *entries = request.strings(2, PAYLOAD_MAX)
    path = request.path(text, special=True)
    permissions = parse_permissions(entries)
    node = request.find(path, Access.OWNER)
    bound = request.quota.node_permissions
    if bound and len(permissions) > bound:
        raise request.refuse("ENOSPC", f"{len(permissions)} permissions")
    if not request.connection.privileged and permissions[0].domid != node.permissions[0].domid:
        raise request.refuse("EPERM", "a new owner")
    if not request.server.domain_exists(permissions[0].domid):
        raise request.refuse("ENOENT", f"owner {permissions[0].domid}")
    living = tuple(entry.if_exists(request.server.domain_exists(entry.domid)) for entry in permissions)
    _check_size(request, node, 8 * (len(living) - len(node.permissions)))
    former = node.permissions
    request.view.put(path, node.value, living)
    if not is_special(path):
        request.server.changed(request, [change_of(request.view, path, former)])
    return OK


def _node(request: Request, needed: Access) -> Node:
    return request.find(request.single_path(), needed)


def _exists(request: Request, path: str) -> bool:
    return request.view.find(path) is not None


def _create(request: Request, path: str, value: bytes) -> None:
    nearest, missing = missing_directories(request.view, path)
    above = request.find(nearest, Access.NONE)
    if not request.permits(above.permissions, Access.WRITE):
        raise request.refuse("EACCES", path)
    owned = request.view.nodes_owned(request.connection.domid) + len(missing)
    if exceeds(owned, request.quota.nodes):
        raise request.refuse("ENOSPC", f"{owned} nodes")
    _check_size(request, Node(value, above.permissions), 0)
    request.server.changed(request, create(request.view, path, value, request.creator))


def _check_size(request: Request, node: Node, growth: int) -> None:
    if request.connection.privileged:
        return
    quota = request.quota
    if exceeds(node.size_bytes + growth, quota.node_size):
        raise request.refuse("ENOSPC", f"a node of {node.size_bytes + growth} bytes")
    if quota.memory and exceeds(request.server.memory_of(request.connection) + max(growth, 0), quota.memory):
        raise request.refuse("ENOMEM", "memory")


# -- watches


def _watch(request: Request) -> bytes:
    registered, token, *rest = request.strings(2, 3)
    depth = None
    if rest:
        if not Feature.WATCH_DEPTH & request.server.features_of(request.connection):
            raise request.refuse("EINVAL", "depth")
        depth = _number(request, rest[0])
    path = request.path(registered, special=True)
    connection = request.connection
    if (path, token) in connection.watches:
        raise request.refuse("EEXIST", path)
    if exceeds(len(connection.watches), request.quota.watches):
        raise request.refuse("ENOSPC", f"{len(connection.watches)} watches")
    request.server.add_watch(connection, Watch(connection, path, registered, token, depth))
    return OK


def _unwatch(request: Request) -> bytes:
    registered, token = request.strings(2)
    path = request.path(registered, special=True)
    watch = request.connection.watches.get((path, token))
    if watch is None:
        raise request.refuse("ENOENT", path)
    request.server.remove_watch(request.connection, watch)
    return OK


def _reset_watches(request: Request) -> bytes:
    request.server.reset(request.connection)
    return OK


# -- transactions


def _transaction_start(request: Request) -> bytes:
    connection = request.connection
    if request.transaction is not None:
        raise request.refuse("EBUSY", "inside a transaction")
    if exceeds(len(connection.transactions), request.quota.transactions):
        raise request.refuse("ENOSPC", f"{len(connection.transactions)} transactions")
    return str(request.server.start_transaction(connection)).encode() + b"\0"


def _transaction_end(request: Request) -> bytes:
    if request.payload not in (b"T\0", b"F\0"):
        raise request.refuse("EINVAL", "neither T nor F")
    if request.transaction is None:
        raise request.refuse("ENOENT", "no transaction")
    transaction = request.server.take_transaction(request.connection, request.transaction_id)
    if request.payload == b"T\0":
        request.server.commit(request.connection, transaction)
    else:
        transaction.abort()
    return OK


# -- domains


def _introduce(request: Request) -> bytes:
    domid_text, gfn_text, port_text = request.strings(3)
    domid = _domid(request, domid_text)
    gfn, port = _number(request, gfn_text, signed=True), _number(request, port_text, signed=True)
    if port <= 0 or domid >= DOMID_FIRST_RESERVED:
        raise request.refuse("EINVAL", f"domain {domid}, event channel {port}")
    request.server.introduce(domid, gfn, port)
    return OK


def _release(request: Request) -> bytes:
    domid = _single_domid(request)
    if domid == 0:
        raise request.refuse("EINVAL", "the control domain")
    request.server.domains.introduced(domid)
    request.server.domain_destroyed(domid)
    return OK


def _get_domain_path(request: Request) -> bytes:
    return domain_path(_single_domid(request)).encode() + b"\0"


def _is_domain_introduced(request: Request) -> bytes:
    return b"T\0" if request.server.domains.is_introduced(_single_domid(request)) else b"F\0"


def _resume(request: Request) -> bytes:
    domain = request.server.domains.introduced(_single_domid(request))
    domain.is_shutdown_announced = False
    request.server.domains.changed(domain.domid)
    return OK


def _set_target(request: Request) -> bytes:
    domid, target = (_domid(request, text) for text in request.strings(2))
    request.server.domains.introduced(target)
    request.server.set_target(domid, target)
    return OK


def _get_feature(request: Request) -> bytes:
    texts = request.strings(0, 1)
    if not texts or texts == [b""]:
        return _decimal(request.server.features_of(request.connection))
    if not request.connection.privileged:
        raise request.refuse("EACCES", "another domain")
    domain = request.server.domains.find(_domid(request, texts[0]))
    if domain is None:
        raise request.refuse("ENOENT", texts[0].decode("ascii", "replace"))
    return _decimal(domain.features)


def _set_feature(request: Request) -> bytes:
    domid_text, value_text = request.strings(2)
    domid, value = _domid(request, domid_text), _number(request, value_text)
    if value & ~int(request.server.domains.features):
        raise request.refuse("EINVAL", f"features {value}")
    if request.server.domains.is_introduced(domid):
        raise request.refuse("EBUSY", f"domain {domid}")
    request.server.domains.know(domid).features = Feature(value)
    request.server.domains.changed(domid)
    return OK


def _get_quota(request: Request) -> bytes:
    texts = [text for text in request.strings(0, 2) if text]
    if not texts:
        return " ".join(Quota.names()).encode() + b"\0"
    domains = request.server.domains
    quota = domains.quota if len(texts) == 1 else domains.quota_of(_domid(request, texts[0]))
    return _decimal(quota.value(_quota_name(request, texts[-1])))


def _set_quota(request: Request) -> bytes:
    *domid_text, name_text, value_text = request.strings(2, 3)
    name, value = _quota_name(request, name_text), _number(request, value_text)
    domains = request.server.domains
    if domid_text:
        domid = _domid(request, domid_text[0])
        if not request.server.domain_exists(domid):
            raise request.refuse("ENOENT", f"domain {domid}")
        domains.know(domid).quota_changes[name] = value
        domains.changed(domid)
    else:
        domains.quota = domains.quota.with_values({name: value})
    return OK


def _quota_name(request: Request, text: bytes) -> str:
    name = text.decode("ascii", "replace")
    if name not in Quota.names():
        raise request.refuse("EINVAL", f"quota {name}")
    return name


def _single_domid(request: Request) -> DomId:
    (text,) = request.strings(1)
    return _domid(request, text)


def _domid(request: Request, text: bytes) -> DomId:
    number = _number(request, text)
    if number > 0xFFFF:
        raise request.refuse("EINVAL", f"domid {number}")
    return DomId(number)


def _number(request: Request, text: bytes, *, signed: bool = False) -> int:
    digits = text[1:] if signed and text.startswith(b"-") else text
    if not digits.isdigit() or len(digits) > 20:
        raise request.refuse("EINVAL", f"number {text[:20]!r}")
    return int(text)


def _decimal(number: int) -> bytes:
    return b"%d\0" % number


_TABLE = (
    Operation(MessageType.CONTROL, control.handle, privileged=True),
    Operation(MessageType.DIRECTORY, _directory),
    Operation(MessageType.DIRECTORY_PART, _directory_part),
    Operation(MessageType.READ, _read),
    Operation(MessageType.WRITE, _write),
    Operation(MessageType.MKDIR, _mkdir),
    Operation(MessageType.RM, _rm),
    Operation(MessageType.GET_PERMS, _get_perms),
    Operation(MessageType.SET_PERMS, _set_perms),
    Operation(MessageType.WATCH, _watch, ignores_transaction=True),
    Operation(MessageType.UNWATCH, _unwatch, ignores_transaction=True),
    Operation(MessageType.RESET_WATCHES, _reset_watches),
    Operation(MessageType.TRANSACTION_START, _transaction_start),
    Operation(MessageType.TRANSACTION_END, _transaction_end),
    Operation(MessageType.INTRODUCE, _introduce, privileged=True),
    Operation(MessageType.RELEASE, _release, privileged=True),
    Operation(MessageType.GET_DOMAIN_PATH, _get_domain_path),
    Operation(MessageType.IS_DOMAIN_INTRODUCED, _is_domain_introduced, privileged=True),
    Operation(MessageType.RESUME, _resume, privileged=True),
    Operation(MessageType.SET_TARGET, _set_target, privileged=True),
    Operation(MessageType.GET_FEATURE, _get_feature),
    Operation(MessageType.SET_FEATURE, _set_feature, privileged=True),
    Operation(MessageType.GET_QUOTA, _get_quota, privileged=True),
    Operation(MessageType.SET_QUOTA, _set_quota, privileged=True),
)

OPERATIONS = {operation.kind: operation for operation in _TABLE}
