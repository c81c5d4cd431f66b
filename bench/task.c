/*
 * task - begin the tasks of a step together, and note when; `inside` notes when their payloads run.
 *
 *   task start AT-NS STAGGER-NS COMMAND...   wait for CLOCK_MONOTONIC = AT + STAGGER * SLURM_LOCALID, then become
 *                                            COMMAND, with the time in the variable BENCH_BEGUN
 *   task now                                 print CLOCK_MONOTONIC in ns
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
  const char *rank = getenv("SLURM_LOCALID");
  if (argc > 4 && strcmp(argv[1], "start") == 0) {
    long long at = atoll(argv[2]) + atoll(argv[3]) * (rank ? atoll(rank) : 0);
    struct timespec t = {at / 1000000000LL, at % 1000000000LL};
    char text[32];
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    snprintf(text, sizeof text, "%lld", now());
    setenv("BENCH_BEGUN", text, 1);
    execv(argv[4], argv + 4);
    return perror(argv[4]), 125;
  }
  if (argc == 2 && strcmp(argv[1], "now") == 0) return printf("%lld\n", now()) < 0;
  return fprintf(stderr, "usage: task start AT STAGGER COMMAND... | now\n"), 2;
}
