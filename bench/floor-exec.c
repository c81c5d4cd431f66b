/*
 * floor-exec - the floor of the exec-only shape: this process becomes the command and nothing stays behind.
 * Arguments and outcome: floor.h.
 */
#include "floor.h"

int main(int argc, char **argv) {
  if (argc < 4) floor_command((char *[]){argv[0], NULL});
  floor_enter(argv);
}
