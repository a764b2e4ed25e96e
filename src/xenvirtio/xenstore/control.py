"""CONTROL: what an operator asks the server itself. Replies are text that `xenstore-control` prints as it is."""

from __future__ import annotations

from xenvirtio.xenstore.path import parent
from xenvirtio.xenstore.quota import Quota
from xenvirtio.xenstore.request import Request


def handle(request: Request) -> bytes:
    """Run one command; an unknown one, or wrong arguments, is EINVAL, on which the tool asks for `help`."""
    words = request.strings(1, 16)
    name, *arguments = (word.decode("utf-8", "replace") for word in words)
    command = _COMMANDS.get(name)
    text = command(request, arguments) if command is not None else None
    if text is None:
        raise request.refuse("EINVAL", name)
    return text.encode() + b"\0"


def _check(request: Request, arguments: list[str]) -> str | None:
    tree = request.server.tree
    broken = [path for path, _ in tree.items() if (above := parent(path)) is not None and tree.find(above) is None]
    return f"nodes without a directory: {' '.join(broken[:20])}" if broken else "OK"


def _log(request: Request, arguments: list[str]) -> str | None:
    if arguments not in (["on"], ["off"]):
        return None
    request.server.logs_requests = arguments == ["on"]
    return "OK"


def _print(request: Request, arguments: list[str]) -> str | None:
    if len(arguments) != 1:
        return None
    request.server.log(arguments[0])
    return "OK"


def _memreport(request: Request, arguments: list[str]) -> str | None:
    server = request.server
    connections = server.all_connections()
    return (
        f"nodes {len(server.tree)}\n"
        f"connections {len(connections)}\n"
        f"watches {sum(len(connection.watches) for connection in connections)}\n"
        f"transactions {server.open_transactions}\n"
        f"queued bytes {sum(connection.outgoing.queued_bytes for connection in connections)}\n"
    )


def _quota(request: Request, arguments: list[str]) -> str | None:
    domains = request.server.domains
    match arguments:
        case []:
            quota, title = domains.quota, "Quota settings:"
        case ["set", name, value] if name in Quota.names() and value.isdecimal():
            domains.quota = domains.quota.with_values({name: int(value)})
            return "OK"
        case [domid] if domid.isdecimal():
            quota, title = domains.quota_of(int(domid)), f"Domain {domid} quota settings:"
        case _:
            return None
    return "\n".join([title, *(f"{name:<20}: {quota.value(name)}" for name in Quota.names())]) + "\n"


def _help(request: Request, arguments: list[str]) -> str | None:
    return "Commands:\n" + "\n".join(sorted(_COMMANDS)) + "\n"


_COMMANDS = {
    "check": _check,
    "help": _help,
    "log": _log,
    "memreport": _memreport,
    "print": _print,
    "quota": _quota,
}
