"""What `xenvirtio metadata register`, `withdraw`, `find` and `serve` do."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing

from xenvirtio.cli.argo_commands import open_hypervisor
from xenvirtio.daemon.logs import set_up_logging
from xenvirtio.errors import ConfigurationError, ResourceError, XenStoreError
from xenvirtio.ids import DomId
from xenvirtio.metadata.argo_registry import ArgoRegistry
from xenvirtio.metadata.directory import DeviceRecord, Directory
from xenvirtio.metadata.open import Via, Ways, open_directory
from xenvirtio.static.plan import DEFAULT_PLAN
from xenvirtio.xen.capabilities import Hypervisor

log = logging.getLogger("xenvirtio.metadata")

HOUR_S = 3600.0


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `with`, so that Argo's rings are unregistered
    set_up_logging("text", "warning")
    if options.action == "serve":
        return _serve(options)
    fields = _fields(options.fields) if options.action == "register" else {}
    with closing(_open(options)) as directory:
        match options.action:
            case "register":
                return _register(directory, options, fields)
            case "withdraw":
                directory.withdraw(options.name)
                return 0
            case _:
                return _find(directory, options)


def _open(options: argparse.Namespace) -> Directory:
    def hypervisor() -> Hypervisor:
        return open_hypervisor(options.emulated, options.domid)

    socket = options.socket
    if socket is None and options.emulated is not None:
        socket = options.emulated / "xenstore"
    plan = options.plan or DEFAULT_PLAN
    ways = Ways(socket, plan, _domids(options.peers), DomId(options.registry), hypervisor, options.timeout)
    if options.via == "auto":
        return open_directory(ways, Via.PLAN if options.plan is not None else None)
    return open_directory(ways, Via(options.via))


def _domids(numbers: list[int]) -> tuple[DomId, ...]:
    return tuple(DomId(number) for number in numbers)


def _fields(words: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in fields:
            problem = "is given twice" if equals else "is no KEY=VALUE"
            raise ConfigurationError(word, problem, "give each field once, such as base=0x2000000")
        fields[key] = value
    return fields


def _register(directory: Directory, options: argparse.Namespace, fields: dict[str, str]) -> int:
    directory.register(options.name, options.type, fields)
    while options.keep:  # until SIGTERM
        directory.wait_changed(HOUR_S)
        try:
            directory.find()  # registers again what a restarted server has forgotten
        except (ResourceError, XenStoreError) as error:
            log.warning("%s", error)
            time.sleep(1)
    return 0


def _find(directory: Directory, options: argparse.Namespace) -> int:
    deadline_s = time.monotonic() + options.timeout
    while True:
        found = [record for record in directory.find(type=options.type) if options.name in (None, record.name)]
        remaining_s = deadline_s - time.monotonic()
        if found or not options.wait or remaining_s <= 0:
            break
        directory.wait_changed(remaining_s)
    _PRINTERS[options.format](found)
    return 0 if found else 1


def _print_text(records: list[DeviceRecord]) -> None:
    for record in records:
        fields = " ".join(f"{key}={value}" for key, value in record.fields.items())
        print(f"{record.domid} {record.name} {record.type} {fields}".rstrip())


def _print_json(records: list[DeviceRecord]) -> None:
    rows = [{"domid": r.domid, "name": r.name, "type": r.type, "fields": dict(r.fields)} for r in records]
    print(json.dumps(rows, indent=2))


_PRINTERS: dict[str, Callable[[list[DeviceRecord]], None]] = {"text": _print_text, "json": _print_json}


def _serve(options: argparse.Namespace) -> int:
    set_up_logging("text", "info")
    hypervisor = open_hypervisor(options.emulated, options.domid)
    with ArgoRegistry(hypervisor, DomId(options.domid), _domids(options.partners)) as registry:
        print(f"registry of domain {options.domid}", file=sys.stderr, flush=True)
        while True:
            registry.wait_changed(HOUR_S)
            log.info("%d records", len(registry.find()))
