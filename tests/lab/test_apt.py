from __future__ import annotations

import pytest

from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.lab import apt


def test_a_line_of_print_uris_is_read_with_and_without_a_checksum() -> None:
    with_sum = apt._parse_uri("'http://mirror.invalid/p/a_1%3a2.deb' a_1%3a2_arm64.deb 123 SHA256:00ff")
    assert (with_sum.name, with_sum.checksum) == ("a_1%3a2_arm64.deb", "SHA256:00ff")
    assert apt._parse_uri("'http://mirror.invalid/a.deb' a.deb 123 ").checksum == ""
    with pytest.raises(ResourceError):
        apt._parse_uri("'nonsense")


def test_the_mirror_is_the_hosts_own_and_no_security_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(apt.MIRROR_VARIABLE, raising=False)
    listing = "http://mirror.invalid/debian-security/ bookworm-security\nhttp://mirror.invalid/debian/ bookworm\n"
    monkeypatch.setattr(apt, "output_of", lambda what, command: listing)
    assert apt.host_mirror() == "http://mirror.invalid/debian"
    monkeypatch.setattr(apt, "output_of", lambda what, command: "")
    with pytest.raises(ConfigurationError, match=apt.MIRROR_VARIABLE):
        apt.host_mirror()
