# The compiled twin of raw.py: the same names as inline C. A change here is a change there.
#
# Blocking calls release the interpreter lock themselves, so callers need no nogil sections; the ring and memory
# accesses are a few nanoseconds each and keep it.

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/uio.h>
    #include <unistd.h>

    static inline unsigned char xv_load_u8(size_t a) { return __atomic_load_n((uint8_t *)a, __ATOMIC_ACQUIRE); }
    static inline unsigned short xv_load_u16(size_t a) { return __atomic_load_n((uint16_t *)a, __ATOMIC_ACQUIRE); }
    static inline unsigned int xv_load_u32(size_t a) { return __atomic_load_n((uint32_t *)a, __ATOMIC_ACQUIRE); }
    static inline unsigned long long xv_load_u64(size_t a) { return __atomic_load_n((uint64_t *)a, __ATOMIC_ACQUIRE); }
    static inline void xv_store_u8(size_t a, unsigned char v) { __atomic_store_n((uint8_t *)a, v, __ATOMIC_RELEASE); }
    static inline void xv_store_u16(size_t a, unsigned short v) { __atomic_store_n((uint16_t *)a, v, __ATOMIC_RELEASE); }
    static inline void xv_store_u32(size_t a, unsigned int v) { __atomic_store_n((uint32_t *)a, v, __ATOMIC_RELEASE); }
    static inline void xv_store_u64(size_t a, unsigned long long v) { __atomic_store_n((uint64_t *)a, v, __ATOMIC_RELEASE); }
    static inline unsigned int xv_or_u32(size_t a, unsigned int v) { return __atomic_fetch_or((uint32_t *)a, v, __ATOMIC_SEQ_CST); }
    static inline unsigned int xv_and_u32(size_t a, unsigned int v) { return __atomic_fetch_and((uint32_t *)a, v, __ATOMIC_SEQ_CST); }
    static inline void xv_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void xv_copy(size_t d, size_t s, size_t n) { memcpy((void *)d, (const void *)s, n); }
    static inline void xv_fill(size_t d, int b, size_t n) { memset((void *)d, b, n); }

    #define XV_UNLOCKED(call) \\
        long result; int error; \\
        Py_BEGIN_ALLOW_THREADS result = (long)(call); error = errno; Py_END_ALLOW_THREADS \\
        return result >= 0 ? result : -(long)error;
    static inline long xv_preadv(int fd, size_t v, int n, long long o) { XV_UNLOCKED(preadv(fd, (const struct iovec *)v, n, o)) }
    static inline long xv_pwritev(int fd, size_t v, int n, long long o) { XV_UNLOCKED(pwritev(fd, (const struct iovec *)v, n, o)) }
    static inline long xv_fdatasync(int fd) { XV_UNLOCKED(fdatasync(fd)) }
    static inline long xv_fallocate(int fd, int m, long long o, long long n) { XV_UNLOCKED(fallocate(fd, m, o, n)) }
    static inline long xv_read(int fd, size_t a, size_t n) { XV_UNLOCKED(read(fd, (void *)a, n)) }
    static inline long xv_write(int fd, size_t a, size_t n) { XV_UNLOCKED(write(fd, (const void *)a, n)) }
    static inline long xv_ioctl(int fd, unsigned long r, size_t a) { XV_UNLOCKED(ioctl(fd, r, (void *)a)) }
    static inline int xv_wait_readable(int a, int b, int timeout) {
        struct pollfd fds[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
        int result, error;
        Py_BEGIN_ALLOW_THREADS result = poll(fds, 2, timeout); error = errno; Py_END_ALLOW_THREADS
        return result < 0 ? -error : (fds[0].revents ? 1 : 0) | (fds[1].revents ? 2 : 0);
    }
    """
    unsigned char load_u8 "xv_load_u8"(size_t address) noexcept nogil
    unsigned short load_u16 "xv_load_u16"(size_t address) noexcept nogil
    unsigned int load_u32 "xv_load_u32"(size_t address) noexcept nogil
    unsigned long long load_u64 "xv_load_u64"(size_t address) noexcept nogil
    void store_u8 "xv_store_u8"(size_t address, unsigned char value) noexcept nogil
    void store_u16 "xv_store_u16"(size_t address, unsigned short value) noexcept nogil
    void store_u32 "xv_store_u32"(size_t address, unsigned int value) noexcept nogil
    void store_u64 "xv_store_u64"(size_t address, unsigned long long value) noexcept nogil
    unsigned int or_u32 "xv_or_u32"(size_t address, unsigned int bits) noexcept nogil
    unsigned int and_u32 "xv_and_u32"(size_t address, unsigned int bits) noexcept nogil
    void fence "xv_fence"() noexcept nogil
    void copy "xv_copy"(size_t destination, size_t source, size_t length_bytes) noexcept nogil
    void fill "xv_fill"(size_t destination, int byte, size_t length_bytes) noexcept nogil
    long preadv "xv_preadv"(int fd, size_t iovecs, int count, long long offset) noexcept
    long pwritev "xv_pwritev"(int fd, size_t iovecs, int count, long long offset) noexcept
    long fdatasync "xv_fdatasync"(int fd) noexcept
    long fallocate "xv_fallocate"(int fd, int mode, long long offset, long long length_bytes) noexcept
    long read "xv_read"(int fd, size_t address, size_t length_bytes) noexcept
    long write "xv_write"(int fd, size_t address, size_t length_bytes) noexcept
    long ioctl "xv_ioctl"(int fd, unsigned long request, size_t address) noexcept
    int wait_readable "xv_wait_readable"(int first_fd, int second_fd, int timeout_ms) noexcept
