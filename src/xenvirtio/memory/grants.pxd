cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.raw cimport ioctl, load_u16, store_u16, store_u32, store_u64
from xenvirtio.memory.transfer cimport TransferList

cdef unsigned long long GRANT_BIT, REFERENCE_LIMIT
cdef unsigned int PAGE_SIZE, SEGMENT_BYTES
cdef unsigned long IOCTL_GRANT_COPY
cdef unsigned short SOURCE_IS_REFERENCE, DESTINATION_IS_REFERENCE



cdef class GrantMemory(GuestMemory):
    cdef object _grants
    cdef int _descriptor
    cdef object _argument_buffer
    cdef size_t _argument
    cdef unsigned short _domid
    cdef public unsigned long long calls
    cdef public unsigned long long segments
    cdef unsigned long long _capacity
    cdef object _buffer
    cdef size_t _base
    cdef unsigned int[::1] _entry_of
    cpdef void _reserve(self, unsigned long long segments) except *
    @cython.locals(failures=cython.uint, index=cython.uint, wanted=cython.ulonglong, filled=cython.uint,
                   guest=cython.ulonglong, left=cython.ulonglong, reference=cython.ulonglong, offset=cython.ulonglong,
                   host=cython.ulonglong, length=cython.ulonglong, segment=cython.size_t, guest_side=cython.size_t,
                   segment_index=cython.uint)
    cpdef unsigned int transfer(self, TransferList copies) except? 0xffffffff
    cpdef bint _run(self, unsigned int count) except? 0
