#!/usr/bin/env python3
"""Measures Fluxmill on NATS JetStream against a loop on async-nats, side by side on one real nats-server.

    benches/nats.py throughput [--rounds 7] [--sizes 250,1000] [--only A,B,...] [--write]
    benches/nats.py latency    [--rounds 3] [--seconds 20] [--write]

Builds what it measures, starts nats-server (`FLUXMILL_NATS_SERVER`, the one on the path, or where `go install` puts it),
and loads a stream on disk with events of exactly the size that is asked for, without headers, whose subjects end in one
of 1,000 keys. The contestants (benches/nats-loop, Fluxmill) copy it into a new stream on disk, in turn, round after
round, in an order that changes from round to round. Every run is checked: as many events must come out as went in.

Only ratios within one run mean something: machines differ and are shared, and the server uses the same cores. A' is A
again: how far these two differ is the noise. Events/s is measured at the server: events that came out, divided by the
time between the first and the last that it stored. CPU is user and system time of the whole process, start and end
included; that of the server is what it used while the contestant ran. With --write the tables go between markers of
docs/performance.md.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import rig

SIZES = {250: 300_000, 1_000: 200_000}  # bytes: events
RATE = 1_000  # events per second, for latency
QUANTILES = ["p50", "p90", "p99", "p99.9", "max"]

CHAIN = """\
name: bench
connections: {{ edge: {{ nats: {{ servers: ["{url}"] }} }} }}
pipelines:
  copy:
    from: {{ nats: {{ stream: {input}, durable: {output}, key: last_token }} }}
{function}    to: {{ nats: {{ subject: "{output}.{{key}}"{more} }} }}
    on_error: {{ then: stop }}
"""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to take events from one stream to another."""

    name: str
    loop: str = ""  # how the loop publishes; else this is Fluxmill
    guest: str = ""  # of rig.GUESTS
    more: str = ""  # of Fluxmill's target


