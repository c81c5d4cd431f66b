/*
 * floor-supervised - the floor of the supervised shape: a parent waits for the command and ends as it does.
 * Arguments and outcome: floor.h.
 *
 * It forks; vfork would be a little faster and would leave the parent deaf to signals while the child sets up.
 */
#define _GNU_SOURCE
#include "floor.h"

static int floor_main(char **argv, char **environment) {
  int status = 0;
  floor_command(argv);
  long child = CALL(SYS_clone, 17 /* SIGCHLD */, 0, 0, 0, 0);
  if (child < 0) floor_die("fork", "", child);
  if (child == 0) floor_enter(argv, environment);
  long done = CALL(SYS_wait4, child, &status, 0, 0, 0);
  if (done < 0) floor_die("wait4", "", done);
  /* wait(2): the low seven bits are the signal, the second byte is the exit status. */
  return (status & 0x7f) ? 128 + (status & 0x7f) : (status >> 8) & 0xff;
}
