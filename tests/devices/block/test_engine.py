from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.block.rig import FIRST_REFERENCE, MIB, Rig, header, pattern, ranges
from tests.resources.loop import loop_device
from xenvirtio.devices.block.engine import BlockEngine
from xenvirtio.devices.block.layout import (
    F_CONFIG_WCE,
    F_FLUSH,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from xenvirtio.errors import ConfigurationError, GuestError
from xenvirtio.ids import PAGE_SIZE
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.resources.file import FileResource, open_disk
from xenvirtio.resources.memory import open_memory_disk
from xenvirtio.virtqueue.batch import ChainBatch

BOTH_MEMORIES = pytest.mark.parametrize("granted", [False, True], ids=["regions", "grants"])


def image(folder: Path, size_bytes: int = MIB, *, direct: bool = False) -> FileResource:
    path = folder / "disk.img"
    path.write_bytes(bytes(size_bytes))
    try:
        return open_disk(path, direct=direct)
    except ConfigurationError as problem:
        pytest.skip(str(problem))


# what a request does


@BOTH_MEMORIES
@pytest.mark.parametrize("length", [512, 4096, 4096 * 3 + 512, 300 * 1024])
def test_what_is_written_is_read_back(granted: bool, length: int) -> None:
    rig = Rig(granted=granted)
    data = pattern(length)
    assert rig.driver.write(3, data).status == S_OK
    assert rig.disk()[3 * 512 : 3 * 512 + length] == data
    completion = rig.driver.read(3, length)
    assert (completion.status, completion.data, completion.written) == (S_OK, data, length + 1)


@BOTH_MEMORIES
def test_many_small_segments_and_an_indirect_table(granted: bool) -> None:
    rig = Rig(granted=granted, segment_bytes=512, indirect=True)
    data = pattern(200 * 512)
    rig.driver.write(0, data)
    assert rig.driver.read(0, len(data)).data == data


@BOTH_MEMORIES
def test_get_id_returns_the_serial_padded_with_nuls(granted: bool) -> None:
    completion = Rig(granted=granted, serial="disk-7").driver.get_id()
    assert completion.data == b"disk-7".ljust(20, b"\0")
    assert completion.written == 21


@pytest.mark.parametrize(("room", "expected"), [(5, b"seria"), (64, b"serial-number-of-20-")])
def test_get_id_fills_what_the_driver_offers(room: int, expected: bytes) -> None:
    rig = Rig(serial="serial-number-of-20-")
    request = rig.driver.submit(T_GET_ID, reply_bytes=room)
    assert rig.driver.complete(request).data == expected


@BOTH_MEMORIES
def test_zeroed_and_discarded_ranges(granted: bool) -> None:
    rig = Rig(granted=granted)
    rig.driver.write(0, b"\xaa" * 64 * 1024)
    assert rig.driver.write_zeroes([(1, 3), (100, 1), (7, 0)]).status == S_OK
    assert rig.driver.write_zeroes([(16, 8)], unmap=True).status == S_OK
    assert rig.driver.discard([(32, 8), (48, 8)]).status == S_OK
    disk = rig.disk()
    for first, count in [(1, 3), (100, 1), (16, 8)]:
        assert disk[first * 512 : (first + count) * 512] == bytes(count * 512)
    assert disk[:512] + disk[4 * 512 : 16 * 512] == b"\xaa" * 13 * 512


def test_zeroes_are_written_where_the_host_has_no_other_way() -> None:
    size = 8 * MIB
    rig = Rig(open_memory_disk(size))  # tmpfs does not know ZERO_RANGE
    os.pwrite(rig.resource.fd, b"\xaa" * size, 0)
    assert rig.driver.write_zeroes([(2, 5 * MIB // 512)]).status == S_OK
    assert rig.disk() == b"\xaa" * 1024 + bytes(5 * MIB) + b"\xaa" * (3 * MIB - 1024)


def test_unmapped_zeroes_and_discards_free_the_file(tmp_path: Path) -> None:
    rig = Rig(image(tmp_path))
    rig.driver.write(0, b"\xaa" * MIB)
    rig.driver.flush()
    before = os.fstat(rig.resource.fd).st_blocks
    if not rig.resource.can_discard:
        pytest.skip("this file system cannot punch holes")
    assert rig.driver.write_zeroes([(0, 512)], unmap=True).status == S_OK
    assert rig.driver.discard([(1024, 512)]).status == S_OK
    assert os.fstat(rig.resource.fd).st_blocks <= before - 1024
    assert os.fstat(rig.resource.fd).st_size == MIB


@pytest.mark.parametrize("direct", [False, True])
def test_a_block_device(tmp_path: Path, direct: bool) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with loop_device(path) as name:
        rig = Rig(open_disk(name, direct=direct))
        try:
            assert rig.driver.write(0, b"\xaa" * MIB).status == S_OK
            assert rig.driver.write_zeroes([(1, 3)]).status == S_OK
            assert rig.driver.write_zeroes([(16, 16)], unmap=True).status == S_OK
            if rig.resource.can_discard:
                assert rig.driver.discard([(64, 64)]).status == S_OK
            assert rig.driver.flush().status == S_OK
            disk = rig.driver.read(0, MIB).data
            assert disk[:2048] == b"\xaa" * 512 + bytes(1536)
            assert disk[8192:16384] == bytes(8192)
            assert disk[65536:] == b"\xaa" * (MIB - 65536)
        finally:
            rig.device.close()


# what a request may not do


@pytest.mark.parametrize(
    ("kind", "sector", "length", "status"),
    [
        (T_IN, 2048, 512, S_IOERR),
        (T_IN, 2047, 1024, S_IOERR),
        (T_IN, 2**64 - 1, 512, S_IOERR),
        (T_OUT, 2**55, 512, S_IOERR),
        (T_OUT, 2**64 - 1, 1024, S_IOERR),
        (T_IN, 0, 511, S_IOERR),
        (T_OUT, 0, 513, S_IOERR),
        (T_IN, 2048, 0, S_OK),
        (T_OUT, 0, 0, S_OK),
        (T_IN, 2049, 0, S_IOERR),
        (T_IN, 2047, 512, S_OK),
        (2, 0, 512, S_UNSUPP),
        (14, 0, 0, S_UNSUPP),
        (0xFFFFFFFF, 0, 512, S_UNSUPP),
        (T_OUT | 0x80000000, 0, 512, S_UNSUPP),
    ],
)
def test_status_by_request(kind: int, sector: int, length: int, status: int) -> None:
    rig = Rig()
    before = rig.disk()
    is_out = kind & 0xFFFF == T_OUT
    payload, reply = (b"\xaa" * length, 0) if is_out else (b"", length)
    request = rig.driver.submit(kind, sector, payload=payload, reply_bytes=reply)
    assert rig.driver.complete(request).status == status
    assert rig.disk() == before
    assert rig.engine.errors == (status != S_OK)


@pytest.mark.parametrize(
    ("kind", "payload", "status"),
    [
        (T_DISCARD, ranges((0, 1, 0)), S_OK),
        (T_DISCARD, ranges((0, 1, 1)), S_UNSUPP),
        (T_DISCARD, ranges((0, 1, 0), (1, 1, 2)), S_UNSUPP),
        (T_DISCARD, ranges((2047, 2, 0)), S_IOERR),
        (T_DISCARD, ranges((2**64 - 1, 1, 0)), S_IOERR),
        (T_DISCARD, ranges((0, 0xFFFFFFFF, 0)), S_IOERR),
        (T_DISCARD, ranges((0, 1, 0)) * 65, S_IOERR),
        (T_DISCARD, b"x" * 15, S_IOERR),
        (T_DISCARD, b"", S_IOERR),
        (T_WRITE_ZEROES, ranges((0, 1, 1)), S_OK),
        (T_WRITE_ZEROES, ranges((0, 1, 0)) * 64, S_OK),
        (T_WRITE_ZEROES, ranges((0, 1, 2)), S_UNSUPP),
        (T_WRITE_ZEROES, ranges((0, 1, 0), (2048, 1, 0)), S_IOERR),
    ],
)
def test_status_by_range(kind: int, payload: bytes, status: int) -> None:
    rig = Rig()
    rig.driver.write(0, b"\xaa" * MIB)
    before = rig.disk()
    assert rig.driver.complete(rig.driver.submit(kind, payload=payload)).status == status
    if status != S_OK:
        assert rig.disk() == before, "ranges are checked before the first is touched"


def test_zero_and_discard_need_their_features() -> None:
    rig = Rig(features=F_FLUSH)
    assert rig.driver.write_zeroes([(0, 1)]).status == S_UNSUPP
    assert rig.driver.discard([(0, 1)]).status == S_UNSUPP


@pytest.mark.parametrize("kind", [T_OUT, T_DISCARD, T_WRITE_ZEROES])
def test_a_read_only_disk_refuses_every_change(kind: int) -> None:
    rig = Rig(open_memory_disk(MIB, read_only=True))
    request = rig.driver.submit(kind, payload=ranges((0, 1, 0)) * 32)
    assert rig.driver.complete(request).status == S_IOERR
    assert rig.disk() == bytes(MIB)


@BOTH_MEMORIES
def test_a_file_that_has_shrunk_is_an_io_error(granted: bool) -> None:
    rig = Rig(granted=granted)
    os.ftruncate(rig.resource.fd, 4096)
    assert rig.driver.read(0, 8192).status == S_IOERR
    assert rig.driver.read(0, 4096).status == S_OK


def test_requests_beyond_32_bits_of_used_length_are_refused() -> None:
    rig = Rig(open_memory_disk(8 << 30))
    status = rig.guest.put(b"\xff")
    buffers = [(rig.guest.base, 1 << 31), (rig.guest.base, 1 << 31), (status, 1)]
    assert rig.request([(rig.guest.put(header(T_IN)), 16)], buffers) == 1
    assert rig.guest.get(status, 1) == bytes([S_IOERR])


# framing


def cut(start: int, length: int, sizes: list[int]) -> list[tuple[int, int]]:
    """Cut [start, start + length) into buffers of the given sizes, the rest in one."""
    buffers = []
    for size in sizes:
        taken = min(size, length)
        if taken:
            buffers.append((start, taken))
            start, length = start + taken, length - taken
    return [*buffers, (start, length)] if length else buffers


@BOTH_MEMORIES
@pytest.mark.parametrize("sizes", [[], [16], [1, 2, 3, 4, 5], [15], [17], [16, 511], [1] * 40, [528]])
def test_any_framing_of_a_write(granted: bool, sizes: list[int]) -> None:
    rig = Rig(granted=granted)
    data = pattern(1024)
    start = rig.guest.put(header(T_OUT, 5) + data, shift=PAGE_SIZE - 100)
    status = rig.guest.put(b"\xff")
    assert rig.request(cut(start, 16 + len(data), sizes), [(status, 1)]) == 1
    assert rig.guest.get(status, 1) == b"\0"
    assert rig.disk()[5 * 512 : 5 * 512 + 1024] == data


@BOTH_MEMORIES
@pytest.mark.parametrize("sizes", [[], [1024], [1], [1, 2, 3], [511, 512], [1023, 2], [1] * 40])
def test_any_framing_of_a_read(granted: bool, sizes: list[int]) -> None:
    rig = Rig(granted=granted)
    data = pattern(1024)
    rig.driver.write(9, data)
    start = rig.guest.put(b"\xee" * 1030, shift=PAGE_SIZE - 100)
    assert rig.request([(rig.guest.put(header(T_IN, 9)), 16)], cut(start, 1025, sizes)) == 1025
    assert rig.guest.get(start, 1030) == data + b"\0" + b"\xee" * 5


def test_the_status_is_the_last_byte_wherever_it_is() -> None:
    rig = Rig()
    room = rig.guest.put(b"\xff" * 100)
    written = rig.request([(rig.guest.put(header(T_FLUSH)), 16)], [(room, 60), (room + 60, 40)])
    assert rig.guest.get(room, 100) == b"\xff" * 99 + b"\0"
    assert written == 1


@pytest.mark.parametrize("readable", [0, 15])
def test_a_header_cut_short_is_a_guest_error(readable: int) -> None:
    rig = Rig()
    start = rig.guest.put(header(T_IN))
    with pytest.raises(GuestError, match="header"):
        rig.request([(start, readable)] if readable else [], [(rig.guest.put(b"\xff"), 1)])


def test_no_room_for_a_status_is_a_guest_error() -> None:
    rig = Rig()
    with pytest.raises(GuestError, match="status"):
        rig.request([(rig.guest.put(header(T_FLUSH)), 16)], [])


# batches


@BOTH_MEMORIES
def test_requests_of_a_batch_act_in_order(granted: bool) -> None:
    rig = Rig(granted=granted)
    first, second = pattern(4096, 1), pattern(4096, 2)
    for request in (first, None, second, None):
        if request is None:
            rig.driver.submit_read(8, 4096)
        else:
            rig.driver.submit_write(8, request)
    rig.driver.submit_write_zeroes([(8, 1)])
    rig.driver.submit_read(8, 4096)
    rig.driver.kick()
    completions = rig.driver.collect()
    assert rig.batches == 1
    assert [c.request for c in completions] == list(range(6))
    assert [completions[n].data for n in (1, 3, 5)] == [first, second, bytes(512) + second[512:]]


@pytest.mark.parametrize(("kind", "calls"), [("read", 2), ("write", 3), ("mixed", 3), ("flush", 2)])
def test_a_batch_costs_a_fixed_number_of_grant_copies(kind: str, calls: int) -> None:
    rig = Rig(granted=True)
    for n in range(16):
        if kind == "flush":
            rig.driver.submit_flush()
        elif kind == "read" or (kind == "mixed" and n % 2):
            rig.driver.submit_read(8 * n, 4096)
        else:
            rig.driver.submit_write(8 * n, pattern(4096, n))
    rig.driver.kick()
    assert all(c.status == S_OK for c in rig.driver.collect())
    assert rig.guest.granted is not None
    assert rig.batches == 1
    assert rig.guest.granted.calls == calls


PLACES = [(0, 30 * 1024), (7, 512), (50, 70 * 1024)]


@BOTH_MEMORIES
@pytest.mark.parametrize("arena_bytes", [4096, 8192, 64 * 1024])
def test_a_batch_larger_than_the_arena_goes_in_rounds(granted: bool, arena_bytes: int) -> None:
    rig = Rig(granted=granted, arena_bytes=arena_bytes)
    model = bytearray(rig.disk())
    for sector, length in [(0, 512), (3, 20 * 1024), (60, 4096), (5, 8192), (100, 40 * 1024 + 512)]:
        data = pattern(length, sector)
        rig.driver.submit_write(sector, data)
        model[sector * 512 : sector * 512 + length] = data
        rig.driver.submit_write_zeroes([(sector, 1)])
        model[sector * 512 : sector * 512 + 512] = bytes(512)
    rig.driver.submit_flush()
    reads = {rig.driver.submit_read(sector, length): (sector, length) for sector, length in PLACES}
    rig.driver.kick()
    done = {c.request: c for c in rig.driver.collect()}
    assert rig.batches == 1
    assert all(c.status == S_OK for c in done.values())
    assert rig.disk() == bytes(model)
    for request, (sector, length) in reads.items():
        assert done[request].data == model[sector * 512 : sector * 512 + length]


def test_more_buffers_than_one_round_has_iovecs_for() -> None:
    rig = Rig(open_memory_disk(2 * MIB), segment_bytes=16, indirect=True)
    rig.batch = ChainBatch(segment_capacity=16384)
    expected = b""
    for sectors in (31, 31, 31, 31, 4, 1, 31, 31, 31, 31, 31):  # 32 buffers a sector: a round ends even, then uneven
        data = pattern(sectors * 512, sectors)
        rig.driver.submit_write(len(expected) // 512, data)
        expected += data
    rig.driver.kick()
    assert all(c.status == S_OK for c in rig.driver.collect())
    assert rig.batches == 1
    assert rig.disk()[: len(expected)] == expected


def test_a_batch_may_be_of_any_length() -> None:
    rig = Rig(segment_bytes=512)
    rig.batch = ChainBatch(chain_capacity=200)
    for n in range(80):
        rig.driver.submit_write(n, pattern(512, n))
    rig.driver.kick()
    assert rig.batches == 1
    assert rig.disk()[: 80 * 512] == b"".join(pattern(512, n) for n in range(80))


def test_the_counters() -> None:
    rig = Rig()
    rig.driver.write(0, bytes(1024))
    rig.driver.read(0, 512)
    rig.driver.read(9999, 512)
    rig.driver.flush()
    engine = rig.engine
    assert (engine.requests, engine.errors, engine.bytes_read, engine.bytes_written) == (4, 1, 512, 1024)
    assert engine.syncs == 1


# memory that fails


def test_a_bad_grant_fails_its_request_only() -> None:
    rig = Rig(granted=True, segment_bytes=4096)
    rig.driver.write(0, pattern(64 * 512))
    driver = rig.driver
    good = driver.submit_read(0, 4096)
    buffer = rig.guest.put(b"")
    rig.guest.allocate(PAGE_SIZE)
    bad_reference = (buffer - rig.guest.base) // PAGE_SIZE + FIRST_REFERENCE
    rig.guest.grants.revoked.add(bad_reference)
    statuses = [rig.guest.put(b"\xff") for _ in range(2)]
    rig.queue.offer([(rig.guest.put(header(T_IN, 0)), 16)], [(buffer, 512), (statuses[0], 1)], "bad read")
    rig.queue.offer([(rig.guest.put(header(T_OUT, 0)), 16), (buffer, 512)], [(statuses[1], 1)], "bad write")
    also_good = driver.submit_write(200, pattern(512))
    before = rig.disk()
    rig.serve()
    assert [rig.guest.get(status, 1)[0] for status in statuses] == [S_IOERR, S_IOERR]
    used = dict(rig.queue.collect())
    assert (used["bad read"], used["bad write"]) == (1, 1)
    assert sorted(written for token, written in used.items() if not isinstance(token, str)) == [1, 4097]
    assert rig.disk() == before[: 200 * 512] + pattern(512) + before[201 * 512 :]
    assert (good, also_good) == (1, 2)
    assert rig.engine.errors == 2


def test_a_header_out_of_reach_is_an_io_error() -> None:
    rig = Rig(granted=True)
    rig.guest.grants.revoked.add(FIRST_REFERENCE)
    start = rig.guest.put(header(T_IN))
    status = rig.guest.put(b"\xff")
    assert rig.request([(start, 16)], [(status, 1)]) == 1
    assert rig.guest.get(status, 1) == bytes([S_IOERR])


@BOTH_MEMORIES
def test_a_status_out_of_reach_is_a_guest_error(granted: bool) -> None:
    rig = Rig(granted=granted)
    start = rig.guest.put(header(T_FLUSH))
    with pytest.raises(GuestError, match="status"):
        rig.request([(start, 16)], [(rig.guest.base + 64 * MIB, 1)])


def test_a_read_only_grant_cannot_be_read_into() -> None:
    rig = Rig(granted=True)
    start = rig.guest.put(header(T_IN))
    buffer = rig.guest.put(b"\xee" * 512)
    status = rig.guest.put(b"\xff")
    rig.guest.grants.read_only.add((buffer - rig.guest.base) // PAGE_SIZE + FIRST_REFERENCE)
    rig.request([(start, 16)], [(buffer, 512), (status, 1)])
    assert rig.guest.get(status, 1) == bytes([S_IOERR])
    assert rig.guest.get(buffer, 512) == b"\xee" * 512


@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_a_grant_copy_that_fails_as_a_whole_leaves_no_false_success(
    failing_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(granted=True)
    rig.driver.submit_write(0, pattern(512))
    rig.driver.submit_read(0, 512)
    grants, calls = rig.guest.grants, 0
    carry_out = grants.copy

    def copy(segments: int, count: int) -> None:
        nonlocal calls
        calls += 1
        grants.fail_next = int(calls == failing_call)
        carry_out(segments, count)

    monkeypatch.setattr(grants, "copy", copy)
    rig.driver.kick()
    completions = rig.driver.collect()
    assert completions[0].status == S_IOERR
    assert completions[1].status == (S_OK if failing_call == 2 else S_IOERR)


# durability


WCE = F_CONFIG_WCE


@pytest.mark.parametrize(
    ("features", "writeback", "syncs"),
    [(F_FLUSH, True, 0), (F_FLUSH, False, 1), (0, True, 1), (F_FLUSH | WCE, False, 1), (WCE, True, 1)],
)
def test_writes_are_synced_unless_a_flush_will_come(features: int, writeback: bool, syncs: int) -> None:
    rig = Rig(features=features, writeback=writeback)
    for n in range(4):
        rig.driver.submit_write(n, bytes(512))
    rig.driver.submit_read(0, 512)
    rig.driver.kick()
    assert rig.engine.syncs == syncs
    rig.driver.read(0, 512)
    assert rig.engine.syncs == syncs


def test_one_sync_serves_all_flushes_of_a_batch() -> None:
    rig = Rig()
    for n in range(4):
        rig.driver.submit_write(n, bytes(512))
        rig.driver.submit_flush()
    rig.driver.kick()
    assert rig.engine.syncs == 1
    assert [c.status for c in rig.driver.collect()] == [S_OK] * 8


@pytest.mark.parametrize(("writethrough", "expected"), [(True, [S_IOERR, S_IOERR]), (False, [S_OK, S_IOERR])])
def test_a_sync_that_fails_is_told_to_those_who_rely_on_it(writethrough: bool, expected: list[int]) -> None:
    rig = Rig()
    null = os.open("/dev/null", os.O_RDWR)  # takes writes, refuses fdatasync
    try:
        engine = BlockEngine(null, null)
        engine.capacity_sectors = 100
        engine.writethrough = writethrough
        rig.device.engines = (engine,)
        rig.driver.submit_write(0, bytes(512))
        rig.driver.submit_flush()
        rig.driver.kick()
        assert [c.status for c in rig.driver.collect()] == expected
        assert rig.driver.read(0, 512).status == S_IOERR
    finally:
        os.close(null)


# O_DIRECT


@BOTH_MEMORIES
def test_direct_io_takes_aligned_and_odd_requests(granted: bool, tmp_path: Path) -> None:
    rig = Rig(image(tmp_path, direct=True), granted=granted, segment_bytes=1536)
    model = bytearray(MIB)
    for sector, length in [(0, 4096), (1, 512), (7, 1024), (8, 64 * 1024), (201, 9 * 512)]:
        data = pattern(length, sector)
        assert rig.driver.write(sector, data).status == S_OK
        model[sector * 512 : sector * 512 + length] = data
    assert rig.driver.read(0, 256 * 1024).data == bytes(model[: 256 * 1024])
    assert rig.driver.read(1, 512).data == bytes(model[512:1024])


def test_direct_io_falls_back_for_memory_it_refuses(tmp_path: Path) -> None:
    """The kernel's vvar pages are, like a foreign mapping, memory without struct pages."""
    found = re.search(r"^([0-9a-f]+)-[0-9a-f]+ r.*\[vvar\]$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    if found is None:
        pytest.skip("no vvar pages in this process")
    rig = Rig(image(tmp_path, direct=True))
    special = 0x9000_0000
    plain = (rig.guest.base, 16 * MIB, rig.guest.buffer.address, True)
    rig.memory = RegionMemory(RegionSource(RegionTable([plain, (special, 4096, int(found[1], 16), False)])))
    start = rig.guest.put(header(T_OUT, 0))
    status = rig.guest.put(b"\xff")
    for _ in range(2):  # the second time it bounces at once
        rig.request([(start, 16), (special, 4096)], [(status, 1)])
        assert rig.guest.get(status, 1) == b"\0"
    assert rig.driver.write(0, pattern(4096)).status == S_OK
    assert rig.driver.read(0, 4096).data == pattern(4096)


# any sequence of requests


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "zero", "unmap", "flush", "kick"]),
        st.integers(0, 127),
        st.integers(1, 40),
        st.integers(0, 255),
    ),
    max_size=40,
)


def check_against_model(rig: Rig, operations: list[tuple[str, int, int, int]]) -> None:
    """Run the operations in batches as the kicks say; every read must see what the model says at its place."""
    model = bytearray(rig.disk())
    expected: dict[int, bytes] = {}
    for kind, sector, sectors, seed in [*operations, ("kick", 0, 0, 0)]:
        place = slice(sector * 512, (sector + sectors) * 512)
        if kind == "kick" or rig.queue.free_descriptors < 50:
            rig.driver.kick()
            for completion in rig.driver.collect():
                assert completion.status == S_OK
                assert completion.data == expected.pop(completion.request)
        if kind == "write":
            data = pattern(sectors * 512, seed)
            expected[rig.driver.submit_write(sector, data)] = b""
            model[place] = data
        elif kind == "read":
            expected[rig.driver.submit_read(sector, sectors * 512)] = bytes(model[place])
        elif kind in ("zero", "unmap"):
            expected[rig.driver.submit_write_zeroes([(sector, sectors)], unmap=kind == "unmap")] = b""
            model[place] = bytes(sectors * 512)
        elif kind == "flush":
            expected[rig.driver.submit_flush()] = b""
    assert not expected
    assert rig.disk() == bytes(model)


@given(OPERATIONS, st.booleans(), st.sampled_from([4096, 16384, MIB]), st.sampled_from([512, 700, 4096, MIB]))
def test_any_sequence_leaves_what_the_model_says(
    operations: list[tuple[str, int, int, int]], granted: bool, arena_bytes: int, segment_bytes: int
) -> None:
    resource = open_memory_disk(128 * 1024)
    try:
        rig = Rig(resource, granted=granted, arena_bytes=arena_bytes, segment_bytes=segment_bytes)
        check_against_model(rig, operations)
    finally:
        resource.close()


@settings(max_examples=20)
@given(OPERATIONS, st.booleans(), st.booleans(), st.sampled_from([700, 4096, MIB]))
def test_any_sequence_on_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, int, int, int]],
    direct: bool,
    granted: bool,
    segment_bytes: int,
) -> None:
    resource = image(tmp_path_factory.mktemp("disk"), 128 * 1024, direct=direct)
    try:
        check_against_model(Rig(resource, granted=granted, segment_bytes=segment_bytes), operations)
    finally:
        resource.close()


@BOTH_MEMORIES
def test_a_request_larger_than_a_part_is_read_and_written_whole(granted: bool) -> None:
    """Its data lies in few pages that it names again and again."""
    resource = open_memory_disk(80 * MIB)
    rig = Rig(resource, granted=granted)
    one = pattern(MIB)
    data, status = rig.guest.put(one), rig.guest.put(b"\xff")
    out = rig.guest.put(header(T_OUT))
    assert rig.request([(out, 16)] + [(data, MIB)] * 80, [(status, 1)]) == 1
    assert rig.guest.get(status, 1) == bytes([S_OK])
    assert rig.disk() == one * 80
    target = rig.guest.allocate(MIB)[0]
    read = rig.guest.put(header(T_IN))
    assert rig.request([(read, 16)], [(target, MIB)] * 80 + [(status, 1)]) == 80 * MIB + 1
    assert rig.guest.get(target, MIB) == one


@pytest.mark.parametrize("kind", [T_OUT, T_WRITE_ZEROES])
def test_an_abandoned_batch_is_given_up_and_says_so(kind: int) -> None:
    rig = Rig()
    before = rig.disk()
    payload = pattern(512) if kind == T_OUT else ranges((0, 1, 0))
    status = rig.guest.put(b"\xff")
    rig.queue.offer([(rig.guest.put(header(kind) + payload), 16 + len(payload))], [(status, 1)])
    assert rig.device_queue.take(rig.batch) == 1
    rig.batch.abandoned = True
    rig.device.process(0, rig.batch, rig.memory)
    assert rig.batch.unfinished
    assert (rig.disk(), rig.guest.get(status, 1)) == (before, b"\xff")
