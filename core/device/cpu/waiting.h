// How threads of OpenMP wait for one another.
#pragma once

namespace lamina::cpu {

// GNU's OpenMP spins 300,000 times (7 to 14 ms) before it lets a thread sleep that waits at a barrier or for work. On a core that others
// need too, that time is theirs: with two threads and busy neighbours steps took fifty times as long. From here on threads sleep after
// some 0.1 ms, longer than the gaps between the loops of a step, so that where nobody else is nothing changes.
// The library reads GOMP_SPINCOUNT when it is loaded, long before main(), and has no call that sets it later; and constructors, even
// those in .preinit_array, run before the C library has set up the environment that it reads. So this sets the variable and executes
// the program anew, in the same process: with the same arguments, open files, ignored signals and parent, so that mpirun, Slurm and
// shells see no difference, and debuggers follow. Call it first in main(), before a second thread and MPI. It returns when the variable,
// or OMP_WAIT_POLICY, is set: by this call before, or by a user who wants it otherwise (OMP_WAIT_POLICY=active on a machine of one's
// own). Also when the program can't be executed again: then threads spin as they did.
void shorten_spins(char** argv);

}  // namespace lamina::cpu
