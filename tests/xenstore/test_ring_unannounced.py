"""A request that its guest does not announce, since the server had not yet said that it took the one before."""

from __future__ import annotations

from xenvirtio.channels.xenstore_ring import GuestEnd, ServerEnd
from xenvirtio.ids import DomId
from xenvirtio.xenstore.serve_link import Link
from xenvirtio.xenstore.serve_ring import RingLink
from xenvirtio.xenstore.server import XenStoreServer
from xenvirtio.xenstore.stream import RingStream
from xenvirtio.xenstore.wire import Message, MessageType


def test_a_request_between_the_last_look_and_the_announcement_is_not_forgotten() -> None:
    page = memoryview(bytearray(4096))
    guest = GuestEnd(page, lambda: None)
    server = XenStoreServer(lambda: 0.0)
    connection = server.connect(DomId(1))
    connection.stream = RingStream()
    again: list[Link] = []
    end = ServerEnd(page, lambda: None)
    link = RingLink(server, connection, end, wake=lambda link: None, again=again.append, release=lambda: None)
    request = Message(MessageType.READ, 1, 0, b"domid\0")

    guest.send(request.encode())
    assert link.next_message() == request
    assert link.next_message() is None
    guest.send(request.encode())  # no event: the guest sees that its first request still lies in the ring
    link.prepare()
    link.flush()
    assert again == [link]
    assert link.next_message() == request
    link.prepare()
    link.flush()
    assert again == [link], "asked for once more though all was read"
