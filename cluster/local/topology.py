#!/usr/bin/env python3
"""A whole Perigee cluster on one machine, every process on a host of its own: network namespaces on a bridge.

    topology.py --dir DIR up                etcd, 3 stores, 2 prefill nodes, 2 decode nodes, a gateway
    topology.py --dir DIR status            who runs, where, with how much memory and how many descriptors
    topology.py --dir DIR kill s1 [-STOP]   a signal (default: -9)
    topology.py --dir DIR start s1          again, at the same address, with the data that it left
    topology.py --dir DIR run g1 perigee store stat --store 10.88.1.11:7100 ...      a command on a node's host
    topology.py --dir DIR down              all of it, namespaces and bridge too; DIR keeps logs and data

Every node has an address 10.88.N.x of its own and a folder DIR/NAME with its log and data. The gateway is reached from
this machine at 10.88.N.2:8080 (status says it). Several topologies may run side by side, each with its own DIR.

Needs root (network namespaces and a bridge), ip (iproute2) and, but for --static, etcd. Exit codes: 0 done, 1 failed,
2 wrong arguments, 77 not possible on this machine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

CANNOT_RUN_HERE = 77
SOURCE = pathlib.Path(__file__).resolve().parents[2]
FIRST_HOST = {"gateway": 2, "etcd": 9, "store": 11, "prefill": 31, "decode": 51}
PORT = {"gateway": 8080, "etcd": 2379, "store": 7100, "prefill": 7200, "decode": 7300}
MAX_NODES = 16  # Of one role.
READY_WITHIN_S = 60
STOP_WITHIN_S = 10
SIGNALS = {"-9": signal.SIGKILL, "-KILL": signal.SIGKILL, "-TERM": signal.SIGTERM, "-STOP": signal.SIGSTOP,
           "-CONT": signal.SIGCONT}


class Failure(Exception):
    pass


class NotHere(Exception):
    """This machine cannot run a topology."""


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: {done.stdout.strip()}")
    return done.stdout


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def start_time(pid):
    """When a process began, in clock ticks: with the pid its name for ever. None: gone, or waiting to be reaped."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def require_possible(with_etcd):
    if os.geteuid() != 0:
        raise NotHere("network namespaces and bridges need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
    for tool in ["ip"] + (["etcd"] if with_etcd else []):
        if shutil.which(tool) is None:
            raise NotHere(f"there is no '{tool}' on this machine; scripts/setup.sh installs it")


class Topology:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.file = self.folder / "topology.json"
        self.state = None

    # What is written down.

    def load(self):
        try:
            self.state = json.loads(self.file.read_text())
        except FileNotFoundError:
            raise Failure(f"no topology is up in {self.folder}") from None

    def save(self):
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.state, indent=1))
        part.rename(self.file)

    def node(self, name):
        if name not in self.state["nodes"]:
            raise Failure(f"no node is called '{name}'; there are {', '.join(self.state['nodes'])}")
        return self.state["nodes"][name]

    def home(self, name):
        return self.folder / name

    def space(self, name):
        return f"pg{self.state['number']}-{name}"

    def switch(self):
        """The namespace with the bridge and its ends of all links. This machine's own has one device more, not a
        dozen: UCX takes every one for a way to its peers."""
        return f"pg{self.state['number']}-switch"

    def device(self):
        return f"pg{self.state['number']}"

    # Processes.

    def pid(self, name):
        """Of the running process, or None."""
        try:
            pid, began = map(int, (self.home(name) / "pid").read_text().split())
        except (OSError, ValueError):
            return None
        return pid if start_time(pid) == began else None

    def launch(self, name, tell=True):
        """Starts a node; the descriptor on which it will say that it is ready (etcd says nothing)."""
        if self.pid(name) is not None:
            raise Failure(f"{name} runs already, as process {self.pid(name)}")
        node = self.node(name)
        read, write = os.pipe()
        command = ["ip", "netns", "exec", self.space(name)] + node["command"]
        if tell and node["role"] != "etcd":
            command.append(f"--ready-fd={write}")
        with open(self.home(name) / "log", "ab") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write],
                                     start_new_session=True, cwd=self.home(name),
                                     env=dict(os.environ, PERIGEE_HOME=str(self.home(name))))
        os.close(write)
        (self.home(name) / "pid").write_text(f"{child.pid} {start_time(child.pid) or 0}\n")
        return read

    def await_ready(self, name, ready):
        end = time.monotonic() + READY_WITHIN_S
        said = b""
        while self.pid(name) is not None and time.monotonic() < end:
            if self.node(name)["role"] == "etcd":
                if self.etcd_answers(name):
                    break
                time.sleep(0.05)
            elif select.select([ready], [], [], 0.1)[0]:
                more = os.read(ready, 4096)
                said += more
                if said.startswith(b"ready ") or not more:
                    break
        else:
            os.close(ready)
            raise Failure(f"{name} is not ready; the end of its log {self.home(name) / 'log'}:\n{self.log_end(name)}")
        os.close(ready)
        if self.node(name)["role"] != "etcd" and not said.startswith(b"ready "):
            raise Failure(f"{name} ended; the end of its log {self.home(name) / 'log'}:\n{self.log_end(name)}")

    def etcd_answers(self, name):
        try:
            with urllib.request.urlopen(f"http://{self.node(name)['address']}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def log_end(self, name):
        return (self.home(name) / "log").read_bytes()[-1500:].decode(errors="replace")

    def start(self, names):
        waiting = []
        try:
            for name in names:
                waiting.append((name, self.launch(name)))
        finally:
            for name, ready in waiting:
                self.await_ready(name, ready)

    def send(self, name, sent):
        pid = self.pid(name)
        if pid is None:
            raise Failure(f"{name} does not run")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        if sent == signal.SIGKILL and not wait_for(lambda: self.pid(name) is None, STOP_WITHIN_S):
            raise Failure(f"process {pid} of {name} does not go away")

    # Hosts.

    def make_network(self):
        """Takes the first number that is free: making the device is what takes it."""
        for number in range(1, 255):
            self.state["number"] = number
            made = subprocess.run(["ip", "link", "add", self.device(), "type", "veth", "peer", "name", "host"],
                                  capture_output=True, text=True)
            if made.returncode == 0:
                break
        else:
            raise NotHere(f"no network device can be made: {made.stderr.strip()}")
        self.save()
        switch = self.switch()
        run("ip", "netns", "add", switch)
        run("ip", "link", "set", "host", "netns", switch)
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        run("ip", "-n", switch, "link", "set", "host", "master", "bridge", "up")
        # Without link-local addresses, by which UCX would try to reach peers elsewhere.
        with contextlib.suppress(FileNotFoundError):
            pathlib.Path(f"/proc/sys/net/ipv6/conf/{self.device()}/disable_ipv6").write_text("1")
        run("ip", "addr", "add", f"10.88.{self.state['number']}.1/24", "dev", self.device())
        run("ip", "link", "set", self.device(), "up")

    def make_host(self, name):
        space, switch = self.space(name), self.switch()
        run("ip", "netns", "add", space)
        run("ip", "-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", switch, "link", "set", name, "master", "bridge", "up")
        host = self.node(name)["address"].partition(":")[0]
        run("ip", "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "link", "set", "eth0", "up")

    def host_is_up(self, name):
        """The kernel calls a device running a while after it is up, and UCX uses only what runs."""
        return "state UP" in run("ip", "-n", self.space(name), "link", "show", "eth0")

    # The whole.

    def up(self, options):
        require_possible(not options.static)
        program = pathlib.Path(options.program).resolve()
        if not os.access(program, os.X_OK):
            raise Failure(f"there is no program {program}; build it, or name it with --program")
        if self.file.exists():
            raise Failure(f"a topology is up in {self.folder}; take it down first")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = {"number": 0, "nodes": {}}
        try:
            self.make_network()
            self.describe(options, str(program))
            self.save()
            for name in self.state["nodes"]:
                self.home(name).mkdir(exist_ok=True)
                self.make_host(name)
            for name in self.state["nodes"]:
                if not wait_for(lambda name=name: self.host_is_up(name), 10):
                    raise Failure(f"the link of {name} does not come up")
            if options.until_pid:
                self.watch_over(options.until_pid)
            for roles in [["etcd"], ["store"], ["prefill", "decode"], ["gateway"]]:
                self.start([n for n, node in self.state["nodes"].items() if node["role"] in roles])
            self.await_service()
        except BaseException:
            self.down(now=True)
            raise

    def describe(self, options, program):
        """Every node's address and command."""
        def add(role, letter, count):
            if not 0 <= count <= MAX_NODES:
                raise Failure(f"{count} {role} nodes; 0 to {MAX_NODES} are possible")
            for i in range(count):
                address = f"10.88.{self.state['number']}.{FIRST_HOST[role] + i}:{PORT[role]}"
                self.state["nodes"][f"{letter}{i + 1}"] = {"role": role, "address": address}

        add("etcd", "e", 0 if options.static else 1)
        add("store", "s", options.stores)
        add("prefill", "p", options.prefill)
        add("decode", "d", options.decode)
        add("gateway", "g", 1)
        secret, credentials, members = self.write_secrets(options.static)
        etcd = self.state["nodes"].get("e1", {}).get("address")
        join = f"static:{members}" if options.static else f"etcd:{etcd}"
        for name, node in self.state["nodes"].items():
            data = str(self.home(name) / "data")
            if node["role"] == "etcd":
                url = f"http://{node['address']}"
                node["command"] = ["etcd", "--name", name, "--data-dir", data, "--listen-client-urls", url,
                                   "--advertise-client-urls", url, "--logger", "zap", "--log-level", "warn"]
                continue
            node["command"] = [program, "serve", node["role"], "--listen", node["address"], "--id", name, "--join", join,
                               "--store-secret-file", secret, "--transports", "tcp"]
            if node["role"] != "gateway":
                node["command"] += ["--devices", "eth0"]
            if node["role"] == "store":
                node["command"] += ["--credentials", credentials, "--data-dir", data, "--dram-mib",
                                    str(options.dram_mib), "--ssd-mib", str(options.ssd_mib)]
            else:
                node["command"] += ["--replicas", str(options.replicas)]
                if options.model:
                    node["command"] += ["--model", str(pathlib.Path(options.model).resolve())]
            if node["role"] in ("prefill", "decode"):
                node["command"] += ["--pool-mib", str(options.pool_mib)]

    def write_secrets(self, static):
        secret, credentials = self.folder / "secret", self.folder / "credentials.toml"
        text = os.urandom(16).hex()
        for file, content in [(secret, text + "\n"), (credentials, f'[[credential]]\nsecret = "{text}"\ntrusted = true\n')]:
            file.unlink(missing_ok=True)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(content)
        members = self.folder / "members.json"
        if static:
            members.write_text('{"epoch": 1, "nodes": []}')
        return str(secret), str(credentials), str(members)

    def gateway(self):
        return next((node["address"] for node in self.state["nodes"].values() if node["role"] == "gateway"), None)

    def serves(self):
        try:
            with urllib.request.urlopen(f"http://{self.gateway()}/ready", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def await_service(self):
        if any(node["role"] == "decode" for node in self.state["nodes"].values()):
            if not wait_for(self.serves, READY_WITHIN_S):
                raise Failure("the gateway finds no decode node; its log ends:\n" + self.log_end("g1"))

    def watch_over(self, pid):
        """A process that takes everything down when that one is gone, however it ends."""
        child = subprocess.Popen([sys.executable, __file__, "--dir", str(self.folder), "watch-over", str(pid)],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 start_new_session=True)
        self.state["watcher"] = [child.pid, start_time(child.pid)]
        self.save()

    def down(self, now=False):
        watcher = self.state.pop("watcher", None)
        if watcher is not None and watcher[0] != os.getpid() and start_time(watcher[0]) == watcher[1]:
            os.kill(watcher[0], signal.SIGKILL)
        roles = ["gateway", "decode", "prefill", "store", "etcd"]
        for role in roles:
            names = [n for n, node in self.state["nodes"].items() if node["role"] == role]
            for name in names:
                with contextlib.suppress(Failure):
                    self.send(name, signal.SIGKILL if now else signal.SIGTERM)
                    self.send(name, signal.SIGCONT)  # A paused one would not hear it.
            if not now:
                wait_for(lambda names=names: not any(self.pid(n) for n in names), STOP_WITHIN_S)
        left = []
        for name in self.state["nodes"]:
            space = self.space(name)
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            for pid in map(int, listed):  # Also what the nodes may have started.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda listed=listed: not any(start_time(int(pid)) for pid in listed), STOP_WITHIN_S)
            with contextlib.suppress(Failure):  # It may not have been made.
                run("ip", "netns", "del", space)
            if os.path.exists(f"/run/netns/{space}"):
                left.append(space)
        subprocess.run(["ip", "link", "del", self.device()], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.switch()], capture_output=True)
        self.file.unlink(missing_ok=True)
        if left:
            raise Failure(f"left behind: {', '.join(left)}")

    def status(self):
        rows = []
        for name, node in self.state["nodes"].items():
            pid = self.pid(name)
            row = {"node": name, "role": node["role"], "address": node["address"], "pid": pid, "state": "gone",
                   "rss_bytes": 0, "descriptors": 0, "threads": 0}
            with contextlib.suppress(OSError, TypeError):
                fields = dict(line.split(":", 1) for line in
                              pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
                row["state"] = "paused" if fields["State"].split()[0] == "T" else "running"
                row["rss_bytes"] = int(fields.get("VmRSS", "0 kB").split()[0]) << 10
                row["threads"] = int(fields["Threads"])
                row["descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            rows.append(row)
        return rows


def print_status(topology, as_json):
    rows = topology.status()
    if as_json:
        print(json.dumps({"gateway": topology.gateway(), "secret_file": str(topology.folder / "secret"), "nodes": rows}))
        return
    print(f"{'NODE':<6}{'ROLE':<9}{'ADDRESS':<20}{'STATE':<9}{'PID':>8}{'MIB':>7}{'FDS':>6}{'THREADS':>9}")
    for r in rows:
        print(f"{r['node']:<6}{r['role']:<9}{r['address']:<20}{r['state']:<9}{r['pid'] or '-':>8}"
              f"{r['rss_bytes'] >> 20:>7}{r['descriptors']:>6}{r['threads']:>9}")
    print(f"gateway: http://{topology.gateway()}/v1")


def watch_over(topology, pid):
    try:
        fd = os.pidfd_open(pid)
        select.select([fd], [], [])
    except ProcessLookupError:
        pass
    topology.load()
    topology.down(now=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=os.environ.get("PERIGEE_TOPOLOGY", "perigee-topology"),
                        help="state, logs and data (default: $PERIGEE_TOPOLOGY, or ./perigee-topology)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start everything and wait until it serves")
    up.add_argument("--program", default=str(SOURCE / "build/release/cluster/perigee"))
    up.add_argument("--model", help="model folder (default: the program's)")
    up.add_argument("--stores", type=int, default=3)
    up.add_argument("--prefill", type=int, default=2)
    up.add_argument("--decode", type=int, default=2)
    up.add_argument("--replicas", type=int, default=2, help="stores that are to have each plane")
    up.add_argument("--static", action="store_true", help="membership by a file instead of etcd")
    up.add_argument("--dram-mib", type=int, default=128, help="memory of a store")
    up.add_argument("--ssd-mib", type=int, default=512, help="disk of a store")
    up.add_argument("--pool-mib", type=int, default=128, help="memory for planes of a prefill or decode node")
    up.add_argument("--until-pid", type=int, help="take it down when this process is gone")
    down = verbs.add_parser("down", help="stop everything, take namespaces and bridge away")
    down.add_argument("--now", action="store_true", help="kill instead of asking to stop")
    status = verbs.add_parser("status", help="what runs")
    status.add_argument("--json", action="store_true")
    kill = verbs.add_parser("kill", help="send a node a signal: -9 (default), -TERM, -STOP, -CONT", prefix_chars="+")
    kill.add_argument("node")
    kill.add_argument("signal", nargs="?", default="-9", choices=list(SIGNALS))
    start = verbs.add_parser("start", help="start nodes again")
    start.add_argument("node", nargs="+")
    start.add_argument("--no-wait", action="store_true", help="until they are ready")
    on_host = verbs.add_parser("run", help="run a command on a node's host")
    on_host.add_argument("node")
    on_host.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("watch-over").add_argument("pid", type=int)
    return parser.parse_args()


def main():
    options = parse()
    topology = Topology(options.dir)
    if options.verb == "up":
        topology.up(options)
        print_status(topology, False)
        return
    if options.verb == "watch-over":
        watch_over(topology, options.pid)
        return
    topology.load()
    if options.verb == "down":
        topology.down(options.now)
    elif options.verb == "status":
        print_status(topology, options.json)
    elif options.verb == "run":
        topology.node(options.node)
        # UCX must not take another namespace of this machine for the same host.
        os.environ["UCX_TLS"] = "tcp"
        os.execvp("ip", ["ip", "netns", "exec", topology.space(options.node)] + options.command)
    elif options.verb == "kill":
        topology.send(options.node, SIGNALS[options.signal])
    elif options.no_wait:
        for name in options.node:
            topology.launch(name, tell=False)
    else:
        topology.start(options.node)


if __name__ == "__main__":
    try:
        main()
    except NotHere as error:
        print(f"topology: cannot run here: {error}", file=sys.stderr)
        sys.exit(CANNOT_RUN_HERE)
    except Failure as error:
        print(f"topology: {error}", file=sys.stderr)
        sys.exit(1)
