import unittest

from host import Worker

SHAPES = {"sync": "def", "async": "async def"}


def both(source):
    """The source once with a sync `main`, once with an async one."""
    return [(name, source.replace("DEF", keyword)) for name, keyword in SHAPES.items()]


class Calls(unittest.TestCase):
    def serve(self, source, **options):
        worker = Worker(source, **options)
        self.addCleanup(worker.__exit__)
        self.assertIs(worker.bound, True)
        return worker

    def each(self, source):
        for name, variant in both(source):
            with self.subTest(name), Worker(variant) as worker:
                self.assertIs(worker.bound, True, worker.bound)
                yield worker

    def test_a_request_has_all_its_parts(self):
        source = """
        DEF main(context):
            req = context.req
            return context.res.json({
                "method": req.method, "scheme": req.scheme, "host": req.host, "port": req.port,
                "path": req.path, "url": req.url, "query_string": req.query_string,
                "query": req.query, "headers": req.headers, "body_text": req.body_text,
                "body_raw": req.body_raw, "body_binary": list(req.body_binary), "body": req.body,
            })
        """
        for worker in self.each(source):
            reply = worker.call(
                "/a/b", "POST", query="a=1&b=x=y", headers=[("x-one", "1")], body="ä\xff".encode()
            )
            text = "ä\xff"
            self.assertEqual(
                reply.json,
                {
                    "method": "POST", "scheme": "http", "host": "localhost", "port": 3000,
                    "path": "/a/b", "url": "http://localhost:3000/a/b?a=1&b=x=y",
                    "query_string": "a=1&b=x=y", "query": {"a": "1", "b": "x=y"},
                    "headers": {"host": "localhost:3000", "x-one": "1"}, "body_text": text,
                    "body_raw": text, "body_binary": list(text.encode()), "body": text,
                },
            )  # fmt: skip
            self.assertEqual(reply.headers, [("content-type", "application/json")])

    def test_the_body_depends_on_the_content_type(self):
        worker = self.serve(
            """
            def main(context):
                return context.res.text(repr(context.req.body))
            """
        )
        for content_type, body, expected in (
            ("application/json", b'{"a":[1]}', "{'a': [1]}"),
            ("APPLICATION/JSON; charset=utf-8", b"2", "2"),
            ("application/json", b"", "{}"),
            ("not-application/json", b"{}", "'{}'"),
            ("application/octet-stream", b"\xff", "'\ufffd'"),
            (None, b"x", "'x'"),
        ):
            headers = [("content-type", content_type)] if content_type else []
            reply = worker.call("/", "POST", headers=headers, body=body)
            self.assertEqual(reply.text, expected, content_type)

    def test_body_json_throws_on_what_is_not_json(self):
        worker = self.serve(
            "def main(context):\n    return context.res.json(context.req.body_json)\n"
        )
        for body in (b"", b"{", b"\xff"):
            reason, message = worker.call(body=body).failed
            self.assertEqual(reason, 1)
            self.assertIn("JSONDecodeError", message)
        self.assertEqual(worker.call(body=b'{"a": "\xc3\xa4"}').text, '{"a":"ä"}')

    def test_fields_of_a_request_can_be_assigned(self):
        worker = self.serve(
            """
            def main(context):
                context.req.path = "/mine"
                context.req.user = "me"
                context.req.headers["x"] = "y"
                missing = hasattr(context.req, "nonsense")
                return context.res.json([context.req.method, context.req.path, context.req.user,
                                         context.req.headers["x"], missing])
            """
        )
        self.assertEqual(worker.call("/theirs").json, ["GET", "/mine", "me", "y", False])

    def test_every_builder_of_replies(self):
        worker = self.serve(
            """
            class Odd(dict): pass
            REPLIES = {
                "text": lambda res: res.text("ä", 201, {"X-A": "1"}),
                "keyword": lambda res: res.text("k", statusCode=202),
                "snake": lambda res: res.text("k", status_code=203, headers={"a": "b"}),
                "number": lambda res: res.send(50),
                "bytes": lambda res: res.send(b"\\x00\\xff"),
                "binary": lambda res: res.binary(memoryview(bytearray(b"\\x00\\xfe"))),
                "json": lambda res: res.json({"a": [1, "ä"], "b": {}}, 200, {"Content-Type": "x", "q": "r"}),
                "empty": lambda res: res.empty(),
                "redirect": lambda res: res.redirect("/there"),
                "redirect2": lambda res: res.redirect("/there", 307, {"x": "y"}),
                "dict": lambda res: {"body": "plain", "statusCode": "404", "headers": {"set-cookie": ["a", "b"]}},
                "bare": lambda res: {},
                "surrogate": lambda res: res.json("\\ud800"),
                "ignored": lambda res: (res.text("first"), res.text("second"))[1],
            }
            def main(context):
                return REPLIES[context.req.path[1:]](context.res)
            """
        )
        json_type = ("content-type", "application/json")
        for path, expected in {
            "text": (201, [("X-A", "1")], "ä".encode()),
            "keyword": (202, [], b"k"),
            "snake": (203, [("a", "b")], b"k"),
            "number": (200, [], b"50"),
            "bytes": (200, [], b"\x00\xff"),
            "binary": (200, [], b"\x00\xfe"),
            "json": (200, [("q", "r"), json_type], '{"a":[1,"ä"],"b":{}}'.encode()),
            "empty": (204, [], b""),
            "redirect": (301, [("location", "/there")], b""),
            "redirect2": (307, [("x", "y"), ("location", "/there")], b""),
            "dict": (404, [("set-cookie", "a"), ("set-cookie", "b")], b"plain"),
            "bare": (200, [], b""),
            "surrogate": (200, [json_type], b'"\\ud800"'),
            "ignored": (200, [], b"second"),
        }.items():
            reply = worker.call("/" + path)
            self.assertEqual((reply.status, reply.headers, reply.body), expected, path)

    def test_headers_of_one_reply_do_not_reach_the_next(self):
        worker = self.serve(
            """
            def main(context):
                reply = context.res.text("x")
                if context.req.path == "/set":
                    reply["headers"]["leak"] = "1"
                return reply
            """
        )
        self.assertEqual(worker.call("/set").headers, [("leak", "1")])
        self.assertEqual(worker.call("/").headers, [])

    def test_a_missing_return_is_told(self):
        for worker in self.each("DEF main(context):\n    context.res.text('not returned')\n"):
            text = (
                "Return statement missing. return context.res.empty() if no response is expected."
            )
            self.assertEqual(worker.call().failed, (2, text))

    def test_a_useless_return_is_told(self):
        worker = self.serve(
            """
            RESULTS = {
                "/text": "hello",
                "/number": 7,
                "/list": ["a"],
                "/dict": {"greeting": "hello"},
                "/status": {"statusCode": 99},
                "/word": {"statusCode": "many"},
                "/headers": {"headers": ["a"]},
                "/count": {"headers": {str(i): "" for i in range(257)}},
                "/size": {"headers": {"a": "x" * 70000}},
            }
            def main(context):
                return RESULTS[context.req.path]
            """
        )
        for path, part in {
            "/text": "not str", "/number": "not int", "/list": "not list", "/dict": "not dict",
            "/status": "99", "/word": "'many'", "/headers": "not list",
            "/count": "256", "/size": "64 KiB",
        }.items():  # fmt: skip
            reason, message = worker.call(path).failed
            self.assertEqual(reason, 2)
            self.assertIn(part, message)

    def test_an_exception_fails_its_call_with_its_trace(self):
        source = """
        def helper():
            raise ValueError("bö\\udc80m")
        DEF main(context):
            context.log("before")
            helper()
        """
        for worker in self.each(source):
            for _ in range(2):
                reply = worker.call()
                reason, message = reply.failed
                self.assertEqual(reason, 1)
                self.assertIn("ValueError: bö\\udc80m", message)
                self.assertIn("main.py", message)
                self.assertNotIn("hearth_worker", message)
                self.assertEqual(reply.logs, ["before"])
                self.assertEqual(reply.entries, [(1, "before")])

    def test_leaving_the_program_only_leaves_the_call(self):
        source = """
        import sys
        ERRORS = {"/exit": SystemExit(3), "/interrupt": KeyboardInterrupt(), "/generator": GeneratorExit()}
        DEF main(context):
            if context.req.path == "/quit":
                exit(1)
            if context.req.path in ERRORS:
                raise ERRORS[context.req.path]
            return context.res.text("alive")
        """
        for worker in self.each(source):
            for path in ("/exit", "/interrupt", "/generator", "/quit"):
                self.assertEqual(worker.call(path).failed[0], 1, path)
            self.assertEqual(worker.call().text, "alive")

    def test_an_error_that_cannot_be_shown_is_still_an_error(self):
        worker = self.serve(
            """
            class Broken(Exception):
                def __str__(self):
                    raise RuntimeError("no")
            def deep(n):
                return deep(n + 1)
            def main(context):
                if context.req.path == "/deep":
                    deep(0)
                if context.req.path == "/long":
                    raise ValueError("x" * 3_000_000)
                raise Broken()
            """
        )
        self.assertIn("Broken", worker.call().failed[1])
        self.assertIn("RecursionError", worker.call("/deep").failed[1])
        self.assertEqual(worker.call("/long").failed[0], 1)

    def test_log_entries_are_formatted(self):
        source = """
        class Own:
            def __str__(self): return "own"
        circle = []
        circle.append(circle)
        DEF main(context):
            context.log("a", 1, True, None, 2.5, Own())
            context.error([1, {"a": "ä"}], {"k": (1, None)}, ("x",))
            context.log({1, 1}, circle, {"o": Own})
            context.log()
            context.log("x" * 8000, "y")
            context.log("\\ud800")
            return context.res.empty()
        """
        for worker in self.each(source):
            reply = worker.call()
            self.assertEqual(reply.errors, ['[1,{"a":"ä"}] {"k":[1,null]} ["x"]'])
            suffix = "... Log truncated due to size limit (8000 characters)"
            self.assertEqual(reply.logs[0], "a 1 True None 2.5 own")
            self.assertEqual(reply.logs[1], "{1} [[...]] {'o': <class 'function.main.Own'>}")
            self.assertEqual(reply.logs[2:], ["", "x" * 8000 + suffix, "\\ud800"])

    def test_nothing_is_logged_when_logging_is_off(self):
        source = """
        DEF main(context):
            context.log("a")
            context.error("b")
            print("c")
            return context.res.empty()
        """
        for worker in self.each(source):
            self.assertEqual(worker.call(logging=False).entries, [])
            self.assertEqual(len(worker.call().entries), 3)

    def test_a_sync_main_may_return_an_awaitable(self):
        worker = self.serve(
            """
            import asyncio
            async def later(context):
                await asyncio.sleep(0)
                context.log("later")
                print("printed")
                if context.req.path == "/boom":
                    raise ValueError("boom")
                return context.res.text("done")
            def main(context):
                return later(context)
            """
        )
        reply = worker.call()
        self.assertEqual((reply.text, reply.logs, reply.out), ("done", ["later"], "printed\n"))
        self.assertIn("boom", worker.call("/boom").failed[1])

    def test_any_callable_may_be_main(self):
        sources = {
            "object": "class F:\n    def __call__(self, context):\n        return context.res.text('x')\nmain = F()\n",
            "async object": "class F:\n    async def __call__(self, context):\n"
            "        return context.res.text('x')\nmain = F()\n",
            "method": "class F:\n    async def f(self, context):\n"
            "        return context.res.text('x')\nmain = F().f\n",
            "partial": "import functools\nasync def f(a, context):\n"
            "    return context.res.text(a)\nmain = functools.partial(f, 'x')\n",
            "lambda": "main = lambda context: context.res.text('x')\n",
        }
        for name, source in sources.items():
            with self.subTest(name):
                self.assertEqual(self.serve(source).call().text, "x")

    def test_context_variables_do_not_leak_between_calls(self):
        source = """
        import contextvars
        var = contextvars.ContextVar("var", default="unset")
        loaded = contextvars.ContextVar("loaded", default="unset")
        loaded.set("at load")
        DEF main(context):
            before = var.get()
            var.set("set")
            return context.res.json([before, loaded.get()])
        """
        for worker in self.each(source):
            for _ in range(3):
                self.assertEqual(worker.call().json, ["unset", "at load"])

    def test_calls_do_not_wait_for_each_other(self):
        source = """
        import threading, asyncio
        gates = [threading.Event() for _ in range(41)]
        async_gates = [asyncio.Event() for _ in range(41)]
        def sync_main(context):
            n = int(context.req.path[1:])
            if n < 40:
                gates[n + 1].wait()
            gates[n].set()
            return context.res.text(str(n))
        async def async_main(context):
            n = int(context.req.path[1:])
            if n < 40:
                await async_gates[n + 1].wait()
            async_gates[n].set()
            return context.res.text(str(n))
        """
        for name in SHAPES:
            with self.subTest(name), Worker(source + f"main = {name}_main\n") as worker:
                # Each call waits for the one behind it; first all in one read, then one by one.
                parts, numbers = zip(*[worker.call_frame(f"/{n}") for n in range(1, 41)])
                worker.send(*parts)
                for number in numbers:
                    self.assertEqual(worker.end(number).text, str(number))

    def test_with_all_threads_busy_the_socket_is_still_read(self):
        worker = self.serve(
            """
            import threading
            gate = threading.Event()
            def main(context):
                gate.wait()
                return context.res.text("ok")
            """
        )
        parts, numbers = zip(*[worker.call_frame() for _ in range(100)])
        worker.send(*parts)
        worker.cancel(numbers[-1])
        self.assertEqual(worker.end(numbers[-1]).failed, (3, ""))

    def test_more_calls_than_threads_are_all_served(self):
        worker = self.serve(
            """
            import threading
            barrier = threading.Barrier(50)
            def main(context):
                barrier.wait()
                return context.res.text("ok")
            """
        )
        parts, numbers = zip(*[worker.call_frame() for _ in range(200)])
        worker.send(*parts)
        self.assertEqual({worker.end(number).text for number in numbers}, {"ok"})

    def test_with_all_threads_busy_a_reply_does_not_wait_for_the_next_call(self):
        worker = self.serve(
            """
            import threading
            never = threading.Event()
            def main(context):
                if context.req.path == "/wait":
                    context.log("begun")
                while context.req.path != "/" and not never.wait(0.01):
                    pass
                return context.res.text("ok")
            """
        )
        waiting = []
        for _ in range(64):
            number = worker.begin("/wait")
            worker.until(lambda: worker.calls[number].logs)
            waiting.append(number)
        quick, slow = worker.begin("/"), worker.begin("/silent")
        worker.cancel(waiting[0])
        self.assertEqual(worker.end(waiting[0]).failed, (3, ""))
        self.assertEqual(worker.end(quick).text, "ok")
        self.assertFalse(worker.calls[slow].over)

    def test_a_call_leaves_nothing_for_the_garbage_collector(self):
        source = """
        import gc
        gc.disable()
        DEF main(context):
            context.log(context.req.path)
            calls = [o for o in gc.get_objects() if type(o).__name__ == "Call"]
            return context.res.text(str(len(calls)))
        """
        for worker in self.each(source):
            for _ in range(10):
                reply = worker.call()
            self.assertLessEqual(int(reply.text), 2)

    def test_a_number_may_be_used_again(self):
        for worker in self.each(
            "DEF main(context):\n    return context.res.text(context.req.path)\n"
        ):
            for path in ("/a", "/b", "/c"):
                self.assertEqual(worker.call(path, number=7).text, path)


if __name__ == "__main__":
    unittest.main()
