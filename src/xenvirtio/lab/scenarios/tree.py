"""A tree of files on a virtio disk, written and checked in a guest, checked once more by dom0 from the image."""

from __future__ import annotations

from xenvirtio.lab.dom0 import Dom0
from xenvirtio.lab.toolstack import Guest

_LIST = "find . -type f | sort | xargs sha256sum"
MOUNT_POINT = "/mnt/lab-image"


def parse_checksums(output: str) -> dict[str, str]:
    """File name to checksum, of sha256sum's lines."""
    found = {}
    for line in output.splitlines():
        checksum, _, name = line.partition("  ")
        if len(checksum) == 64:
            found[name.strip()] = checksum
    return found


def write_tree(guest: Guest, device: str = "/dev/vda") -> dict[str, str]:
    """Format, mount, copy a tree, sync, unmount, check; then read it all again from the disk. Gives the checksums."""
    guest.run(f"mkfs.ext4 -q {device} && mount {device} /mnt", 300)
    guest.run("mkdir -p /mnt/tree/deep/er && cp -r /bin /sbin /lib /etc /init /mnt/tree/", 300)
    guest.run("dd if=/dev/urandom of=/mnt/tree/deep/er/random bs=64k count=96 2>/dev/null", 300)
    guest.run("for n in $(seq 200); do echo file $n >/mnt/tree/deep/small$n; done; sync")
    written = parse_checksums(guest.run(f"cd /mnt/tree && {_LIST}", 300).output)
    guest.run("umount /mnt")
    guest.run(f"e2fsck -fn {device}", 300)
    guest.run(f"echo 3 >/proc/sys/vm/drop_caches; mount -o ro {device} /mnt")
    read = parse_checksums(guest.run(f"cd /mnt/tree && {_LIST}", 300).output)
    guest.run("umount /mnt")
    assert len(written) > 200, f"only {len(written)} files were written"
    assert read == written, f"the guest reads other files than it wrote: {_differing(read, written)}"
    return written


def checksums_in_image(dom0: Dom0, image: str) -> dict[str, str]:
    """What dom0's own kernel finds in the image: e2fsck's opinion first, then the checksums by a loop mount."""
    dom0.run(f"e2fsck -fn {image}", 300)
    dom0.run(f"mkdir -p {MOUNT_POINT} && mount -o loop,ro {image} {MOUNT_POINT}")
    try:
        return parse_checksums(dom0.run(f"cd {MOUNT_POINT}/tree && {_LIST}", 300).output)
    finally:
        dom0.run(f"umount {MOUNT_POINT}")


def check_same(in_dom0: dict[str, str], in_guest: dict[str, str]) -> None:
    """Raises AssertionError with the first names that differ."""
    differing = _differing(in_dom0, in_guest)
    assert in_dom0 == in_guest, f"dom0 finds other files in the image than the guest wrote: {differing}"


def check_disk(dom0: Dom0, guest: Guest, image: str, device: str = "/dev/vda") -> str:
    """The whole disk's checksum in the guest, past its page cache, equals that of the image in dom0."""
    guest.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    inside = guest.run(f"sha256sum {device}", 300).output.split()[0]
    outside = dom0.run(f"sha256sum {image}", 300).output.split()[0]
    assert inside == outside, f"{device} in guest {guest.name} reads as {inside}, its image {image} as {outside}"
    return inside


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one | other if one.get(name) != other.get(name))[:5]
