cimport cython


cdef class TransferList:
    cdef public unsigned int count
    cdef public unsigned int capacity
    cdef public unsigned long long[::1] guest
    cdef public unsigned long long[::1] host
    cdef public unsigned long long[::1] length
    cdef public unsigned char[::1] to_guest
    cdef public unsigned char[::1] failed
    cpdef void clear(self)
    @cython.locals(index=cython.uint)
    cpdef unsigned int add(self, unsigned long long guest, size_t host, unsigned long long length, bint to_guest)
    cpdef void fail(self, unsigned int index)
    cpdef bint has_failed(self, unsigned int index)
