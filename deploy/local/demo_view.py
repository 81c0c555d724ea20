# SPDX-License-Identifier: MIT
"""The part of the demo that one looks at: sends each sentence as a job of its own by `pgpt submit
--follow --json`, a few at a time, and shows the translations as they grow. On a terminal the jobs that
run are live lines at the bottom; elsewhere a line is printed when its job has ended.

    demo_view.py PGPT TENANT FILE.en FILE.ru      exit code 0 only when every job completed"""
import json
import os
import selectors
import shutil
import subprocess
import sys
import uuid

AT_ONCE = 6
OTHER = {"en": "ru", "ru": "en"}


class Job:
    def __init__(self, pgpt, tenant, source, text):
        self.source, self.target, self.prompt = source, OTHER[source], text
        self.pieces, self.status, self.unread = {}, None, b""
        self.process = subprocess.Popen(
            [pgpt, "submit", "--follow", "--json", "--to", self.target, "--tenant", tenant,
             "--job-id", str(uuid.uuid4()), text],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def read(self):
        """What has come by now; False when there is no more."""
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            self.take(json.loads(line))
        return bool(data)

    def take(self, news):
        if "status" in news:
            self.status = news["status"]
        elif "text_start" in news:
            if news["restart"]:
                self.pieces = {}
            self.pieces[news["text_start"]] = news["text"]

    @property
    def text(self):
        return "".join(self.pieces[start] for start in sorted(self.pieces))

    def end(self):
        """The reason when it did not complete, else None."""
        complaint = self.process.stderr.read().decode(errors="replace").strip()
        code = self.process.wait()
        if code == 0 and self.status == "completed":
            return None
        return complaint or f"status {self.status}, exit code {code}"


class Screen:
    """Lines that stay, above lines that are drawn again."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.drawn = 0

    def clear(self):
        if self.drawn:
            sys.stdout.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0

    def stay(self, job, problem):
        self.clear()
        arrow = "\x1b[2m->\x1b[0m" if self.live else "->"
        print(f"{job.prompt} {arrow} {problem or job.text}", flush=True)

    def draw(self, jobs):
        if not self.live:
            return
        self.clear()
        width = shutil.get_terminal_size().columns - 1
        for job in jobs:
            prompt = f"{job.prompt} -> "
            # the end of a line is what grows: a line that is too long loses its prompt's beginning
            line = (prompt + job.text)[-width:]
            split = max(0, len(line) - len(job.text))
            sys.stdout.write(f"\x1b[2m{line[:split]}\x1b[0m{line[split:]}\n")
        self.drawn = len(jobs)
        sys.stdout.flush()


def sentences(paths):
    """Of all files in turn, so that both directions share the batches."""
    lists = [[(path.rsplit(".", 1)[1], line.strip()) for line in open(path, encoding="utf-8")] for path in paths]
    return [sentence for group in zip(*lists) for sentence in group]


def main():
    pgpt, tenant, *paths = sys.argv[1:]
    waiting, running, failed = sentences(paths), [], 0
    count = len(waiting)
    screen, selector = Screen(), selectors.DefaultSelector()
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                job = Job(pgpt, tenant, *waiting.pop(0))
                running.append(job)
                selector.register(job.process.stdout, selectors.EVENT_READ, job)
            for key, _ in selector.select():
                if key.data.read():
                    continue
                selector.unregister(key.fileobj)
                running.remove(key.data)
                problem = key.data.end()
                failed += problem is not None
                screen.stay(key.data, problem)
            screen.draw(running)
    finally:
        screen.clear()
        for job in running:
            job.process.terminate()
            job.process.wait()
    print(f"{count - failed} of {count} jobs completed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
