cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.raw cimport fence, load_u16, load_u32, load_u64, store_u16, store_u32
from xenvirtio.memory.transfer cimport TransferList
from xenvirtio.virtqueue.batch cimport ChainBatch

cdef unsigned int DESCRIPTOR_BYTES
cdef unsigned short DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT, AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY



cdef class SplitQueue:
    cdef public unsigned int size
    cdef public unsigned int queue_index
    cdef unsigned int _mask
    cdef unsigned int _indirect_max
    cdef size_t _desc
    cdef size_t _avail
    cdef size_t _used
    cdef GuestMemory _memory
    cdef bint _event_index
    cdef bint _indirect
    cdef public unsigned short last_avail
    cdef public unsigned short used_index
    cdef public unsigned short published
    cdef TransferList _tables
    cdef object _table_buffer
    cdef size_t _table_base
    cpdef void resume(self)
    cpdef bint has_available(self)
    @cython.locals(available=cython.uint, reserved=cython.uint, first=cython.uint, tables=cython.uint,
                   promised=cython.uint)
    cpdef unsigned int take(self, ChainBatch batch) except? 0xffffffff
    @cython.locals(head=cython.uint, index=cython.uint, entry=cython.size_t, address=cython.ulonglong,
                   length=cython.uint, flags=cython.ushort)
    cdef unsigned int _take_chain(self, ChainBatch batch, unsigned int chain) except? 0xffffffff
    cdef void _add(self, ChainBatch batch, unsigned int chain, unsigned int index, unsigned long long address,
                  unsigned int length, unsigned short flags) except *
    @cython.locals(entries=cython.uint)
    cdef unsigned int _note_table(self, unsigned int chain, unsigned int index, unsigned long long address,
                                  unsigned int length, unsigned short flags) except? 0xffffffff
    @cython.locals(needed=cython.ulonglong, table=cython.uint, place=cython.size_t)
    cdef void _take_tables(self, ChainBatch batch) except *
    @cython.locals(prefix=cython.uint, position=cython.uint, index=cython.uint, entry=cython.size_t,
                   flags=cython.ushort)
    cdef void _append_table(self, ChainBatch batch, unsigned int chain, size_t table, unsigned int entries) except *
    @cython.locals(chain=cython.uint, entry=cython.size_t)
    cpdef void complete(self, ChainBatch batch)
    @cython.locals(old=cython.ushort, new=cython.ushort, event=cython.ushort)
    cpdef bint publish(self)
    cpdef void suppress_kicks(self)
    cpdef bint rearm_kicks(self)
