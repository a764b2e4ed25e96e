"""The device status field.

Source: VIRTIO 1.4, 2.1 (Device Status Field).
"""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128
