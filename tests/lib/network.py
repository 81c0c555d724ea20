# SPDX-License-Identifier: MIT
"""The network between workers and brokers: a TCP relay in front of each broker, which the brokers
advertise to workers. A connection belongs to the worker and role of its first request's client.id
(`<worker>-<role>`), so that one worker, or its transactional producer alone, can be cut off, held up or
reset while others go on. The relay lives in a thread of its own; any thread may call."""
import asyncio
import socket
import struct
import threading
from dataclasses import dataclass

PIECE = 65536
LOOK_S = 0.02 # how often a held direction looks whether it may go on
REQUESTS, ANSWERS = "requests", "answers" # directions


@dataclass(eq=False) # two alike are still two
class Trouble:
    """What happens to the connections of a worker until it is lifted."""
    worker: str # its name and a dash
    role: str = "" # of its clients; "" is all of them
    held: tuple = () # directions in which nothing passes
    delay_s: float = 0
    behind: int = -1 # begins when a request of this API key has passed; -1 is at once

    def concerns(self, client_id):
        return client_id.startswith(self.worker + self.role)


def first_client_id(data):
    """Of a request: size, key, version and correlation id, then a string. None: not all of it is here."""
    if len(data) < 14:
        return None
    size = struct.unpack_from(">h", data, 12)[0]
    return data[14:14 + size].decode(errors="replace") if len(data) >= 14 + size else None


class Requests:
    """Where requests begin in what a client sends: each is its size, then its API key."""
    HEAD = 6

    def __init__(self):
        self.head, self.left = b"", 0 # of the request that is not all here

    def begun(self, data):
        """The API keys of the requests whose heads end in these bytes."""
        keys = []
        while data:
            if self.left:
                passed = min(self.left, len(data))
                self.left, data = self.left - passed, data[passed:]
                continue
            missing = self.HEAD - len(self.head)
            self.head, data = self.head + data[:missing], data[missing:]
            if len(self.head) == self.HEAD:
                size, key = struct.unpack(">ih", self.head)
                keys.append(key)
                self.head, self.left = b"", size - 2
        return keys


class Connection:
    def __init__(self, network, reader, writer):
        self.network, self.client, self.reader = network, writer, reader
        self.broker, self.client_id, self.ends = None, "", False
        self.requests = Requests()

    def reset(self):
        """Both ends get an RST; what was under way is lost. In the relay's thread."""
        self.ends = True
        for side in (self.client, self.broker):
            if side and not side.is_closing():
                side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.transport.abort()

    async def pump(self, reader, writer, direction):
        while data := await reader.read(PIECE):
            while not self.ends and self.network.held(self.client_id, direction):
                await asyncio.sleep(LOOK_S)
            delay = self.network.delay(self.client_id)
            if delay:
                await asyncio.sleep(delay)
            if direction == REQUESTS:
                self.network.passes(self.client_id, self.requests.begun(data))
            writer.write(data)
            await writer.drain()

    async def serve(self, port):
        try:
            head = b""
            while (client_id := first_client_id(head)) is None:
                data = await self.reader.read(PIECE)
                if not data:
                    return
                head += data
            self.client_id = client_id
            while not self.ends and self.network.held(client_id, REQUESTS):
                await asyncio.sleep(LOOK_S)
            broker_reader, self.broker = await asyncio.open_connection("127.0.0.1", port)
            self.network.passes(client_id, self.requests.begun(head))
            self.broker.write(head)
            pumps = [asyncio.ensure_future(self.pump(self.reader, self.broker, REQUESTS)),
                     asyncio.ensure_future(self.pump(broker_reader, self.client, ANSWERS))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass # the broker is down, or a side has closed: the other is closed too
        finally:
            for side in (self.client, self.broker):
                if side:
                    side.close()


class Network:
    def __init__(self):
        self.troubles = [] # replaced as a whole, so that the relay's thread sees one list or the other
        self.connections = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def front(self, port):
        """Opens a relay to a broker's port; returns the port to advertise."""
        return asyncio.run_coroutine_threadsafe(self._listen(port), self.loop).result(10)

    async def _listen(self, port):
        async def serve(reader, writer):
            connection = Connection(self, reader, writer)
            self.connections.add(connection)
            try:
                await connection.serve(port)
            finally:
                self.connections.discard(connection)
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    def passes(self, client_id, keys):
        """Requests go to a broker: troubles that begin behind one of them begin. In the relay's thread."""
        for trouble in self.troubles:
            if trouble.behind in keys and trouble.concerns(client_id):
                trouble.behind = -1

    def held(self, client_id, direction):
        return any(direction in t.held and t.behind < 0 and t.concerns(client_id) for t in self.troubles)

    def delay(self, client_id):
        return max((t.delay_s for t in self.troubles if t.behind < 0 and t.concerns(client_id)), default=0)

    def begin(self, trouble):
        self.troubles = [*self.troubles, trouble]

    def lift(self, trouble, reset=False):
        """Ends it. What was held passes now, as after a short cut; or its connections are reset, as after a long one."""
        if reset:
            self.reset(trouble)
        self.troubles = [t for t in self.troubles if t is not trouble]

    def reset(self, trouble):
        async def all_of_it():
            for connection in [c for c in self.connections if trouble.concerns(c.client_id)]:
                connection.reset()
        asyncio.run_coroutine_threadsafe(all_of_it(), self.loop).result(10)

    def close(self):
        async def end():
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
