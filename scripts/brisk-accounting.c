/* Loaded into slurmctld by LD_PRELOAD: its thread "dbinx" looks for jobs that accounting does not know yet, and
 * pauses five seconds in between, which no setting changes. A test that compares what a job did
 * with what sacct says of it would wait for that every time. Only the pause is shortened; what is sent, and to whom,
 * stays Slurm's. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { PAUSE_NS = 50 * 1000 * 1000 };

/* Conditions of slurmctld all have the default clock, CLOCK_REALTIME: what pthread_cond_timedwait(3) means for them. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
	char thread[16] = "";
	struct timespec soon;

	if (prctl(PR_GET_NAME, thread) == 0 && strcmp(thread, "dbinx") == 0) {
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += PAUSE_NS;
		if (soon.tv_nsec >= 1000000000) {
			soon.tv_nsec -= 1000000000;
			soon.tv_sec++;
		}
		if (soon.tv_sec < until->tv_sec)
			until = &soon;
	}
	return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, until);
}
