# SPDX-License-Identifier: MIT
"""Real parts for tests: Kafka brokers (one or three nodes, KRaft), PostgreSQL and workers as child
processes, each with its own directory, log file and ports, each of which can be killed, stopped,
continued and started again."""
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCAL = Path(os.environ.get("PGPT_LOCAL_DIR", ROOT / ".local"))
CLUSTER_ID = "pgpt-tests-AAAAAAAAAAA"
PORTS = set() # that were handed out


def free_port():
    """A port that nobody has, and that the system gives to nobody who asks for any: who is to listen there may take its
    time to start."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(min(10000, given - 1000), given - 1) # the next one is none of the system's either
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in PORTS:
            PORTS.add(port)
            return port


class Process:
    """A child in its own process group, with its output in a file."""

    def __init__(self, name, directory):
        self.name = name
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / f"{name}.log"
        self.child = None
        self.stopped = False

    def spawn(self, argv, env=None, cwd=ROOT):
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                          env=env, cwd=cwd, start_new_session=True)
        self.stopped = False

    @property
    def alive(self):
        return self.child is not None and self.child.poll() is None

    def signal(self, number):
        if self.alive:
            os.killpg(self.child.pid, number)
        if number == signal.SIGSTOP:
            self.stopped = True
        if number == signal.SIGCONT:
            self.stopped = False

    def kill(self):
        self.signal(signal.SIGKILL)
        if self.child:
            self.child.wait(30)

    def terminate(self, timeout=40):
        """SIGTERM, then wait; returns the exit code, or None after a SIGKILL was needed."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def tail(self, lines=15):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Broker(Process):
    def __init__(self, node, directory, ports, controller_ports, session_ms, extra="", front=None):
        super().__init__(f"broker-{node}", directory)
        self.node, self.port = node, ports[node - 1]
        listeners = advertised = f"PLAINTEXT://127.0.0.1:{self.port}"
        if front: # clients that come through the relay stay on it
            behind = free_port()
            self.front_port = front(behind)
            listeners += f",FRONT://127.0.0.1:{behind}"
            advertised += f",FRONT://127.0.0.1:{self.front_port}"
        many = len(ports) > 1
        rf, isr = (3, 2) if many else (1, 1)
        voters = ",".join(f"{i + 1}@127.0.0.1:{p}" for i, p in enumerate(controller_ports))
        settings = f"""process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners={listeners},CONTROLLER://127.0.0.1:{controller_ports[node - 1]}
advertised.listeners={advertised}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,FRONT:PLAINTEXT
log.dirs={self.directory}/data-{node}
auto.create.topics.enable=false
message.max.bytes=1179648
default.replication.factor={rf}
min.insync.replicas={isr}
offsets.topic.replication.factor={rf}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={rf}
transaction.state.log.min.isr={isr}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={rf}
share.coordinator.state.topic.min.isr={isr}
group.initial.rebalance.delay.ms=0
group.consumer.min.session.timeout.ms={session_ms}
group.consumer.session.timeout.ms={session_ms}
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms={min(1000, session_ms // 5)}
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.segment.delete.delay.ms=1000
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
"""
        if many:
            settings += """broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
replica.lag.time.max.ms=5000
"""
        settings += extra
        self.config = self.directory / f"server-{node}.properties"
        self.config.write_text(settings)
        (self.directory / "log4j2.properties").write_text(
            "rootLogger.level=WARN\nrootLogger.appenderRef.c.ref=C\nappender.c.type=Console\nappender.c.name=C\n"
            "appender.c.layout.type=PatternLayout\nappender.c.layout.pattern=%d %p %c{1} %m%n\n"
            "logger.t.name=kafka.coordinator.transaction\nlogger.t.level=INFO\n") # what becomes of transactions
        self.java = ["java", "-Xms256m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                     f"-Dlog4j2.configurationFile={self.directory}/log4j2.properties", "-cp", f"{LOCAL}/kafka/lib/*"]
        subprocess.run(self.java + ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(self.config)],
                       check=True, stdout=subprocess.DEVNULL)

    def start(self):
        self.spawn(self.java + ["kafka.Kafka", str(self.config)])


class Kafka:
    """One broker or three. session_ms: a killed member's partitions go to another after this long.
    extra: further lines of the brokers' settings. front(port): opens a relay to a broker's port and returns
    the relay's; clients that begin at `fronts` meet the brokers through it alone."""

    def __init__(self, directory, nodes=1, session_ms=6000, extra="", front=None):
        ports = [free_port() for _ in range(nodes)]
        controllers = [free_port() for _ in range(nodes)]
        self.brokers = [Broker(i + 1, Path(directory) / "kafka", ports, controllers, session_ms, extra, front)
                        for i in range(nodes)]
        self.bootstrap = ",".join(f"127.0.0.1:{p}" for p in ports)
        self.fronts = ",".join(f"127.0.0.1:{b.front_port}" for b in self.brokers) if front else self.bootstrap

    def start(self, timeout=180):
        for broker in self.brokers:
            broker.start()
        self.wait(timeout)

    def wait(self, timeout=180):
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        deadline = time.time() + timeout
        while time.time() < deadline:
            try:
                if len(admin.list_topics(timeout=2).brokers) == len(self.brokers):
                    return
            except KafkaException:
                time.sleep(0.2)
        raise RuntimeError(f"brokers not up after {timeout} s:\n{self.brokers[0].tail()}")

    def stop(self):
        for broker in self.brokers:
            if broker.alive:
                broker.kill()


def as_postgres():
    """What runs a program as a user that the server accepts: it refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


class Postgres(Process):
    def __init__(self, directory):
        super().__init__("postgres", Path(directory) / "postgres")
        self.port = free_port()
        self.bin = Path(subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True,
                                       text=True).stdout.strip())
        self.prefix = as_postgres()
        self.outside = None # where the data lie when the server's user cannot reach the directory
        home = self.directory
        if self.prefix:
            shutil.chown(home, "postgres")
            if subprocess.run(self.prefix + ["test", "-w", str(home)], cwd="/", check=False).returncode:
                home = self.outside = Path(tempfile.mkdtemp(prefix="pgpt-tests-", dir="/var/tmp"))
                shutil.chown(home, "postgres")
        self.data = home / "data"
        subprocess.run(self.prefix + [str(self.bin / "initdb"), "-D", str(self.data), "-U", "app", "-A", "trust",
                                      "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
                       check=True, stdout=subprocess.DEVNULL, cwd="/")
        self.server = f"postgresql://app@127.0.0.1:{self.port}"
        self.url = f"{self.server}/pgpt"

    def start(self, timeout=180):
        import psycopg
        deadline = time.time() + timeout
        while True:
            if not self.alive: # at first; and after a kill -9, while an old backend still holds its memory
                self.spawn(self.prefix + [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port),
                                          "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                                          "-c", "fsync=off"], cwd="/")
            try:
                psycopg.connect(f"{self.server}/postgres", connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.time() > deadline:
                    raise RuntimeError(f"PostgreSQL not up after {timeout} s:\n{self.tail()}") from None
                time.sleep(0.1)

    def create(self):
        """The database pgpt with the migrations applied, and an empty twin that copies are made of."""
        import psycopg
        with psycopg.connect(f"{self.server}/postgres", autocommit=True) as db:
            db.execute("create database pgpt_empty")
        subprocess.run(["sqitch", "deploy", f"db:pg://app@127.0.0.1:{self.port}/pgpt_empty"], check=True,
                       cwd=ROOT / "migrations", stdout=subprocess.DEVNULL,
                       env={**os.environ, "SQITCH_FULLNAME": "tests", "SQITCH_EMAIL": "tests@localhost"})
        self.copy("pgpt")

    def copy(self, name):
        """Another empty database of the same kind. Returns its URL."""
        import psycopg
        with psycopg.connect(f"{self.server}/postgres", autocommit=True) as db:
            db.execute(f'create database "{name}" template pgpt_empty')
        return f"{self.server}/{name}"

    def drop(self, name):
        import psycopg
        with psycopg.connect(f"{self.server}/postgres", autocommit=True) as db:
            db.execute(f'drop database "{name}" with (force)')

    def remove_outside(self):
        if self.outside:
            shutil.rmtree(self.outside, ignore_errors=True)


class Worker(Process):
    """One pgpt-worker. env: its PGPT_* variables; those of the caller's shell do not reach it."""

    def __init__(self, name, directory, env, binary):
        super().__init__(name, Path(directory) / "workers")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PGPT_")}
        self.env = {**inherited, **env, "PGPT_WORKER_NAME": name}
        self.port = int(env.get("PGPT_HTTP_PORT", 0))
        self.argv = [str(binary)]

    def start(self):
        self.spawn(self.argv, env=self.env)

    def http(self, path, timeout=5):
        """(status, body); (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as problem:
            return 0, str(problem)

    def wait_ready(self, timeout=120):
        deadline = time.time() + timeout
        while True:
            status, body = self.http("/readyz")
            if status == 200:
                return self
            if not self.alive:
                raise RuntimeError(f"{self.name} exited with {self.child.returncode}:\n{self.tail()}")
            if time.time() > deadline:
                raise RuntimeError(f"{self.name} is not ready after {timeout} s: {body}\n{self.tail()}")
            time.sleep(0.05)

    def metric(self, name):
        """The value of one series, as its line begins: 'pgpt_jobs_total{outcome="completed"}'."""
        for line in self.http("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        return None

    def wait_metric(self, name, wanted, timeout=60):
        """Until a series has the value. What the brokers show is counted a moment later."""
        deadline = time.time() + timeout
        while (value := self.metric(name)) != wanted:
            assert time.time() < deadline, f"{self.name}: {name} is {value}, not {wanted}\n{self.tail()}"
            time.sleep(0.05)

    def says(self, text, since=0):
        return text in self.log.read_text(errors="replace")[since:]

    def wait_says(self, text, since=0, timeout=60, pause=0.02):
        """Until its log holds the text, behind so many characters."""
        deadline = time.time() + timeout
        while not self.says(text, since):
            assert self.alive or self.says(text, since), f"{self.name} exited without {text!r}:\n{self.tail()}"
            assert time.time() < deadline, f"{self.name} does not say {text!r} within {timeout} s:\n{self.tail()}"
            time.sleep(pause)
