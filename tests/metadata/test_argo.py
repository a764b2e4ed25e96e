"""The registry over Argo: who sees what, what restarts do, and domains that mean no good."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from xenvirtio.channels.argo import ArgoChannel
from xenvirtio.errors import ConfigurationError, HypervisorError, ResourceError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.metadata import argo_wire as wire
from xenvirtio.metadata.argo import ArgoDirectory
from xenvirtio.metadata.argo_registry import ArgoRegistry
from xenvirtio.metadata.argo_wire import REGISTRY_PORT, Kind
from xenvirtio.metadata.directory import FIELDS_MAX, RECORDS_MAX, VALUE_MAX
from xenvirtio.xen.capabilities import ArgoAddress
from xenvirtio.xen.emulated import EmulatedHost

DOM0 = DomId(0)
TO_REGISTRY = ArgoAddress(DOM0, REGISTRY_PORT)


@pytest.fixture
def host() -> Iterator[EmulatedHost]:
    with EmulatedHost() as host:
        host.create_domain(memory_bytes=4096)
        host.create_domain(memory_bytes=4096)
        yield host


def registry_of(host: EmulatedHost, *partners: int) -> ArgoRegistry:
    return ArgoRegistry(host.open_hypervisor(DOM0), DOM0, [DomId(p) for p in partners or (1, 2)], pulse_s=0.05)


def directory_of(host: EmulatedHost, domid: int, port: int = 0, timeout_s: float = 10) -> ArgoDirectory:
    own = ArgoPort(0x10000 + port)
    return ArgoDirectory(host.open_hypervisor(DomId(domid)), DOM0, hello_s=0.05, port=own, timeout_s=timeout_s)


def eventually(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_frontends_see_their_own_and_the_registrys_records(host: EmulatedHost) -> None:
    with registry_of(host) as registry, directory_of(host, 1) as one, directory_of(host, 2) as two:
        registry.register("service", "scmi", {})
        one.register("root", "block", {})
        two.register("root", "net", {})
        assert [(r.domid, r.name) for r in one.find()] == [(0, "service"), (1, "root")]
        assert [(r.domid, r.name) for r in two.find(type="net")] == [(2, "root")]
        assert [(r.domid, r.name) for r in registry.find()] == [(0, "service"), (1, "root"), (2, "root")]


def test_programs_of_the_registrys_domain_ask_like_any_other_and_see_all(host: EmulatedHost) -> None:
    with registry_of(host), directory_of(host, 1) as one, directory_of(host, 0) as beside:
        one.register("root", "block", {})
        beside.register("service", "scmi", {})
        assert [(r.domid, r.name) for r in beside.find()] == [(0, "service"), (1, "root")]


def test_a_registry_that_restarts_is_told_again(host: EmulatedHost) -> None:
    registry = registry_of(host)
    with directory_of(host, 1) as one:
        one.register("root", "block", {"base": "1"})
        one.register("gone", "block", {})
        one.withdraw("gone")
        registry.close()
        with registry_of(host) as successor:
            assert successor.find() == []
            eventually(lambda: [r.name for r in successor.find()] == ["root"])
            assert one.wait_changed(20)


def test_a_frontend_that_starts_first_waits(host: EmulatedHost) -> None:
    import threading

    started: list[ArgoRegistry] = []
    timer = threading.Timer(0.3, lambda: started.append(registry_of(host)))
    timer.start()
    with directory_of(host, 1) as one:
        one.register("root", "block", {})
        timer.join()
        assert [r.name for r in started[0].find()] == ["root"]
    started[0].close()


def test_without_a_registry_the_error_says_so(host: EmulatedHost) -> None:
    with (
        directory_of(host, 1, timeout_s=0.1) as one,
        pytest.raises(ResourceError, match="registry of domain 0 is not there"),
    ):
        one.find()


def test_what_was_registered_outlives_the_program_but_not_the_domain(host: EmulatedHost) -> None:
    with registry_of(host) as registry:
        with directory_of(host, 1) as one:
            one.register("root", "block", {})
        assert [r.name for r in registry.find()] == ["root"]
        host.destroy_domain(DomId(1))
        eventually(lambda: registry.find() == [])
        host.create_domain(memory_bytes=4096, domid=DomId(1))
        with directory_of(host, 1) as reborn:
            reborn.register("root", "block", {})


def test_a_domain_that_is_not_there_yet_is_served_once_it_is(host: EmulatedHost) -> None:
    with registry_of(host, 1, 9) as registry:
        host.create_domain(memory_bytes=4096, domid=DomId(9))
        with directory_of(host, 9) as late:
            late.register("root", "block", {})
            assert [r.domid for r in registry.find()] == [9]


def test_two_registries_in_one_domain(host: EmulatedHost) -> None:
    with registry_of(host), pytest.raises(HypervisorError, match="has that ring already"):
        registry_of(host)


def test_a_domain_has_so_many_records_and_no_more(host: EmulatedHost) -> None:
    with registry_of(host) as registry, directory_of(host, 1) as one:
        for number in range(RECORDS_MAX):
            one.register(f"n{number}", "block", {})
        with pytest.raises(ConfigurationError, match=f"allowed: {RECORDS_MAX} records"):
            one.register("one-more", "block", {})
        one.register("n0", "net", {})
        assert len(registry.find()) == RECORDS_MAX


def test_lists_that_do_not_fit_into_one_answer(host: EmulatedHost) -> None:
    with registry_of(host), directory_of(host, 1) as one:
        fields = {f"key{n}": "x" * VALUE_MAX for n in range(FIELDS_MAX)}
        for number in range(10):
            one.register(f"n{number}", "block", fields)
        assert [r.name for r in one.find()] == [f"n{number}" for number in range(10)]


def test_changes_are_told_to_all_of_many_listeners(host: EmulatedHost) -> None:
    with registry_of(host) as registry:
        listeners = [directory_of(host, 1, port) for port in range(4)]
        for listener in listeners:
            listener.find()
        registry.register("service", "scmi", {})
        assert all(listener.wait_changed(20) for listener in listeners)
        for listener in listeners:
            listener.close()


def test_nonsense_is_dropped_and_the_others_are_served(host: EmulatedHost, caplog: pytest.LogCaptureFixture) -> None:
    with registry_of(host), directory_of(host, 2) as polite:
        with ArgoChannel.open(host.open_hypervisor(DomId(1)), ArgoPort(5), [DOM0]) as hostile:
            for kind in [*Kind, 0, 0xFFFFFFFF]:
                for data in (b"", b"\xff" * 3, b"\1\0\0\0", b"\1\0\0\0no nul", b"\1\0\0\0\xff\xff\0", b"\0" * 1000):
                    hostile.send_wait(data, TO_REGISTRY, kind, timeout_s=20)
            polite.register("root", "block", {})
        assert [r.name for r in polite.find()] == ["root"]
    assert len([line for line in caplog.messages if "leaving out" in line]) <= 10


def test_one_that_floods_and_never_reads_does_not_stop_the_others(host: EmulatedHost) -> None:
    with (
        registry_of(host),
        directory_of(host, 2) as polite,
        ArgoChannel.open(host.open_hypervisor(DomId(1)), ArgoPort(5), [DOM0], ring_bytes=1024) as hostile,
    ):
        for number in range(2000):
            hostile.send(wire.encode_find(number, "", wire.Cursor()), TO_REGISTRY, Kind.FIND)
        started_s = time.monotonic()
        polite.register("root", "block", {})
        assert time.monotonic() - started_s < 5


def test_an_answer_in_anothers_name_is_ignored(host: EmulatedHost) -> None:
    """The port of a sender is its own word: a second program of the registry's domain could pretend; a guest cannot."""
    with registry_of(host), directory_of(host, 1, 7) as one:
        one.register("root", "block", {})
        impostor = ArgoAddress(DomId(1), ArgoPort(0x10007))
        other = ArgoChannel.open(host.open_hypervisor(DomId(2)), ArgoPort(5), [DOM0])
        with other, pytest.raises(HypervisorError, match="ECONNREFUSED"):
            other.send(b"", impostor, Kind.CHANGED)


def test_a_ring_that_xen_cannot_use_does_not_end_the_registry(
    host: EmulatedHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What Xen answers then (EINVAL, ENOMEM) came out of the thread that serves everybody."""
    with registry_of(host) as registry, directory_of(host, 2) as polite:
        with ArgoChannel.open(host.open_hypervisor(DomId(1)), ArgoPort(5), [DOM0]) as hostile:
            send = registry._channel.send

            def refuse(message: bytes, to: ArgoAddress, kind: int = 0) -> bool:
                if to.domid == 1:
                    raise HypervisorError("argo_send", errno.EINVAL, domid=to.domid)
                return send(message, to, kind)

            monkeypatch.setattr(registry._channel, "send", refuse)
            for number in range(50):
                hostile.send_wait(wire.encode_hello(number), TO_REGISTRY, Kind.HELLO, timeout_s=20)
                polite.register("root", "block", {"round": str(number)})  # all listeners are told
        assert [r.fields for r in polite.find()] == [{"round": "49"}]
    assert len(caplog.messages) < 10