LADDER = {
    "A": Contestant("async-nats loop", "plain"),
    "A'": Contestant("the same again (noise)", "plain"),
    "D": Contestant("async-nats loop, with ids", "id"),
    "H": Contestant("async-nats loop, with ids, keys and times", "all"),
    "C": Contestant("fluxmill, no function"),
    "I": Contestant("fluxmill, identity function", guest="identity"),
    "W": Contestant("fluxmill, identity function, atomic batches", guest="identity", more=", atomic: true"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of a contestant was measured to be."""

    rate: float  # events per second
    cpu: float  # seconds per million events
    server: float  # CPU-seconds of the server per million events
    memory: float  # peak, MiB


class Rig:
    """One server, streams, and the ways to copy them."""

    def __init__(self, url, server, folder, loop, fluxmill):
        self.url, self.server, self.folder, self.loop, self.fluxmill = url, server, folder, loop, fluxmill
        self.number = 0

    def tool(self, name, *arguments, deadline=rig.RUN_DEADLINE):
        command = [self.loop, name, self.url, *map(str, arguments)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=deadline, check=True).stdout

    def make(self, stream):
        self.tool("make", stream)
        return stream

    def chain(self, contestant, source, output):
        function = f"    function: {{ wasm: {rig.GUESTS[contestant.guest]} }}\n" if contestant.guest else ""
        file = self.folder / f"{output}.yaml"
        names = {"url": self.url, "input": source, "output": output, "more": contestant.more}
        file.write_text(CHAIN.format(**names, function=function))
        return [self.fluxmill, "run", file]

    def run(self, contestant, source, events, before=()):
        """One run into a fresh stream; `before` is what it runs under, such as a profiler."""
        self.number += 1
        output = self.make(f"out-{self.number}")
        if contestant.loop:
            command = [self.loop, "copy", self.url, source, output, str(events), contestant.loop]
        else:
            command = [*self.chain(contestant, source, output), "--until-caught-up"]
        idle = rig.cpu_seconds(self.server)
        cpu, memory, _ = rig.measured([*before, *command], self.folder, rig.RUN_DEADLINE + events / 1_000)
        server = rig.cpu_seconds(self.server) - idle
        span = {key: int(value) for key, value in (pair.split("=") for pair in self.tool("span", output).split())}
        if span["events"] != events:
            sys.exit(f"{contestant.name}: {span['events']} events instead of {events} in {output}")
        self.tool("drop", output)
        seconds = max(span["last_ms"] - span["first_ms"], 1) / 1000
        return Run(events / seconds, cpu / (events / 1e6), server / (events / 1e6), memory)


def build(release=True):
    profile = ["--release"] if release else []
    loop = ["--manifest-path", rig.ROOT / "benches/nats-loop/Cargo.toml"]
    for arguments in [loop, ["--bin", "fluxmill"]]:
        command = ["cargo", "build", "--locked", *profile, "--target-dir", rig.TARGET, *arguments]
        subprocess.run(command, cwd=rig.ROOT, check=True)
    folder = rig.TARGET / ("release" if release else "debug")
    return folder / "nats-loop", folder / "fluxmill"


def program():
    """The server: see tests/support/nats.rs."""
    installed = pathlib.Path.home() / "go/bin/nats-server"
    return os.environ.get("FLUXMILL_NATS_SERVER") or (str(installed) if installed.is_file() else "nats-server")


@contextlib.contextmanager
def started(loop, fluxmill):
    """A rig with a server and a folder of its own; both end with the block."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fluxmill-bench-"))
    [port] = rig.free_ports(1)
    settings = folder / "server.conf"
    settings.write_text(f'host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: "{folder}/store" }}\n')
    log = folder / "server.log"
    with open(log, "w", encoding="utf-8") as out:
        server = subprocess.Popen([program(), "-c", settings], stdout=out, stderr=out)
    try:
        rig.wait_for(port, server, log)
        yield Rig(f"nats://127.0.0.1:{port}", server.pid, folder, loop, fluxmill)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def rounds(bench, contestants, source, events, number_of_rounds):
    """The runs of each contestant; a round is a row of all, none always after the same other."""
    results = {name: [] for name in contestants}
    for contestant in contestants.values():
        if contestant.guest:
            bench.run(contestant, source, events)  # compiles the function; not counted
    for number in range(number_of_rounds):
        order = list(contestants)
        random.Random(number).shuffle(order)
        for name in order:
            run = bench.run(contestants[name], source, events)
            results[name].append(run)
            print(
                f"{source} round {number + 1}: {name}: {run.rate:,.0f} events/s, {run.cpu:.2f} CPU-s/M,"
                f" server {run.server:.2f}, {run.memory:.0f} MiB",
                flush=True,
            )
    return results


def ratio(mine, base, value):
    """The median of the ratios round by round: what disturbs one round disturbs all its runs."""
    return statistics.median(value(a) / value(b) for a, b in zip(mine, base))


