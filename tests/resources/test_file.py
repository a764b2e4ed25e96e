from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.resources.loop import loop_device
from xenvirtio.errors import ConfigurationError, ResourceError, XenvirtioError
from xenvirtio.resources.file import open_disk

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_image(image: Path) -> None:
    disk = open_disk(image)
    assert (disk.size_bytes, disk.block_size, disk.physical_block_size) == (SIZE, 512, 4096)
    assert (disk.read_only, disk.is_block_device, disk.direct_alignment) == (False, False, 0)
    assert disk.fd == disk.buffered_fd
    os.pwrite(disk.fd, b"x", 0)
    disk.close()
    disk.close()
    assert image.read_bytes()[:1] == b"x"


def test_a_read_only_image_cannot_be_written_or_discarded(image: Path) -> None:
    disk = open_disk(image, read_only=True)
    assert disk.read_only
    assert not disk.can_discard
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(disk.fd, b"x", 0)
    disk.close()


def test_an_image_that_grows(image: Path) -> None:
    disk = open_disk(image)
    os.truncate(image, 3 * SIZE + 100)
    assert disk.refresh_size() == disk.size_bytes == 3 * SIZE
    disk.close()


def test_direct(image: Path) -> None:
    try:
        disk = open_disk(image, direct=True)
    except ConfigurationError as problem:
        pytest.skip(str(problem))
    assert disk.fd != disk.buffered_fd
    assert disk.direct_alignment in (512, 4096)
    disk.close()


@pytest.mark.parametrize(
    ("prepare", "problem", "way_out"),
    [
        (lambda path: path.unlink(), "does not exist", "exists)"),
        (lambda path: (path.unlink(), path.mkdir()), "is a directory", "raw image"),
        (make_fifo, "neither a file nor", "raw image"),
        (lambda path: os.truncate(path, 0), "is empty", "truncate -s"),
        (lambda path: os.truncate(path, 1000), "1000 bytes, not a multiple of 512", "truncate -s 1024"),
    ],
    ids=["missing", "directory", "fifo", "empty", "odd"],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_disk(image: Path, prepare: object, problem: str, way_out: str, read_only: bool) -> None:
    assert callable(prepare)
    prepare(image)
    before = open_descriptors()
    with pytest.raises(ConfigurationError) as caught:
        open_disk(image, read_only=read_only)
    message = str(caught.value)
    assert message.startswith(f"{image}: ")
    assert problem in message
    assert way_out in message
    assert "\n" not in message
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.EACCES, ConfigurationError, "permission denied for writing"),
        (errno.EROFS, ConfigurationError, "read-only file system; set read_only"),
        (errno.EBUSY, ResourceError, "in use on this host"),
        (errno.EIO, ResourceError, "cannot be opened for writing: Input/output error"),
    ],
)
def test_what_the_host_refuses(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[XenvirtioError], text: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind, match=text) as caught:
        open_disk(image)
    assert str(image) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(image: Path) -> None:
    image.chmod(0o400)
    with pytest.raises(ConfigurationError, match="permission denied for writing"):
        open_disk(image)
    open_disk(image, read_only=True).close()
    image.chmod(0)
    with pytest.raises(ConfigurationError, match="permission denied for reading"):
        open_disk(image, read_only=True)


def test_no_o_direct_there(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_direct(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags)

    monkeypatch.setattr(os, "open", without_direct)
    before = open_descriptors()
    with pytest.raises(ConfigurationError, match="has no O_DIRECT; leave out `direct`"):
        open_disk(image, direct=True)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("first_read_only", "second_read_only", "refused"),
    [(False, False, True), (False, True, True), (True, False, True), (True, True, False)],
)
def test_locks_between_two_users(image: Path, first_read_only: bool, second_read_only: bool, refused: bool) -> None:
    first = open_disk(image, read_only=first_read_only)
    if refused:
        with pytest.raises(ResourceError, match=f"{image}: is locked by another"):
            open_disk(image, read_only=second_read_only)
        first.close()
    open_disk(image, read_only=second_read_only).close()
    first.close()


def test_the_lock_holds_between_processes(image: Path) -> None:
    disk = open_disk(image)
    program = (
        "import sys; from xenvirtio.errors import ResourceError; from xenvirtio.resources.file import open_disk\n"
        "try: open_disk(sys.argv[1])\n"
        "except ResourceError as error: print(error)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(image)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "locked" in answer.stdout
    disk.close()


def test_a_block_device(image: Path) -> None:
    with loop_device(image) as name:
        disk = open_disk(name)
        assert disk.is_block_device
        assert (disk.size_bytes, disk.block_size) == (SIZE, 512)
        with pytest.raises(ResourceError, match=r"in use|locked"):
            open_disk(name)
        disk.close()
        direct = open_disk(name, direct=True)
        assert direct.direct_alignment in (512, 4096)
        direct.close()
