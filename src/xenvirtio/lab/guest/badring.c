/* A hostile driver: writes nonsense into the rings of a virtio-mmio device and looks at what the device does.
 *
 *   badring BASE foreign|grant SEED ROUNDS
 *
 * BASE is the physical address of a virtio-blk device's registers; its kernel driver must be unbound. The registers are
 * reached through /dev/mem; rings and buffers are this program's own pages, given to the device by physical address
 * (/proc/self/pagemap) or by grant (/dev/xen/gntalloc).
 *
 * Each round resets the device, sets it up, breaks one rule and waits for what comes: the request for a reset
 * (DEVICE_NEEDS_RESET), a completed request, or nothing. Every few rounds a correct request must succeed, which shows
 * that the device recovers. One line of JSON on standard output. Exit status 0 when the device did what it must.
 *
 * The device may write wherever a device-writable address says, so addresses that are wrong here are such as nobody
 * has: the program breaks the rules of virtio, not its own guest's memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 16u
#define GRANT_BIT (1ull << 63)
#define NEEDS_RESET 0x40u
#define F_NEXT 1u
#define F_WRITE 2u
#define F_INDIRECT 4u

enum reg {
    DEVICE_FEATURES = 0x10, DEVICE_FEATURES_SEL = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24,
    QUEUE_SEL = 0x30, QUEUE_SIZE_MAX = 0x34, QUEUE_SIZE = 0x38, QUEUE_READY = 0x44, QUEUE_NOTIFY = 0x50,
    INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70, QUEUE_DESC = 0x80, QUEUE_DRIVER = 0x90,
    QUEUE_DEVICE = 0xa0, CONFIG = 0x100
};

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, idx, ring[]; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[]; };
struct header { uint32_t type, reserved; uint64_t sector; };

enum { DESC, AVAIL, USED, TABLE, HEADER, DATA }; /* what our pages are for; DATA and following are data */

enum outcome { RESET_WANTED, COMPLETED, SILENT, OUTCOMES };

static volatile uint8_t *window;
static uint8_t *page[PAGES];
static uint64_t dma[PAGES];
static struct desc *desc, *table;
static volatile struct avail *avail;
static volatile struct used *used;
static unsigned size;
static uint64_t state;
static int granted;

static uint64_t random_u64(void)
{
    uint64_t x = state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(random_u64() % limit);
}

/* Plain loads and stores: Xen decodes no others (a post-indexed one has no syndrome and kills the guest). */
static uint32_t get(unsigned offset)
{
    uint32_t value;
    __asm__ volatile("ldr %w0, [%1]" : "=r"(value) : "r"(window + offset) : "memory");
    return value;
}

static void put(unsigned offset, uint32_t value)
{
    __asm__ volatile("dsb sy\n\tstr %w0, [%1]" : : "r"(value), "r"(window + offset) : "memory");
}

static void put_odd(unsigned offset, unsigned bytes, uint32_t value)
{
    if (bytes == 1)
        __asm__ volatile("strb %w0, [%1]" : : "r"(value), "r"(window + offset) : "memory");
    else if (bytes == 2)
        __asm__ volatile("strh %w0, [%1]" : : "r"(value), "r"(window + (offset & ~1u)) : "memory");
    else
        put(offset & ~3u, value);
}

static uint32_t get_odd(unsigned offset, unsigned bytes)
{
    uint32_t value;
    if (bytes == 1)
        __asm__ volatile("ldrb %w0, [%1]" : "=r"(value) : "r"(window + offset) : "memory");
    else if (bytes == 2)
        __asm__ volatile("ldrh %w0, [%1]" : "=r"(value) : "r"(window + (offset & ~1u)) : "memory");
    else
        return get(offset & ~3u);
    return value;
}

static void put64(unsigned offset, uint64_t value)
{
    put(offset, (uint32_t)value);
    put(offset + 4, (uint32_t)(value >> 32));
}

