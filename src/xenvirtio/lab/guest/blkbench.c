/* Block-device load for lab guests: measures, and verifies what it wrote. One line of JSON on standard output.
 *
 *   blkbench read|write|seqread|seqwrite DEVICE [-d DEPTH] [-b BLOCK_BYTES] [-t SECONDS] [-s SEED]
 *   blkbench verify DEVICE [-d DEPTH] [-b BLOCK_BYTES] [-t SECONDS] [-s SEED]
 *   blkbench fill|check DEVICE [-d DEPTH] [-b BLOCK_BYTES] [-s SEED] [-g GENERATION]
 *
 * read, write: random blocks. seqread, seqwrite: in order, 1 MiB unless -b says otherwise.
 * verify: writes self-describing blocks (block number, generation, pseudo-random words) at random places and reads
 * others back, comparing with the generation it remembers; ends with a read of everything it wrote. SIGTERM ends the
 * first part early, whatever the mode.
 * fill writes every block of the device once, check reads and compares them all (also from another boot).
 *
 * O_DIRECT and Linux native AIO by raw system calls, so a static program without libraries but libc. Latencies are
 * from submission to reaping. Exit status 0 when no error and no mismatch, 1 otherwise, 2 for wrong use.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_LIMIT 256
#define MAGIC 0x58564c4142424c4bull /* "XVLABBLK" */

enum mode { READ, WRITE, SEQREAD, SEQWRITE, VERIFY, FILL, CHECK, SWEEP };

struct slot {
    struct iocb iocb;
    uint8_t *buffer;
    uint64_t block, started_ns;
    uint32_t generation; /* what a write carries, or what a read must find; 0: not compared */
};

static const char *device;
static enum mode mode;
static uint64_t seed = 1, block_bytes = 4096, blocks;
static uint32_t generation = 1;
static unsigned depth = 1;
static double seconds = 5;
static int fd;
static aio_context_t context;
static struct slot slots[DEPTH_LIMIT];
static uint32_t *written; /* verify: the generation each block holds, 0 before the first write */
static uint8_t *busy;     /* verify: a request for this block is under way */
static uint64_t random_state, errors, mismatches, completed, requests_read, requests_written;
static uint32_t *latencies_us;
static uint64_t latency_count, latency_limit = 1 << 20;
static uint64_t next_block;
static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t random_u64(void)
{
    return mix(random_state++);
}

/* Every 512-byte sector describes itself, so that a torn or displaced sector is found too. */
static void fill_buffer(uint8_t *buffer, uint64_t block, uint32_t gen)
{
    uint64_t *word = (uint64_t *)buffer;
    for (uint64_t sector = 0; sector < block_bytes / 512; sector++, word += 64) {
        uint64_t number = block * (block_bytes / 512) + sector;
        word[0] = MAGIC;
        word[1] = number;
        word[2] = gen;
        word[3] = seed;
        uint64_t state = mix(number ^ ((uint64_t)gen << 40) ^ (seed << 20));
        for (int i = 4; i < 64; i++)
            word[i] = state = state * 6364136223846793005ull + 1442695040888963407ull;
    }
}

static void compare(const uint8_t *buffer, uint64_t block, uint32_t gen)
{
    static uint8_t *expected;
    if (!expected && posix_memalign((void **)&expected, 4096, block_bytes))
        exit(2);
    fill_buffer(expected, block, gen);
    if (!memcmp(buffer, expected, block_bytes))
        return;
    const uint64_t *have = (const uint64_t *)buffer, *want = (const uint64_t *)expected;
    uint64_t at = 0;
    while (have[at] == want[at])
        at++;
    uint64_t first = at & ~63ull;
    if (mismatches++ < 5)
        fprintf(stderr,
                "blkbench: block %llu, word %llu: %016llx instead of %016llx; its sector says %016llx, sector %llu, "
                "generation %llu, seed %llu; expected generation %u\n",
                (unsigned long long)block, (unsigned long long)at, (unsigned long long)have[at],
                (unsigned long long)want[at], (unsigned long long)have[first], (unsigned long long)have[first + 1],
                (unsigned long long)have[first + 2], (unsigned long long)have[first + 3], gen);
}

