"""The workflow on a real SLURM: the demo, and all that can stop a job or its driver. `make slurm-test` runs this."""

import filecmp
import os
import re
import signal
import subprocess
import time

import pytest
import yaml
from helpers.slurm_cluster import Cluster, refusal
from helpers.snakemake_copy import ROOT, SNAKEMAKE, copy_tree, snakemake

from robreg.tables import parquet

pytestmark = pytest.mark.slurm

RUN = "results/digits/ar8-slow"
CHECKPOINT = f"{RUN}/checkpoint.pt"
PAUSE = 0.02  # seconds of each of the 55 passes of an epoch
BROKEN = """from robreg.workflow.job import logged
with logged(snakemake.log[0]):
    raise ValueError("no spectrum today")
"""
TIMES = ("seconds", "examples_per_s")  # columns that differ between any two runs


def reduce(config):
    """Reduce the demo to four runs, whose settings stay as they are."""
    kinds = ({"attack": ["fgsm"]}, {"spectral_norm": [1]})
    runs = [{"dataset": "digits", "ar": [0, 8]}, *({"dataset": "digits", "ar": [8], **kind} for kind in kinds)]
    config["studies"]["demo"] |= {"runs": runs, "compare": [0, 8]}
    config["device"] = "cpu"  # the cluster's GPUs are fake


