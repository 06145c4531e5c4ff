"""What every measurement here needs: the programs built, a real Apache Kafka, topics with orders in them, contestants
that take them from one topic to another and are checked by count, and the markers in docs/performance.md.
"""

import contextlib
import dataclasses
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
KAFKA_VERSION = "4.1.0"  # tests/support/kafka/pom.xml says the same
PARTITIONS = 4
RUN_DEADLINE = 180  # seconds for one run of one contestant of a million events; more for more
BROKER_DEADLINE = 120
DOCUMENT = ROOT / "docs/performance.md"
GUESTS = {
    "identity": ROOT / "tests/guests/identity.wasm",
    "filter": ROOT / "benches/guests/filter.wasm",
    "json": ROOT / "benches/guests/json.wasm",
}

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}
log.dirs={dir}/log
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.segment.delete.delay.ms=1000
"""

CHAIN = """\
name: bench
connections:
  main:
    kafka:
      brokers: ["{brokers}"]
{client}      properties: {{ compression.type: {codec} }}
pipelines:
  copy:
    from: {{ kafka: {{ topics: [{input}], group: {output}, start: earliest }} }}
{function}    to: {{ kafka: {{ topic: {output} }} }}
    on_error: {{ then: stop }}
    delivery: {delivery}
    order: {order}
