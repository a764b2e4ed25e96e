cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.raw cimport or_u32, read, store_u64, write
from xenvirtio.virtqueue.batch cimport ChainBatch
from xenvirtio.virtqueue.split cimport SplitQueue

cdef unsigned int USED_BUFFER


cdef class QueueRunner:
    cdef object _device
    cdef SplitQueue _queue
    cdef GuestMemory _memory
    cdef int _kick_fd
    cdef size_t _interrupt_status
    cdef int _irq_fd
    cdef object _raise_interrupt
    cdef object _fail
    cdef ChainBatch _batch
    cdef object _scratch_buffer
    cdef size_t _scratch
    cdef bint _stopping
    cdef object _gate
    cdef object _turnstile
    cdef public unsigned long long batches
    cdef public unsigned long long requests
    cdef public unsigned long long interrupts
    cpdef serve(self)
    cdef void _drain_all(self) except *
    @cython.locals(count=cython.uint, wanted=cython.bint)
    cpdef unsigned int drain(self) except? 0xffffffff
    cdef void _interrupt(self) except *
