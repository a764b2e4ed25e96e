"""QEMU's machine protocol: one command per connection, which is all the lab needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from xenvirtio.errors import ResourceError

TIMEOUT_S = 20.0


def execute(path: Path, command: str, **arguments: Any) -> object:
    """Run a QMP command and give its return value.

    Raises:
        ResourceError: QEMU does not answer, or refuses the command.
    """

    async def conversation() -> object:
        client = QMPClient("xenvirtio-lab")
        await client.connect(str(path))
        try:
            return await client.execute(command, arguments or None)
        finally:
            await client.disconnect()

    try:
        return asyncio.run(asyncio.wait_for(conversation(), TIMEOUT_S))
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        raise ResourceError(f"QEMU monitor: {command}: {error or type(error).__name__}") from error
