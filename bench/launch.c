/*
 * launch - start commands and time them, with as little in between as can be.
 *
 *   launch COMMANDS LOG
 *
 * COMMANDS is a file with one command a line, its arguments separated by the byte 0x1f. For every line with a
 * number that comes on standard input, that command (counted from 0) runs, and one line goes out. After the number
 * NAME=VALUE may follow, words without spaces: variables of that one run.
 *
 *   number wall-ns user-us system-us peak-rss-kib page-faults wait-status
 *
 * The wall time is CLOCK_MONOTONIC from just before the spawn to just after wait4(2); times and faults are those
 * that wait4 tells, so processes which the command leaves behind are not in them. Standard output and error of
 * the commands are appended to LOG; their input is /dev/null. A command is spawned as vfork does it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_COMMANDS = 256, MAX_ARGUMENTS = 128 };
static char *commands[MAX_COMMANDS][MAX_ARGUMENTS + 1];
extern char **environ;

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int load(const char *path) {
  FILE *file = fopen(path, "re");
  char *line = NULL;
  size_t size = 0;
  int n = 0;
  if (!file) return perror(path), -1;
  while (n < MAX_COMMANDS && getline(&line, &size, file) > 0) {
    char *rest = strdup(line), *word;
    int n_words = 0;
    if (rest == NULL) return -1;
    rest[strcspn(rest, "\n")] = 0;
    while (n_words < MAX_ARGUMENTS && (word = strsep(&rest, "\x1f"))) commands[n][n_words++] = word;
    n++;
  }
  free(line);
  fclose(file);
  return n;
}

int main(int argc, char **argv) {
  static char line[65536];
  posix_spawn_file_actions_t actions;
  if (argc != 3) return fprintf(stderr, "usage: launch COMMANDS LOG\n"), 2;
  int n = load(argv[1]);
  int log = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (n < 0 || log < 0 || null < 0) return perror(argv[2]), 1;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, null, 0);
  posix_spawn_file_actions_adddup2(&actions, log, 1);
  posix_spawn_file_actions_adddup2(&actions, log, 2);
  while (fgets(line, sizeof line, stdin)) {
    char *rest = line, *word, *names[MAX_ARGUMENTS];
    int which = atoi(line), status = -1, n_names = 0;
    struct rusage used = {0};
    pid_t pid;
    line[strcspn(line, "\n")] = 0;
    while ((word = strsep(&rest, " "))) {
      char *value = strchr(word, '=');
      if (value == NULL || n_names == MAX_ARGUMENTS) continue;
      *value++ = 0;
      setenv(word, value, 1);
      names[n_names++] = word;
    }
    if (which < 0 || which >= n) return 1;
    long long before = now();
    int error = posix_spawn(&pid, commands[which][0], &actions, NULL, commands[which], environ);
    if (error == 0) wait4(pid, &status, 0, &used);
    long long after = now();
    if (error) dprintf(log, "cannot start %s: %s\n", commands[which][0], strerror(error));
    printf("%d %lld %lld %lld %ld %ld %d\n", which, after - before,
           used.ru_utime.tv_sec * 1000000LL + used.ru_utime.tv_usec,
           used.ru_stime.tv_sec * 1000000LL + used.ru_stime.tv_usec, used.ru_maxrss, used.ru_minflt, status);
    fflush(stdout);
    while (n_names > 0) unsetenv(names[--n_names]);
  }
  return 0;
}
