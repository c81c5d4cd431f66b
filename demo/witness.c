/*
 * witness: says where a program runs that does not say so itself.
 *
 * A shared library of the demo image, to be named in LD_PRELOAD. The loader of the container, not one of the
 * host, finds it (no host has it at that path) and calls `tell` in the program's own process, before main. One
 * line on standard error: the program, its mount namespace, and what a file says that only the image has.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WITNESS "/etc/situla-image-witness"

__attribute__((constructor)) static void tell(void) {
    char space[64] = "", text[256] = "";
    int file = open(WITNESS, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);

    if (length < 0)
        snprintf(text, sizeof text, "%s", strerror(errno));
    if (file >= 0)
        close(file);
    text[strcspn(text, "\n")] = '\0';
    if (readlink("/proc/self/ns/mnt", space, sizeof space - 1) < 0)
        snprintf(space, sizeof space, "no /proc: %s", strerror(errno));
    /* One write, so that lines of several tasks do not mix. */
    dprintf(STDERR_FILENO, "witness: %s in %s, %s: %s\n", program_invocation_short_name, space, WITNESS, text);
    /* What this program starts need not say it again. */
    unsetenv("LD_PRELOAD");
}
