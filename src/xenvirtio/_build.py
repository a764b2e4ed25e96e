"""Which modules make up the compiled engine. Read by setup.py and by the lab's cross compilation."""

ENGINE_MODULES: tuple[str, ...] = (
    "xenvirtio.memory.transfer",
    "xenvirtio.memory.guest_memory",
    "xenvirtio.memory.regions",
    "xenvirtio.memory.grants",
    "xenvirtio.memory.address_space",
    "xenvirtio.virtqueue.batch",
    "xenvirtio.virtqueue.split",
    "xenvirtio.virtqueue.driver",
    "xenvirtio.virtio.registers",
    "xenvirtio.virtio.queue_runner",
    "xenvirtio.virtio.transports.msg_region",
    "xenvirtio.ioreq.pump",
    "xenvirtio.devices.block.engine",
)
"""Each has a `.pxd` beside it with its C types. Interpreted, every one of them runs unchanged."""

COMPILER_DIRECTIVES: dict[str, bool | int] = {
    "language_level": 3,
    "annotation_typing": False,  # types come from the .pxd alone; annotations are for readers and mypy
    "boundscheck": False,  # guest values are checked once, explicitly, before they index anything
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
}
