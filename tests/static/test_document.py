"""docs/static.md has every key of the language."""

from __future__ import annotations

import re

import pytest

from tests.static.broken import DOCUMENT, GOOD
from xenvirtio.errors import ConfigurationError
from xenvirtio.static.description_loader import parse_description

HOST = '[host]\nmemory = [{ address = 0x40000000, size = "3GiB" }]\ngic_version = 3\n'
TABLES = {
    "system": "[system]\n",
    "host": "[host]\n",
    "dom0": "[dom0]\n",
    "domain": "[[domain]]\n",
    "region": "[[region]]\n",
    "channel": "[[channel]]\n",
    "device": "[[device]]\n",
    "imagebuilder": "[imagebuilder]\n",
    "yocto": "[yocto]\n",
}


def allowed_keys(table: str) -> list[str]:
    text = GOOD + "[imagebuilder]\n[yocto]\n"
    if table == "host":
        text = text.replace('platform = "qemu-virt-gicv3"\n', "") + HOST
    head = TABLES[table]
    with pytest.raises(ConfigurationError, match="unknown key 'nonsense'") as caught:
        parse_description(text.replace(head, head + "nonsense = 1\n", 1))
    return str(caught.value).partition("; allowed: ")[2].split(", ")


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_documented(table: str) -> None:
    keys = allowed_keys(table)
    assert len(keys) >= 1
    documented = set(re.findall(r"`([a-z0-9_.]+)`", DOCUMENT.read_text()))
    missing = [key for key in keys if not {key, f"{table}.{key}"} & documented]
    assert missing == []
