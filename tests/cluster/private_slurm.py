"""A Slurm of its own on this machine: munged, slurmctld and a slurmd for each node, in a folder, on their own ports, as root. Two
partitions, of which `urgent` preempts `normal`, whose jobs are requeued. Nothing of the machine's own Slurm or munge is touched.

Needs root and the package slurm-wlm.
"""
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from namespaces import need


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Slurm:
    """Use as a context manager: leaving it ends the daemons and their jobs."""

    def __init__(self, folder: Path, cores: int, num_nodes: int = 1):
        self.folder, self.cores = folder, cores   # of each node
        self.nodes = [f"n{i + 1}" for i in range(num_nodes)]
        self.daemons: list[subprocess.Popen] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Slurm":
        need("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if len(self.daemons) == 2 + len(self.nodes):
            subprocess.run(["scancel", "--state=PENDING"], env=self.environment, capture_output=True, check=False, timeout=20)
            subprocess.run(["scancel", "--full", "--signal=KILL", "--state=RUNNING"], env=self.environment, capture_output=True,
                           check=False, timeout=20)
            time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # What runs jobs are daemons of slurmd's that outlive it; each carries this folder's configuration in its environment.
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"SLURM_CONF={self.folder}/slurm.conf".encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass   # ended meanwhile

    def _start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        # munged insists that nobody else could write to a folder on the way to its files
        os.chmod(self.folder, 0o755)
        key, sock = self.folder / "munge" / "key", self.folder / "munge" / "socket"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = self.folder / "munge"
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}", f"--pid-file={munge}/pid",
                     f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=1")
        self._until(sock.exists, "munged does not start", munge / "log")
        controller, *ports = free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cores} State=UNKNOWN"
                          for name, port in zip(self.nodes, ports))
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=lamina
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={sock},cred_expire=5
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={self.folder}/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
KillWait=30
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
InactiveLimit=0
SlurmctldDebug=info
{nodes}
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
""")
        # Jobs are to live and die without control groups, which a container may not have. Older ones know no word for that.
        version = tuple(int(number) for number in self.run("slurmctld", "-V").split()[1].split(".")[:2])
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n" if version >= (23, 11) else "IgnoreSystemd=yes\n")
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for name in self.nodes:
            (self.folder / "spool" / name).mkdir()
            self._daemon("slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf"))
        self._until(lambda: self.run("sinfo", "--noheader", "--Node", "--format=%t", "--partition=normal", fails=True).split() ==
                    ["idle"] * len(self.nodes), "not all nodes become idle", self.folder / f"slurmd-{self.nodes[-1]}.log", self.folder / "slurmctld.log")

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        out = (self.folder / f"{program}.out").open("w")
        self.daemons.append(subprocess.Popen([path, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                             start_new_session=True))

    def _until(self, condition, message: str, *logs: Path) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                told = "\n".join(log.read_text()[-3000:] if log.exists() else f"{log} is not there" for log in logs)
                out = "\n".join(path.read_text()[-1000:] for path in self.folder.glob("*.out"))
                raise RuntimeError(f"{message}:\n{told}\n{out}")
            time.sleep(0.1)

    def run(self, *command: str, fails: bool = False, **options) -> str:
        options.setdefault("timeout", 60)
        environment = {**self.environment, **options.pop("env", {})}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False, **options)
        if done.returncode != 0 and not fails:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout
