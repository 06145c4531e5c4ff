#!/usr/bin/env python3
"""Measures Fluxmill against a raw librdkafka copy loop, side by side on one real Apache Kafka.

    benches/baseline.py [--rounds 5] [--events 1000000] [--write]

Builds the release binary and benches/copy-loop, starts Apache Kafka 4.1 (Java 17; Maven fetches it once), loads a
topic of 4 partitions, and then runs the contestants in turn, round after round:

    A   the raw loop            A'  the raw loop again: how far two equal runs differ is the noise
    B   fluxmill, no function   C   fluxmill, identity function in the sandbox

Only ratios within one run mean something: machines differ and are shared, and the broker uses the same cores.
With --write the table replaces the part between the markers of docs/performance.md.

Events/s is measured at the broker, in the same way for all: events divided by the time between the first and the
last append to the output topic (LogAppendTime). CPU is user and system time of the whole process, start and end
included. Every run is checked: the output topic must hold as many events as the input.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
KAFKA_VERSION = "4.1.0"  # tests/support/kafka/pom.xml says the same
PARTITIONS = 4
RUN_DEADLINE = 180  # seconds for one run of one contestant
BROKER_DEADLINE = 120
INPUT = "baseline-in"
IDENTITY = ROOT / "tests/guests/identity.wasm"
BEGIN, END = "<!-- baseline: begin -->", "<!-- baseline: end -->"

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
name: baseline
connections:
  main: {{ kafka: {{ brokers: ["{brokers}"] }} }}
pipelines:
  copy:
    from: {{ kafka: {{ topics: [{input}], group: {output}, start: earliest }} }}
{function}    to: {{ kafka: {{ topic: {output} }} }}
    on_error: {{ then: stop }}
"""