static void die(const char *what)
{
    fprintf(stderr, "badring: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* Our pages by guest-physical address. */
static void allocate_foreign(void)
{
    uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    if (memory == MAP_FAILED || pagemap < 0)
        die("memory");
    for (unsigned i = 0; i < PAGES; i++) {
        uint64_t entry;
        page[i] = memory + i * PAGE;
        page[i][0] = 1;
        if (pread(pagemap, &entry, 8, (off_t)((uintptr_t)page[i] / PAGE * 8)) != 8 || !(entry >> 63))
            die("pagemap");
        dma[i] = (entry & ((1ull << 55) - 1)) * PAGE;
    }
    close(pagemap);
}

/* Our pages by grant to dom0. Source: include/uapi/xen/gntalloc.h. */
static void allocate_grants(void)
{
    struct { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t refs[PAGES]; } request = {0, 1, PAGES, 0, {0}};
    int node = open("/dev/xen/gntalloc", O_RDWR);
    if (node < 0)
        die("/dev/xen/gntalloc");
    if (ioctl(node, _IOC(_IOC_NONE, 'G', 5, 24), &request))
        die("IOCTL_GNTALLOC_ALLOC_GREF");
    uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, node, (off_t)request.index);
    if (memory == MAP_FAILED)
        die("mapping grants");
    for (unsigned i = 0; i < PAGES; i++) {
        page[i] = memory + i * PAGE;
        dma[i] = GRANT_BIT | (uint64_t)request.refs[i] * PAGE;
    }
}

/* An address that nobody has, in many forms. Not among them, since dom0 can write there and the guest would suffer: RAM
 * from 0x40000000, Xen's pages from 0x39000000, the guest's own grant table from 0x38000000, and small grants. */
static uint64_t nowhere(void)
{
    static const uint64_t places[] = {
        0, 0x1000, 0x02000000, 0x02000050, 0x03001000, 0x30000000, 0x100000000ull, 0x1fffff000ull,
        0xff00000000ull, 0xffffffff000ull, 0xfffffffffffff000ull & ~GRANT_BIT, 0x7fffffffffffffffull,
        GRANT_BIT | 0xfffffffff000ull, GRANT_BIT | 0x7fffffff000ull, GRANT_BIT | 0x10000000ull,
        GRANT_BIT | 0x3ffff000ull, 0xffffffffffffffffull, 0xfffffffffffffff0ull, 0xfffffffffffff000ull,
    };
    uint64_t place = places[below(sizeof places / sizeof *places)];
    return below(3) ? place : place ^ (random_u64() & 0xff0);
}

static void set(struct desc *at, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    at[i].addr = addr;
    at[i].len = len;
    at[i].flags = flags;
    at[i].next = next;
}

static uint32_t status_seen(void)
{
    return get(STATUS);
}

static int reset_device(void)
{
    put(STATUS, 0);
    for (int i = 0; i < 1000; i++) {
        if (status_seen() == 0)
            return 1;
        usleep(1000);
    }
    return 0;
}

/* Up to FEATURES_OK; 0 when the device does not take the features. */
static int negotiate(uint64_t drop, uint64_t add)
{
    uint64_t features = 0;
    put(STATUS, 1);
    put(STATUS, 3);
    for (unsigned i = 0; i < 2; i++) {
        put(DEVICE_FEATURES_SEL, i);
        features |= (uint64_t)get(DEVICE_FEATURES) << (32 * i);
    }
    features &= ~drop;
    features |= add;
    for (unsigned i = 0; i < 2; i++) {
        put(DRIVER_FEATURES_SEL, i);
        put(DRIVER_FEATURES, (uint32_t)(features >> (32 * i)));
    }
    put(STATUS, 0xb);
    return (status_seen() & 8) != 0;
}

static void set_queue(unsigned queue_size, uint64_t d, uint64_t a, uint64_t u)
{
    put(QUEUE_SEL, 0);
    put(QUEUE_SIZE, queue_size);
    put64(QUEUE_DESC, d);
    put64(QUEUE_DRIVER, a);
    put64(QUEUE_DEVICE, u);
    put(QUEUE_READY, 1);
}

static void clear_pages(void)
{
    for (unsigned i = 0; i < PAGES; i++)
        memset(page[i], 0, PAGE);
    page[HEADER][512] = 0xff; /* where a status byte goes */
}

static struct header *header(void)
{
    return (struct header *)page[HEADER];
}

/* A correct read of one sector in descriptors 0, 1, 2 of `at`; `base` is where at[0] will be for `next`. */
static void correct_read(struct desc *at, uint16_t base)
{
    header()->type = 0;
    header()->sector = below(64);
    set(at, 0, dma[HEADER], 16, F_NEXT, base + 1);
    set(at, 1, dma[DATA], 512, F_NEXT | F_WRITE, base + 2);
    set(at, 2, dma[HEADER] + 512, 1, F_WRITE, 0);
}

static void offer(uint16_t head)
{
    avail->ring[avail->idx % size] = head;
    __sync_synchronize();
    avail->idx++;
    __sync_synchronize();
}

static enum outcome wait_outcome(uint16_t from, unsigned limit_ms)
{
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (;;) {
        if (used->idx != from)
            return COMPLETED;
        if (status_seen() & NEEDS_RESET)
            return RESET_WANTED;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 > (long)limit_ms)
            return SILENT;
        usleep(500);
    }
}

