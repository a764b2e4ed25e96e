from xenvirtio.memory.raw cimport and_u32, fill, load_u32, load_u64, or_u32, store_u32


cdef class QueueRegisters:
    cdef readonly size_t address
    cpdef void set_ready(self, bint ready)
    cpdef void store_word(self, unsigned int offset, unsigned int value)
    cpdef void clear(self)


cdef class DeviceRegisters:
    cdef readonly size_t address
    cdef readonly tuple queues
    cpdef unsigned int raise_events(self, unsigned int bits)
    cpdef unsigned int acknowledge(self, unsigned int bits)
    cpdef unsigned int set_status(self, unsigned int bits)
    cpdef void store_driver_features(self, unsigned int index, unsigned int value)
    cpdef void clear(self)
