cdef class ChainBatch:
    cdef public bint abandoned
    cdef public bint unfinished
    cdef public unsigned int count
    cdef public unsigned int segments
    cdef public unsigned int chain_capacity
    cdef public unsigned int segment_capacity
    cdef public unsigned short[::1] head
    cdef public unsigned int[::1] first
    cdef public unsigned int[::1] segment_count
    cdef public unsigned int[::1] readable_count
    cdef public unsigned long long[::1] readable_bytes
    cdef public unsigned long long[::1] writable_bytes
    cdef public unsigned int[::1] written
    cdef public unsigned long long[::1] address
    cdef public unsigned int[::1] length
    cpdef void clear(self)
