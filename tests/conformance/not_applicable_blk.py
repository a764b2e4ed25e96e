"""Statements about block devices that no test proves, each with the reason."""

from __future__ import annotations

_ZONED = "holds only with VIRTIO_BLK_F_ZONED, which is never offered"
_LIFETIME = "VIRTIO_BLK_F_LIFETIME is never offered: lifetime metrics of the host's storage are not passed on"

BLK: dict[str, str] = {
    "blk.1.6": "about legacy devices; this one offers VERSION_1 only",
    "blk.1.8": "about host-managed zoned devices; no resource is one",
    **{f"blk.1.{n}": _ZONED for n in range(9, 17)},
    "blk.2.8": "write_zeroes_may_unmap never changes while a device lives",
    "blk.2.10": _LIFETIME + " (a SHOULD that is not met on eMMC and UFS)",
    "blk.2.12": _LIFETIME,
    **{f"blk.2.{n}": _ZONED for n in range(14, 36)},
}
