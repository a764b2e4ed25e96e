cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.transfer cimport TransferList

cdef unsigned long long GRANT_BIT



cdef class AddressSpace(GuestMemory):
    cdef GuestMemory _plain
    cdef GuestMemory _granted
    cdef TransferList _plain_part
    cdef TransferList _granted_part
    @cython.locals(side=GuestMemory, place=cython.size_t)
    cpdef size_t locate(self, unsigned long long address, unsigned long long length, bint writable) except? 0
    @cython.locals(granted=cython.uint, index=cython.uint)
    cpdef unsigned int transfer(self, TransferList copies) except? 0xffffffff
    @cython.locals(index=cython.uint, part=TransferList, failures=cython.uint, plain=cython.uint, granted=cython.uint)
    cpdef unsigned int _transfer_mixed(self, TransferList copies) except? 0xffffffff
