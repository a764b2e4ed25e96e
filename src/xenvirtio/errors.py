"""Every error of the package on one page: the class says whose fault it was, and so what follows.

    XenvirtioError                 never raised itself
      GuestError                   the driver or guest broke a rule    -> DEVICE_NEEDS_RESET, others go on
      PeerProtocolError            a XenStore or vhost-user peer did   -> that connection is closed
        SessionLostError           the peer of a shared channel has started anew -> begin again with it
      HypervisorError              a hypercall or ioctl failed         -> carries operation, domid, errno
      XenStoreError                the XenStore server said no         -> carries the error name and path
      ResourceError                a file, tap or pty failed           -> a status byte to the driver
      ConfigurationError           the operator's input is wrong       -> stop at start, name key and value
      UsageError                   our own caller misused the API      -> a bug, let it rise

Wire codes (VIRTIO_BLK_S_IOERR, EINVAL, ...) are chosen at one place per protocol, never here.
"""

from __future__ import annotations

import errno as _errno
import os


class XenvirtioError(Exception):
    """Base of all errors raised by this package. Never raised itself."""


class GuestError(XenvirtioError):
    """The guest or its driver broke a rule; its device asks for a reset and nothing else is touched."""

    def __init__(self, problem: str, *, queue_index: int | None = None, descriptor_index: int | None = None) -> None:
        self.problem = problem
        self.queue_index = queue_index
        self.descriptor_index = descriptor_index
        where = "" if queue_index is None else f"queue {queue_index}: "
        which = "" if descriptor_index is None else f" (descriptor {descriptor_index})"
        super().__init__(f"{where}{problem}{which}")


class PeerProtocolError(XenvirtioError):
    """The other end of a byte stream sent something that no correct peer sends; close that connection."""


class SessionLostError(PeerProtocolError):
    """The other end of a message channel went away or started anew: nothing of the old session holds any more."""


class HypervisorError(XenvirtioError):
    """A hypercall or an ioctl on one of Xen's device nodes failed."""

    def __init__(self, operation: str, error: int, *, domid: int | None = None, hint: str | None = None) -> None:
        self.operation = operation
        self.errno = error
        self.domid = domid
        self.hint = hint
        name = _errno.errorcode.get(error, str(error))
        where = "" if domid is None else f" for domain {domid}"
        advice = "" if hint is None else f": {hint}"
        super().__init__(f"{operation}{where}: {name} ({os.strerror(error)}){advice}")


class XenStoreError(XenvirtioError):
    """XenStore answered ERROR. `name` is the errno name on the wire, for example `ENOENT`."""

    def __init__(self, name: str, operation: str, path: str | None = None) -> None:
        self.name = name
        self.operation = operation
        self.path = path
        super().__init__(f"{operation} {path}: {name}" if path is not None else f"{operation}: {name}")


class ResourceError(XenvirtioError):
    """What the host provides under a device (file, block device, tap, pty) failed or is not usable."""


class ConfigurationError(XenvirtioError):
    """What the operator wrote is wrong. One line: where, what was found, what is allowed."""

    def __init__(self, where: str, problem: str, remedy: str | None = None) -> None:
        self.where = where
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))


class UsageError(XenvirtioError):
    """Our own caller used an interface against its contract."""