"""


@dataclasses.dataclass(frozen=True)
class Programs:
    """What is measured, and what measures."""

    copy_loop: pathlib.Path
    bare: pathlib.Path
    fluxmill: pathlib.Path


def build(release=True):
    """Builds them; without optimisation only to try these scripts out."""
    profile = ["--release"] if release else []
    crates = [["--manifest-path", ROOT / f"benches/{name}/Cargo.toml"] for name in ("copy-loop", "bare")]
    for arguments in [*crates, ["--bin", "fluxmill"]]:
        subprocess.run(["cargo", "build", "--locked", *profile, "--target-dir", TARGET, *arguments], cwd=ROOT, check=True)
    folder = TARGET / ("release" if release else "debug")
    return Programs(folder / "copy-loop", folder / "bare", folder / "fluxmill")


def kafka_jars():
    """The class path of Kafka; the tests keep the same folder."""
    folder = pathlib.Path(os.environ.get("FLUXMILL_TEST_CACHE", TARGET)) / f"kafka-{KAFKA_VERSION}" / "lib"
    if not folder.is_dir():
        part = folder.with_name(f"lib-{os.getpid()}")
        pom = ROOT / "tests/support/kafka/pom.xml"
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={part}"]
        subprocess.run(["mvn", "-q", "-B", "-f", pom, *goal], check=True, timeout=600)
        part.rename(folder)
    return f"{folder}/*"


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for number in sockets:
            number.bind(("127.0.0.1", 0))
        return [number.getsockname()[1] for number in sockets]


@contextlib.contextmanager
def kafka(folder):
    """A broker of its own; ends with the block. Gives its address."""
    plain, controller = free_ports(2)
    settings = folder / "server.properties"
    settings.write_text(PROPERTIES.format(plain=plain, controller=controller, dir=folder))
    java = ["java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", kafka_jars()]
    storage = [*java, "kafka.tools.StorageTool", "format", "-t", "Zmx1eG1pbGwtYmVuY2gtMQ", "-c", settings]
    subprocess.run(storage, check=True, capture_output=True, timeout=BROKER_DEADLINE)
    with open(folder / "broker.log", "w", encoding="utf-8") as log:
        broker = subprocess.Popen([*java, "kafka.Kafka", settings], stdout=log, stderr=log)
        try:
            wait_for(plain, broker, folder / "broker.log")
            yield f"127.0.0.1:{plain}"
        finally:
            broker.terminate()
            try:
                broker.wait(30)
            except subprocess.TimeoutExpired:
                broker.kill()
                broker.wait()


def wait_for(port, broker, log):
    deadline = time.monotonic() + BROKER_DEADLINE
    while time.monotonic() < deadline:
        if broker.poll() is not None:
            sys.exit(f"the broker ended:\n{log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    sys.exit(f"the broker does not answer:\n{log.read_text()}")


def measured(command, folder, deadline=RUN_DEADLINE):
    """Runs a command to its end; gives CPU-seconds, peak memory in MiB, and what it wrote."""
    output = folder / "run.log"
    with open(output, "w", encoding="utf-8") as log:
        # A session of its own, so that a profiler ends together with what it profiles.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + deadline
    pid = 0
    try:
        while not pid and time.monotonic() < end:
            # wait4 rather than getrusage(RUSAGE_CHILDREN): the latter adds up all children there ever were.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0 if pid else 0.01)
    finally:
        if not pid:
            os.killpg(process.pid, signal.SIGKILL)
            os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
    if not pid:
        sys.exit(f"{command} still ran after {deadline} s:\n{output.read_text()}")
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} exited with {process.returncode}:\n{output.read_text()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.read_text()


@dataclasses.dataclass(frozen=True)
class Load:
    """A topic with orders in it."""

    topic: str
    events: int
    codec: str
    kept: dict  # how many events come out, by the job that is done


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to take events from one topic to another."""

    name: str
    kind: str  # "raw", "bare" or "fluxmill"
    job: str = "copy"  # what is done to the events: one of the keys of Load.kept
    guest: str = ""  # of GUESTS
    client: str = ""  # of Fluxmill's connection; its default where there is none
    delivery: str = "at_least_once"
    order: str = "partition"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of a contestant was measured to be."""

    rate: float  # events per second, by the events that went in
    cpu: float  # seconds per million events that went in
    memory: float  # peak, MiB


class Rig:
    """One broker, topics with orders, and the ways to copy them."""

    def __init__(self, brokers, folder, programs):
        self.brokers, self.folder, self.programs = brokers, folder, programs
        self.number = 0

    def tool(self, name, *arguments, deadline=RUN_DEADLINE):
        command = [self.programs.copy_loop, name, self.brokers, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=deadline, check=True).stdout
        return {key: int(value) for key, value in (pair.split("=") for pair in done.split())}

    def make(self, topic):
        self.tool("make", PARTITIONS, topic)
        return topic

    def drop(self, *topics):
        self.tool("drop", *topics)

    def load(self, events, size=250, codec="none"):
        topic = self.make(f"bench-in-{events}-{size}-{codec}")
        kept = self.tool("load", topic, events, size, codec, deadline=RUN_DEADLINE + events / 10_000)
        return Load(topic, events, codec, {"copy": events, "filter": kept["filtered"], "price": kept["priced"]})

    def chain(self, load, output, guest="", client="", delivery="at_least_once", order="partition"):
        """The command that runs Fluxmill over what is there, or goes on for what comes."""
        function = f"    function: {{ wasm: {GUESTS[guest]} }}\n" if guest else ""
        client = f"      client: {client}\n" if client else ""
        file = self.folder / f"{output}.yaml"
        names = {"brokers": self.brokers, "input": load.topic, "output": output, "codec": load.codec}
        file.write_text(CHAIN.format(**names, function=function, client=client, delivery=delivery, order=order))
        return [self.programs.fluxmill, "run", file]

    def command(self, contestant, load, output):
        if contestant.kind == "fluxmill":
            settings = (contestant.guest, contestant.client, contestant.delivery, contestant.order)
            chain = self.chain(load, output, *settings)
            return [*chain, "--until-caught-up"]
        program, job = self.programs.copy_loop, contestant.job
        if contestant.kind == "bare":
            program, job = self.programs.bare, "copy"
        return [program, job, self.brokers, load.topic, output, str(load.events), load.codec]

    def run(self, contestant, load, before=()):
        """One run into a fresh topic, by a fresh consumer group; `before` is what it runs under, such as a profiler."""
        self.number += 1
        output = self.make(f"bench-out-{self.number}")
        command = [*before, *self.command(contestant, load, output)]
        cpu, memory, _ = measured(command, self.folder, RUN_DEADLINE + load.events / 10_000)
        span = self.tool("committed" if contestant.delivery == "exactly_once" else "span", output)
        if span["events"] != load.kept[contestant.job]:
            sys.exit(f"{contestant.name}: {span['events']} events instead of {load.kept[contestant.job]} in {output}")
        self.drop(output)
        seconds = max(span["last_ms"] - span["first_ms"], 1) / 1000
        return Run(load.events / seconds, cpu / (load.events / 1e6), memory)


@contextlib.contextmanager
def rig(programs):
    """A rig with a broker and a folder of its own; both end with the block."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fluxmill-bench-"))
    try:
        with kafka(folder) as brokers:
            yield Rig(brokers, folder, programs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).splitlines()[0]


def cpu_seconds(pid):
    """What a process that runs has used, user and system time."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(process, log):
    """Stops a chain, which must end well."""
    process.terminate()
    try:
        code = process.wait(RUN_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    if code != 0:
        sys.exit(f"the chain ended with {code}:\n{log.read_text()}")


def machine(broker=None):
    """The machine in words, with its broker: Kafka where none is named."""
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    def kafka_in_words():
        return f"Apache Kafka {KAFKA_VERSION} on {first_line('java', '-version')}"
    return (
        f"{os.cpu_count()} cores ({cpu.group(1) if cpu else platform.machine()}), shared by broker and contestants; "
        f"{int(memory.group(1)) // 2**20} GiB; Linux {platform.release().split('-')[0]}; "
        f"{first_line('rustc', '--version')}; {broker or kafka_in_words()}; "
        f"load average at the start {os.getloadavg()[0]:.1f}"
    )


def write(name, text):
    """Replaces what is between the markers `name: begin` and `name: end` of docs/performance.md."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = DOCUMENT.read_text().split(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{rest[rest.index(end):]}")
