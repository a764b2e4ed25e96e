cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.raw cimport copy
from xenvirtio.memory.transfer cimport TransferList

cdef unsigned long long GRANT_BIT



cdef class RegionTable:
    cdef public int count
    cdef public unsigned long long[::1] start
    cdef public unsigned long long[::1] end
    cdef public unsigned long long[::1] host
    cdef public unsigned char[::1] writable
    @cython.locals(low=cython.int, high=cython.int, middle=cython.int)
    cpdef int find(self, unsigned long long address) noexcept


cdef class RegionSource:
    cdef public RegionTable table
    cdef object __weakref__
    cdef dict __dict__
    cpdef bint fault(self, unsigned long long address) except? 0


cdef class RegionMemory(GuestMemory):
    cdef RegionSource _source
    @cython.locals(table=RegionTable, index=cython.int, room=cython.ulonglong)
    cpdef size_t locate(self, unsigned long long address, unsigned long long length, bint writable) except? 0
    @cython.locals(failures=cython.uint, index=cython.uint, guest=cython.ulonglong, host=cython.ulonglong,
                   left=cython.ulonglong, place=cython.size_t)
    cpdef unsigned int transfer(self, TransferList copies) except? 0xffffffff
