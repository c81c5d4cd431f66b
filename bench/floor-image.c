/*
 * floor-image - the least that turning an OCI image into one verified SquashFS can cost: the arithmetic of it and
 * nothing else, on one processor.
 *
 *   floor-image LEVEL TREE [LAYER...]
 *
 * SHA-256 of every layer as it is stored, inflating it, SHA-256 of what comes out (OCI image specification,
 * rootfs.diff_ids), zstd of level LEVEL of the files of the final tree in blocks of 128 KiB, SHA-256 of what that gives.
 * No tar is read, nothing is merged, no tables are made and nothing is written. TREE is the image unpacked; a file with
 * several names counts once, files of equal content count twice.
 *
 * Each part is done by the fastest library that was found for it: OpenSSL's SHA-256, which uses the processor's
 * instructions; libdeflate, which has the whole layer in memory and its result too; the libzstd of our own build. What
 * is counted of a part is the processor time between two looks at the clock around it. Reading files into memory, and
 * making the pages for what comes out, is not arithmetic and not counted; the sum of everything is told beside it.
 */
#define _GNU_SOURCE
/* The functions without a choice of provider: finding one takes longer than hashing a small image. */
#define OPENSSL_API_COMPAT 0x10100000L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libdeflate.h>
#include <openssl/sha.h>
#include <search.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
/* For ZSTD_decompressBound. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

/* The block size that is usual for SquashFS, and our writer's default. */
enum { BLOCK = 128 << 10 };

/* The parts: nanoseconds of processor time. */
static int64_t hash_stored, inflate, hash_plain, zstd, hash_output;
static uint64_t n_stored, n_plain, n_output;

__attribute__((noreturn)) static void die(const char *what, const char *why) {
  fprintf(stderr, "floor-image: %s: %s\n", what, why);
  exit(1);
}

static void check(int ok, const char *what) {
  if (!ok) die(what, strerror(errno));
}

static int64_t used(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Adds the processor time of WORK to TOTAL. */
#define TIMED(total, work)                             \
  do {                                                 \
    int64_t before = used(CLOCK_THREAD_CPUTIME_ID);    \
    work;                                              \
    (total) += used(CLOCK_THREAD_CPUTIME_ID) - before; \
  } while (0)

/* Memory with all of its pages there, which grows and is used again. */
struct room {
  uint8_t *bytes;
  size_t size;
};

static void make_room(struct room *room, size_t size) {
  if (size <= room->size) return;
  if (room->bytes) munmap(room->bytes, room->size);
  room->size = size;
  room->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(room->bytes != MAP_FAILED, "memory");
  /* Neither is an error where it is not known. */
  madvise(room->bytes, size, MADV_HUGEPAGE);
  for (size_t at = 0; at < size; at += 4096) ((volatile uint8_t *)room->bytes)[at] = 0;
}

/* Reads until SIZE bytes are there or there are no more. */
static size_t fill(int fd, uint8_t *bytes, size_t size, const char *path) {
  size_t have = 0;
  while (have < size) {
    ssize_t n = read(fd, bytes + have, size - have);
    if (n < 0 && errno == EINTR) continue;
    check(n >= 0, path);
    if (n == 0) break;
    have += (size_t)n;
  }
  return have;
}

static void hash(const uint8_t *bytes, size_t size) {
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256_CTX state;
  SHA256_Init(&state);
  SHA256_Update(&state, bytes, size);
  SHA256_Final(digest, &state);
}

/* Inflates the members of a gzip file, of which there is one as a rule; returns the size, 0 where there is too little room. */
static size_t inflate_gzip(struct libdeflate_decompressor *inflater, const uint8_t *from, size_t size, struct room *to,
                           const char *path) {
  size_t done = 0;
  while (size > 0) {
    size_t taken, given;
    enum libdeflate_result result =
        libdeflate_gzip_decompress_ex(inflater, from, size, to->bytes + done, to->size - done, &taken, &given);
    if (result == LIBDEFLATE_INSUFFICIENT_SPACE) return 0;
    if (result != LIBDEFLATE_SUCCESS) die(path, "not a gzip file");
    from += taken, size -= taken, done += given;
  }
  return done;
}

static void layer(const char *path) {
  static struct room stored, plain;
  struct stat stat;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path);
  check(fstat(fd, &stat) == 0, path);
  size_t size = (size_t)stat.st_size, n = 0;
  make_room(&stored, size);
  if (fill(fd, stored.bytes, size, path) != size || size < 4) die(path, "it is shorter than it was");
  close(fd);
  n_stored += size;
  TIMED(hash_stored, hash(stored.bytes, size));
  const uint8_t *content = stored.bytes;
  if (stored.bytes[0] == 0x1f && stored.bytes[1] == 0x8b) {
    struct libdeflate_decompressor *inflater = libdeflate_alloc_decompressor();
    check(inflater != NULL, "memory");
    /* The last word of a member is its length, but for multiples of 4 GiB (RFC 1952): enough in nearly all cases. */
    uint32_t length;
    memcpy(&length, stored.bytes + size - 4, 4);
    make_room(&plain, (size_t)length + 1);
    for (;;) {
      int64_t spent = 0;
      TIMED(spent, n = inflate_gzip(inflater, stored.bytes, size, &plain, path));
      if (n > 0) {
        inflate += spent;
        break;
      }
      make_room(&plain, 2 * plain.size);
    }
    libdeflate_free_decompressor(inflater);
    content = plain.bytes;
  } else if (memcmp(stored.bytes, "\x28\xb5\x2f\xfd", 4) == 0) {
    unsigned long long bound = ZSTD_decompressBound(stored.bytes, size);
    if (bound == ZSTD_CONTENTSIZE_ERROR) die(path, "not a zstd file");
    make_room(&plain, bound);
    TIMED(inflate, n = ZSTD_decompress(plain.bytes, plain.size, stored.bytes, size));
    if (ZSTD_isError(n)) die(path, ZSTD_getErrorName(n));
    content = plain.bytes;
  } else {
    n = size;
  }
  n_plain += n;
  TIMED(hash_plain, hash(content, n));
}