def build():
    """Builds what is measured; gives the paths of copy-loop and fluxmill."""
    for arguments in (["--manifest-path", ROOT / "benches/copy-loop/Cargo.toml"], ["--bin", "fluxmill"]):
        command = ["cargo", "build", "--release", "--locked", "--target-dir", TARGET, *arguments]
        subprocess.run(command, cwd=ROOT, check=True)
    return TARGET / "release/copy-loop", TARGET / "release/fluxmill"


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
            sys.exit(f"Kafka ended:\n{log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    sys.exit(f"Kafka does not answer:\n{log.read_text()}")


def measured(command, folder):
    """Runs a command to its end; gives CPU-seconds, peak memory in MiB, and what it wrote."""
    output = folder / "run.log"
    with open(output, "w", encoding="utf-8") as log:
        # A session of its own, so that a profiler ends together with what it profiles.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + RUN_DEADLINE
    pid = 0
    try:
        while not pid and time.monotonic() < deadline:
            # wait4 rather than getrusage(RUSAGE_CHILDREN): the latter adds up all children there ever were.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0 if pid else 0.01)
    finally:
        if not pid:
            os.killpg(process.pid, signal.SIGKILL)
            os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
    if not pid:
        sys.exit(f"{command} still ran after {RUN_DEADLINE} s:\n{output.read_text()}")
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} exited with {process.returncode}:\n{output.read_text()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.read_text()


class Rig:
    """One broker with a loaded topic, and the ways to copy it."""

    def __init__(self, brokers, folder, copy_loop, fluxmill, events):
        self.brokers, self.folder, self.events = brokers, folder, events
        self.copy_loop, self.fluxmill = copy_loop, fluxmill
        self.number = 0

    def tool(self, name, *arguments):
        command = [self.copy_loop, name, self.brokers, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_DEADLINE).stdout

    def load(self):
        self.tool("make", PARTITIONS, INPUT)
        self.tool("load", INPUT, self.events)

    def raw(self, output):
        return [self.copy_loop, "copy", self.brokers, INPUT, output, str(self.events)]

    def chain(self, output, wasm=None):
        function = f"    function: {{ wasm: {wasm} }}\n" if wasm else ""
        file = self.folder / f"{output}.yaml"
        file.write_text(CHAIN.format(brokers=self.brokers, input=INPUT, output=output, function=function))
        return [self.fluxmill, "run", file, "--until-caught-up"]

    def run(self, make_command):
        """One run into a fresh topic, by a fresh consumer group. Gives events/s, CPU-s per million, peak MiB."""
        self.number += 1
        output = f"baseline-out-{self.number}"
        self.tool("make", PARTITIONS, output)
        cpu, memory, _ = measured(make_command(output), self.folder)
        span = {key: int(value) for key, value in (pair.split("=") for pair in self.tool("span", output).split())}
        if span["events"] != self.events:
            sys.exit(f"{output} holds {span['events']} events instead of {self.events}")
        self.tool("drop", output)
        seconds = (span["last_ms"] - span["first_ms"]) / 1000
        return self.events / seconds, cpu / (self.events / 1e6), memory


def measure(rig, rounds, wasm):
    contestants = {
        "A: raw librdkafka copy loop": rig.raw,
        "A': the same again (noise)": rig.raw,
        "B: fluxmill, no function": rig.chain,
        "C: fluxmill, identity function": lambda output: rig.chain(output, wasm),
    }
    rig.run(rig.chain)  # warms the page cache and the compiled-code cache; not counted
    rig.run(contestants["C: fluxmill, identity function"])
    results = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        random.Random(number).shuffle(order)  # so that none always runs after the same other
        for name in order:
            results[name].append(rig.run(contestants[name]))
            rate, cpu, memory = results[name][-1]
            print(f"round {number + 1}: {name}: {rate:,.0f} events/s, {cpu:.2f} CPU-s/M, {memory:.0f} MiB", flush=True)
    return results


def table(results):
    base = next(iter(results.values()))
    lines = [
        "| contestant | events/s | range | ratio to A | CPU-s per million | range | ratio to A | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in results.items():
        rates, cpus, memories = zip(*runs)
        # Ratios round by round: what disturbs one round disturbs all its runs.
        faster = statistics.median(mine[0] / raw[0] for mine, raw in zip(runs, base))
        dearer = statistics.median(mine[1] / raw[1] for mine, raw in zip(runs, base))
        lines.append(
            f"| {name} | {statistics.median(rates) / 1e3:,.0f} k | {min(rates) / 1e3:,.0f}-{max(rates) / 1e3:,.0f} k"
            f" | {faster:.2f} | {statistics.median(cpus):.2f} | {min(cpus):.2f}-{max(cpus):.2f}"
            f" | {dearer:.2f} | {statistics.median(memories):.0f} |"
        )
    return "\n".join(lines)


def machine():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    def first_line(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return (done.stdout or done.stderr).splitlines()[0]
    return (
        f"{os.cpu_count()} cores ({cpu.group(1) if cpu else platform.machine()}), shared by broker and contestants; "
        f"{int(memory.group(1)) // 2**20} GiB; Linux {platform.release().split('-')[0]}; "
        f"{first_line('rustc', '--version')}; Apache Kafka {KAFKA_VERSION} on {first_line('java', '-version')}; "
        f"load average at the start {os.getloadavg()[0]:.1f}"
    )


def write(begin, end, text):
    """Replaces the part of docs/performance.md between two markers."""
    file = ROOT / "docs/performance.md"
    before, rest = file.read_text().split(begin)
    file.write_text(f"{before}{begin}\n{text}{rest[rest.index(end):]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--identity", type=pathlib.Path, default=IDENTITY, help="the component of C")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    copy_loop, fluxmill = build()
    about = machine()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fluxmill-baseline-"))
    try:
        with kafka(folder) as brokers:
            rig = Rig(brokers, folder, copy_loop, fluxmill, options.events)
            rig.load()
            results = measure(rig, options.rounds, options.identity.resolve())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    command = f"benches/baseline.py --rounds {options.rounds} --events {options.events}"
    if options.identity != IDENTITY:
        command += f" --identity {options.identity.name}"
    text = f"`{command}`, {time.strftime('%Y-%m-%d')}. {about}.\n\n{table(results)}\n"
    print(text)
    if options.write:
        write(BEGIN, END, text)


if __name__ == "__main__":
    main()
