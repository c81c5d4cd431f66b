/*
 * floor-supervised - the floor of the supervised shape: a parent waits for the command and ends as it does.
 * Arguments and outcome: floor.h.
 *
 * It forks; vfork would be a little faster and would leave the parent deaf to signals while the child sets up.
 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "floor.h"

int main(int argc, char **argv) {
  int status;
  if (argc < 4) floor_command((char *[]){argv[0], NULL});
  pid_t child = fork();
  if (child < 0) floor_die("fork", "");
  if (child == 0) floor_enter(argv);
  if (waitpid(child, &status, 0) < 0) floor_die("waitpid", "");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
