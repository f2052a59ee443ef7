import signal
import unittest

from host import VECTORS, Worker, frame

OK = "def main(context):\n    return context.res.text('ok')\n"
PATH = "def main(context):\n    return context.res.text(context.req.path)\n"


class Hello(unittest.TestCase):
    def test_hello_names_language_and_versions(self):
        with Worker() as worker:
            lowest, highest, language, version, own, capabilities, most_calls = worker.hello
            self.assertEqual((lowest, highest, language), (1, 1, "python"))
            self.assertRegex(version, r"^3\.\d+\.\d+")
            self.assertEqual((own, capabilities, most_calls), ("0.1.0", 3, 0))

    def test_an_unbound_worker_ends_with_its_host(self):
        with Worker() as worker:
            worker.sock.shutdown(1)
            self.assertEqual(worker.exit_code(), 0)

    def test_without_a_socket_it_says_so(self):
        import subprocess
        import sys

        from host import WORKER

        ended = subprocess.run(
            [sys.executable, "-I", "-S", str(WORKER)], env={}, capture_output=True, text=True
        )
        self.assertEqual(ended.returncode, 1)
        self.assertIn("HEARTH_SOCKET", ended.stderr)


    def test_over_tcp_it_says_its_token_first(self):
        import socket
        import subprocess
        import sys

        from host import PATIENCE, WORKER

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)
            where = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            worker = subprocess.Popen(
                [sys.executable, "-I", "-S", str(WORKER)],
                env={"HEARTH_SOCKET": where, "HEARTH_TOKEN": "change-me"},
            )
            self.addCleanup(worker.kill)
            peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE)
            said = b""
            while len(said) < len(b"HEARTH change-me\n") + 9:
                said += peer.recv(4096)
        self.assertTrue(said.startswith(b"HEARTH change-me\n"), said)
        self.assertEqual(said[17 + 4], 0x81, "then hello")
        self.assertEqual(worker.wait(PATIENCE), 0, "it ends with its connection")


class Bind(unittest.TestCase):
    def answer(self, files, entrypoint="main.py", environment=None):
        worker = Worker()
        self.addCleanup(worker.__exit__)
        worker.bind(files, entrypoint, environment)
        return worker

    def test_the_reasons_why_code_cannot_be_served(self):
        for name, files, entrypoint, reason, text in (
            ("missing", {}, "main.py", 1, "Failed to load entrypoint, file main.py does not exist."),
            ("none", {}, "", 1, "Failed to load entrypoint, file  does not exist."),
            ("directory", {"a/b.py": OK}, "a", 1, "Failed to load entrypoint, file a does not exist."),
            (
                "outside", {"main.py": OK}, "../code/../../x.py", 1,
                "Failed to load entrypoint, file ../code/../../x.py does not exist.",
            ),
            (
                "nothing", {"main.py": "x = 1\n"}, "main.py", 2,
                "Function signature invalid. Did you forget to export a 'main' function?",
            ),
            (
                "not callable", {"main.py": "main = 1\n"}, "main.py", 2,
                "Function signature invalid. Did you forget to export a 'main' function?",
            ),
            ("module", {"main.py": "import nowhere\n"}, "main.py", 4, "Module not found: nowhere"),
            (
                "relative", {"main.py": "from . import x\nfrom .nowhere import y\n", "x.py": ""},
                "main.py", 4, "Module not found: function.nowhere",
            ),
        ):  # fmt: skip
            with self.subTest(name):
                self.assertEqual(self.answer(files, entrypoint).bound, (reason, text))

    def test_a_syntax_error_names_file_and_line(self):
        reason, message = self.answer(
            {"main.py": "import a.b\n", "a/b.py": "x = 1\ndef (:\n"}
        ).bound
        self.assertEqual(reason, 3)
        self.assertRegex(message, r"^Syntax error in a/b\.py:2: \w+")

    def test_other_errors_come_with_their_trace(self):
        for error, text in (
            ("raise ValueError('bö\\udc80m')", "Failed to load module: bö\\udc80m\n"),
            ("raise SystemExit(3)", "Failed to load module: 3\n"),
            ("from os import nonsense", "Failed to load module: cannot import name 'nonsense'"),
        ):
            reason, message = self.answer({"main.py": error + "\n"}).bound
            self.assertEqual(reason, 5)
            self.assertTrue(message.startswith(text), message)
            self.assertIn('main.py", line 1', message)
            self.assertNotIn("hearth_worker", message)

    def test_after_a_failure_the_worker_waits_for_its_host(self):
        worker = self.answer({"main.py": "print('loading', end='')\nraise ValueError()\n"})
        self.assertEqual(worker.instance.out, "loading")
        worker.sock.shutdown(1)
        self.assertEqual(worker.exit_code(), 0)

    def test_modules_are_found_in_every_usual_way(self):
        worker = self.answer(
            {
                "src/app.py": """
                    import top
                    from function.top import NAME
                    from .near import NEAR
                    from . import near
                    from ..top import NAME as again
                    def main(context):
                        return context.res.json([__name__, NAME, NEAR, near.NEAR, again, top.NAME])
                    """,
                "src/near.py": "NEAR = 'near'\n",
                "top.py": "NAME = 'top'\n",
            },
            "src/app.py",
        )
        self.assertEqual(
            worker.call().json, ["function.src.app", "top", "near", "near", "top", "top"]
        )

    def test_a_file_whose_name_is_no_module_name_is_served(self):
        for entrypoint in ("my-function.py", "v1.2/main.py", "main.txt", "./main.py", "a b/c.py"):
            with self.subTest(entrypoint):
                worker = self.answer({entrypoint: OK}, entrypoint)
                self.assertIs(worker.bound, True, worker.bound)
                self.assertEqual(worker.call().text, "ok")

    def test_installed_packages_are_found(self):
        import sys

        site = f"runtime-env/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        worker = self.answer(
            {
                "main.py": "import one, two, three\n" + OK,
                "runtime-env/one.py": "",
                f"{site}/two.py": "",
                f"{site}/more.pth": "../extra\n",
                f"{site}/../extra/three.py": "",
            }
        )
        self.assertIs(worker.bound, True, worker.bound)

    def test_the_environment_is_exactly_what_was_given(self):
        worker = self.answer(
            {"main.py": "import os, time\ndef main(context):\n"
             "    return context.res.json([dict(os.environ), time.tzname[0]])\n"},
            environment={"GREETING": "Grüße", "EMPTY": "", "TZ": "XYZ3"},
        )  # fmt: skip
        environment, zone = worker.call().json
        # The interpreter itself may set LC_CTYPE.
        environment.pop("LC_CTYPE", None)
        self.assertEqual(
            environment,
            {
                "PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8",
                "GREETING": "Grüße", "EMPTY": "", "TZ": "XYZ3",
            },
        )  # fmt: skip
        self.assertEqual(zone, "XYZ")

    def test_an_impossible_environment_fails_the_bind(self):
        worker = self.answer({"main.py": OK}, environment={"A=B": "\0"})
        self.assertEqual(worker.bound[0], 5)