static ZSTD_CCtx *compressor;
static SHA256_CTX output_hash;

static void compress(const uint8_t *bytes, size_t size) {
  static uint8_t output[ZSTD_COMPRESSBOUND(BLOCK)];
  size_t n;
  TIMED(zstd, n = ZSTD_compress2(compressor, output, sizeof output, bytes, size));
  if (ZSTD_isError(n)) die("zstd", ZSTD_getErrorName(n));
  const uint8_t *kept = n < size ? output : bytes;
  n = n < size ? n : size;
  n_output += n;
  TIMED(hash_output, SHA256_Update(&output_hash, kept, n));
}

/* Ends of files share blocks, as fragments do. */
static uint8_t tail[2 * BLOCK];
static size_t n_tail;

static int by_number(const void *one, const void *other) {
  uintptr_t a = (uintptr_t)one, b = (uintptr_t)other;
  return (a > b) - (a < b);
}

static void file(int dir, const char *name) {
  static uint8_t block[BLOCK];
  int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  check(fd >= 0, name);
  size_t n;
  while ((n = fill(fd, block, BLOCK, name)) == BLOCK)
    /* Zeros are a hole, and cost nothing. */
    if (block[0] != 0 || memcmp(block, block + 1, BLOCK - 1) != 0) compress(block, BLOCK);
  close(fd);
  memcpy(tail + n_tail, block, n);
  n_tail += n;
  if (n_tail >= BLOCK) {
    compress(tail, BLOCK);
    n_tail -= BLOCK;
    memmove(tail, tail + BLOCK, n_tail);
  }
}

static void directory(int fd) {
  static void *seen; /* Inodes that have several names. */
  DIR *entries = fdopendir(fd);
  struct dirent *entry;
  check(entries != NULL, "directory");
  while ((entry = readdir(entries))) {
    struct stat stat;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    check(fstatat(fd, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW) == 0, entry->d_name);
    if (S_ISDIR(stat.st_mode)) {
      int below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
      check(below >= 0, entry->d_name);
      directory(below);
    } else if (S_ISREG(stat.st_mode)) {
      if (stat.st_nlink > 1) {
        void *key = (void *)(uintptr_t)stat.st_ino;
        if (tfind(key, &seen, by_number)) continue;
        check(tsearch(key, &seen, by_number) != NULL, "memory");
      }
      file(fd, entry->d_name);
    }
  }
  closedir(entries);
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: floor-image LEVEL TREE [LAYER...]\n"), 2;
  compressor = ZSTD_createCCtx();
  check(compressor != NULL, "memory");
  ZSTD_CCtx_setParameter(compressor, ZSTD_c_compressionLevel, atoi(argv[1]));
  for (int i = 3; i < argc; i++) layer(argv[i]);
  int tree = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(tree >= 0, argv[2]);
  SHA256_Init(&output_hash);
  directory(tree);
  if (n_tail > 0) compress(tail, n_tail);
  uint8_t digest[SHA256_DIGEST_LENGTH];
  TIMED(hash_output, SHA256_Final(digest, &output_hash));
  double ms = 1e-6, sum = (double)(hash_stored + inflate + hash_plain + zstd + hash_output) * ms;
  printf("sha256 of layers %.1f ms (%llu bytes), inflate %.1f ms, sha256 of tars %.1f ms (%llu bytes), zstd %.1f ms, "
         "sha256 of output %.1f ms (%llu bytes): sum %.1f ms; with reading files and making pages %.1f ms\n",
         (double)hash_stored * ms, (unsigned long long)n_stored, (double)inflate * ms, (double)hash_plain * ms,
         (unsigned long long)n_plain, (double)zstd * ms, (double)hash_output * ms, (unsigned long long)n_output, sum,
         (double)used(CLOCK_PROCESS_CPUTIME_ID) * ms);
  return 0;
}
