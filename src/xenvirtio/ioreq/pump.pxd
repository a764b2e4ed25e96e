cimport cython

from xenvirtio.memory.raw cimport (
    and_u32, fence, ioctl, load_u8, load_u32, load_u64, read, store_u8, store_u32, store_u64, wait_readable, write
)

cdef unsigned int SLOT_BYTES, DATA, SIZE, FLAGS, TYPE
cdef unsigned char STATE_MASK, KEEP_FLAGS, DIRECTION_READ, READY, INPROCESS, RESPONSE_READY
cdef unsigned char TYPE_COPY, TYPE_INVALIDATE
cdef unsigned int REG_QUEUE_NOTIFY, REG_INTERRUPT_STATUS, REG_INTERRUPT_ACK
cdef unsigned long IOCTL_EVTCHN_NOTIFY
cdef unsigned int PORT_BYTES, PORTS_PER_READ
cdef unsigned long long ALL_ONES


cdef class DeviceWindow:
    cdef public unsigned long long base
    cdef public unsigned long long length
    cdef public size_t interrupt_status
    cdef public object transport
    cdef public unsigned int queues
    cdef public int[::1] kick_fds


cdef class IoreqPump:
    cdef size_t _page
    cdef unsigned int _vcpus
    cdef unsigned int[::1] _ports
    cdef object _events
    cdef int _fd
    cdef bint _is_evtchn_node
    cdef object _invalidate
    cdef tuple _windows
    cdef object _buffer
    cdef size_t _pending
    cdef size_t _scratch
    cdef int _doorbell_fd
    cdef public unsigned long long accesses
    cdef public unsigned long long kicks
    cdef public unsigned long long wakeups
    @cython.locals(ready=cython.int)
    cpdef serve(self, int control_fd)
    @cython.locals(answered=cython.int)
    cpdef int handle_events(self) except -1
    @cython.locals(length=cython.long, answered=cython.int, position=cython.long)
    cdef int _handle_node_events(self) except -1
    @cython.locals(vcpu=cython.uint)
    cdef int _handle_port(self, unsigned int port) except -1
    @cython.locals(answered=cython.int, vcpu=cython.uint)
    cpdef int scan(self, bint adopt=*) except -1
    @cython.locals(vcpu=cython.uint, busy=cython.uint)
    cpdef bint is_idle(self) except? 0
    @cython.locals(slot=cython.size_t, flags=cython.uchar, kind=cython.uchar)
    cdef int _handle_slot(self, unsigned int vcpu, bint adopt) except -1
    @cython.locals(address=cython.ulonglong, size=cython.uint, window=DeviceWindow)
    cdef void _access(self, size_t slot, unsigned char flags) except *
    @cython.locals(value=cython.ulonglong, index=cython.ulonglong)
    cdef void _access_window(self, DeviceWindow window, size_t slot, unsigned long long offset, unsigned int size,
                             unsigned char flags) except *
    cdef unsigned long long _read(self, DeviceWindow window, unsigned long long offset, unsigned int size) except? 0
    cdef void _write(self, DeviceWindow window, unsigned long long offset, unsigned int size,
                     unsigned long long value) except *
    cdef void _run_invalidate(self) except *
    cdef void _notify(self, unsigned int vcpu) except *
