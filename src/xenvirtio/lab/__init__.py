"""Real Xen on this machine: builds Xen, Linux and their roots, boots them in QEMU and drives them.

Nothing here is imported by the rest of the package. `build.py` is the way in for building,
`machine.py` for booting, `toolstack.py` for guests.
"""
