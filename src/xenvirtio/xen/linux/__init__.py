"""Xen's device nodes in /dev/xen, with ctypes and the standard library only."""

from xenvirtio.xen.linux.host import LinuxHypervisor

__all__ = ["LinuxHypervisor"]
