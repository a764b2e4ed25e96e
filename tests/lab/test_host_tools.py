from __future__ import annotations

import pytest

from xenvirtio.errors import ConfigurationError
from xenvirtio.lab import host_tools
from xenvirtio.lab.host_tools import HostTool, check_host_tools


def test_each_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = (HostTool("sh", "dash", "x"), HostTool("nosuch-a", "pack-a", "why a"), HostTool("nosuch-b", "pack-b", "y"))
    monkeypatch.setattr(host_tools, "HOST_TOOLS", tools)
    with pytest.raises(ConfigurationError) as caught:
        check_host_tools()
    message = str(caught.value)
    assert "\n  nosuch-a: Debian package pack-a (why a)\n  nosuch-b: Debian package pack-b (y)" in message
    assert "apt-get install pack-a pack-b" in message
    assert "dash" not in message
