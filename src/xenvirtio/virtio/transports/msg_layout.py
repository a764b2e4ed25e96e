"""Message numbers, sizes and payload layouts of virtio-msg. Everything is little-endian.

Source: "virtio-msg: a message based virtio transport layer", RFC v3 of 2 November 2025 (transport-msg.tex), transport
revision 1. It is a draft: numbers and layouts have changed between its versions and may change again.
"""

from __future__ import annotations

import struct
from enum import IntEnum

REVISION = 1

HEADER = struct.Struct("<BBHHH")
"""type, message id, device number, token, size of the whole message."""

TYPE_RESPONSE = 1
TYPE_BUS = 2

MESSAGE_BYTES_MAX = 256
"""Longest message on our buses, header included. The draft allows 44 to 65536; nothing here needs more than this, and
a configuration space that does not fit is read in parts."""

EVENT_FIRST = 0x40
"""Standard message ids from here on are events: they have no token and no response."""

EVENT_LAST = 0x7F
BUS_OWN_FIRST = 0x80
BUS_OWN_EVENT_FIRST = 0xC0
"""Bus messages from here on belong to the bus implementation; events have the upper half."""


class MessageId(IntEnum):
    """Transport messages: between a driver and one device."""

    GET_DEVICE_INFO = 0x02
    GET_DEVICE_FEATURES = 0x03
    SET_DRIVER_FEATURES = 0x04
    GET_CONFIG = 0x05
    SET_CONFIG = 0x06
    GET_DEVICE_STATUS = 0x07
    SET_DEVICE_STATUS = 0x08
    GET_VQUEUE = 0x09
    SET_VQUEUE = 0x0A
    RESET_VQUEUE = 0x0B
    GET_SHM = 0x0C
    EVENT_CONFIG = 0x40
    EVENT_AVAIL = 0x41
    EVENT_USED = 0x42


class BusMessageId(IntEnum):
    """Bus messages: between the two ends of a bus."""

    GET_DEVICES = 0x02
    PING = 0x03
    EVENT_DEVICE = 0x40
    EVENT_SESSION = 0xC0
    """Ours, on buses without shared memory: who speaks and whom it hears (see `msg_datagram`)."""


class DeviceState(IntEnum):
    """What EVENT_DEVICE says."""

    READY = 1
    REMOVED = 2


DEVICE_INFO = struct.Struct("<IIIIIHH")
"""device id, vendor id, feature bits, configuration bytes, queues, first admin queue, admin queues"""

FEATURE_BLOCKS = struct.Struct("<II")
"""index of the first block of 32 bits, number of blocks; the blocks follow"""

CONFIG_RANGE = struct.Struct("<II")
"""offset, length"""

CONFIG_DATA = struct.Struct("<III")
"""generation, offset, length; the bytes follow. Length 0 in an answer to SET_CONFIG: rejected"""

STATUS = struct.Struct("<I")

QUEUE_INDEX = struct.Struct("<I")

QUEUE = struct.Struct("<IIIIQQQ")
"""index, largest size (reserved in SET_VQUEUE), size, reserved, descriptor area, driver area, device area"""

SHARED_MEMORY = struct.Struct("<III")
"""index, length, address; length 0: there is no such region"""

EVENT_CONFIG = struct.Struct("<IIII")
"""device status, generation, offset, length; the bytes follow"""

EVENT_AVAIL = struct.Struct("<II")
"""queue index, next offset and wrap (0 without NOTIFICATION_DATA)"""

GET_DEVICES = struct.Struct("<HH")
"""first device number, how many numbers; both multiples of 8"""

DEVICES = struct.Struct("<HHH")
"""first number, how many, where the next device is found or 0; a bitmap follows, lowest bit first"""

EVENT_DEVICE = struct.Struct("<HH")

PING = struct.Struct("<I")

DEVICE_NUMBERS = 1 << 16