/* The variations. Each breaks one rule in a device that is ready for requests and says how long to wait for what. */
static void bad_head(void) { offer((uint16_t)(size + below(65536 - size))); }

static void self_loop(void)
{
    uint16_t at = (uint16_t)below(size);
    set(desc, at, dma[DATA], 16, F_NEXT, at);
    offer(at);
}

static void long_loop(void)
{
    for (unsigned i = 0; i < size; i++)
        set(desc, i, dma[DATA], 16, F_NEXT | (below(2) && i > size / 2 ? F_WRITE : 0), (uint16_t)((i + 1) % size));
    offer((uint16_t)below(size));
}

static void bad_next(void)
{
    correct_read(desc, 0);
    desc[below(2)].next = (uint16_t)(size + below(65536 - size));
    offer(0);
}

static void bad_data_address(void)
{
    correct_read(desc, 0);
    desc[1].addr = nowhere();
    header()->type = below(2);
    if (header()->type == 1)
        desc[1].flags &= (uint16_t)~F_WRITE;
    offer(0);
}

static void bad_header_address(void)
{
    correct_read(desc, 0);
    desc[0].addr = nowhere();
    offer(0);
}

static void bad_status_address(void)
{
    correct_read(desc, 0);
    desc[2].addr = nowhere();
    offer(0);
}

static void huge_length(void)
{
    static const uint32_t lengths[] = {0xffffffff, 0xfffffe00, 0x80000000, 0x7ffffe00, 0x40000000};
    correct_read(desc, 0);
    desc[1].len = lengths[below(5)]; /* past the end of the disk and of our memory */
    offer(0);
}

static void odd_length(void)
{
    static const uint32_t lengths[] = {0, 1, 511, 513, 1000};
    correct_read(desc, 0);
    desc[1].len = lengths[below(5)];
    offer(0);
}

static void indirect(uint32_t bytes)
{
    set(desc, 0, dma[TABLE], bytes, F_INDIRECT, 0);
    correct_read(table, 0);
}

static void nested_indirect(void)
{
    indirect(48);
    set(table, 1, dma[TABLE], 48, F_INDIRECT | F_NEXT, 2);
    offer(0);
}

static void indirect_length(void)
{
    static const uint32_t lengths[] = {0, 1, 15, 17, 49, 0xffffffff, 0xfffffff0, 0x80000000};
    indirect(lengths[below(8)]);
    offer(0);
}

static void indirect_and_next(void)
{
    indirect(48);
    desc[0].flags = F_INDIRECT | F_NEXT;
    desc[0].next = 1;
    set(desc, 1, dma[DATA], 512, F_WRITE, 0);
    offer(0);
}

static void indirect_loop(void)
{
    indirect(48);
    table[2].flags = F_NEXT | F_WRITE;
    table[2].next = (uint16_t)below(3);
    offer(0);
}

static void indirect_next_outside(void)
{
    indirect(48);
    table[below(2)].next = (uint16_t)(3 + below(65533));
    offer(0);
}

static void indirect_nowhere(void)
{
    indirect(48);
    desc[0].addr = nowhere();
    offer(0);
}

static void index_jump(void)
{
    correct_read(desc, 0);
    avail->idx += (uint16_t)(size + 1 + below(60000 - size));
    __sync_synchronize();
}

static void writable_first(void)
{
    correct_read(desc, 0);
    set(desc, 0, dma[DATA], 512, F_NEXT | F_WRITE, 1);
    set(desc, 1, dma[HEADER], 16, F_NEXT, 2);
    offer(0);
}