class End(unittest.TestCase):
    def serve(self, source=OK):
        worker = Worker(source)
        self.addCleanup(worker.__exit__)
        self.assertIs(worker.bound, True, worker.bound)
        return worker

    def test_a_drained_worker_finishes_its_calls(self):
        for keyword, sleep in (("def", "time.sleep"), ("async def", "await asyncio.sleep")):
            worker = self.serve(
                f"import asyncio, time\n{keyword} main(context):\n"
                f"    context.log('begun')\n    {sleep}(0.01)\n    return context.res.text('ok')\n"
            )
            numbers = [worker.begin() for _ in range(3)]
            worker.drain()
            self.assertEqual(worker.exit_code(), 0)
            self.assertEqual([worker.calls[n].text for n in numbers], ["ok"] * 3)

    def test_an_idle_worker_drains_at_once(self):
        for source in (OK, "async " + OK):
            worker = self.serve(source)
            worker.drain()
            self.assertEqual(worker.exit_code(), 0)

    def test_running_code_does_not_hold_a_worker_without_host(self):
        for source in (
            "import time\ndef main(context):\n    context.log('begun')\n    time.sleep(1000)\n",
            "def main(context):\n    context.log('begun')\n    while True: pass\n",
            "import asyncio\nasync def main(context):\n    context.log('begun')\n"
            "    while True:\n        try: await asyncio.sleep(1000)\n        except BaseException: pass\n",
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
            "def main(context):\n    context.log('begun')\n    return context.res.empty()\n",
        ):
            worker = self.serve(source)
            number = worker.begin()
            worker.until(lambda: worker.calls[number].logs)
            worker.sock.shutdown(1)
            self.assertEqual(worker.exit_code(), 0)

    def test_exit_in_the_middle_is_real(self):
        worker = self.serve("import os\ndef main(context):\n    os._exit(9)\n")
        worker.begin()
        self.assertEqual(worker.exit_code(), 9)

    def test_signals(self):
        worker = self.serve()
        worker.process.send_signal(signal.SIGINT)
        self.assertEqual(worker.call().text, "ok")
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.exit_code(), -signal.SIGTERM)


class BrokenProtocol(unittest.TestCase):
    def assert_refused(self, worker):
        self.assertEqual(worker.exit_code(), 70)
        error = worker.process.stderr.read()
        self.assertTrue(error.startswith("hearth-worker: the host broke the protocol: "), error)
        self.assertEqual(error.count("\n"), 1)

    def test_a_bound_worker_refuses_what_cannot_be(self):
        for name, data in {
            **{
                v["name"]: bytes.fromhex(v["hex"])
                for v in VECTORS["invalid"]
                if v["sender"] == "host"
            },
            "hello": frame(0x81),
            "a second bind": bytes.fromhex(VECTORS["valid"][0]["hex"]),
        }.items():
            for source in (PATH, "async " + PATH):
                with self.subTest(name), Worker(source) as worker:
                    worker.send(data)
                    self.assert_refused(worker)

    def test_states_are_kept(self):
        for name, frames in {
            "call while running": lambda w: [w.call_frame(number=1, more=True)[0]] * 2,
            "call after drain": lambda w: [
                w.call_frame(number=1, more=True)[0], frame(6), w.call_frame(number=2)[0],
            ],
            "body too late": lambda w: [
                w.call_frame(number=1, more=True)[0], frame(4, 1), w.call_frame(number=2, more=True)[0],
                frame(4, 2), frame(4, 2),
            ],
        }.items():  # fmt: skip
            with self.subTest(name), Worker(OK) as worker:
                worker.send(*frames(worker))
                self.assert_refused(worker)

    def test_an_unbound_worker_takes_a_bind_only(self):
        with Worker() as worker:
            worker.send(worker.call_frame()[0])
            self.assert_refused(worker)
        with Worker() as worker:
            worker.write({"main.py": OK})
            worker.send(worker.bind_frame(), worker.call_frame()[0])
            self.assert_refused(worker)
        with Worker() as worker:
            worker.send(b"\x00\x00\x00\x00")
            self.assert_refused(worker)

    def test_an_unknown_version_is_refused(self):
        with Worker() as worker:
            data = bytearray(worker.bind_frame())
            data[10] = 2
            worker.send(bytes(data))
            self.assert_refused(worker)


if __name__ == "__main__":
    unittest.main()
