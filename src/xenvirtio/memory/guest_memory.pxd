from xenvirtio.memory.transfer cimport TransferList


cdef class GuestMemory:
    cdef public unsigned long long run
    cpdef size_t locate(self, unsigned long long address, unsigned long long length, bint writable) except? 0
    cpdef unsigned int transfer(self, TransferList copies) except? 0xffffffff
