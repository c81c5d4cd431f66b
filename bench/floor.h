/*
 * floor.h - the least that a container start on Linux can be: what both floors have in common.
 *
 * Arguments:  FLOOR ROOT [SRC:DST[:OPTION,...]]... -- COMMAND [ARGUMENT...]
 *
 * The outcome is the one that `situla exec` has, with the same binds: a user namespace in which the user keeps
 * his ids, a mount namespace, ROOT mounted read-only, nosuid and nodev, every SRC bound recursively at DST with
 * the same attributes (options ro, nosuid, nodev, noexec), the host's root gone, no new privileges, COMMAND.
 *
 * What a runtime has to do and this does not: find out what to mount, look whether sources and mount points
 * exist, keep links of the image from leading out of it, close descriptors, restore signals, say what went
 * wrong. COMMAND is a full path.
 *
 * Compiled with -DNO_LIBC -nostdlib it is free of the C library, whose start-up costs several CPUID
 * instructions: nothing on bare metal, much where a hypervisor traps them.
 */
#ifndef FLOOR_H
#define FLOOR_H
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000 /* linux/fcntl.h */
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000 /* linux/fcntl.h */
#endif
#define FLOOR_MNT_DETACH 2 /* linux/fs.h */
#define FLOOR_ENOSYS 38    /* asm-generic/errno.h */
/* Linux 6.15; older headers have neither name nor number. The number is the same on every architecture. */
#define FLOOR_SYS_OPEN_TREE_ATTR 467

/* A system call; returns what the kernel does, a negative errno on failure. */
static inline long floor_call(long number, long a, long b, long c, long d, long e) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
#else
#error "no system calls written down for this architecture"
#endif
}
#define CALL(number, a, b, c, d, e) floor_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

static size_t floor_length(const char *text) {
  size_t n = 0;
  while (text[n]) n++;
  return n;
}

static char *floor_find(char *text, char c) {
  for (; *text; text++)
    if (*text == c) return text;
  return NULL;
}

static int floor_starts(const char *text, const char *start) {
  while (*start)
    if (*text++ != *start++) return 0;
  return 1;
}

static void floor_say(const char *text) { CALL(SYS_write, 2, text, floor_length(text), 0, 0); }

static void floor_die(const char *what, const char *which, long error) {
  char digits[] = " (errno 000)\n";
  digits[8] += -error / 100 % 10, digits[9] += -error / 10 % 10, digits[10] += -error % 10;
  floor_say("floor: "), floor_say(what), floor_say(" "), floor_say(which), floor_say(digits);
  CALL(SYS_exit_group, 125, 0, 0, 0, 0);
}

static void floor_write(const char *path, const char *text, size_t length) {
  long fd = CALL(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, 0);
  if (fd < 0) floor_die("open", path, fd);
  long done = CALL(SYS_write, fd, text, length, 0, 0);
  if (done != (long)length) floor_die("write", path, done);
  CALL(SYS_close, fd, 0, 0, 0, 0);
}

/* Maps one id to itself. */
static void floor_map(const char *path, unsigned long id) {
  char digits[24], text[64];
  size_t n = 0, length = 0;
  do digits[n++] = (char)('0' + id % 10);
  while (id /= 10);
  for (int twice = 0; twice < 2; twice++) {
    for (size_t i = n; i > 0; i--) text[length++] = digits[i - 1];
    text[length++] = ' ';
  }
  text[length++] = '1';
  floor_write(path, text, length);
}

/* A detached copy of the mounts at PATH and below, with attributes set: one call, or two before Linux 6.15. */
static long floor_open(const char *path, uint64_t attributes) {
  struct mount_attr attr = {.attr_set = attributes};
  long flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
  long fd = CALL(FLOOR_SYS_OPEN_TREE_ATTR, AT_FDCWD, path, flags, &attr, sizeof attr);
  if (fd >= 0) return fd;
  if (fd != -FLOOR_ENOSYS) floor_die("open_tree_attr", path, fd);
  fd = CALL(SYS_open_tree, AT_FDCWD, path, flags, 0, 0);
  if (fd < 0) floor_die("open_tree", path, fd);
  long set = CALL(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr);
  if (set < 0) floor_die("mount_setattr", path, set);
  return fd;
}