static void only_header(void)
{
    correct_read(desc, 0);
    desc[0].len = 1 + below(16);
    desc[0].flags = 0;
    offer(0);
}

static void only_status(void)
{
    set(desc, 0, dma[HEADER] + 512, 1, F_WRITE, 0);
    offer(0);
}

static void short_header(void)
{
    correct_read(desc, 0);
    desc[0].len = below(16);
    offer(0);
}

static void empty_status(void)
{
    correct_read(desc, 0);
    desc[2].len = 0;
    if (below(2))
        desc[1].flags = 0; /* and nothing else to write to */
    offer(0);
}

static void unknown_type(void)
{
    correct_read(desc, 0);
    header()->type = 14 + below(1u << 30);
    offer(0);
}

static void beyond_end(void)
{
    correct_read(desc, 0);
    header()->sector = below(2) ? random_u64() | 1ull << 40 : ~0ull;
    offer(0);
}

static void nonsense_discard(void)
{
    correct_read(desc, 0);
    header()->type = below(2) ? 11 : 13;
    desc[1].flags = F_NEXT;
    desc[1].len = 1 + below(64);
    for (unsigned i = 0; i < 64; i++)
        page[DATA][i] = (uint8_t)(random_u64() | 0x80);
    offer(0);
}

static void unknown_flags(void)
{
    correct_read(desc, 0);
    for (int i = 0; i < 3; i++)
        desc[i].flags |= (uint16_t)(0xfff8 & random_u64());
    offer(0);
}

static void same_head_twice(void)
{
    correct_read(desc, 0);
    for (unsigned i = 0; i < size; i++)
        offer(0);
}

static void random_table(void)
{
    for (unsigned i = 0; i < size; i++) {
        unsigned target = below(4);
        uint64_t at = target == 0 ? nowhere() : dma[HEADER + below(PAGES - HEADER)];
        set(desc, i, at, 1 + below(PAGE), (uint16_t)below(8), (uint16_t)below(size + 2));
        if (desc[i].flags & F_INDIRECT)
            desc[i].addr = dma[TABLE];
    }
    for (unsigned i = 0; i < PAGE / 16; i++)
        set(table, i, below(4) ? dma[HEADER + below(PAGES - HEADER)] : nowhere(), 1 + below(PAGE), (uint16_t)below(8),
            (uint16_t)below(PAGE / 16 + 2));
    for (unsigned i = 0; i < 1 + below(size); i++)
        offer((uint16_t)below(size));
}

static void wrong_doorbell(void)
{
    correct_read(desc, 0);
    avail->ring[0] = 0;
    __sync_synchronize();
    avail->idx = 1;
    put(QUEUE_NOTIFY, 1 + below(0xffffffff));
}

static volatile int racing;

static void *race(void *unused)
{
    static const uint32_t lengths[] = {16, 0, 512, 0xffffffff, 1};
    uint64_t wrong = nowhere();
    for (unsigned i = 0; racing; i++) {
        volatile struct desc *d = (volatile struct desc *)&(i & 1 ? desc : table)[i % 3];
        d->flags ^= (uint16_t)(1u << (i / 7 % 3));
        d->next = (uint16_t)(i % 5 ? (i % 3) + 1 : 0xffff);
        d->len = i / 11 % 2 ? lengths[i % 5] : i % 3 == 1 ? 512 : i % 3 == 0 ? 16 : 1;
        d->addr = i / 13 % 3 == 0 ? wrong : i & 1 ? dma[HEADER] : dma[TABLE];
    }
    return unused;
}

/* Descriptors change while the device reads them. Huge lengths meet no page but ours: the disk ends before them. */
static void changing(void)
{
    pthread_t thread;
    indirect(48);
    racing = 1;
    if (pthread_create(&thread, NULL, race, NULL))
        die("thread");
    for (unsigned i = 0; i < 64; i++) {
        offer((uint16_t)(i % 3));
        put(QUEUE_NOTIFY, 0);
    }
    racing = 0;
    pthread_join(thread, NULL);
}

/* Any register but those that hold addresses, any value, any width. */
static void random_registers(void)
{
    for (int i = 0; i < 40; i++) {
        unsigned offset = below(0x200), bytes = 1u << below(3);
        if (offset + bytes > QUEUE_DESC && offset < 0xac)
            continue;
        if (below(4))
            put_odd(offset, bytes, below(2) ? (uint32_t)random_u64() : below(4));
        else
            get_odd(offset, bytes);
    }
}

