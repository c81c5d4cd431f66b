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
 */
#ifndef FLOOR_H
#define FLOOR_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MNT_DETACH
#define MNT_DETACH 2 /* linux/fs.h is in the way of sys/mount.h; umount(2) */
#endif
/* Linux 6.15; older headers have neither name nor number. The number is the same on every architecture. */
#define FLOOR_SYS_OPEN_TREE_ATTR 467

extern char **environ;

static void floor_die(const char *what, const char *which) {
  fprintf(stderr, "floor: %s %s: %s\n", what, which, strerror(errno));
  _exit(125);
}

static void floor_write(const char *path, const char *text, size_t length) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, length) != (ssize_t)length) floor_die("write", path);
  close(fd);
}

/* A detached copy of the mounts at PATH and below, with attributes set: one call, or two before Linux 6.15. */
static int floor_open(const char *path, uint64_t attributes) {
  struct mount_attr attr = {.attr_set = attributes};
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
  int fd = syscall(FLOOR_SYS_OPEN_TREE_ATTR, AT_FDCWD, path, flags, &attr, sizeof attr);
  if (fd >= 0) return fd;
  if (errno != ENOSYS) floor_die("open_tree_attr", path);
  fd = syscall(SYS_open_tree, AT_FDCWD, path, flags);
  if (fd < 0) floor_die("open_tree", path);
  if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) < 0)
    floor_die("mount_setattr", path);
  return fd;
}

static uint64_t floor_attributes(const char *options) {
  uint64_t set = 0;
  if (options == NULL) return MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  if (strstr(options, "nosuid")) set |= MOUNT_ATTR_NOSUID;
  if (strstr(options, "nodev")) set |= MOUNT_ATTR_NODEV;
  if (strstr(options, "noexec")) set |= MOUNT_ATTR_NOEXEC;
  if (strstr(options, "ro")) set |= MOUNT_ATTR_RDONLY;
  return set;
}

/* Finds the command: the argument after "--". */
static char **floor_command(char **argv) {
  for (char **a = argv + 1; *a; a++)
    if (strcmp(*a, "--") == 0 && a[1]) return a + 1;
  fprintf(stderr, "usage: %s ROOT [SRC:DST[:OPTION,...]]... -- COMMAND [ARGUMENT...]\n", argv[0]);
  _exit(2);
}

/* Enters the container and becomes the command. */
static void floor_enter(char **argv) {
  char map[64];
  char **command = floor_command(argv);
  unsigned uid = getuid(), gid = getgid();
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) floor_die("unshare", "");
  floor_write("/proc/self/setgroups", "deny", 4);
  floor_write("/proc/self/gid_map", map, snprintf(map, sizeof map, "%u %u 1\n", gid, gid));
  floor_write("/proc/self/uid_map", map, snprintf(map, sizeof map, "%u %u 1\n", uid, uid));

  enum { MAX_BINDS = 64 };
  int sources[MAX_BINDS], n = 0;
  char *targets[MAX_BINDS];
  for (char **a = argv + 2; a < command - 1 && n < MAX_BINDS; a++, n++) {
    char *target = strchr(*a, ':');
    if (target == NULL) floor_die("no destination in", *a);
    *target++ = 0;
    char *options = strchr(target, ':');
    if (options != NULL) *options++ = 0;
    sources[n] = floor_open(*a, floor_attributes(options));
    targets[n] = target + (*target == '/');
  }
  int root = floor_open(argv[1], MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
  if (syscall(SYS_move_mount, root, "", AT_FDCWD, "/tmp", MOVE_MOUNT_F_EMPTY_PATH) < 0)
    floor_die("move_mount", argv[1]);
  for (int i = 0; i < n; i++)
    if (syscall(SYS_move_mount, sources[i], "", root, targets[i], MOVE_MOUNT_F_EMPTY_PATH) < 0)
      floor_die("move_mount to", targets[i]);
  if (fchdir(root) < 0) floor_die("fchdir", argv[1]);
  /* Old root on top of the new one, then away with it: pivot_root(2), NOTES. */
  if (syscall(SYS_pivot_root, ".", ".") < 0) floor_die("pivot_root", argv[1]);
  if (syscall(SYS_umount2, ".", MNT_DETACH) < 0) floor_die("umount", "the old root");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) floor_die("prctl", "no_new_privs");
  execve(command[0], command, environ);
  floor_die("execve", command[0]);
}
#endif