/* Prepare the slot's next request; 0 when there is none left. */
static int prepare(struct slot *s, int draining)
{
    int is_write = mode == WRITE || mode == SEQWRITE || mode == FILL;
    s->generation = 0;
    if (draining)
        return 0;
    switch (mode) {
    case READ:
    case WRITE:
        s->block = random_u64() % blocks;
        break;
    case SEQREAD:
    case SEQWRITE:
        s->block = next_block++ % blocks;
        break;
    case FILL:
    case CHECK:
        if (next_block == blocks)
            return 0;
        s->block = next_block++;
        s->generation = generation;
        break;
    case SWEEP:
        while (next_block < blocks && !written[next_block])
            next_block++;
        if (next_block == blocks)
            return 0;
        s->block = next_block++;
        s->generation = written[s->block];
        break;
    case VERIFY:
        do
            s->block = random_u64() % blocks;
        while (busy[s->block]);
        busy[s->block] = 1;
        is_write = !written[s->block] || (random_u64() & 1);
        s->generation = is_write ? written[s->block] + 1 : written[s->block];
        break;
    }
    if (is_write)
        fill_buffer(s->buffer, s->block, s->generation ? s->generation : 1);
    memset(&s->iocb, 0, sizeof s->iocb);
    s->iocb.aio_data = (uint64_t)(s - slots);
    s->iocb.aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    s->iocb.aio_fildes = (uint32_t)fd;
    s->iocb.aio_buf = (uint64_t)(uintptr_t)s->buffer;
    s->iocb.aio_nbytes = block_bytes;
    s->iocb.aio_offset = (int64_t)(s->block * block_bytes);
    return 1;
}

static void finish(struct slot *s, int64_t result, uint64_t reaped_ns)
{
    int is_write = s->iocb.aio_lio_opcode == IOCB_CMD_PWRITE;
    completed++;
    if (is_write)
        requests_written++;
    else
        requests_read++;
    if (latency_count < latency_limit)
        latencies_us[latency_count++] = (uint32_t)((reaped_ns - s->started_ns) / 1000);
    if (result != (int64_t)block_bytes) {
        if (errors++ < 5)
            fprintf(stderr, "blkbench: %s of block %llu: %s (%lld)\n", is_write ? "write" : "read",
                    (unsigned long long)s->block, result < 0 ? strerror((int)-result) : "short", (long long)result);
    } else if (is_write && mode == VERIFY) {
        written[s->block] = s->generation;
    } else if (!is_write && s->generation) {
        compare(s->buffer, s->block, s->generation);
    }
    if (mode == VERIFY)
        busy[s->block] = 0;
}

