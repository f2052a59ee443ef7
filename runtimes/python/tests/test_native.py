import unittest

from host import Worker


class Native(unittest.TestCase):
    def serve(self, source):
        worker = Worker(source)
        self.addCleanup(worker.__exit__)
        self.assertIs(worker.bound, True, worker.bound)
        return worker

    def test_every_way_to_print_reaches_the_call(self):
        worker = self.serve(
            """
            import logging, os, sys, traceback, warnings
            logging.basicConfig(level=logging.INFO)
            kept = sys.stdout
            def main(context):
                print("print", 1)
                kept.write("kept\\n")
                sys.stdout.buffer.write("büffer\\n".encode())
                sys.stdout.writelines(["a", "b", "\\n"])
                print("error", file=sys.stderr)
                logging.info("logging")
                warnings.warn("warning")
                try:
                    1 / 0
                except ZeroDivisionError:
                    traceback.print_exc()
                print("\\udc80 odd")
                print("flags", sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.encoding)
                print("no newline", end="")
                return context.res.empty()
            """
        )
        reply = worker.call()
        self.assertEqual(
            reply.out,
            "print 1\nkept\nbüffer\nab\n\\udc80 odd\nflags False 1 utf-8\nno newline",
        )
        for part in ("error\n", "INFO:root:logging\n", "UserWarning: warning", "ZeroDivisionError"):
            self.assertIn(part, reply.err)
        self.assertEqual(worker.instance.entries, [])

    def test_output_keeps_its_order(self):
        worker = self.serve(
            """
            import sys
            def main(context):
                print("a", end="")
                context.log("b")
                print("c", end="")
                print("d", end="", file=sys.stderr)
                context.error("e")
                print("f")
                return context.res.empty()
            """
        )
        expected = [(3, "a"), (1, "b"), (3, "c"), (4, "d"), (2, "e"), (3, "f\n")]
        self.assertEqual(worker.call().entries, expected)

    def test_a_line_is_one_frame_and_long_output_several(self):
        worker = self.serve(
            """
            def main(context):
                print("one", "line")
                print("\\U0001f600" * 50_000)
                return context.res.empty()
            """
        )
        reply = worker.call()
        self.assertEqual(reply.entries[0], (3, "one line\n"))
        self.assertEqual(reply.out, "one line\n" + "\U0001f600" * 50_000 + "\n")
        self.assertTrue(all(len(text.encode()) <= 65_536 for _, text in reply.entries))

    def test_a_flush_sends_an_incomplete_line(self):
        worker = self.serve(
            """
            import threading
            gate = threading.Event()
            def main(context):
                if context.req.path == "/open":
                    gate.set()
                    return context.res.empty()
                print("half", end="", flush=True)
                gate.wait()
                return context.res.empty()
            """
        )
        number = worker.begin()
        worker.until(lambda: worker.calls[number].out == "half")
        worker.call("/open")
        worker.end(number)

    def test_interleaving_calls_keep_their_output(self):
        sync = """
        import sys, threading
        from concurrent.futures import ThreadPoolExecutor
        barrier = threading.Barrier(50)
        pool = ThreadPoolExecutor(4)
        def main(context):
            name = context.req.path
            barrier.wait()
            for i in range(20):
                print(name, i)
                print(name, i, file=sys.stderr)
                context.log(name)
            thread = threading.Thread(target=print, args=(name, "thread"))
            thread.start()
            thread.join()
            pool.submit(print, name, "pool").result()
            return context.res.empty()
        """
        task = """
        import asyncio, sys
        waiting = []
        async def main(context):
            name = context.req.path
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == 50:
                for future in waiting:
                    future.set_result(None)
            await waiting[-1]
            for i in range(20):
                print(name, i)
                await asyncio.sleep(0)
                print(name, i, file=sys.stderr)
                context.log(name)
            loop = asyncio.get_running_loop()
            await asyncio.create_task(self_print(name, "thread"))
            await loop.run_in_executor(None, print, name, "pool")
            return context.res.empty()
        async def self_print(*values):
            print(*values)
        """
        for source in (sync, task):
            worker = self.serve(source)
            parts, numbers = zip(*[worker.call_frame(f"/{n}") for n in range(50)])
            worker.send(*parts)
            for n, number in enumerate(numbers):
                reply = worker.end(number)
                lines = "".join(f"/{n} {i}\n" for i in range(20))
                self.assertEqual(reply.out, lines + f"/{n} thread\n/{n} pool\n")
                self.assertEqual(reply.err, lines)
                self.assertEqual(reply.logs, [f"/{n}"] * 20)
            self.assertEqual(worker.instance.entries, [])

    def test_output_outside_of_calls_is_the_instances(self):
        worker = self.serve(
            """
            import sys, threading
            print("loading")
            gate = threading.Event()
            def late(context):
                gate.wait()
                print("late")
                context.log("dropped")
            def main(context):
                if context.req.path == "/open":
                    gate.set()
                else:
                    threading.Thread(target=late, args=(context,)).start()
                return context.res.empty()
            """
        )
        self.assertEqual(worker.instance.out, "loading\n")
        self.assertEqual(worker.call().entries, [])
        self.assertEqual(worker.call("/open").entries, [])
        worker.until(lambda: worker.instance.out == "loading\nlate\n")
        self.assertEqual(worker.call("/open").entries, [])

    def test_output_of_a_stuck_function_is_sent(self):
        for keyword in ("def", "async def"):
            worker = self.serve(
                f"""
                {keyword} main(context):
                    context.log("log")
                    print("print")
                    while context.req.path == "/stuck":
                        pass
                    return context.res.empty()
                """
            )
            # In a crowd, where output is held back for a moment, and alone.
            parts, numbers = zip(*[worker.call_frame() for _ in range(4)])
            stuck, number = worker.call_frame("/stuck")
            worker.send(*parts, stuck)
            for other in numbers:
                worker.end(other)
            worker.until(lambda: worker.calls[number].entries == [(1, "log"), (3, "print\n")])
            worker.process.kill()

    def test_subprocesses_bypass_the_capture_and_have_no_socket(self):
        worker = self.serve(
            """
            import os, subprocess, sys
            def main(context):
                print("HEARTH_SOCKET" in os.environ)
                links = subprocess.run(["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, close_fds=False)
                return context.res.text(links.stdout)
            """
        )
        reply = worker.call()
        self.assertEqual(reply.out, "False\n")
        self.assertNotIn("socket:", reply.text)

    def test_forked_processes_leave_the_host_alone(self):
        worker = self.serve(
            """
            import multiprocessing, os
            def main(context):
                print("parent")
                if context.req.path == "/fork":
                    child = os.fork()
                    if child:
                        os.waitpid(child, 0)
                    else:
                        context.log("child log")
                        print("child")
                else:
                    start = context.req.path[1:]
                    process = multiprocessing.get_context(start).Process(target=print, args=(start,))
                    process.start()
                    process.join()
                    context.log(process.exitcode)
                return context.res.text("ok")
            """
        )
        reply = worker.call("/fork")
        self.assertEqual((reply.text, reply.entries), ("ok", [(3, "parent\n")]))
        reply = worker.call("/spawn")
        self.assertEqual((reply.text, reply.out, reply.logs), ("ok", "parent\n", ["0"]))
        worker.drain()
        self.assertEqual(worker.exit_code(), 0)
        self.assertEqual(worker.process.stdout.read(), "child\nspawn\n")


if __name__ == "__main__":
    unittest.main()