def table(contestants, results):
    base = results.get("A") or next(iter(results.values()))
    lines = [
        "| | contestant | events/s | range | ratio | CPU-s per million | range | ratio | the server's | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in results.items():
        rates, cpus = [run.rate / 1e3 for run in runs], [run.cpu for run in runs]
        faster, dearer = (ratio(runs, base, value) for value in (lambda run: run.rate, lambda run: run.cpu))
        lines.append(
            f"| {name} | {contestants[name].name} | {statistics.median(rates):.1f} k"
            f" | {min(rates):.1f}-{max(rates):.1f} k | {faster:.2f}"
            f" | {statistics.median(cpus):.2f} | {min(cpus):.2f}-{max(cpus):.2f} | {dearer:.2f}"
            f" | {statistics.median(run.server for run in runs):.2f}"
            f" | {statistics.median(run.memory for run in runs):.0f} |"
        )
    said = [
        f"{mine}/{other} {ratio(results[mine], results[other], lambda run: run.rate):.2f} of the events/s,"
        f" {ratio(results[mine], results[other], lambda run: run.cpu):.2f} of the CPU"
        for mine, other in [("C", "A"), ("I", "A"), ("C", "H"), ("I", "H")]
        if mine in results and other in results
    ]
    return "\n".join(lines) + ("\n\n" + "; ".join(said) + "." if said else "")


def throughput(bench, options):
    contestants = {name: LADDER[name] for name in (options.only or list(LADDER))}
    parts = []
    for size in options.sizes:
        source, events = f"in-{size}", options.events or SIZES.get(size, 200_000)
        bench.tool("load", source, events, size, deadline=rig.RUN_DEADLINE + events / 1_000)
        text = table(contestants, rounds(bench, contestants, source, events, options.rounds))
        parts.append(f"**{size:,} bytes** ({events:,} events)\n\n{text}")
        print(parts[-1], flush=True)
        bench.tool("drop", source)
    return "\n\n".join(parts)


def latency(bench, options):
    ways = {"no hop": None, "fluxmill, no function": "C", "fluxmill, identity function": "I"}
    ways |= {"fluxmill, identity function, atomic batches": "W"}
    results = {label: [] for label in ways}
    for number in range(options.rounds):
        for label in random.Random(number).sample(list(results), len(results)):
            results[label].append(one_latency(bench, ways[label], options.seconds, number))
            print(f"round {number + 1}: {label}: {results[label][-1]}", flush=True)
    lines = ["| | " + " | ".join(f"{name} ms" for name in QUANTILES) + " |", "| --- |" + " ---: |" * len(QUANTILES)]
    for label, runs in results.items():
        cells = (statistics.median(run[name] for run in runs) for name in QUANTILES)
        lines.append(f"| {label} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return f"{RATE:,} events a second of 250 bytes, for {options.seconds} s:\n\n" + "\n".join(lines)


def one_latency(bench, name, seconds, number):
    streams = [bench.make(f"latency-{number}-{name}-{end}") for end in (["in", "out"] if name else ["in"])]
    log = bench.folder / "chain.log"
    chain = None
    try:
        if name:
            with open(log, "w", encoding="utf-8") as out:
                command = bench.chain(LADDER[name], streams[0], streams[-1])
                chain = subprocess.Popen(command, stdout=out, stderr=out)
        done = bench.tool("latency", streams[0], streams[-1], RATE, seconds, deadline=seconds + 120)
    finally:
        if chain:
            rig.end(chain, log)
    bench.tool("drop", *streams)
    found = {key: float(value) for key, value in (pair.split("=") for pair in done.split())}
    if found["received"] != found["sent"] or found["doubled"]:
        sys.exit(f"{name}: {done}")
    return found


def main():
    whats = {"throughput": (throughput, 7), "latency": (latency, 3)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=whats, default="throughput")
    parser.add_argument("--rounds", type=int, help="7 for throughput, 3 for latency")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=list(SIZES))
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(LADDER)}")
    parser.add_argument("--events", type=int, help="instead of what belongs to the size")
    parser.add_argument("--seconds", type=int, default=20, help="of one latency run")
    parser.add_argument("--debug", action="store_true", help="build without optimisation, to try this program out")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    measure, usual = whats[options.what]
    options.rounds = options.rounds or usual
    version = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    about = rig.machine(f"nats-server {version}")
    with started(*build(release=not options.debug)) as bench:
        tables = measure(bench, options)
    given = " ".join(argument for argument in sys.argv[1:] if argument != "--write")
    text = f"`benches/nats.py {given}`, {time.strftime('%Y-%m-%d')}. {about}.\n\n{tables}"
    print(f"\n{text}")
    if options.write:
        rig.write(f"nats-{options.what}", text)


if __name__ == "__main__":
    main()
