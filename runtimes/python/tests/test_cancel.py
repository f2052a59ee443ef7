import unittest

from host import Worker


class Cancel(unittest.TestCase):
    def serve(self, source):
        worker = Worker(source)
        self.addCleanup(worker.__exit__)
        self.assertIs(worker.bound, True, worker.bound)
        return worker

    def test_a_busy_thread_is_stopped(self):
        worker = self.serve(
            """
            def main(context):
                if context.req.path == "/busy":
                    context.log("begun")
                    try:
                        while True:
                            pass
                    except Exception:
                        context.log("a cancel is no Exception")
                    finally:
                        context.log("after")
                return context.res.text("next")
            """
        )
        for _ in range(5):
            number = worker.begin("/busy")
            worker.until(lambda: worker.calls[number].logs)
            worker.cancel(number)
            reply = worker.end(number)
            self.assertEqual(reply.failed, (3, ""))
            self.assertEqual(reply.logs, ["begun"])
            self.assertEqual(worker.call().text, "next")

    def test_a_waiting_task_is_stopped(self):
        worker = self.serve(
            """
            import asyncio
            ended = []
            async def main(context):
                if context.req.path == "/ended":
                    return context.res.json(ended)
                context.log("begun")
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(context.req.path)
                    context.log("after")
            """
        )
        number = worker.begin("/a")
        worker.until(lambda: worker.calls[number].logs)
        worker.cancel(number)
        reply = worker.end(number)
        self.assertEqual((reply.failed, reply.logs), ((3, ""), ["begun"]))
        self.assertEqual(worker.call("/ended").json, ["/a"])

    def test_a_cancel_right_behind_its_call_is_answered(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                import asyncio, time
                {keyword} main(context):
                    while context.req.path == "/busy":
                        {"await asyncio.sleep(0)" if "async" in keyword else "pass"}
                    return context.res.text("ok")
                """
            )
            for _ in range(50):
                data, number = worker.call_frame("/busy")
                worker.send(data)
                worker.cancel(number)
                self.assertEqual(worker.end(number).failed, (3, ""))
                self.assertEqual(worker.call().text, "ok")

    def test_code_that_cannot_be_stopped_is_not_answered_for(self):
        # A chain of C functions: there is no instruction between the write and the wait at which
        # the cancel could be noticed.
        worker = self.serve(
            """
            import operator, os, threading
            from functools import partial
            begun, begin = os.pipe()
            gate = threading.Lock()
            gate.acquire()
            def main(context):
                if context.req.path == "/begun":
                    os.read(begun, 1)
                elif context.req.path == "/open":
                    gate.release()
                elif context.req.path == "/wait":
                    steps = [partial(os.write, begin, b"x"), gate.acquire]
                    list(map(operator.methodcaller("__call__"), steps))
                return context.res.text("ok")
            """
        )
        number = worker.begin("/wait")
        worker.call("/begun")
        worker.cancel(number)
        worker.call("/other")
        self.assertFalse(worker.calls[number].over)
        worker.call("/open")
        self.assertEqual(worker.end(number).failed, (3, ""))

    def test_a_swallowed_cancel_ends_with_the_code(self):
        sync = """
        import threading
        gate = threading.Event()
        def main(context):
            if context.req.path == "/open":
                gate.set()
                return context.res.empty()
            context.log("begun")
            try:
                while True:
                    pass
            except BaseException:
                gate.wait()
            return context.res.text("swallowed")
        """
        task = """
        import asyncio
        gate = asyncio.Event()
        async def main(context):
            if context.req.path == "/open":
                gate.set()
                return context.res.empty()
            context.log("begun")
            try:
                await asyncio.Event().wait()
            except BaseException:
                await gate.wait()
            return context.res.text("swallowed")
        """
        for source in (sync, task):
            worker = self.serve(source)
            number = worker.begin()
            worker.until(lambda: worker.calls[number].logs)
            worker.cancel(number)
            worker.call("/open")
            self.assertEqual(worker.end(number).failed, (3, ""))

    def test_an_awaitable_of_a_sync_main_is_stopped(self):
        worker = self.serve(
            """
            import asyncio
            async def forever(context):
                context.log("begun")
                await asyncio.Event().wait()
            def main(context):
                return forever(context)
            """
        )
        number = worker.begin()
        worker.until(lambda: worker.calls[number].logs)
        worker.cancel(number)
        self.assertEqual(worker.end(number).failed, (3, ""))

    def test_a_cancel_never_hits_another_call(self):
        """Calls of all lengths are cancelled at all moments; only the cancelled may notice."""
        worker = self.serve(
            """
            def main(context):
                context.log("x")
                for _ in range(int(context.req.path[1:])):
                    pass
                print("y")
                return context.res.text("ok")
            """
        )
        for round in range(300):
            cancelled, first = worker.call_frame(f"/{round * 37 % 3000}")
            data, second = worker.call_frame("/100")
            worker.send(cancelled, data)
            worker.cancel(first)
            self.assertIn(worker.end(first).failed, (None, (3, "")))
            reply = worker.end(second)
            self.assertEqual((reply.failed, reply.text, reply.logs), (None, "ok", ["x"]))


if __name__ == "__main__":
    unittest.main()