/* Keep `depth` requests under way until time is up (0: until there are none left). Gives the seconds it took. */
static double run(double limit_s)
{
    struct io_event events[DEPTH_LIMIT];
    struct iocb *batch[DEPTH_LIMIT];
    struct slot *idle[DEPTH_LIMIT];
    unsigned idle_count = depth, under_way = 0;
    uint64_t begun = now_ns(), end = begun + (uint64_t)(limit_s * 1e9);
    for (unsigned i = 0; i < depth; i++)
        idle[i] = &slots[i];
    for (;;) {
        long count = 0;
        int draining = limit_s > 0 && (stopped || now_ns() >= end);
        while (idle_count && prepare(idle[idle_count - 1], draining))
            batch[count++] = &idle[--idle_count]->iocb;
        uint64_t submitted = now_ns();
        for (long done = 0; done < count;) {
            for (long i = done; i < count; i++)
                slots[batch[i]->aio_data].started_ns = submitted;
            long taken = syscall(SYS_io_submit, context, count - done, batch + done);
            if (taken < 0) {
                if (errno == EAGAIN || errno == EINTR)
                    continue;
                perror("blkbench: io_submit");
                exit(1);
            }
            done += taken;
            under_way += (unsigned)taken;
        }
        if (!under_way)
            break;
        long reaped = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
        if (reaped < 0) {
            if (errno == EINTR)
                continue;
            perror("blkbench: io_getevents");
            exit(1);
        }
        uint64_t reaped_ns = now_ns();
        for (long i = 0; i < reaped; i++) {
            struct slot *s = &slots[events[i].data];
            finish(s, events[i].res, reaped_ns);
            idle[idle_count++] = s;
            under_way--;
        }
    }
    return (double)(now_ns() - begun) / 1e9;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t percentile(double share)
{
    return latency_count ? latencies_us[(uint64_t)((double)(latency_count - 1) * share)] : 0;
}

static void usage(void)
{
    fprintf(stderr, "usage: blkbench read|write|seqread|seqwrite|verify|fill|check DEVICE"
                    " [-d DEPTH] [-b BLOCK_BYTES] [-t SECONDS] [-s SEED] [-g GENERATION]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"read", "write", "seqread", "seqwrite", "verify", "fill", "check"};
    if (argc < 3)
        usage();
    unsigned found = 0;
    while (found < 7 && strcmp(argv[1], names[found]))
        found++;
    if (found == 7)
        usage();
    mode = (enum mode)found;
    device = argv[2];
    if (mode == SEQREAD || mode == SEQWRITE)
        block_bytes = 1 << 20;
    for (int option; (option = getopt(argc - 2, argv + 2, "d:b:t:s:g:")) != -1;) {
        switch (option) {
        case 'd': depth = (unsigned)atoi(optarg); break;
        case 'b': block_bytes = strtoull(optarg, NULL, 0); break;
        case 't': seconds = atof(optarg); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'g': generation = (uint32_t)strtoul(optarg, NULL, 0); break;
        default: usage();
        }
    }
    if (!depth || depth > DEPTH_LIMIT || !block_bytes || block_bytes % 512 || seconds <= 0 || !generation)
        usage();

    int writes = mode != READ && mode != SEQREAD && mode != CHECK;
    fd = open(device, (writes ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    struct stat status;
    uint64_t bytes = 0;
    if (fd < 0 || fstat(fd, &status)) {
        fprintf(stderr, "blkbench: %s: %s\n", device, strerror(errno));
        return 2;
    }
    if (S_ISBLK(status.st_mode)) {
        if (ioctl(fd, BLKGETSIZE64, &bytes)) {
            perror("blkbench: BLKGETSIZE64");
            return 2;
        }
    } else {
        bytes = (uint64_t)status.st_size;
    }
    blocks = bytes / block_bytes;
    if (blocks < 2 * depth) {
        fprintf(stderr, "blkbench: %s: %llu blocks are too few for depth %u\n", device, (unsigned long long)blocks, depth);
        return 2;
    }
    random_state = mix(seed);
    latencies_us = calloc(latency_limit, sizeof *latencies_us);
    written = calloc(blocks, sizeof *written);
    busy = calloc(blocks, 1);
    if (!latencies_us || !written || !busy || syscall(SYS_io_setup, depth, &context)) {
        perror("blkbench: set-up");
        return 2;
    }
    for (unsigned i = 0; i < depth; i++)
        if (posix_memalign((void **)&slots[i].buffer, 4096, block_bytes))
            return 2;

    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    double took = run(mode == FILL || mode == CHECK ? 0 : seconds);
    uint64_t requests = completed, swept = 0;
    if (mode == VERIFY) {
        mode = SWEEP;
        next_block = 0;
        run(0);
        swept = completed - requests;
        requests_read -= swept;
        mode = VERIFY;
    }
    if (writes && fsync(fd)) {
        errors++;
        perror("blkbench: fsync");
    }
    qsort(latencies_us, latency_count, sizeof *latencies_us, by_value);
    printf("{\"mode\": \"%s\", \"depth\": %u, \"block_bytes\": %llu, \"requests\": %llu, \"reads\": %llu, "
           "\"writes\": %llu, \"swept\": %llu, \"seconds\": %.3f, \"iops\": %.1f, \"mib_per_s\": %.2f, \"p50_us\": %u, "
           "\"p99_us\": %u, \"max_us\": %u, \"errors\": %llu, \"mismatches\": %llu}\n",
           names[mode], depth, (unsigned long long)block_bytes, (unsigned long long)requests,
           (unsigned long long)requests_read, (unsigned long long)requests_written, (unsigned long long)swept, took,
           (double)requests / took, (double)requests * (double)block_bytes / took / 1048576.0, percentile(0.5),
           percentile(0.99), percentile(1.0), (unsigned long long)errors, (unsigned long long)mismatches);
    return errors || mismatches ? 1 : 0;
}
