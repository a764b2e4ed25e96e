"""The verifier must not be fooled: each way in which data can be wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.devices.block.rig import Rig as BlockRig
from xenvirtio.resources.file import open_disk
from xenvirtio.sandbox.workload import BLOCK_BYTES, ZEROS, DiskModel, Workload, block_content, describe_block

BLOCKS = 32
WHOLE = BLOCKS * BLOCK_BYTES


@pytest.fixture
def model() -> DiskModel:
    return DiskModel("disk", BLOCKS)


@pytest.fixture
def image(model: DiskModel, tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    model.create_image(path)
    return path


def test_a_fresh_image_is_right(model: DiskModel, image: Path) -> None:
    assert model.check_file(image) == WHOLE
    assert model.mismatches == []


def test_blocks_differ_by_disk_number_and_generation() -> None:
    contents = {block_content(name, block, g) for name in "ab" for block in (0, 1) for g in (1, 2)}
    assert len(contents) == 8
    assert all(len(content) == BLOCK_BYTES for content in contents)


@pytest.mark.parametrize("position", [0, 20, 50, 63, 64, 4095])
def test_one_flipped_bit_is_found(model: DiskModel, image: Path, position: int) -> None:
    data = bytearray(image.read_bytes())
    data[3 * BLOCK_BYTES + position] ^= 1
    image.write_bytes(data)
    assert model.check_file(image) == WHOLE - BLOCK_BYTES
    assert model.mismatch_count == 1
    assert model.mismatches[0].startswith("disk, block 3 in the image file: found ")
    assert model.mismatches[0].endswith("expected generation 1")


SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another block's content": (lambda data: data[BLOCK_BYTES:] + data[:BLOCK_BYTES], "generation 1 of block 1 of"),
    "zeros": (lambda data: bytes(BLOCK_BYTES) + data[BLOCK_BYTES:], "found zeros"),
    "another disk's content": (lambda data: block_content("other", 0, 1) + data[BLOCK_BYTES:], "block 0 of other"),
    "a torn block": (
        lambda data: data[:512] + block_content("disk", 0, 2)[512:] + data[BLOCK_BYTES:],
        "found damaged generation 1 of block 0",
    ),
    "noise": (lambda data: b"noise" + data[5:], "found bytes that were never written"),
    "an end too soon": (lambda data: data[:-1], "found damaged"),
    "an end too late": (lambda data: data + b"x", "has grown"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_wrong_content_is_found_and_described(model: DiskModel, image: Path, name: str) -> None:
    spoil, description = SPOILT[name]
    image.write_bytes(spoil(image.read_bytes()))
    model.check_file(image)
    assert description in model.mismatches[0]


def test_an_acknowledged_write_must_be_there(model: DiskModel) -> None:
    generation = model.new_generation()
    model.may_become([5], generation)
    model.has_become([5], generation)
    assert model.check(5, block_content("disk", 5, 1), "here") == 0
    assert model.check(5, block_content("disk", 5, generation), "here") == BLOCK_BYTES


def test_a_write_in_flight_may_be_there_or_not_but_not_both_in_turn(model: DiskModel) -> None:
    generation = model.new_generation()
    model.may_become([5, 6], generation)
    assert model.check(5, block_content("disk", 5, 1), "here") == BLOCK_BYTES
    assert model.check(6, block_content("disk", 6, generation), "here") == BLOCK_BYTES
    assert model.check(5, block_content("disk", 5, generation), "here") == 0, "it was seen not to have happened"
    assert model.check(6, block_content("disk", 6, 1), "here") == 0, "it was seen to have happened"


def test_a_discard_leaves_old_or_zeros(model: DiskModel) -> None:
    model.may_become([0, 1], ZEROS)
    assert model.check(0, bytes(BLOCK_BYTES), "here") == BLOCK_BYTES
    assert model.check(1, block_content("disk", 1, 1), "here") == BLOCK_BYTES


def test_only_some_mismatches_are_described_and_all_counted(model: DiskModel) -> None:
    model.check(0, bytes(WHOLE), "here")
    assert (model.mismatch_count, len(model.mismatches)) == (BLOCKS, 20)


def test_zeros_are_described() -> None:
    assert describe_block(bytes(BLOCK_BYTES)) == "zeros"


def workload_on(model: DiskModel, image: Path) -> tuple[Workload, BlockRig]:
    rig = BlockRig(open_disk(image))
    return Workload(model, rig.driver, lambda: None, rig.device.features, Random(5)), rig


def run(workload: Workload, requests: int) -> None:
    workload.run(lambda: workload.requests >= requests)


def test_the_workload_finds_nothing_wrong_with_a_right_device(model: DiskModel, image: Path) -> None:
    workload, _ = workload_on(model, image)
    run(workload, 500)
    workload.flush()
    assert workload.verify_all() == WHOLE
    assert model.check_file(image) == WHOLE
    assert model.mismatches == []
    assert workload.bytes_right > 0


def test_the_workload_finds_a_write_that_was_acknowledged_and_lost(model: DiskModel, image: Path) -> None:
    """The image goes back in time behind the device."""
    before = image.read_bytes()
    workload, _ = workload_on(model, image)
    run(workload, 200)
    image.write_bytes(before)
    assert workload.verify_all() < WHOLE
    assert model.mismatch_count > 0


def test_the_workload_finds_a_device_that_answers_with_an_error(model: DiskModel, image: Path) -> None:
    workload, rig = workload_on(model, image)
    for engine in rig.device.engines:
        engine.capacity_sectors = 8
    run(workload, 50)
    assert model.mismatch_count > 0
    assert "ended with status 1" in model.mismatches[0]
