"""Hosts that are network namespaces of this machine: each with an address, a name and an sshd of its own, on one bridge.

Needs root, iproute2, util-linux and openssh-server. Nothing of the machine's own network or ssh is touched.
"""
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path


def need(*programs: str) -> None:
    """A check that can't run is a failure, not a pass."""
    if os.geteuid() != 0:
        raise SystemExit("this check makes network namespaces: it needs root")
    missing = [name for name in programs if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if missing:
        raise SystemExit(f"missing programs: {', '.join(missing)}; launch/test.sh --cluster installs their packages")


def run(*command: str, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done


class Hosts:
    """`names` get 10.77.0.1, 10.77.0.2, ...; `setup` has shell commands that a host runs first. Use as a context
    manager: leaving it takes everything down."""

    def __init__(self, names: list[str], folder: Path, setup: dict[str, str] | None = None):
        self.names, self.folder, self.setup = names, folder, setup or {}
        self.tag = f"lm{os.getpid() % 100000}"
        self.bridge = f"{self.tag}br"
        self.servers: list[subprocess.Popen] = []

    def namespace(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def address(self, name: str) -> str:
        return f"10.77.0.{self.names.index(name) + 1}"

    def link(self, name: str) -> str:
        return f"{self.tag}v{self.names.index(name)}"

    def __enter__(self) -> "Hosts":
        need("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "mpirun")
        try:
            self._make_network()
            self._make_ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for name in self.names:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace(name)], text=True, capture_output=True, check=False)
            for pid in listed.stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", self.link(name)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        for server in self.servers:
            server.wait()

    def _make_network(self) -> None:
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        lines = ["127.0.0.1 localhost"]
        for name in self.names:
            space = self.namespace(name)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", self.link(name), "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", self.link(name), "master", self.bridge, "up")
            run("ip", "-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            lines.append(f"{self.address(name)} {name}")
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")

    def _make_ssh(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)   # sshd wants it, as its service makes it
        key = self.folder / "id"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        known = []
        for name in self.names:
            host_key = self.folder / f"host-{name}"
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
            known.append(f"{name},{self.address(name)} {host_key.with_suffix('.pub').read_text()}")
            (self.folder / f"sshd-{name}").write_text(
                f"ListenAddress {self.address(name)}\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n"
                "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile none\nMaxStartups 100\n")
            log = (self.folder / f"sshd-{name}.log").open("w")
            self.servers.append(subprocess.Popen(
                self.inside(name, f"{self.setup.get(name, 'true')} && exec {shutil.which('sshd', path='/usr/sbin:/sbin')} -D -e -f {self.folder}/sshd-{name}"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        (self.folder / "known").write_text("".join(known))
        (self.folder / "ssh").write_text(f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
                                         f"  UserKnownHostsFile {self.folder}/known\n  StrictHostKeyChecking yes\n")
        deadline = time.monotonic() + 20
        for name in self.names:
            while subprocess.run(self.inside(self.names[0], f"{self.ssh} -o ConnectTimeout=2 {name} true"), capture_output=True,
                                 check=False).returncode != 0:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"sshd of {name} does not answer: {(self.folder / f'sshd-{name}.log').read_text()}")
                time.sleep(0.1)

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.folder}/ssh"

    def inside(self, name: str, script: str) -> list[str]:
        """A command for a shell on that host: its network, its hostname, and /etc/hosts with everyone's names."""
        return ["ip", "netns", "exec", self.namespace(name), "unshare", "--uts", "--mount", "sh", "-c",
                f"hostname {name} && mount --bind {self.folder}/hosts /etc/hosts && {script}"]

    def cut_off(self, name: str) -> None:
        """As when someone pulls the cable: nothing comes and nothing goes, and nobody is told."""
        run("ip", "link", "set", self.link(name), "nomaster")

    def connect(self, name: str) -> None:
        run("ip", "link", "set", self.link(name), "master", self.bridge)

    def processes(self, name: str, program: str) -> list[int]:
        """Of that program's name on that host."""
        pids = run("ip", "netns", "pids", self.namespace(name)).stdout.split()
        found = []
        for pid in pids:
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                    found.append(int(pid))
            except OSError:
                pass   # ended meanwhile
        return found
