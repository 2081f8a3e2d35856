"""A real SLURM cluster of one node on this machine (munged, slurmctld, slurmd): no accounting, loopback only."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

PREFIX = "robreg-slurm-"
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order in which they are stopped
CGROUP = Path("/sys/fs/cgroup")
LINK = Path("/etc/slurm/slurm.conf")  # needed, because the plugin removes SLURM_CONF from the environment of srun

CONFIG = """\
ClusterName=robreg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SwitchType=switch/none
MpiDefault=none
ProctrackType={proctrack}
TaskPlugin={task}
JobAcctGatherType={gather}
JobAcctGatherFrequency=task=2
JobAcctGatherParams={gather_parameters}
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=0
JobRequeue=1
KillWait=5
MinJobAge=3600
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=60000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES DefMemPerCPU=500 DefaultTime=60 MaxTime=INFINITE State=UP
"""
CGROUPS = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""


def refusal():
    """Return why no test cluster can run here, or None."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return "the test cluster needs root on Debian: it installs and starts munge, slurmctld and slurmd"
    ours = LINK.is_symlink() and LINK.readlink().parent.name.startswith(PREFIX)  # a killed test left it
    if LINK.exists() and not (ours and not alive_in(LINK.readlink().parent)):
        return f"{LINK} exists: this machine has its own SLURM, which the test cluster would disturb"
    return None


def install():
    """Install Debian's packages, without starting their services."""
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    missing = [name for name in PACKAGES if f"{name} installed" not in listed]
    if not missing:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()


def alive(number, name):
    """Return whether the process with this id is the named daemon, and not a zombie."""
    try:
        process = psutil.Process(number)
        return process.name() == name and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive_in(folder):
    """Return the process ids of the running daemons of the cluster in this folder, by name."""
    files = {name: folder / f"{name}.pid" for name in DAEMONS}
    numbers = {name: int(file.read_text()) for name, file in files.items() if file.exists() and file.stat().st_size}
    return {name: number for name, number in numbers.items() if alive(number, name)}


class Cluster:
    """A running cluster: a context manager that leaves no process and no file behind."""

    def __init__(self, *, cpus, gpus=2):
        self.folder, self.cpus, self.gpus = Path(tempfile.mkdtemp(prefix=PREFIX)), cpus, gpus
        self.folder.chmod(0o755)  # munge refuses a socket in a private folder
        self.host = socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.confines_memory = os.access(CGROUP / "memory/cgroup.procs", os.W_OK)  # cgroup v1

    def __enter__(self):
        install()
        self.configure()
        munge = self.folder / "munge"
        self.run(
            "munged",
            *(f"--{kind}-file={munge}.{end}" for kind, end in (("key", "key"), ("log", "log"))),
            f"--pid-file={self.folder}/munged.pid",
            f"--seed-file={munge}.seed",
            f"--socket={munge}.socket",
        )
        try:
            self.until(lambda: Path(f"{munge}.socket").exists())
            self.run("slurmctld", "-i")
            self.until(lambda: "UP" in self.run("scontrol", "ping", check=False))
            self.run("slurmd")
            self.until(self.idle)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error):
        self.stop()

    def configure(self):
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        for name in ("state", "spool", "gpus"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for gpu in range(self.gpus):  # SLURM treats these device nodes as GPUs
            os.mknod(self.folder / f"gpus/gpu{gpu}", 0o020666, os.makedev(1, 3))
        confined = self.confines_memory
        content = CONFIG.format(
            folder=self.folder,
            host=self.host,
            cpus=self.cpus,
            gpus=self.gpus,
            control=ports[0],
            node=ports[1],
            proctrack="proctrack/cgroup" if confined else "proctrack/linuxproc",
            task="task/cgroup" if confined else "task/none",
            gather="jobacct_gather/cgroup" if confined else "jobacct_gather/linux",
            gather_parameters="UsePss" if confined else "OverMemoryKill",
        )
        (self.folder / "slurm.conf").write_text(content)
        (self.folder / "cgroup.conf").write_text(
            CGROUPS if confined else "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
        )
        LINK.unlink(missing_ok=True)  # refusal() has checked that nothing uses it
        LINK.symlink_to(self.folder / "slurm.conf")
        devices = f"{self.folder}/gpus/gpu[0-{self.gpus - 1}]"
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName={self.host} Name=gpu File={devices}\n")

    def run(self, *command, check=True):
        """Run one of SLURM's commands, and return its output."""
        done = subprocess.run(
            command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def idle(self):
        return self.run("sinfo", "--noheader", "--format=%t", check=False).strip() in ("idle", "mix", "alloc")

    def busy(self):
        """Return whether processes of a job are still running on the node."""
        return any(process.info["name"] == "slurmstepd" for process in psutil.process_iter(["name"]))

    def jobs(self, *states):
        """Return the ids of the jobs in these states, or of all unfinished jobs."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return self.run("squeue", "--noheader", "--format=%i", *chosen).split()

    def job(self, number):
        """Return what SLURM knows about a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_now(self, number):
        """Start a requeued job at once; SLURM would wait for two minutes."""
        self.until(lambda: self.job(number)["JobState"] == "PENDING")
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def until(self, happened, *, seconds=200):
        """Wait until happened() is true, and return its value."""
        end = time.monotonic() + seconds
        while not (found := happened()):
            assert time.monotonic() < end, (
                f"waited {seconds} s in vain\n{self.run('squeue', '--states=all', check=False)}"
            )
            time.sleep(0.2)
        return found

    def stop(self):
        """Cancel the remaining jobs, and stop the daemons by their process ids."""
        if self.run("scontrol", "ping", check=False).count("UP"):
            self.run("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 30
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.2)
        for name, number in alive_in(self.folder).items():
            os.kill(number, signal.SIGTERM)
            self.until(lambda number=number, name=name: not alive(number, name))
        for left in CGROUP.glob(f"*/slurm_{self.host}"):
            for path in sorted((path for path in left.rglob("*") if path.is_dir()), reverse=True):
                path.rmdir()
            left.rmdir()
        LINK.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