/* Set-ups that are wrong before the first request. */
static void ring_nowhere(void)
{
    uint64_t at[3] = {dma[DESC], dma[AVAIL], dma[USED]};
    at[below(3)] = nowhere() & ~15ull;
    set_queue(size, at[0], at[1], at[2]);
    put(STATUS, 0xf);
    correct_read(desc, 0);
    offer(0);
}

static void ring_misaligned(void)
{
    size = 8; /* small, so that it stays in its page */
    set_queue(size, dma[DESC] + 1 + below(15), dma[AVAIL] + 1, dma[USED] + 1 + below(3));
    put(STATUS, 0xf);
    offer(0);
}

static void ring_size(void)
{
    static const uint32_t sizes[] = {0, 3, 6, 255, 65535, 65536, 0x80000000, 0xffffffff, 32768};
    set_queue(sizes[below(9)], dma[DESC], dma[AVAIL], dma[USED]);
    put(STATUS, 0xf);
    offer(0);
}

static void no_features_ok(void)
{
    reset_device();
    put(STATUS, 1);
    set_queue(size, dma[DESC], dma[AVAIL], dma[USED]);
    put(STATUS, 0x7);
}

enum expected { MUST_ASK, MUST_ANSWER, MUST_NOT_DIE }; /* ask for a reset; complete or ask; anything */

static const struct variation {
    const char *name;
    void (*act)(void);
    enum expected expected;
    int sets_up; /* the queue and DRIVER_OK are the variation's own business */
} variations[] = {
    {"bad_head", bad_head, MUST_ASK, 0},
    {"self_loop", self_loop, MUST_ASK, 0},
    {"long_loop", long_loop, MUST_ASK, 0},
    {"bad_next", bad_next, MUST_ASK, 0},
    {"bad_data_address", bad_data_address, MUST_ANSWER, 0},
    {"bad_header_address", bad_header_address, MUST_ANSWER, 0},
    {"bad_status_address", bad_status_address, MUST_ANSWER, 0},
    {"huge_length", huge_length, MUST_ANSWER, 0},
    {"odd_length", odd_length, MUST_ANSWER, 0},
    {"nested_indirect", nested_indirect, MUST_ASK, 0},
    {"indirect_length", indirect_length, MUST_ASK, 0},
    {"indirect_and_next", indirect_and_next, MUST_ANSWER, 0},
    {"indirect_loop", indirect_loop, MUST_ASK, 0},
    {"indirect_next_outside", indirect_next_outside, MUST_ASK, 0},
    {"indirect_nowhere", indirect_nowhere, MUST_ASK, 0},
    {"index_jump", index_jump, MUST_ASK, 0},
    {"writable_first", writable_first, MUST_ANSWER, 0},
    {"only_header", only_header, MUST_ANSWER, 0},
    {"only_status", only_status, MUST_ANSWER, 0},
    {"short_header", short_header, MUST_ANSWER, 0},
    {"empty_status", empty_status, MUST_ANSWER, 0},
    {"unknown_type", unknown_type, MUST_ANSWER, 0},
    {"beyond_end", beyond_end, MUST_ANSWER, 0},
    {"nonsense_discard", nonsense_discard, MUST_ANSWER, 0},
    {"unknown_flags", unknown_flags, MUST_NOT_DIE, 0},
    {"same_head_twice", same_head_twice, MUST_ANSWER, 0},
    {"random_table", random_table, MUST_NOT_DIE, 0},
    {"wrong_doorbell", wrong_doorbell, MUST_NOT_DIE, 0},
    {"changing", changing, MUST_NOT_DIE, 0},
    {"random_registers", random_registers, MUST_NOT_DIE, 0},
    {"ring_nowhere", ring_nowhere, MUST_ASK, 1},
    {"ring_misaligned", ring_misaligned, MUST_ASK, 1},
    {"ring_size", ring_size, MUST_ASK, 1},
    {"no_features_ok", no_features_ok, MUST_ASK, 1},
};
#define VARIATIONS (sizeof variations / sizeof *variations)

static unsigned long counts[VARIATIONS][OUTCOMES], failures, recoveries;