static uint64_t floor_attributes(const char *options) {
  uint64_t set = 0;
  while (options != NULL && *options) {
    if (floor_starts(options, "nosuid")) set |= MOUNT_ATTR_NOSUID;
    if (floor_starts(options, "nodev")) set |= MOUNT_ATTR_NODEV;
    if (floor_starts(options, "noexec")) set |= MOUNT_ATTR_NOEXEC;
    if (floor_starts(options, "ro")) set |= MOUNT_ATTR_RDONLY;
    while (*options && *options++ != ',') {}
  }
  return set;
}

/* Finds the command: what follows "--". */
static char **floor_command(char **argv) {
  for (char **a = argv[0] ? argv + 1 : argv; *a; a++)
    if (floor_starts(*a, "--") && (*a)[2] == 0 && a > argv + 1 && a[1]) return a + 1;
  floor_say("usage: FLOOR ROOT [SRC:DST[:OPTION,...]]... -- COMMAND [ARGUMENT...]\n");
  CALL(SYS_exit_group, 2, 0, 0, 0, 0);
  return NULL;
}

/* Enters the container and becomes the command. */
static void floor_enter(char **argv, char **environment) {
  enum { MAX_BINDS = 64 };
  long sources[MAX_BINDS], n = 0, error;
  char *targets[MAX_BINDS], **command = floor_command(argv);
  long uid = CALL(SYS_getuid, 0, 0, 0, 0, 0), gid = CALL(SYS_getgid, 0, 0, 0, 0, 0);
  if ((error = CALL(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS, 0, 0, 0, 0)) < 0) floor_die("unshare", "", error);
  floor_write("/proc/self/setgroups", "deny", 4);
  floor_map("/proc/self/gid_map", gid);
  floor_map("/proc/self/uid_map", uid);
  for (char **a = argv + 2; a < command - 1 && n < MAX_BINDS; a++, n++) {
    char *target = floor_find(*a, ':'), *options;
    if (target == NULL) floor_die("no destination in", *a, 0);
    *target++ = 0;
    if ((options = floor_find(target, ':')) != NULL) *options++ = 0;
    sources[n] = floor_open(*a, floor_attributes(options));
    targets[n] = target + (*target == '/');
  }
  long root = floor_open(argv[1], MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
  error = CALL(SYS_move_mount, root, "", AT_FDCWD, "/tmp", MOVE_MOUNT_F_EMPTY_PATH);
  if (error < 0) floor_die("move_mount", argv[1], error);
  for (long i = 0; i < n; i++) {
    error = CALL(SYS_move_mount, sources[i], "", root, targets[i], MOVE_MOUNT_F_EMPTY_PATH);
    if (error < 0) floor_die("move_mount to", targets[i], error);
  }
  if ((error = CALL(SYS_fchdir, root, 0, 0, 0, 0)) < 0) floor_die("fchdir", argv[1], error);
  /* Old root on top of the new one, then away with it: pivot_root(2), NOTES. */
  if ((error = CALL(SYS_pivot_root, ".", ".", 0, 0, 0)) < 0) floor_die("pivot_root", argv[1], error);
  if ((error = CALL(SYS_umount2, ".", FLOOR_MNT_DETACH, 0, 0, 0)) < 0) floor_die("umount", "the old root", error);
  if ((error = CALL(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) < 0) floor_die("no_new_privs", "", error);
  error = CALL(SYS_execve, command[0], command, environment, 0, 0);
  floor_die("execve", command[0], error);
}

/* The program; each floor has its own. */
static int floor_main(char **argv, char **environment);

#ifdef NO_LIBC
/* The stack at the start of a process: argc, argv, NULL, environment, NULL (ABI, process initialisation). */
__attribute__((used, noreturn)) static void floor_begin(long *stack) {
  char **argv = (char **)(stack + 1);
  long status = floor_main(argv, argv + stack[0] + 1);
  for (;;) CALL(SYS_exit_group, status, 0, 0, 0, 0);
}
#if defined(__x86_64__)
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call floor_begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x0, sp\n bl floor_begin\n");
#endif
/* What the compiler may call for initialisers. */
void *memset(void *place, int c, size_t n) {
  for (volatile char *p = place; n > 0; n--) *p++ = (char)c;
  return place;
}
#else
int main(int argc, char **argv, char **environment) { return argc < 1 ? 2 : floor_main(argv, environment); }
#endif
#endif
