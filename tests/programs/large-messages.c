/* large-messages: each even rank sends the next one messages that an MPI library hands over by reading them out of the
 * sender's memory, where it can (Linux cross-memory attach). The odd ranks look at what arrives.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH (8 << 20)
#define COUNT 20

int main(int argc, char **argv)
{
	int rank, size, bad = 0;
	char *bytes = malloc(LENGTH);

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (int n = 1; n <= COUNT; n++) {
		memset(bytes, rank % 2 == 0 ? n : 0, LENGTH);
		if (rank % 2 == 0) {
			MPI_Send(bytes, LENGTH, MPI_CHAR, rank + 1, 0, MPI_COMM_WORLD);
		} else {
			MPI_Recv(bytes, LENGTH, MPI_CHAR, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			bad |= bytes[0] != n || bytes[LENGTH - 1] != n;
		}
	}
	if (rank % 2 == 1)
		printf("large messages %s, %d ranks\n", bad ? "WRONG" : "ok", size);
	MPI_Finalize();
	return bad;
}
