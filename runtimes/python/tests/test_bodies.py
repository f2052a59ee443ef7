import unittest

from host import Worker, frame


class Bodies(unittest.TestCase):
    def serve(self, source, **options):
        worker = Worker(source, **options)
        self.addCleanup(worker.__exit__)
        self.assertIs(worker.bound, True, worker.bound)
        return worker

    def test_a_long_request_is_gathered_with_windows(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                import hashlib
                {keyword} main(context):
                    body = context.req.body_binary
                    return context.res.text(f"{{len(body)}} {{hashlib.sha256(body).hexdigest()}}")
                """
            )
            import hashlib

            body = bytes(range(256)) * 16_384  # 4 MiB
            number = worker.begin(body=body[:1000], more=True)
            sent, reply = 1000, worker.calls[number]
            while sent < len(body):
                worker.until(lambda: sent + 65_536 <= 262_144 + reply.granted)
                piece = body[sent : sent + 65_536]
                worker.send(frame(0x03, number, piece))
                sent += len(piece)
            worker.send(frame(0x04, number))
            self.assertEqual(
                worker.end(number).text, f"{len(body)} {hashlib.sha256(body).hexdigest()}"
            )

    def test_a_request_may_be_cancelled_while_it_comes(self):
        worker = self.serve("def main(context):\n    return context.res.text('x')\n")
        number = worker.begin(more=True)
        worker.cancel(number)
        self.assertEqual(worker.end(number).failed, (3, ""))
        # What has crossed on the way is ignored.
        worker.send(frame(0x03, number, b"x"), frame(0x04, number))
        worker.grant(number, 5)
        worker.cancel(number)
        self.assertEqual(worker.call().text, "x")

    def test_a_long_reply_keeps_to_its_window(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                {keyword} main(context):
                    size = int(context.req.path[1:])
                    return context.res.binary(bytes(size))
                """
            )
            whole = worker.call("/262144")
            self.assertEqual(len(whole.body), 262_144)

            number = worker.begin("/1000000")
            reply = worker.calls[number]
            worker.until(lambda: len(reply.body) == 262_144)
            # Another call is served meanwhile, and nothing beyond the window has come.
            worker.call("/10")
            self.assertEqual(len(reply.body), 262_144)
            worker.grant(number, 10)
            worker.until(lambda: len(reply.body) == 262_154)
            worker.grant(number, 10_000_000)
            self.assertEqual(len(worker.end(number).body), 1_000_000)

    def test_pieces_come_as_they_are_produced(self):
        sync = """
        import threading
        gate = threading.Event()
        def pieces():
            yield "ä"
            gate.wait()
            yield b""
            yield bytearray(b"second")
            print("printed")
        def main(context):
            if context.req.path == "/open":
                gate.set()
                return context.res.empty()
            body = pieces()
            return body if context.req.path == "/bare" else context.res.send(body, 201, {"a": "b"})
        """
        task = """
        import asyncio
        gate = asyncio.Event()
        async def pieces():
            yield "ä"
            await gate.wait()
            yield b""
            yield bytearray(b"second")
            print("printed")
        async def main(context):
            if context.req.path == "/open":
                gate.set()
                return context.res.empty()
            body = pieces()
            return body if context.req.path == "/bare" else context.res.send(body, 201, {"a": "b"})
        """
        adopted = """
        import asyncio
        opened = []
        async def pieces():
            gate = asyncio.Event()
            opened.append(lambda loop=asyncio.get_running_loop(): loop.call_soon_threadsafe(gate.set))
            yield "ä"
            await gate.wait()
            yield b""
            yield bytearray(b"second")
            print("printed")
        def main(context):
            if context.req.path == "/open":
                opened.pop()()
                return context.res.empty()
            body = pieces()
            return context.res.send(body, 201, {"a": "b"})
        """
        for source in (sync, task, adopted):
            worker = self.serve(source)
            number = worker.begin()
            reply = worker.calls[number]
            worker.until(lambda: reply.body == "ä".encode())
            self.assertEqual((reply.status, reply.headers), (201, [("a", "b")]))
            worker.call("/open")
            self.assertEqual(worker.end(number).text, "äsecond")
            self.assertEqual(reply.out, "printed\n")
            if source is not adopted:
                bare = worker.call("/bare")
                self.assertEqual((bare.status, bare.text), (200, "äsecond"))

    def test_files_and_iterables_are_bodies(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                import io
                class Own:
                    def __iter__(self):
                        return iter(["a", b"b"])
                BODIES = {{
                    "/file": lambda: open(__file__, "rb"),
                    "/bytes": lambda: io.BytesIO(b"x" * 100_000),
                    "/text": lambda: io.StringIO("ä"),
                    "/own": lambda: Own(),
                    "/map": lambda: map(str, [1, 2]),
                    "/list": lambda: [1, {{}}],
                }}
                {keyword} main(context):
                    return context.res.send(BODIES[context.req.path]())
                """
            )
            self.assertIn("import io", worker.call("/file").text)
            self.assertEqual(worker.call("/bytes").body, b"x" * 100_000)
            self.assertEqual(worker.call("/text").text, "ä")
            self.assertEqual(worker.call("/own").text, "ab")
            self.assertEqual(worker.call("/map").text, "12")
            self.assertEqual(worker.call("/list").text, "[1,{}]")

    def test_an_error_after_the_head_fails_the_call(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                {keyword} pieces(wrong):
                    yield "first"
                    if wrong:
                        yield 5
                    raise ValueError("boom")
                {keyword} main(context):
                    return context.res.text(pieces(context.req.path == "/wrong"))
                """
            )
            reply = worker.call()
            self.assertEqual((reply.status, reply.text), (200, "first"))
            self.assertEqual(reply.failed[0], 1)
            self.assertIn("boom", reply.failed[1])
            self.assertIn("not int", worker.call("/wrong").failed[1])

    def test_a_cancelled_stream_is_closed(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                closed = []
                {keyword} pieces():
                    try:
                        while True:
                            yield b"x" * 10_000
                    finally:
                        closed.append(1)
                {keyword} main(context):
                    if context.req.path == "/closed":
                        return context.res.json(closed)
                    return context.res.send(pieces())
                """
            )
            number = worker.begin()
            worker.until(lambda: len(worker.calls[number].body) == 262_144)
            worker.cancel(number)
            self.assertEqual(worker.end(number).failed, (3, ""))
            self.assertEqual(worker.call("/closed").json, [1])

    def test_a_stream_is_closed_when_the_host_goes(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                {keyword} pieces(path):
                    try:
                        while True:
                            yield b"x" * 10_000
                    finally:
                        open(path, "w").close()
                {keyword} main(context):
                    return context.res.send(pieces(context.req.query["file"]))
                """
            )
            witness = worker.folder / "closed"
            number = worker.begin(query=f"file={witness}")
            worker.until(lambda: len(worker.calls[number].body) == 262_144)
            worker.sock.shutdown(1)
            self.assertEqual(worker.exit_code(), 0)
            self.assertTrue(witness.exists())


if __name__ == "__main__":
    unittest.main()
