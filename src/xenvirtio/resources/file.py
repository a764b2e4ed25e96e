"""A disk image or a block device of the host, opened for one guest."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path

from xenvirtio.errors import ConfigurationError, ResourceError, XenvirtioError
from xenvirtio.memory.raw import fallocate

SECTOR_BYTES = 512

_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B
_BLKGETSIZE64 = 0x80081272
"""include/uapi/linux/fs.h; the same numbers on x86-64 and arm64."""

_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02


class FileResource:
    """An open disk. Sizes are bytes; `direct_alignment` is 0 without O_DIRECT.

    `fd` and `buffered_fd` are the same descriptor but for O_DIRECT, where the second one is the disk without it.
    The object owns both, and with them the lock.
    """

    def __init__(self, path: str, fd: int, *, read_only: bool, direct_fd: int | None = None) -> None:
        self.path = path
        self.read_only = read_only
        self.buffered_fd = fd
        self.fd = fd if direct_fd is None else direct_fd
        self.direct_alignment = 0 if direct_fd is None else _probe_direct_alignment(path, direct_fd)
        self.is_block_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.size_bytes = 0
        self.refresh_size()
        if self.is_block_device:
            self.block_size = _ioctl_number(fd, _BLKSSZGET, "i")
            self.physical_block_size = _ioctl_number(fd, _BLKPBSZGET, "I")
            self.can_discard = not read_only and _device_can_discard(fd)
        else:
            # a guest that keeps to 4 KiB spares the file system a read before each write
            self.block_size = SECTOR_BYTES
            self.physical_block_size = 4096
            self.can_discard = not read_only and _file_can_discard(fd, self.size_bytes)

    def refresh_size(self) -> int:
        if self.is_block_device:
            size = _ioctl_number(self.buffered_fd, _BLKGETSIZE64, "Q")
        else:
            size = os.fstat(self.buffered_fd).st_size
        self.size_bytes = size // SECTOR_BYTES * SECTOR_BYTES  # a file may be seen while it grows
        return self.size_bytes

    def close(self) -> None:
        """Close the disk and give up the lock; calling it again has no effect."""
        for fd in {self.fd, self.buffered_fd} - {-1}:
            os.close(fd)
        self.fd = self.buffered_fd = -1


def open_disk(path: str | os.PathLike[str], *, read_only: bool = False, direct: bool = False) -> FileResource:
    """Open a raw image file or a block device, locked against other users of it.

    A writable disk is locked exclusively, a read-only one shared (OFD locks, which QEMU's image locks respect; a
    writable block device is also claimed, so that nobody mounts it).

    Raises:
        ConfigurationError: `path` cannot be a disk, or not with these options.
        ResourceError: it could, but somebody else uses it, or the host failed.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise _explain(name, error, read_only) from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a block device"
        raise ConfigurationError(name, f"is {kind}", "give the path of a raw image file or of a block device")
    access = os.O_RDONLY if read_only else os.O_RDWR
    claim = os.O_EXCL if stat.S_ISBLK(mode) and not read_only else 0
    opened: list[int] = []
    try:
        opened.append(os.open(name, access | claim | os.O_CLOEXEC))
        _lock(name, opened[0], read_only)
        if direct:
            # by way of /proc it is certainly the same file, whatever happens to the name meanwhile
            opened.append(_open_direct(name, opened[0], access))
        resource = FileResource(name, opened[0], read_only=read_only, direct_fd=opened[1] if direct else None)
        _check_size(resource)
    except (OSError, XenvirtioError) as error:
        for fd in opened:
            os.close(fd)
        if isinstance(error, OSError):
            raise _explain(name, error, read_only) from None
        raise
    return resource


def _check_size(resource: FileResource) -> None:
    exact = resource.size_bytes if resource.is_block_device else os.fstat(resource.buffered_fd).st_size
    if exact % SECTOR_BYTES:
        whole = -(-exact // SECTOR_BYTES) * SECTOR_BYTES
        raise ConfigurationError(
            resource.path,
            f"has {exact} bytes, not a multiple of {SECTOR_BYTES}",
            f"give a raw image, or pad it: truncate -s {whole} {resource.path}",
        )
    if exact == 0 and resource.is_block_device:
        raise ConfigurationError(resource.path, "is a block device of size 0", "attach its medium or image first")
    if exact == 0:
        raise ConfigurationError(resource.path, "is empty", f"give it a size: truncate -s 1G {resource.path}")


def _explain(name: str, error: OSError, read_only: bool) -> XenvirtioError:
    """Turn a failed system call on `name` into an error that says what to do."""
    wanted = "reading" if read_only else "writing"
    number = error.errno
    if number in (errno.ENOENT, errno.ENOTDIR):
        parent = next(folder for folder in Path(name).absolute().parents if folder.is_dir())
        return ConfigurationError(name, "does not exist", f"create it, or correct the path ({parent} exists)")
    if number in (errno.EACCES, errno.EPERM):
        or_read_only = "" if read_only else ", or set read_only"
        remedy = f"run as root or change its permissions{or_read_only}"
        return ConfigurationError(name, f"permission denied for {wanted}", remedy)
    if number == errno.EROFS:
        return ConfigurationError(name, "is on a read-only file system", "set read_only, or remount it")
    if number == errno.EBUSY:
        return ResourceError(f"{name}: is in use on this host (mounted?); release it, or set read_only")
    return ResourceError(f"{name}: cannot be opened for {wanted}: {error.strerror}")


def _lock(name: str, fd: int, read_only: bool) -> None:
    kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        advice = "" if read_only else ", or set read_only in all that use it"
        raise ResourceError(f"{name}: is locked by another disk user; stop that one (lsof {name}){advice}") from None


def _open_direct(name: str, fd: int, access: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    raise ConfigurationError(name, "its file system has no O_DIRECT", "leave out `direct`, or move the image")


def _probe_direct_alignment(name: str, fd: int) -> int:
    """Find the smallest unit of O_DIRECT, for memory and file alike."""
    with mmap.mmap(-1, 8192) as memory, memoryview(memory) as view:
        for alignment in (SECTOR_BYTES, 4096):
            with view[alignment : 2 * alignment] as target:
                try:
                    os.preadv(fd, [target], 0)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    return alignment
    raise ConfigurationError(name, "O_DIRECT takes neither 512 nor 4096 bytes here", "leave out `direct`")


def _ioctl_number(fd: int, request: int, code: str) -> int:
    answer = fcntl.ioctl(fd, request, bytes(struct.calcsize(code)))
    return int(struct.unpack(code, answer)[0])


def _device_can_discard(fd: int) -> bool:
    device = os.fstat(fd).st_rdev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (folder / "queue", folder.resolve().parent / "queue"):  # a partition has its disk's
        try:
            return int((queue / "discard_max_bytes").read_text()) > 0
        except OSError:
            continue
    return False


def _file_can_discard(fd: int, size_bytes: int) -> bool:
    """Punch a hole where there is nothing, behind the end."""
    return fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, size_bytes + 4096, 4096) == 0
