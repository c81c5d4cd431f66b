/*
 * inside - say when the first instruction of a task's payload ran.
 *
 * Prints "task" SLURM_LOCALID BENCH_BEGUN now, the last in ns of CLOCK_MONOTONIC; `task start` has set BENCH_BEGUN.
 *
 * Without the C library, whose start-up runs before `main` and would be counted as the container's: most of a
 * millisecond where CPUID is trapped.
 */
#include "floor.h"

#include <time.h>

/* The value of an environment variable, "?" without it; NAME ends in '='. */
static const char *value_of(char **environment, const char *name) {
  for (; *environment; environment++) {
    const char *have = *environment, *want = name;
    while (*want && *have == *want) have++, want++;
    if (!*want) return have;
  }
  return "?";
}

static char *append(char *at, const char *end, const char *text) {
  while (*text && at < end) *at++ = *text++;
  return at;
}

static int floor_main(char **argv, char **environment) {
  struct timespec t;
  char line[128], digits[24], *at = line, *end = line + sizeof line - sizeof digits - 1, *digit = digits + sizeof digits;
  long long now;
  (void)argv;
  if (CALL(SYS_clock_gettime, CLOCK_MONOTONIC, &t, 0, 0, 0) != 0) return 1;
  now = t.tv_sec * 1000000000LL + t.tv_nsec;
  *--digit = 0;
  do *--digit = (char)('0' + now % 10);
  while ((now /= 10) > 0);
  at = append(at, end, "task ");
  at = append(at, end, value_of(environment, "SLURM_LOCALID="));
  at = append(at, end, " ");
  at = append(at, end, value_of(environment, "BENCH_BEGUN="));
  at = append(at, end, " ");
  at = append(at, line + sizeof line - 1, digit);
  *at++ = '\n';
  return CALL(SYS_write, 1, line, at - line, 0, 0) != at - line;
}
