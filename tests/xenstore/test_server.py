"""The server by scripts: rows of who, operation, request, reply; `|` stands for NUL, `!` for an ERROR."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xenstore.helpers import Store
from xenvirtio.ids import DomId
from xenvirtio.xenstore.profile import ZEPHYR_DOM0
from xenvirtio.xenstore.server import EVENT_LIFETIME_S
from xenvirtio.xenstore.wire import ERROR_NAMES, Message, MessageType

M = MessageType

Row = tuple[str, int, str, str]


def play(store: Store, rows: list[Row]) -> None:
    for who, kind, request, reply in rows:
        assert store.say(who, kind, request) == reply, (who, kind, request)


SCRIPTS: dict[str, list[Row]] = {
    "write and read": [
        ("dom0", M.WRITE, "/a/b|hello", "OK|"),
        ("dom0", M.READ, "/a/b|", "hello"),
        ("dom0", M.READ, "/a|", ""),
        ("dom0", M.WRITE, "/a/b|", "OK|"),
        ("dom0", M.READ, "/a/b|", ""),
        ("dom0", M.WRITE, "/a/b|x|y|", "OK|"),
        ("dom0", M.READ, "/a/b|", "x|y|"),
        ("dom0", M.WRITE, "/a/b", "!EINVAL"),
        ("dom0", M.WRITE, "/a+b|v", "!EINVAL"),
    ],
    "a single path ends in its only NUL": [
        *[("dom0", kind, bad, "!EINVAL") for kind in (M.READ, M.DIRECTORY, M.MKDIR, M.RM, M.GET_PERMS)
          for bad in ("", "/tool", "/tool|x", "/tool||", "|", "/tool/|", "//|")],
        ("dom0", M.READ, "/none|", "!ENOENT"),
        ("dom0", M.DIRECTORY, "/none|", "!ENOENT"),
        ("dom0", M.GET_PERMS, "/none|", "!ENOENT"),
        ("dom0", M.READ, "@releaseDomain|", "!EINVAL"),
    ],
    "directories": [
        ("dom0", M.DIRECTORY, "/|", "tool|"),
        ("dom0", M.MKDIR, "/a/c|", "OK|"),
        ("dom0", M.WRITE, "/a/b|1", "OK|"),
        ("dom0", M.DIRECTORY, "/a|", "c|b|"),
        ("dom0", M.DIRECTORY, "/a/b|", ""),
        ("dom0", M.MKDIR, "/a/b|", "OK|"),
        ("dom0", M.READ, "/a/b|", "1"),
    ],
    "removal": [
        ("dom0", M.WRITE, "/a/b/c|1", "OK|"),
        ("dom0", M.RM, "/a/none|", "OK|"),
        ("dom0", M.RM, "/none/x|", "!ENOENT"),
        ("dom0", M.RM, "/|", "!EINVAL"),
        ("dom0", M.RM, "/a|", "OK|"),
        ("dom0", M.READ, "/a/b/c|", "!ENOENT"),
        ("dom0", M.DIRECTORY, "/|", "tool|"),
    ],
    "relative paths": [
        ("dom0", M.WRITE, "foo|1", "OK|"),
        ("dom0", M.READ, "/local/domain/0/foo|", "1"),
        ("dom0", M.GET_DOMAIN_PATH, "7|", "/local/domain/7|"),
        ("dom0", M.GET_DOMAIN_PATH, "007|", "/local/domain/7|"),
        ("dom0", M.GET_DOMAIN_PATH, "65535|", "/local/domain/65535|"),
        ("dom0", M.GET_DOMAIN_PATH, "65536|", "!EINVAL"),
        ("dom0", M.GET_DOMAIN_PATH, "x|", "!EINVAL"),
        ("dom0", M.GET_DOMAIN_PATH, "|", "!EINVAL"),
    ],
    "permissions": [
        ("dom0", M.GET_PERMS, "/tool|", "n0|"),
        ("dom0", M.GET_PERMS, "@releaseDomain|", "n0|r32757|"),
        ("dom0", M.GET_PERMS, "@introduceDomain|", "n0|"),
        ("dom0", M.SET_PERMS, "@introduceDomain|n0|r3|", "OK|"),
        ("dom0", M.GET_PERMS, "@introduceDomain|", "n0|r3|"),
        ("dom0", M.SET_PERMS, "/none|n0|", "!ENOENT"),
        ("dom0", M.SET_PERMS, "/tool|", "!EINVAL"),
        ("dom0", M.SET_PERMS, "/tool|x0|", "!EINVAL"),
        ("dom0", M.SET_PERMS, "/tool|n55|", "!ENOENT"),
        ("dom0", M.SET_PERMS, "/tool|n0|b55|", "OK|"),
        ("dom0", M.GET_PERMS, "/tool|", "n0|b55|"),
    ],
    "transactions start and end": [
        ("dom0", M.TRANSACTION_START, "|", "1|"),
        ("dom0", M.TRANSACTION_START, "|", "2|"),
        ("dom0", M.TRANSACTION_END, "T|", "!ENOENT"),
        ("dom0", M.TRANSACTION_END, "X|", "!EINVAL"),
        ("dom0", M.RESET_WATCHES, "|", "OK|"),
        ("dom0", M.TRANSACTION_START, "|", "3|"),
    ],
    "watches": [
        ("dom0", M.WATCH, "/a|t|", "OK|"),
        ("dom0", M.WATCH, "/a|t|", "!EEXIST"),
        ("dom0", M.WATCH, "/a|u|", "OK|"),
        ("dom0", M.WATCH, "/a|u|0|", "!EEXIST"),
        ("dom0", M.WATCH, "/a|d|x|", "!EINVAL"),
        ("dom0", M.WATCH, "/a|", "!EINVAL"),
        ("dom0", M.WATCH, "/a+|t|", "!EINVAL"),
        ("dom0", M.UNWATCH, "/a|t|", "OK|"),
        ("dom0", M.UNWATCH, "/a|t|", "!ENOENT"),
        ("dom0", M.UNWATCH, "/a|u|x|", "!EINVAL"),
        ("dom0", M.RESET_WATCHES, "|", "OK|"),
        ("dom0", M.UNWATCH, "/a|u|", "!ENOENT"),
    ],
    "introduction and release": [
        ("dom0", M.IS_DOMAIN_INTRODUCED, "3|", "F|"),
        ("dom0", M.RELEASE, "3|", "!ENOENT"),
        ("dom0", M.RESUME, "3|", "!ENOENT"),
        ("dom0", M.INTRODUCE, "3|100|5|", "OK|"),
        ("dom0", M.IS_DOMAIN_INTRODUCED, "3|", "T|"),
        ("dom0", M.INTRODUCE, "3|-1|6|", "OK|"),
        ("dom0", M.RESUME, "3|", "OK|"),
        ("dom0", M.RELEASE, "3|", "OK|"),
        ("dom0", M.IS_DOMAIN_INTRODUCED, "3|", "F|"),
        ("dom0", M.RELEASE, "0|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "3|100|0|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "3|100|-4|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "3|100|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "65536|100|1|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "9|100|1|", "!EINVAL"),
        ("dom0", M.IS_DOMAIN_INTRODUCED, "9|", "F|"),
        ("dom0", M.IS_DOMAIN_INTRODUCED, "32752|", "T|"),
    ],
    "features": [
        ("dom0", M.GET_FEATURE, "", "14|"),
        ("dom0", M.GET_FEATURE, "3|", "!ENOENT"),
        ("dom0", M.SET_FEATURE, "3|2|", "OK|"),
        ("dom0", M.GET_FEATURE, "3|", "2|"),
        ("dom0", M.SET_FEATURE, "3|16|", "!EINVAL"),
        ("dom0", M.INTRODUCE, "3|1|1|", "OK|"),
        ("dom0", M.SET_FEATURE, "3|4|", "!EBUSY"),
        ("dom3", M.GET_FEATURE, "", "2|"),
        ("dom3", M.GET_FEATURE, "3|", "!EACCES"),
        ("dom3", M.WATCH, "x|t|1|", "!EINVAL"),
    ],
    "quotas": [
        ("dom0", M.GET_QUOTA, "", "nodes watches transactions transaction-nodes outstanding node-permissions "
                                  "node-size path-max memory|"),
        ("dom0", M.GET_QUOTA, "nodes|", "1000|"),
        ("dom0", M.SET_QUOTA, "nodes|500|", "OK|"),
        ("dom0", M.SET_QUOTA, "3|nodes|50|", "OK|"),
        ("dom0", M.GET_QUOTA, "3|nodes|", "50|"),
        ("dom0", M.GET_QUOTA, "4|nodes|", "500|"),
        ("dom0", M.GET_QUOTA, "wishes|", "!EINVAL"),
        ("dom0", M.SET_QUOTA, "nodes|x|", "!EINVAL"),
        ("dom0", M.SET_QUOTA, "55|nodes|1|", "!ENOENT"),
        ("dom0", M.SET_QUOTA, "nodes|", "!EINVAL"),
    ],
    "only the privileged": [
        *[("dom3", kind, "3|1|1|", "!EACCES")
          for kind in (M.CONTROL, M.INTRODUCE, M.RELEASE, M.IS_DOMAIN_INTRODUCED, M.RESUME, M.SET_TARGET,
                       M.SET_FEATURE, M.GET_QUOTA, M.SET_QUOTA)],
        ("dom3", M.GET_DOMAIN_PATH, "0|", "/local/domain/0|"),
    ],
    "what is no request": [("dom0", kind, "", "!ENOSYS") for kind in (15, 16, 20, 27, 128, 65535, 0xFFFFFFFF)],
    "control": [
        ("dom0", M.CONTROL, "check|", "OK|"),
        ("dom0", M.CONTROL, "help|", "Commands:\ncheck\nhelp\nlog\nmemreport\nprint\nquota\n|"),
        ("dom0", M.CONTROL, "frobnicate|", "!EINVAL"),
        ("dom0", M.CONTROL, "", "!EINVAL"),
        ("dom0", M.CONTROL, "log|on|", "OK|"),
        ("dom0", M.CONTROL, "log|maybe|", "!EINVAL"),
        ("dom0", M.CONTROL, "quota|set|nodes|5|", "OK|"),
        ("dom0", M.CONTROL, "quota|x|", "!EINVAL"),
    ],
    "a guest without a home": [
        ("dom3", M.READ, "/tool|", "!EACCES"),
        ("dom3", M.READ, "foo|", "!EACCES"),  # told nothing about what is absent either
        ("dom3", M.WRITE, "foo|1", "!EACCES"),
        ("dom3", M.RM, "foo|", "!EACCES"),
        ("dom3", M.MKDIR, "foo|", "!EACCES"),
        ("dom3", M.DIRECTORY, "/|", "!EACCES"),
        ("dom3", M.GET_PERMS, "@introduceDomain|", "!EACCES"),
        ("dom3", M.GET_PERMS, "@releaseDomain|", "n0|r32757|"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    play(Store(), SCRIPTS[name])


def test_a_guest_in_its_home() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    play(store, [
        ("dom3", M.WRITE, "data/x|1", "OK|"),
        ("dom3", M.GET_PERMS, "data/x|", "n3|"),
        ("dom3", M.READ, "none|", "!ENOENT"),
        ("dom4", M.READ, "/local/domain/3/data/x|", "!EACCES"),
        ("dom3", M.SET_PERMS, "data/x|n3|r4|", "OK|"),
        ("dom4", M.READ, "/local/domain/3/data/x|", "1"),
        ("dom4", M.WRITE, "/local/domain/3/data/x|2", "!EACCES"),
        ("dom4", M.SET_PERMS, "/local/domain/3/data/x|n4|", "!EACCES"),
        ("dom3", M.SET_PERMS, "data/x|n4|", "!EPERM"),
        ("dom3", M.SET_PERMS, "data/x|n3|b4|", "OK|"),
        ("dom4", M.WRITE, "/local/domain/3/data/x|2", "OK|"),
        ("dom4", M.WRITE, "/local/domain/3/data/x/y|2", "OK|"),
        ("dom4", M.GET_PERMS, "/local/domain/3/data/x/y|", "n4|b4|"),
        ("dom0", M.GET_PERMS, "/local/domain/3/data/x|", "n3|b4|"),
    ])  # fmt: skip


def test_a_target_lends_its_rights_until_it_dies() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    play(store, [
        ("dom0", M.SET_TARGET, "4|5|", "!ENOENT"),
        ("dom0", M.SET_TARGET, "4|3|", "OK|"),
        ("dom4", M.WRITE, "/local/domain/3/x|1", "OK|"),
    ])  # fmt: skip
    store.server.domain_destroyed(DomId(3))
    assert store.who("dom4").speaks_for == {4}


def test_the_death_of_a_domain_removes_what_it_owned_and_its_name() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    play(store, [
        ("dom3", M.WRITE, "a/b|1", "OK|"),
        ("dom4", M.WRITE, "kept|1", "OK|"),
        ("dom4", M.SET_PERMS, "kept|n4|b3|r5|", "OK|"),
        ("dom0", M.WATCH, "@releaseDomain|t|", "OK|"),
        ("dom0", M.WATCH, "/local/domain/3|h|", "OK|"),
    ])  # fmt: skip
    store.events("dom0")
    connection = store.who("dom3")
    store.server.domain_destroyed(DomId(3))
    assert store.events("dom0") == ["/local/domain/3|h", "@releaseDomain|t"]
    assert connection.is_closed
    assert ("disconnect", 3) in store.host.rings
    play(store, [
        ("dom0", M.READ, "/local/domain/3|", "!ENOENT"),
        ("dom0", M.GET_PERMS, "/local/domain/4/kept|", "n4|r5|"),
        ("dom0", M.CONTROL, "check|", "OK|"),
    ])  # fmt: skip


def test_special_events() -> None:
    store = Store()
    store.home(4)
    play(store, [
        ("dom0", M.WATCH, "@introduceDomain|i|", "OK|"),
        ("dom0", M.WATCH, "@releaseDomain|r|1|", "OK|"),
        ("dom4", M.WATCH, "@introduceDomain|i|", "OK|"),
        ("dom4", M.WATCH, "@releaseDomain|r|", "OK|"),
    ])  # fmt: skip
    assert store.events("dom0") == ["@introduceDomain|i", "@releaseDomain|r"]
    store.events("dom4")
    store.home(3)
    store.say("dom0", M.INTRODUCE, "3|1|2|")  # again: no event
    assert store.events("dom0") == ["@introduceDomain|i"]
    for _ in range(2):
        store.server.domain_shut_down(DomId(3))
    assert store.events("dom0") == ["@releaseDomain/3|r"]
    store.say("dom0", M.RESUME, "3|")
    store.server.domain_shut_down(DomId(3))
    store.say("dom0", M.RELEASE, "3|")
    assert store.events("dom0") == ["@releaseDomain/3|r"] * 2  # special events are not merged
    assert store.events("dom4") == ["@releaseDomain|r"] * 3  # may not read @introduceDomain


def test_events_of_changes() -> None:
    store = Store()
    play(store, [
        ("dom0", M.WRITE, "/a/b/c|1", "OK|"),
        ("dom0.2", M.WATCH, "/a|all|", "OK|"),
        ("dom0.2", M.WATCH, "/a/b|b|0|", "OK|"),
        ("dom0.2", M.WATCH, "/a/b/c|c|", "OK|"),
    ])  # fmt: skip
    assert store.events("dom0.2") == ["/a|all", "/a/b|b", "/a/b/c|c"]
    for kind, request, expected in [
        (M.WRITE, "/a/b/c|2", ["/a/b/c|all", "/a/b/c|c"]),
        (M.MKDIR, "/a/b|", []),
        (M.MKDIR, "/a/d|", ["/a/d|all"]),
        (M.SET_PERMS, "/a/b|n0|r1|", ["/a/b|all", "/a/b|b"]),
        (M.RM, "/a/none|", []),
        (M.RM, "/a|", ["/a|all", "/a/b|b", "/a/b/c|c"]),
    ]:
        assert store.say("dom0", kind, request) == "OK|"
        assert sorted(store.events("dom0.2")) == sorted(expected), (kind, request)


def test_equal_events_wait_once() -> None:
    store = Store()
    store.say("dom0.2", M.WATCH, "/a|t|")
    for value in "123":
        store.say("dom0", M.WRITE, f"/a|{value}")
    assert store.events("dom0.2") == ["/a|t"]
    store.say("dom0", M.WRITE, "/a|4")
    assert store.events("dom0.2") == ["/a|t"]


def test_events_only_for_those_who_may_read() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    store.say("dom4", M.WATCH, "/local/domain/3|t|")
    store.say("dom4", M.WATCH, "/local/domain/4|own|")
    assert store.events("dom4") == ["/local/domain/3|t", "/local/domain/4|own"]
    store.say("dom3", M.WRITE, "x|1")
    assert store.events("dom4") == []
    store.say("dom3", M.SET_PERMS, "x|n3|r4|")
    store.say("dom3", M.WRITE, "x|2")
    assert store.events("dom4") == ["/local/domain/3/x|t"]
    store.say("dom3", M.SET_PERMS, "x|n3|")  # the former list counts once more
    assert store.events("dom4") == ["/local/domain/3/x|t"]
    store.say("dom0", M.WRITE, "/local/domain/4/y|2")
    assert store.events("dom4") == ["/local/domain/4/y|own"]


def test_a_relative_watch_gets_relative_events() -> None:
    store = Store()
    store.home(3)
    play(store, [("dom3", M.WATCH, "dev|t|", "OK|"), ("dom3", M.WATCH, "/local/domain/3/dev|a|", "OK|")])
    store.events("dom3")
    store.say("dom0", M.WRITE, "/local/domain/3/dev/0|1")
    assert store.events("dom3") == ["dev/0|t", "/local/domain/3/dev/0|a"]


def test_the_reply_comes_before_the_events_it_causes() -> None:
    store = Store()
    store.server.receive(store.who("dom0"), Message(M.WATCH, 1, 0, b"/a\0t\0"))
    store.server.receive(store.who("dom0"), Message(M.WRITE, 2, 0, b"/a\0v"))
    types = [m.type for m in iter(store.who("dom0").outgoing.pop, None)]
    assert types == [M.WATCH, M.WATCH_EVENT, M.WRITE]  # the second event equals the one that waits


def test_an_event_too_long_for_a_message_is_dropped() -> None:
    store = Store()
    assert store.say("dom0", M.WATCH, f"/a|{'t' * 4090}|") == "OK|"
    assert store.events("dom0") == ["/a|" + "t" * 4090]
    store.say("dom0", M.WRITE, "/a/bcdef|1")
    assert store.events("dom0") == []


def test_a_transaction_over_the_wire() -> None:
    store = Store()
    store.say("dom0.2", M.WATCH, "/t|w|")
    store.events("dom0.2")
    assert store.say("dom0", M.TRANSACTION_START, "|") == "1|"
    assert store.say("dom0", M.TRANSACTION_START, "|", 1) == "!EBUSY"
    assert store.say("dom0", M.WRITE, "/t|1", 1) == "OK|"
    assert store.say("dom0", M.READ, "/t|", 1) == "1"
    assert store.say("dom0.2", M.READ, "/t|") == "!ENOENT"
    assert store.say("dom0.2", M.READ, "/t|", 1) == "!ENOENT"  # somebody else's number
    assert store.events("dom0.2") == []
    assert store.say("dom0", M.TRANSACTION_END, "T|", 1) == "OK|"
    assert store.events("dom0.2") == ["/t|w"]
    assert store.say("dom0", M.TRANSACTION_END, "T|", 1) == "!ENOENT"
    assert store.say("dom0", M.READ, "/t|", 1) == "!ENOENT"
    assert store.say("dom0", M.WATCH, "/t|x|", 99) == "OK|"  # its transaction id is ignored
    assert store.server.open_transactions == 0


def test_a_conflict_frees_the_number() -> None:
    store = Store()
    store.say("dom0", M.TRANSACTION_START, "|")
    store.say("dom0", M.READ, "/x|", 1)
    store.say("dom0.2", M.WRITE, "/x|1")
    assert store.say("dom0", M.TRANSACTION_END, "T|", 1) == "!EAGAIN"
    assert store.say("dom0", M.TRANSACTION_END, "F|", 1) == "!ENOENT"


def test_large_directories_come_in_parts() -> None:
    store = Store()
    names = [f"node-{number:04}" for number in range(900)]
    for name in names:
        store.say("dom0", M.MKDIR, f"/big/{name}|")
    assert store.say("dom0", M.DIRECTORY, "/big|") == "!E2BIG"
    collected, generations = b"", set()
    while not collected.endswith(b"\0\0"):
        part = store.ask("dom0", M.DIRECTORY_PART, f"/big|{len(collected)}|")
        assert len(part) <= 4096
        generation, _, rest = part.partition(b"\0")
        generations.add(generation)
        assert rest.endswith(b"\0")
        collected += rest
    assert collected.decode().rstrip("\0").split("\0") == names
    assert len(generations) == 1


def test_directory_part_at_the_ends() -> None:
    store = Store()
    generation = store.say("dom0", M.DIRECTORY_PART, "/|0|").partition("|")[0]
    play(store, [
        ("dom0", M.DIRECTORY_PART, "/|0|", f"{generation}|tool||"),
        ("dom0", M.DIRECTORY_PART, "/|5|", f"{generation}||"),
        ("dom0", M.DIRECTORY_PART, "/|500|", f"{generation}||"),
        ("dom0", M.DIRECTORY_PART, "/|x|", "!EINVAL"),
        ("dom0", M.DIRECTORY_PART, "/|", "!EINVAL"),
        ("dom0", M.DIRECTORY_PART, "/none|0|", "!ENOENT"),
    ])  # fmt: skip


def test_quotas_bound_guests_and_not_the_privileged() -> None:
    store = Store()
    store.home(3)
    for name, value in [("nodes", 4), ("watches", 2), ("transactions", 1), ("node-size", 100), ("path-max", 20)]:
        store.say("dom0", M.SET_QUOTA, f"3|{name}|{value}|")
    play(store, [
        ("dom3", M.MKDIR, "a|", "OK|"),
        ("dom3", M.MKDIR, "b/c|", "!ENOSPC"),  # the home counts as well
        ("dom3", M.MKDIR, "b|", "OK|"),
        ("dom3", M.MKDIR, "c|", "!ENOSPC"),
        ("dom3", M.WRITE, f"a|{'x' * 100}", "!ENOSPC"),
        ("dom3", M.WRITE, f"a|{'x' * 60}", "OK|"),
        ("dom3", M.SET_PERMS, "a|n3|r1|r1|r1|r1|r1|", "!ENOSPC"),
        ("dom3", M.READ, f"{'p' * 20}|", "!EINVAL"),
        ("dom3", M.WATCH, "a|1|", "OK|"),
        ("dom3", M.WATCH, "a|2|", "OK|"),
        ("dom3", M.WATCH, "a|3|", "!ENOSPC"),
        ("dom3", M.TRANSACTION_START, "|", "1|"),
        ("dom3", M.TRANSACTION_START, "|", "!ENOSPC"),
        *[("dom0", M.MKDIR, f"/free/{number}|", "OK|") for number in range(20)],
    ])  # fmt: skip
    assert store.say("dom3", M.MKDIR, "c|", 1) == "!ENOSPC"
    assert store.say("dom3", M.TRANSACTION_END, "T|", 1) == "!ENOSPC"  # poisoned


def test_999_nodes_are_the_most() -> None:
    store = Store()
    store.home(3)
    replies = [store.say("dom3", M.MKDIR, f"n{number}|") for number in range(1000)]
    assert replies.count("OK|") == 998  # and the home
    assert set(replies[998:]) == {"!ENOSPC"}


def test_a_value_of_2048_bytes_is_too_much_for_a_guest() -> None:
    store = Store()
    store.home(3)
    assert store.say("dom3", M.WRITE, f"v|{'x' * 2048}") == "!ENOSPC"
    assert store.say("dom0", M.WRITE, f"/v|{'x' * 4093}") == "OK|"


def test_memory_is_bounded() -> None:
    store = Store()
    store.home(3)
    store.say("dom0", M.SET_QUOTA, "3|memory|5000|")
    replies = [store.say("dom3", M.WRITE, f"n{number}|{'x' * 1000}") for number in range(10)]
    assert replies[0] == "OK|"
    assert replies[-1] == "!ENOMEM"


def test_unread_replies_stop_the_reading_of_a_guest() -> None:
    store = Store()
    store.home(3)
    guest = store.who("dom3")
    for _ in range(20):
        assert store.server.read_delay_s(guest) == 0.0
        store.server.receive(guest, Message(M.READ, 1, 0, b"x\0"))
    assert store.server.read_delay_s(guest) == math.inf
    guest.outgoing.pop()
    assert store.server.read_delay_s(guest) == 0.0


@pytest.mark.parametrize("request_", [(M.WRITE, "x|1"), (M.WRITE, "new|1"), (M.SET_PERMS, "x|n3|"), (M.RM, "x|")])
def test_a_guest_that_makes_transactions_of_others_fail_is_slowed_down(request_: tuple[MessageType, str]) -> None:
    store = Store()
    store.home(3)
    guest = store.who("dom3")
    for number in range(1, 1101):
        store.say("dom3", M.WRITE, "x|0")
        store.say("dom3", M.RM, "new|")
        store.say("dom0", M.TRANSACTION_START, "|")
        store.say("dom0", M.READ, "/local/domain/3/new|", number)  # its directory is read as well
        store.say("dom0", M.READ, "/local/domain/3/x|", number)
        assert store.say("dom3", *request_) == "OK|"
        assert store.say("dom0", M.TRANSACTION_END, "T|", number) == "!EAGAIN"
    assert 0 < store.server.read_delay_s(guest) < 1
    store.now_s += 1.0
    assert store.server.read_delay_s(guest) == 0.0


def test_commits_that_make_others_fail_are_paid_for_too() -> None:
    store = Store()
    store.home(3)
    store.say("dom3", M.WRITE, "x|0")
    for number in range(1, 1101):
        store.say("dom0", M.TRANSACTION_START, "|")
        store.say("dom0", M.READ, "/local/domain/3/x|", number)
        store.say("dom3", M.TRANSACTION_START, "|")
        store.say("dom3", M.WRITE, "x|1", number)
        assert store.say("dom3", M.TRANSACTION_END, "T|", number) == "OK|"
        assert store.say("dom0", M.TRANSACTION_END, "T|", number) == "!EAGAIN"
    assert store.server.read_delay_s(store.who("dom3")) > 0


def test_a_transaction_left_open_costs_others_nothing_but_the_conflicts_with_it() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    store.say("dom3", M.WRITE, "x|1")
    store.say("dom3", M.SET_PERMS, "x|n3|r4|")
    store.say("dom4", M.TRANSACTION_START, "|")
    store.say("dom4", M.READ, "/local/domain/3/x|", 1)
    for _ in range(1100):
        store.say("dom3", M.WRITE, "x|1")
        store.say("dom3", M.WRITE, "y|1")
    assert store.server.read_delay_s(store.who("dom3")) == 0.0
    assert store.say("dom4", M.TRANSACTION_END, "T|", 1) == "!EAGAIN"


def test_a_domain_does_not_pay_for_what_another_did() -> None:
    store = Store()
    store.home(3)
    store.say("dom3", M.WRITE, "x|0")
    for number in range(1, 1101):
        store.say("dom0", M.TRANSACTION_START, "|")
        store.say("dom0", M.READ, "/local/domain/3/x|", number)
        store.say("dom0", M.WRITE, "/local/domain/3/x|1")
        store.say("dom3", M.READ, "x|")
        store.say("dom0", M.TRANSACTION_END, "F|", number)
    assert store.server.read_delay_s(store.who("dom3")) == 0.0


def test_events_left_unread_are_dropped_in_the_end() -> None:
    store = Store()
    store.home(3)
    store.say("dom3", M.WATCH, "x|t|")
    store.now_s += EVENT_LIFETIME_S / 2
    store.say("dom3", M.WATCH, "y|t|")
    store.now_s += EVENT_LIFETIME_S / 2 + 1
    assert store.server.expire_events(store.who("dom3")) == 1
    assert store.events("dom3") == ["y|t"]


def test_the_log_shows_what_was_asked() -> None:
    store = Store()
    play(store, [("dom0", M.CONTROL, "log|on|", "OK|"), ("dom0", M.CONTROL, "print|hello|", "OK|")])
    store.server.receive(store.who("dom0"), Message(M.READ, 1, 0, b"/x\0"))
    assert store.lines[0] == "hello"
    assert "ENOENT" in store.lines[1]


def test_disconnecting_drops_watches_and_transactions_but_no_nodes() -> None:
    store = Store()
    play(store, [
        ("dom0.2", M.WRITE, "/kept|1", "OK|"),
        ("dom0.2", M.WATCH, "/|t|", "OK|"),
        ("dom0.2", M.TRANSACTION_START, "|", "1|"),
    ])  # fmt: skip
    store.server.disconnect(store.who("dom0.2"))
    store.server.disconnect(store.who("dom0.2"))
    assert store.say("dom0", M.READ, "/kept|") == "1"
    assert store.server.open_transactions == 0
    assert store.events("dom0.2") == ["/|t"]  # queued before


def test_a_reduced_server_answers_unknown_operations_without_an_id() -> None:
    store = Store(ZEPHYR_DOM0)
    connection = store.who("dom0")
    reply = store.server.handle(connection, Message(M.DIRECTORY_PART, 9, 0, b"/\x000\0"))
    assert (reply.type, reply.request_id, reply.payload) == (M.ERROR, 0, b"ENOSYS\0")
    assert store.say("dom0", M.WRITE, "/a|1") == "OK|"


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
operations = st.tuples(
    st.sampled_from([M.WRITE, M.READ, M.RM, M.DIRECTORY, M.MKDIR]), paths, st.text("xyz", max_size=3)
)


@settings(max_examples=60)
@given(st.lists(operations, max_size=40))
def test_random_operations_agree_with_a_dictionary(script: list[tuple[MessageType, str, str]]) -> None:
    store, model = Store(), {"/": "", "/tool": "", "/tool/xenstored": ""}
    for kind, path, value in script:
        reply = store.say("dom0", kind, f"{path}|{value}" if kind == M.WRITE else f"{path}|")
        assert reply == model_reply(model, kind, path, value)


def model_reply(model: dict[str, str], kind: MessageType, path: str, value: str) -> str:
    above = path[: path.rindex("/")] or "/"
    if kind in (M.WRITE, M.MKDIR):
        for end in [index for index, letter in enumerate(path) if letter == "/" and index] + [len(path)]:
            model.setdefault(path[:end], "")
        if kind == M.WRITE:
            model[path] = value
        return "OK|"
    if kind == M.RM:
        if path not in model and above not in model:
            return "!ENOENT"
        for other in [other for other in model if other == path or other.startswith(path + "/")]:
            del model[other]
        return "OK|"
    if path not in model:
        return "!ENOENT"
    if kind == M.READ:
        return model[path]
    return "".join(f"{other[len(path) + 1 :]}|" for other in model if other.rpartition("/")[0] == path)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["dom0", "dom3"]), st.integers(0, 30), st.binary(max_size=40),
                          st.integers(0, 3)), max_size=20))  # fmt: skip
def test_every_message_has_a_reply_with_a_known_error(rows: list[tuple[str, int, bytes, int]]) -> None:
    store = Store()
    store.home(3)
    for who, kind, payload, transaction in rows:
        reply = store.ask(who, kind, payload, transaction)
        assert not reply.startswith(b"!E") or reply[1:].decode() in ERROR_NAMES