def slow(config, epochs=40, threads=1):
    """Configure one run that takes about a second per epoch and hardly any CPU time."""
    digits = config["datasets"]["digits"]
    digits |= {"max_train": 300, "max_test": 100, "threads": threads}
    digits["training"] |= {"epochs": epochs, "lr_drops": [epochs // 2]}
    config["architectures"] |= {"slow": {"callable": "slow_network:Slow"}}
    config["device"] = "cpu"


def by_number(path):
    return int(path.stem)


class Driver:
    """A Snakemake process that submits SLURM jobs from its own folder."""

    def __init__(self, folder, cluster, *arguments, targets=(CHECKPOINT,), **environment):
        self.folder, self.cluster, self.arguments = folder, cluster, (*arguments, "--", *targets)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/helpers")}
        self.environment |= {"ROBREG_TEST_PAUSE": str(PAUSE), **environment}
        self.start()

    def start(self):
        command = [str(SNAKEMAKE), "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2"]
        with (self.folder / "driver.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def output(self):
        return (self.folder / "driver.log").read_text()

    def jobs(self):
        return re.findall(r"SLURM jobid (\d+)", self.output())

    def train_log(self):
        path = self.folder / "logs/train/digits/ar8-slow.log"
        return path.read_text() if path.exists() else ""

    def slurm_logs(self):
        return [path.read_text() for path in sorted(self.folder.glob("logs/slurm/rule_train/*/*.log"), key=by_number)]

    def trains(self, epoch):
        """Wait until this epoch is finished; return the id of the job that trains."""
        self.cluster.until(lambda: f" epoch {epoch}/" in self.train_log(), seconds=300)
        return self.jobs()[-1]

    def went_on_after(self):
        """Return the epoch after which the last attempt resumed."""
        return int(re.search(r"resuming after epoch (\d+)", self.train_log())[1])

    def end(self, code):
        """Wait until Snakemake ends with this exit code; otherwise, fail and show its logs."""
        try:
            ended = self.process.wait(timeout=800)
        except subprocess.TimeoutExpired:
            ended = "nothing for 800 s"
        assert ended == code, "\n".join((self.output()[-4000:], self.train_log()[-2000:], self.cluster.run("squeue")))

    def finish(self):
        """Wait until Snakemake ends successfully."""
        self.end(0)

    def fail(self):
        """Wait until Snakemake fails; return its report of failed jobs."""
        self.end(1)
        return self.output()[self.output().rindex("job(s) failed:") :]


def went_on(driver, undisturbed):
    """Return the epoch after which a disturbed training resumed; its checkpoint must equal the undisturbed one."""
    epoch = driver.went_on_after()
    assert epoch >= 3
    assert filecmp.cmp(driver.folder / CHECKPOINT, undisturbed, shallow=False)
    return epoch


def stopped(driver):
    """Return SLURM's logs of the attempts that a signal stopped."""
    return [text for text in driver.slurm_logs() if "SIGTERM in epoch" in text]


@pytest.fixture(scope="session", autouse=True)
def possible():
    if reason := refusal():
        pytest.exit(reason, returncode=1)


@pytest.fixture
def say(request, capsys):
    """Return a function that prints one line about the test, even if pytest captures output."""

    def print_line(text):
        with capsys.disabled():
            print(f"\n  {request.node.name.removeprefix('test_').replace('_', ' ')}: {text}")

    return print_line


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Train without pauses, disturbances or SLURM; return the checkpoints by their number of epochs."""

    def train(epochs):
        folder = copy_tree(tmp_path_factory.mktemp("undisturbed"), lambda config: slow(config, epochs))
        os.environ["PYTHONPATH"] = str(ROOT / "tests/helpers")
        snakemake(folder, "-c1", CHECKPOINT)
        return folder / CHECKPOINT

    return {epochs: train(epochs) for epochs in (40, 110)}


@pytest.fixture(scope="session")
def cluster():
    """Start a node with room for all cases at once."""
    with Cluster(cpus=16, gpus=16) as running:
        yield running


@pytest.fixture(scope="session")
def cases(cluster, tmp_path_factory):
    """Start all cases together, because they sleep most of the time; return their drivers."""

    def case(name, *arguments, epochs=40, threads=1, **others):
        folder = copy_tree(tmp_path_factory.mktemp(name), lambda config: slow(config, epochs, threads))
        if name == "measures":
            (folder / "workflow/scripts/sv.py").write_text(BROKEN)
        return Driver(folder, cluster, *arguments, **others)

    # SLURM may send the signal up to a minute early (man sbatch): two minutes leave one to start in, on a busy machine.
    limit = ("--set-resources", "train:runtime=2", "train:slurm_extra='--signal=TERM@5'")
    little = ("--set-resources", "train:mem_mb=500 if attempt == 1 else 4000")
    started = {
        "limit": case("limit", *limit, epochs=110, ROBREG_TEST_PAUSE=str(2 * PAUSE)),
        "requeued": case("requeued"),
        "cancelled": case("cancelled"),
        "memory": case("memory", *little),
        "broken": case("broken", threads=2, ROBREG_TEST_FAIL="broken on purpose"),
        "driver": case("driver", epochs=110),
        "measures": case("measures", epochs=2, targets=(f"{RUN}/margins.parquet", f"{RUN}/sv.parquet")),
    }
    jobs = {name: started[name].trains(3) for name in ("requeued", "cancelled")}
    cluster.run("scancel", jobs["cancelled"])
    cluster.run("scontrol", "requeue", jobs["requeued"])
    cluster.start_now(jobs["requeued"])
    yield started
    for driver in started.values():
        if driver.process.poll() is None:
            driver.process.kill()


@pytest.fixture(scope="session")
def demos(tmp_path_factory):
    """Run the reduced demo locally and on a node of two CPUs; return folders, seconds, SLURM's jobs and accounting."""
    folders = {name: copy_tree(tmp_path_factory.mktemp(name), reduce) for name in ("local", "slurm")}
    begin = time.monotonic()
    snakemake(folders["local"], "-c2", "demo")
    seconds = {"local": time.monotonic() - begin}
    with Cluster(cpus=2) as running:
        begin = time.monotonic()
        snakemake(folders["slurm"], "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "5", "demo")
        seconds["slurm"] = time.monotonic() - begin
        jobs = [running.job(number) for number in running.jobs("all")]
        accounting = running.run("sacct", check=False)
    return folders, seconds, jobs, accounting


def test_the_demo_s_tables_are_those_of_a_local_run(demos, say):
    local, slurm = demos[0].values()
    files = sorted(path.relative_to(local) for path in (local / "results").rglob("*.parquet"))
    assert files == sorted(path.relative_to(slurm) for path in (slurm / "results").rglob("*.parquet"))
    compared = 0
    for file in files:
        if file.name == "history.parquet":
            mine, theirs = (parquet.read(folder / file).drop_columns(TIMES) for folder in (local, slurm))
            assert mine.equals(theirs)
            assert parquet.read_metadata(local / file) == parquet.read_metadata(slurm / file)
        else:
            assert filecmp.cmp(local / file, slurm / file, shallow=False), file
            compared += 1
    for checkpoint in (local / "results").rglob("checkpoint.pt"):
        assert filecmp.cmp(checkpoint, slurm / checkpoint.relative_to(local), shallow=False)
    say(f"{compared} tables equal byte for byte, {len(files) - compared} but for their times, 4 checkpoints too")


def test_the_demo_has_two_jobs_a_run_each_with_one_gpu(demos, say):
    _, seconds, jobs, _ = demos
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 8
    asked = {(job["NumCPUs"], job["MinMemoryNode"], job["TresPerJob"]) for job in jobs}
    assert asked == {("1", "6000M", "gres:gpu:1"), ("1", "4000M", "gres:gpu:1")}
    logs = [path.read_text() for path in (demos[0]["slurm"] / "logs").glob("*/digits/*.log")]
    seen = [re.search(r"SLURM job (\d+) on \S+, CUDA_VISIBLE_DEVICES (\S+)", text) for text in logs if "device" in text]
    assert len(seen) == 4 * 9 + 2  # of every run, and the attacked images of those two that the figure shows
    assert all(seen)
    assert {match[2] for match in seen} <= {"0", "1"}
    overhead = seconds["slurm"] / seconds["local"] - 1
    say(f"8 jobs for 4 runs; {seconds['local']:.0f} s locally, {seconds['slurm']:.0f} s through SLURM: {overhead:+.0%}")


def test_accounting_is_absent(demos, say):
    assert "accounting storage is disabled" in demos[3]
    say(f"sacct says {demos[3].strip()!r}, and every run above is polled with squeue")


def test_a_killed_driver_is_followed_by_another(cases, undisturbed, cluster, say):
    driver = cases["driver"]
    job = driver.trains(3)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    driver.start()
    assert driver.process.wait(timeout=200) == 1
    unlock = re.search(r"^  (snakemake --unlock) && snakemake --profile slurm .*$", driver.output(), re.MULTILINE)[1]
    subprocess.run([SNAKEMAKE, *unlock.split()[1:]], cwd=driver.folder, check=True, env=driver.environment)
    driver.start()
    cluster.until(lambda: "1 job(s) of another Snakemake, killed or running" in driver.output())
    assert f"scancel {job}" in driver.output()
    driver.finish()
    assert driver.jobs() == [job]
    assert filecmp.cmp(driver.folder / CHECKPOINT, undisturbed[110], shallow=False)
    say("a lock named the command that takes it away; the next driver waited for the job, and started no other")


def test_the_time_limit_is_hit_twice_in_one_training(cases, undisturbed, cluster, say):
    driver = cases["limit"]
    cluster.until(lambda: len(stopped(driver)) >= 2, seconds=800)
    (driver.folder / "hurry").touch()  # otherwise a busy machine needs many more attempts
    driver.finish()
    attempts = len(stopped(driver))
    # An attempt may be stopped before it logs anything.
    assert len(driver.jobs()) == len(driver.slurm_logs()) > attempts >= 2
    assert driver.went_on_after() > 3
    assert filecmp.cmp(driver.folder / CHECKPOINT, undisturbed[110], shallow=False)
    say(f"{attempts} attempts stopped before the limit and said so; checkpoint equal to an undisturbed one's")


def test_scontrol_requeue(cases, undisturbed, cluster, say):
    driver = cases["requeued"]
    driver.finish()
    (job,) = driver.jobs()
    assert (cluster.job(job)["Restarts"], cluster.job(job)["NumCPUs"]) == ("1", "1")
    epoch = went_on(driver, undisturbed[40])
    say(f"the same job went on after epoch {epoch}; checkpoint equal to an undisturbed one's")


def test_scancel(cases, undisturbed, cluster, say):
    driver = cases["cancelled"]
    driver.finish()
    assert [cluster.job(job)["JobState"] for job in driver.jobs()] == ["CANCELLED", "COMPLETED"]
    epoch = went_on(driver, undisturbed[40])
    say(f"a second job went on after epoch {epoch}; checkpoint equal to an undisturbed one's")


def test_settings_changed_and_changed_back_are_trained_once(cases, undisturbed, say):
    driver = cases["cancelled"]
    driver.finish()
    config = yaml.safe_load((driver.folder / "config.yaml").read_text())
    epochs = []
    for wanted in (2, 40, 2, 40):
        slow(config, wanted)
        (driver.folder / "config.yaml").write_text(yaml.safe_dump(config))
        driver.start()
        driver.finish()
        epochs.append(driver.train_log().count(" epoch "))
        if wanted == 40:
            assert filecmp.cmp(driver.folder / CHECKPOINT, undisturbed[40], shallow=False)
    assert epochs == [2, 0, 0, 0]
    assert (
        "training.epochs was 2, is 40; training.lr_drops was [1], is [20]; its kept network is used" in driver.output()
    )
    say("after a training that was cancelled once, 2 and 40 epochs in turn: 2, 0, 0 and 0 epochs trained, same bits")


def test_the_memory_limit_is_exceeded(cases, undisturbed, cluster, say):
    driver = cases["memory"]
    driver.finish()
    _, second = driver.jobs()
    assert re.search("oom-kill event|Exceeded job memory limit", driver.slurm_logs()[0])
    assert cluster.job(second)["JobState"] == "COMPLETED"
    assert filecmp.cmp(driver.folder / CHECKPOINT, undisturbed[40], shallow=False)
    say("500 MB were exceeded, the second attempt got 4 GB and finished")


def test_a_failing_script(cases, cluster, say):
    driver = cases["broken"]
    words = driver.fail().splitlines()
    assert words[0] == "job(s) failed:"
    assert words[1] == (
        "train digits/ar8-slow: broken on purpose; no epoch was finished in two attempts, so it is not tried again"
    )
    logs = [driver.folder / line.removeprefix("  log: ") for line in words[2:]]
    assert [path.exists() for path in logs] == [True, True]
    assert [cluster.job(job)["NumCPUs"] for job in driver.jobs()] == ["2", "2"]  # the run's threads
    say(f"two attempts of 20 allowed, then: {words[1]}")


def test_a_failing_measure(cases, cluster, say):
    driver = cases["measures"]
    words = driver.fail().splitlines()
    assert words[1] == "sv digits/ar8-slow: no spectrum today"
    assert [(driver.folder / line.removeprefix("  log: ")).exists() for line in words[2:]] == [True, True]
    assert [cluster.job(job)["JobState"] for job in driver.jobs()] == ["COMPLETED", "FAILED", "FAILED"]
    assert (driver.folder / RUN / "margins.parquet").exists()
    say(f"two attempts of the run's measures; what the others made stays; then: {words[1]}")


def test_the_node_goes_down_and_comes_back(cases, cluster, undisturbed, tmp_path, say):
    for driver in cases.values():
        driver.process.wait(timeout=800)
    driver = Driver(copy_tree(tmp_path / "node", slow), cluster)
    job = driver.trains(3)
    cluster.run("scontrol", "update", f"NodeName={cluster.host}", "State=DOWN", "Reason=test")
    cluster.until(lambda: not cluster.busy())  # otherwise SLURM finds the job there twice and drains the node
    cluster.run("scontrol", "update", f"NodeName={cluster.host}", "State=RESUME")
    cluster.start_now(job)
    driver.finish()
    assert driver.jobs() == [job]
    epoch = went_on(driver, undisturbed[40])
    say(f"SLURM requeued the job, which went on after epoch {epoch}; checkpoint equal to an undisturbed one's")


def test_nothing_is_left_in_the_queue(cases, cluster, say):
    assert cluster.jobs() == []
    say("squeue is empty")
