cimport cython

from xenvirtio.memory.guest_memory cimport GuestMemory
from xenvirtio.memory.raw cimport (
    fallocate,
    fdatasync,
    ioctl,
    load_u32,
    load_u64,
    preadv,
    pwritev,
    store_u8,
    store_u64,
)
from xenvirtio.memory.transfer cimport TransferList
from xenvirtio.virtqueue.batch cimport ChainBatch

cdef unsigned int HEADER_BYTES, ID_BYTES, MAX_RANGES, RANGE_BYTES, RANGE_F_UNMAP, SECTOR_BYTES
cdef unsigned int MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS
cdef unsigned int T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES
cdef unsigned char S_OK, S_IOERR, S_UNSUPP
cdef unsigned int PAGE_SIZE, VECTORS, VECTOR_BYTES, VECTORS_PER_CALL
cdef unsigned long long ZERO_BYTES, LARGEST_DATA, LARGEST_PART, ADDRESS_MASK
cdef long EINTR, EFAULT, EINVAL, EOPNOTSUPP
cdef int KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
cdef unsigned long BLKDISCARD


cdef class BlockEngine:
    cdef public unsigned long long capacity_sectors
    cdef public bint read_only
    cdef public bint writethrough
    cdef public bint discard
    cdef public bint write_zeroes
    cdef public bint may_unmap
    cdef public unsigned long long requests
    cdef public unsigned long long errors
    cdef public unsigned long long bytes_read
    cdef public unsigned long long bytes_written
    cdef public unsigned long long syncs
    cdef int _fd
    cdef int _buffered_fd
    cdef unsigned int _direct_alignment
    cdef bint _direct_in_place
    cdef bint _is_block_device
    cdef object _queue_index
    cdef unsigned long long _arena_bytes
    cdef unsigned long long _arena_used
    cdef unsigned int _vectors_used
    cdef TransferList _inbound
    cdef TransferList _outbound
    cdef object _buffers
    cdef size_t _arena
    cdef size_t _vectors
    cdef size_t _zeros
    cdef size_t _serial
    cdef size_t _scratch
    cdef unsigned int _chain_capacity
    cdef object _header_buffer
    cdef size_t _headers
    cdef object _status_buffer
    cdef size_t _status_base
    cdef unsigned char[::1] _status
    cdef unsigned int[::1] _kind
    cdef unsigned long long[::1] _size
    cdef unsigned long long[::1] _left
    cdef unsigned long long[::1] _part
    cdef unsigned long long[::1] _offset
    cdef unsigned int[::1] _segment
    cdef unsigned int[::1] _skip
    cdef unsigned long long[::1] _place
    cdef unsigned int[::1] _vector
    cdef unsigned int[::1] _vector_count
    cdef unsigned int[::1] _copies_first
    cdef unsigned int[::1] _copies_end

    cpdef void _reserve(self, unsigned int chains) except *
    @cython.locals(chain=cython.uint, first=cython.uint)
    cpdef void process(self, ChainBatch batch, GuestMemory memory) except *
    @cython.locals(chain=cython.uint)
    cdef void _fetch_headers(self, ChainBatch batch, GuestMemory memory) except *
    @cython.locals(header=cython.size_t, kind=cython.uint, sector=cython.ulonglong, readable=cython.ulonglong,
                   writable=cython.ulonglong)
    cdef unsigned char _admit(self, ChainBatch batch, unsigned int chain) noexcept
    cdef unsigned char _admit_data(self, unsigned int chain, unsigned long long sector,
                                   unsigned long long length) noexcept
    @cython.locals(capacity=cython.ulonglong)
    cdef bint _is_on_disk(self, unsigned long long sector, unsigned long long sectors) noexcept
    cdef void _skip_to_writable(self, ChainBatch batch, unsigned int chain) noexcept
    @cython.locals(end=cython.uint, chain=cython.uint)
    cdef unsigned int _run_round(self, ChainBatch batch, GuestMemory memory, unsigned int first) except? 0xffffffff
    @cython.locals(chain=cython.uint, kind=cython.uint)
    cdef unsigned int _plan(self, ChainBatch batch, GuestMemory memory, unsigned int first) except? 0xffffffff
    @cython.locals(direct=cython.bint, misaligned=cython.ulonglong, segment=cython.uint, skip=cython.uint,
                   left=cython.ulonglong, wanted=cython.ulonglong, count=cython.uint, run=cython.ulonglong,
                   place=cython.size_t, vector=cython.size_t)
    cdef bint _plan_in_place(self, ChainBatch batch, GuestMemory memory, unsigned int chain) except? 0
    @cython.locals(part=cython.ulonglong, room=cython.ulonglong, vector=cython.size_t)
    cdef bint _plan_in_arena(self, unsigned int chain) noexcept
    @cython.locals(segment=cython.uint, skip=cython.uint, run=cython.ulonglong)
    cdef void _add_copies(self, ChainBatch batch, TransferList copies, unsigned int chain, size_t host,
                          unsigned long long length, bint to_guest) except *
    @cython.locals(chain=cython.uint, index=cython.uint)
    cdef void _fail_where_copies_failed(self, TransferList copies, unsigned int first, unsigned int end) noexcept
    @cython.locals(kind=cython.uint)
    cdef unsigned char _execute(self, ChainBatch batch, unsigned int chain) noexcept
    cdef bint _is_direct(self, unsigned long long offset, unsigned long long length) noexcept
    @cython.locals(offset=cython.ulonglong, left=cython.ulonglong, vector=cython.size_t, count=cython.uint,
                   fd=cython.int, in_call=cython.uint, moved=cython.long)
    cdef bint _move(self, unsigned int chain, bint is_write) noexcept
    @cython.locals(allowed=cython.uint, limit=cython.uint, start=cython.size_t, ranges=cython.uint, index=cython.uint,
                   entry=cython.size_t, sectors=cython.uint, offset=cython.ulonglong, length=cython.ulonglong,
                   done=cython.bint)
    cdef unsigned char _apply_ranges(self, ChainBatch batch, unsigned int chain, bint is_discard) noexcept
    @cython.locals(result=cython.long)
    cdef bint _discard_range(self, unsigned long long offset, unsigned long long length) noexcept
    @cython.locals(moved=cython.long)
    cdef bint _zero_range(self, unsigned long long offset, unsigned long long length, bint unmap) noexcept
    @cython.locals(writethrough=cython.bint, needed=cython.bint, chain=cython.uint, result=cython.long)
    cdef void _sync_if_needed(self, unsigned int first, unsigned int end) noexcept
    cdef bint _relies_on_sync(self, unsigned int chain, bint writethrough) noexcept
    @cython.locals(chain=cython.uint)
    cdef void _answer(self, ChainBatch batch, GuestMemory memory, unsigned int first, unsigned int end) except *
    cdef void _add_results(self, ChainBatch batch, unsigned int chain) except *
    @cython.locals(last=cython.uint)
    cdef void _add_status(self, ChainBatch batch, TransferList copies, unsigned int chain) except *
    @cython.locals(chain=cython.uint, index=cython.uint)
    cdef void _answer_failures(self, ChainBatch batch, GuestMemory memory, unsigned int first,
                               unsigned int end) except *
    @cython.locals(kind=cython.uint)
    cdef void _account(self, ChainBatch batch, unsigned int chain) noexcept
