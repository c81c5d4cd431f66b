/*
 * floor-kernel - the floor of root's way: the kernel mounts the image, then this process becomes the command.
 *
 *   floor-kernel FORMAT IMAGE PLACE [SRC:DST[:OPTION,...]]... -- COMMAND [ARGUMENT...]
 *
 * FORMAT is squashfs, over a loop device that goes with its mount (Linux 5.8), or erofs, from the file itself
 * (6.12). The image is mounted at PLACE, an empty directory, in a mount namespace that nobody else has, before the
 * user namespace of the container is made. The rest is floor.h, with PLACE as its root.
 *
 * What a runtime has to do in addition: make sure that nobody but root could have written the image.
 */
#define _GNU_SOURCE
#include "floor.h"
#include <linux/loop.h>

enum {
  FLOOR_MS_RDONLY = 1, /* linux/mount.h, whose names newer C libraries have as well */
  FLOOR_MS_NOSUID = 2,
  FLOOR_MS_NODEV = 4,
  FLOOR_MS_REC = 16384,
  FLOOR_MS_SLAVE = 1 << 19,
};

/* A loop device over IMAGE; writes its path, which is /dev/loop and a number, into PATH. It stays open. */
static void floor_loop(const char *image, char *path) {
  static struct loop_config config = {.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR};
  long error, number, device, file = CALL(SYS_openat, AT_FDCWD, image, O_RDONLY | O_CLOEXEC, 0, 0);
  if (file < 0) floor_die("open", image, file);
  long control = CALL(SYS_openat, AT_FDCWD, "/dev/loop-control", O_RDWR | O_CLOEXEC, 0, 0);
  if (control < 0) floor_die("open", "/dev/loop-control", control);
  config.fd = (uint32_t)file;
  do {
    char digits[24], *end = path + floor_length("/dev/loop");
    size_t n = 0;
    if ((number = CALL(SYS_ioctl, control, LOOP_CTL_GET_FREE, 0, 0, 0)) < 0) floor_die("no loop device for", image, number);
    do digits[n++] = (char)('0' + number % 10);
    while (number /= 10);
    while (n > 0) *end++ = digits[--n];
    *end = 0;
    if ((device = CALL(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0)) < 0) floor_die("open", path, device);
    /* EBUSY: somebody else was told the same number and was faster. */
    error = CALL(SYS_ioctl, device, LOOP_CONFIGURE, &config, 0, 0);
  } while (error == -16 && CALL(SYS_close, device, 0, 0, 0, 0) == 0);
  if (error < 0) floor_die("configure", path, error);
}

static int floor_main(char **argv, char **environment) {
  char device[32] = "/dev/loop";
  if (argv[0] == NULL || argv[1] == NULL || argv[2] == NULL || argv[3] == NULL) floor_command(argv);
  const char *format = argv[1], *source = argv[2], *place = argv[3];
  long error = CALL(SYS_unshare, CLONE_NEWNS, 0, 0, 0, 0);
  if (error < 0) floor_die("unshare", "", error);
  if ((error = CALL(SYS_mount, 0, "/", 0, FLOOR_MS_REC | FLOOR_MS_SLAVE, 0)) < 0) floor_die("make slave", "/", error);
  if (floor_starts(format, "squashfs")) floor_loop(source, device), source = device;
  error = CALL(SYS_mount, source, place, format, FLOOR_MS_RDONLY | FLOOR_MS_NOSUID | FLOOR_MS_NODEV, 0);
  if (error < 0) floor_die("mount", argv[2], error);
  floor_enter(argv + 2, environment);
  return 125;
}
