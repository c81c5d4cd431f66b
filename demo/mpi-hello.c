/* mpi-hello: shows that ranks started by Slurm, each inside the image, form one MPI job.
 *
 * Every rank says who and where it is and in which mount namespace; then all sum their ranks. Rank 0
 * checks the sum itself, so a wrong world (eight jobs of one rank each) cannot look like success.
 * Usage: mpi-hello [EXPECTED_RANKS]
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE 256

int main(int argc, char **argv)
{
	int rank, size, sum = 0;
	char host[64] = "?", line[LINE];
	struct stat ns, witness;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

	gethostname(host, sizeof host - 1);
	const char *node = getenv("SLURMD_NODENAME");
	stat("/proc/self/ns/mnt", &ns);
	snprintf(line, LINE, "rank %d of %d node %s host %s mnt:[%lu] image %s sum %d\n", rank, size,
		 node ? node : "?", host, (unsigned long)ns.st_ino,
		 stat("/etc/situla-image-witness", &witness) == 0 ? "yes" : "no", sum);

	/* Rank 0 prints for all, in order: lines of different ranks never mix. */
	char *all = rank == 0 ? malloc((size_t)size * LINE) : NULL;
	MPI_Gather(line, LINE, MPI_CHAR, all, LINE, MPI_CHAR, 0, MPI_COMM_WORLD);
	int bad = sum != size * (size - 1) / 2 || (argc > 1 && atoi(argv[1]) != size);
	if (rank == 0) {
		for (int i = 0; i < size; i++)
			fputs(all + (size_t)i * LINE, stdout);
		printf("%s: %d ranks, sum of ranks %d\n", bad ? "WRONG" : "ok", size, sum);
	}
	free(all);
	MPI_Finalize();
	return bad;
}
