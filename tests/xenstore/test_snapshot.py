from __future__ import annotations

import json

import pytest

from tests.xenstore.helpers import Store
from xenvirtio.errors import ConfigurationError
from xenvirtio.xenstore.snapshot import dump, restore
from xenvirtio.xenstore.wire import MessageType as M


def restarted(store: Store) -> Store:
    new = Store()
    restore(new.server, json.loads(json.dumps(dump(store.server))))
    return new


def test_a_restart_keeps_nodes_domains_and_quotas() -> None:
    store = Store()
    store.home(3)
    store.home(4)
    store.ask("dom3", M.WRITE, b"bin\0\x00\xff")
    store.say("dom0", M.SET_PERMS, "/local/domain/3/bin|n3|b4|r55|")
    store.say("dom0", M.SET_QUOTA, "3|nodes|50|")
    store.say("dom0", M.SET_QUOTA, "watches|5|")
    store.say("dom0", M.SET_TARGET, "4|3|")
    new = restarted(store)
    assert new.ask("dom0", M.READ, "/local/domain/3/bin|") == b"\x00\xff"
    for kind, request, reply in [
        (M.GET_PERMS, "/local/domain/3/bin|", "n3|b4|r55|"),
        (M.IS_DOMAIN_INTRODUCED, "3|", "T|"),
        (M.GET_QUOTA, "3|nodes|", "50|"),
        (M.GET_QUOTA, "watches|", "5|"),
        (M.CONTROL, "check|", "OK|"),
    ]:
        assert new.say("dom0", kind, request) == reply
    assert new.who("dom4").speaks_for == {3, 4}
    assert new.server.tree.generation > store.server.tree.generation


def test_a_domain_finds_its_watches_fired_and_its_transactions_in_conflict() -> None:
    store = Store()
    store.home(3)
    store.say("dom3", M.WATCH, "x|t|2|")
    store.say("dom3", M.TRANSACTION_START, "|")
    store.say("dom3", M.WRITE, "x|1", 1)
    new = restarted(restarted(store))  # also when it did not connect in between
    assert new.events("dom3") == ["x|t"]
    assert new.say("dom3", M.READ, "x|", 1) == "!ENOENT"
    assert new.say("dom3", M.TRANSACTION_END, "T|", 1) == "!EAGAIN"
    assert new.say("dom3", M.TRANSACTION_START, "|") == "2|"
    new.say("dom0", M.WRITE, "/local/domain/3/x/a/b/c|1")
    assert new.events("dom3") == []  # the depth is kept
    new.say("dom0", M.WRITE, "/local/domain/3/x/a/b|1")
    assert new.events("dom3") == ["x/a/b|t"]


@pytest.mark.parametrize("state", [{}, {"format": 99}, {"format": 1}, {"format": 1, "nodes": [["/", 1, []]]}])
def test_a_damaged_state_is_named(state: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="XenStore state"):
        restore(Store().server, state)
