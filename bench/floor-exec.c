/*
 * floor-exec - the floor of the exec-only shape: this process becomes the command and nothing stays behind.
 * Arguments and outcome: floor.h.
 */
#define _GNU_SOURCE
#include "floor.h"

static int floor_main(char **argv, char **environment) {
  floor_enter(argv, environment);
  return 125;
}
