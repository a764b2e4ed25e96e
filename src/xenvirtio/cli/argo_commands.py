"""What `xenvirtio argo ping`, `send`, `listen` and `release` do."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from xenvirtio.channels.argo import RING_BYTES, ArgoChannel
from xenvirtio.channels.argo_ring import ArgoMessage
from xenvirtio.cli.store_client import escape
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.capabilities import ArgoAddress, Hypervisor

OWN_PORTS = 0x58560000
"""Where `ping` and `send` receive, the low bits being those of the process id: several may run at once."""


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `with`, so that rings are unregistered
    return _ACTIONS[options.action](open_hypervisor(options.emulated, options.domid), options)


def open_hypervisor(emulated: Path | None, domid: int) -> Hypervisor:
    """Open this machine's Xen, or an emulated host as a program of domain `domid`."""
    if emulated is not None:
        from xenvirtio.xen.emulated import connect_emulated

        return connect_emulated(emulated / "hypervisor", DomId(domid))
    from xenvirtio.xen.linux.host import LinuxHypervisor

    return LinuxHypervisor()


def own_port() -> ArgoPort:
    return ArgoPort(OWN_PORTS | os.getpid() & 0xFFFF)


# -- ping


def _ping(hypervisor: Hypervisor, options: argparse.Namespace) -> int:
    to = ArgoAddress(DomId(options.to[0]), ArgoPort(options.to[1]))
    ring_bytes = max(RING_BYTES, -(-(2 * options.size + 64) // 16) * 16)
    times_s: list[float] = []
    with ArgoChannel.open(hypervisor, own_port(), [to.domid], ring_bytes=ring_bytes) as channel:
        for number in range(options.count):
            if number:
                time.sleep(options.interval)
            message = number.to_bytes(8, "little") + os.urandom(options.size - 8)
            started_s = time.perf_counter()
            channel.send_wait(message, to, timeout_s=options.timeout)
            answer = _answer(channel, message[:8], options.timeout)
            taken_s = time.perf_counter() - started_s
            if answer is not None and answer.data == message:
                times_s.append(taken_s)
            if not options.quiet and options.format == "text":
                print(_line(number, answer, message, taken_s), flush=True)
    print(_summary(options, times_s))
    return 0 if len(times_s) == options.count else 1


def _answer(channel: ArgoChannel, begins: bytes, timeout_s: float) -> ArgoMessage | None:
    """Wait for the answer that begins so; older ones, that came too late, are dropped."""
    deadline_s = time.monotonic() + timeout_s
    while (remaining_s := deadline_s - time.monotonic()) > 0:
        message = channel.receive()
        if message is not None and message.data.startswith(begins):
            return message
        if message is None:
            channel.wait_readable(remaining_s)
    return None


def _line(number: int, answer: ArgoMessage | None, message: bytes, taken_s: float) -> str:
    if answer is None:
        return f"seq={number} no answer"
    what = "" if answer.data == message else " DIFFERENT"
    where = f"{answer.sender.domid}:{answer.sender.port:#x}"
    return f"{len(answer.data)} bytes from {where}: seq={number} time={taken_s * 1000:.3f} ms{what}"


def _summary(options: argparse.Namespace, times_s: list[float]) -> str:
    times_ms = sorted(one * 1000 for one in times_s)
    facts: dict[str, float] = {"sent": options.count, "received": len(times_ms), "size_bytes": options.size}
    if times_ms:
        facts |= {f"{name}_ms": round(percentile(times_ms, share), 3) for name, share in _SHARES.items()}
    if options.format == "json":
        return json.dumps(facts)
    text = f"{facts['sent']} sent, {facts['received']} answered"
    shown = ", ".join(f"{name} {facts[f'{name}_ms']:.3f}" for name in _SHARES) if times_ms else ""
    return f"{text}; {options.size} bytes, round trip in ms: {shown}" if shown else text


_SHARES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def percentile(ordered: list[float], share: float) -> float:
    """Return the smallest value that at least this share of an ordered list does not exceed."""
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


# -- send, listen, release


def _send(hypervisor: Hypervisor, options: argparse.Namespace) -> int:
    to = ArgoAddress(DomId(options.to[0]), ArgoPort(options.to[1]))
    messages = [sys.stdin.buffer.read() if text == "-" else os.fsencode(text) for text in options.messages]
    with ArgoChannel.open(hypervisor, own_port()) as channel:
        for _ in range(options.count):
            for message in messages:
                channel.send_wait(message, to, options.type, timeout_s=options.timeout)
    return 0


def _listen(hypervisor: Hypervisor, options: argparse.Namespace) -> int:
    partners = [DomId(partner) for partner in options.partners]
    deadline_s = None if options.timeout is None else time.monotonic() + options.timeout
    left = options.count
    ring_bytes = options.ring_size or RING_BYTES
    with ArgoChannel.open(hypervisor, ArgoPort(options.port), partners, ring_bytes=ring_bytes) as channel:
        print(f"listening on port {options.port:#x}", file=sys.stderr, flush=True)
        while left is None or left > 0:
            message = channel.receive()
            if message is not None:
                left = None if left is None else left - 1
                _take(channel, message, options)
                continue
            remaining_s = 3600.0 if deadline_s is None else deadline_s - time.monotonic()
            if remaining_s <= 0:
                break
            channel.wait_readable(remaining_s)
    if left:
        print(
            f"xenvirtio: {options.count - left} of {options.count} messages in {options.timeout:g} s", file=sys.stderr
        )
    return 1 if left else 0


def _take(channel: ArgoChannel, message: ArgoMessage, options: argparse.Namespace) -> None:
    if options.echo:
        channel.send_wait(message.data, message.sender, message.kind, timeout_s=5)
    elif options.format == "json":
        text = {"text": escape(message.data), "hex": message.data.hex()}
        print(json.dumps({"domid": message.sender.domid, "port": message.sender.port, "type": message.kind, **text}))
        sys.stdout.flush()
    else:
        print(f"{message.sender.domid}:{message.sender.port:#x} type {message.kind} {escape(message.data)}", flush=True)


def _release(hypervisor: Hypervisor, options: argparse.Namespace) -> int:
    argo = hypervisor.open_argo()
    try:
        for partner in options.partners:
            argo.unregister_ring(ArgoPort(options.port), DomId(partner))
    finally:
        argo.close()
    return 0


_ACTIONS = {"ping": _ping, "send": _send, "listen": _listen, "release": _release}
