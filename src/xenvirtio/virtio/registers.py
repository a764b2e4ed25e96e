"""The transport state of one device, in memory that outlives the process.

Everything a driver has told its transport lies in one page, which the daemon takes from a file in tmpfs: a process
killed with -9 loses nothing, and its successor goes on from there. All fields are little-endian; all zero is the
state after reset.

    offset  field
         0  interrupt_status u32: atomic operations only, workers set bits while the driver clears others
         4  status u32: atomic operations only, DEVICE_NEEDS_RESET may come from any thread
         8  device_features_sel u32
        12  driver_features_sel u32
        16  driver_features u32[4]
        32  queue_sel u32
        36  shm_sel u32
        40  config_generation u32: survives a reset
        44  driver_settings u32: what the device says the driver set in configuration space
        48  reserved
       256  queues[64], 32 bytes each: size u32, ready u32, desc u64, driver u64, device u64
      2304  reserved up to 4096

A change of this layout must change the state file's version: a running guest's state is read by the next release.

An engine module, so that its atomic operations and those of the compiled loops are the same machine instructions.
"""

from __future__ import annotations

from xenvirtio.errors import UsageError

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import and_u32, fill, load_u32, load_u64, or_u32, store_u32

PAGE_BYTES = 4096
QUEUES_MAX = 64

INTERRUPT_STATUS = 0
STATUS = 4
DEVICE_FEATURES_SEL = 8
DRIVER_FEATURES_SEL = 12
DRIVER_FEATURES = 16
QUEUE_SEL = 32
SHM_SEL = 36
CONFIG_GENERATION = 40
DRIVER_SETTINGS = 44
QUEUES = 256

QUEUE_BYTES = 32
QUEUE_SIZE = 0
QUEUE_READY = 4
QUEUE_DESC = 8
QUEUE_DRIVER = 16
QUEUE_DEVICE = 24

FEATURE_WORDS = 4
U32_MAX = 0xFFFFFFFF


class QueueRegisters:
    """What the driver has set up for one queue; 32 bytes at `address`."""

    def __init__(self, address: int) -> None:
        self.address = address

    @property
    def size(self) -> int:
        return load_u32(self.address + QUEUE_SIZE)

    @property
    def ready(self) -> bool:
        return load_u32(self.address + QUEUE_READY) != 0

    @property
    def desc(self) -> int:
        return load_u64(self.address + QUEUE_DESC)

    @property
    def driver(self) -> int:
        return load_u64(self.address + QUEUE_DRIVER)

    @property
    def device(self) -> int:
        return load_u64(self.address + QUEUE_DEVICE)

    def set_ready(self, ready: bool) -> None:
        store_u32(self.address + QUEUE_READY, 1 if ready else 0)

    def store_word(self, offset: int, value: int) -> None:
        """Set the size, or half of an area's address: `offset` is one of the QUEUE_ constants, + 4 for a high half."""
        store_u32(self.address + offset, value)

    def clear(self) -> None:
        fill(self.address, 0, QUEUE_BYTES)


class DeviceRegisters:
    """The page at `address`, page-aligned, PAGE_BYTES long; its owner keeps it alive longer than this object."""

    def __init__(self, address: int) -> None:
        if address % PAGE_BYTES:
            raise UsageError(f"device registers at {address:#x}, not at the start of a page")
        self.address = address
        self.queues = tuple([QueueRegisters(address + QUEUES + QUEUE_BYTES * index) for index in range(QUEUES_MAX)])

    @property
    def interrupt_status(self) -> int:
        return load_u32(self.address + INTERRUPT_STATUS)

    def raise_events(self, bits: int) -> int:
        """Set bits of the interrupt status; return the value before."""
        return or_u32(self.address + INTERRUPT_STATUS, bits)

    def acknowledge(self, bits: int) -> int:
        """Clear bits of the interrupt status; return the value before."""
        return and_u32(self.address + INTERRUPT_STATUS, bits ^ U32_MAX)

    @property
    def status(self) -> int:
        return load_u32(self.address + STATUS)

    def set_status(self, bits: int) -> int:
        """Set bits of the device status; return the value before."""
        return or_u32(self.address + STATUS, bits)

    @property
    def device_features_sel(self) -> int:
        return load_u32(self.address + DEVICE_FEATURES_SEL)

    @device_features_sel.setter
    def device_features_sel(self, value: int) -> None:
        store_u32(self.address + DEVICE_FEATURES_SEL, value)

    @property
    def driver_features_sel(self) -> int:
        return load_u32(self.address + DRIVER_FEATURES_SEL)

    @driver_features_sel.setter
    def driver_features_sel(self, value: int) -> None:
        store_u32(self.address + DRIVER_FEATURES_SEL, value)

    @property
    def driver_features(self) -> int:
        """All 128 bits as one integer."""
        return sum(load_u32(self.address + DRIVER_FEATURES + 4 * index) << 32 * index for index in range(FEATURE_WORDS))

    @property
    def driver_settings(self) -> int:
        return load_u32(self.address + DRIVER_SETTINGS)

    @driver_settings.setter
    def driver_settings(self, value: int) -> None:
        store_u32(self.address + DRIVER_SETTINGS, value)

    def store_driver_features(self, index: int, value: int) -> None:
        """Set 32-bit word `index` of the driver's features, 0..FEATURE_WORDS - 1."""
        store_u32(self.address + DRIVER_FEATURES + 4 * index, value)

    @property
    def queue_sel(self) -> int:
        return load_u32(self.address + QUEUE_SEL)

    @queue_sel.setter
    def queue_sel(self, value: int) -> None:
        store_u32(self.address + QUEUE_SEL, value)

    @property
    def shm_sel(self) -> int:
        return load_u32(self.address + SHM_SEL)

    @shm_sel.setter
    def shm_sel(self, value: int) -> None:
        store_u32(self.address + SHM_SEL, value)

    @property
    def config_generation(self) -> int:
        return load_u32(self.address + CONFIG_GENERATION)

    @config_generation.setter
    def config_generation(self, value: int) -> None:
        store_u32(self.address + CONFIG_GENERATION, value)

    def clear(self) -> None:
        """Go back to the state after reset; the config generation stays.

        The status goes first: a process that dies in here leaves a page that nobody takes for a live device.
        """
        store_u32(self.address + STATUS, 0)
        and_u32(self.address + INTERRUPT_STATUS, 0)
        fill(self.address + DEVICE_FEATURES_SEL, 0, CONFIG_GENERATION - DEVICE_FEATURES_SEL)
        fill(self.address + QUEUES, 0, QUEUES_MAX * QUEUE_BYTES)