static void complain(const char *name, const char *what, unsigned long round)
{
    if (failures++ < 10)
        fprintf(stderr, "badring: round %lu, %s: %s\n", round, name, what);
}

static int ready_for_requests(uint64_t drop)
{
    if (!negotiate(drop, 0))
        return 0;
    set_queue(size, dma[DESC], dma[AVAIL], dma[USED]);
    put(STATUS, 0xf);
    return 1;
}

static void one_round(unsigned which, unsigned long round)
{
    const struct variation *v = &variations[which];
    clear_pages();
    size = 4u << below(7); /* 4 to 256 */
    if (!reset_device()) {
        complain(v->name, "the device does not reset", round);
        return;
    }
    /* Bit 29, RING_EVENT_IDX, now and then not; 34.. never: they change the ring. */
    uint64_t drop = ~0ull << 34 | (below(2) ? 1ull << 29 : 0);
    if (v->sets_up ? !negotiate(drop, 0) : !ready_for_requests(drop)) {
        complain(v->name, "FEATURES_OK is refused", round);
        return;
    }
    uint16_t from = used->idx;
    v->act();
    put(QUEUE_NOTIFY, 0);
    enum outcome outcome = wait_outcome(from, v->expected == MUST_NOT_DIE ? 60 : 5000);
    counts[which][outcome]++;
    if (v->expected == MUST_ASK && outcome != RESET_WANTED)
        complain(v->name, outcome == COMPLETED ? "completed instead of a reset asked for" : "no reset asked for", round);
    if (v->expected == MUST_ANSWER && outcome == SILENT)
        complain(v->name, "neither completed nor a reset asked for", round);
}

static void recovery(unsigned long round)
{
    clear_pages();
    size = 64;
    if (!reset_device() || !ready_for_requests(~0ull << 34)) {
        complain("recovery", "the device does not come back", round);
        return;
    }
    uint16_t from = used->idx;
    correct_read(desc, 0);
    offer(0);
    put(QUEUE_NOTIFY, 0);
    if (wait_outcome(from, 10000) != COMPLETED || page[HEADER][512] != 0 || used->ring[from % size].len != 513)
        complain("recovery", "a correct request does not succeed", round);
    else
        recoveries++;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: badring BASE foreign|grant SEED ROUNDS\n");
        return 2;
    }
    uint64_t base = strtoull(argv[1], NULL, 0);
    granted = !strcmp(argv[2], "grant");
    state = strtoull(argv[3], NULL, 0);
    unsigned long rounds = strtoul(argv[4], NULL, 0);

    int memory = open("/dev/mem", O_RDWR | O_SYNC);
    if (memory < 0)
        die("/dev/mem");
    uint8_t *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)(base & ~(uint64_t)(PAGE - 1)));
    if (mapped == MAP_FAILED)
        die("mapping the registers");
    window = mapped + base % PAGE;
    if (get(0) != 0x74726976 || get(8) != 2) {
        fprintf(stderr, "badring: no virtio block device at %#llx\n", (unsigned long long)base);
        return 2;
    }
    if (granted)
        allocate_grants();
    else
        allocate_foreign();
    desc = (struct desc *)page[DESC];
    table = (struct desc *)page[TABLE];
    avail = (volatile struct avail *)page[AVAIL];
    used = (volatile struct used *)page[USED];

    recovery(0);
    for (unsigned long round = 0; round < rounds; round++) {
        one_round((unsigned)(round % VARIATIONS), round);
        if (round % 8 == 7)
            recovery(round);
    }
    recovery(rounds);
    reset_device();

    unsigned long totals[OUTCOMES] = {0};
    printf("{\"rounds\": %lu, \"recoveries\": %lu, \"failures\": %lu, \"by\": {", rounds, recoveries, failures);
    for (unsigned i = 0; i < VARIATIONS; i++) {
        printf("%s\"%s\": [%lu, %lu, %lu]", i ? ", " : "", variations[i].name, counts[i][RESET_WANTED],
               counts[i][COMPLETED], counts[i][SILENT]);
        for (unsigned o = 0; o < OUTCOMES; o++)
            totals[o] += counts[i][o];
    }
    printf("}, \"resets_asked\": %lu, \"completed\": %lu, \"silent\": %lu}\n", totals[RESET_WANTED], totals[COMPLETED],
           totals[SILENT]);
    return failures ? 1 : 0;
}
