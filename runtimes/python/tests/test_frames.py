import sys
import unittest

from host import FOLDER, VECTORS

sys.path.insert(0, str(FOLDER / "src"))
from hearth_worker import frames  # noqa: E402
from hearth_worker.call import Call  # noqa: E402


class Session:
    outbox = None

    @staticmethod
    def broken(error):
        raise error


def decode(data):
    """Decodes one frame from the host completely, as a worker does piece by piece."""
    splitter = frames.Splitter()
    received = splitter.feed(data)
    if len(received) != 1 or splitter.wanted:
        raise frames.ProtocolError("not one frame")
    kind, call, payload = received[0]
    return kind, call, DECODERS[kind](payload)


def decode_bind(payload):
    version, code_dir, entrypoint, environment = frames.bind(payload)
    return {
        "version": version, "code_dir": code_dir, "entrypoint": entrypoint,
        "environment": [list(item) for item in environment.items()],
    }  # fmt: skip


def decode_call(payload):
    flags = frames.call_flags(payload)
    request = Call(1, flags, payload, Session).context().req
    fields = {
        name: getattr(request, name)
        for name in ("method", "url", "scheme", "host", "port", "path", "query_string")
    }
    return {
        **fields,
        "timeout_ms": int.from_bytes(payload[:4], "big"),
        "logging": bool(flags & frames.LOGGING),
        "more": bool(flags & frames.MORE),
        "query": [list(item) for item in request.query.items()],
        "headers": [list(item) for item in request.headers.items()],
        "body_hex": request.body_binary.hex(),
    }


DECODERS = {
    frames.BIND: decode_bind,
    frames.CALL: decode_call,
    frames.BODY: lambda payload: {"body_hex": frames.body(payload).hex()},
    frames.END: lambda payload: frames.empty(payload) or {},
    frames.CANCEL: lambda payload: {"reason": frames.cancel(payload)},
    frames.DRAIN: lambda payload: frames.empty(payload) or {},
    frames.WINDOW: lambda payload: {"bytes": frames.window(payload)},
}

KINDS = {
    "bind": frames.BIND, "call": frames.CALL, "body": frames.BODY, "end": frames.END,
    "cancel": frames.CANCEL, "drain": frames.DRAIN, "window": frames.WINDOW,
}  # fmt: skip


def encode(kind, call, fields):
    if kind == "hello":
        return frames.hello(
            fields["language"], fields["language_version"], fields["worker_version"],
            fields["capabilities"], fields["max_calls"],
        )  # fmt: skip
    if kind == "bound":
        return frames.BOUND
    if kind == "bind_failed":
        return frames.bind_failed(fields["reason"], fields["message"])
    if kind == "head":
        headers = [frames.pair(name, value) for name, value in fields["headers"]]
        body = bytes.fromhex(fields["body_hex"])
        return frames.head(call, fields["status"], fields["more"], headers, body)
    if kind == "body":
        return frames.reply_body(call, bytes.fromhex(fields["body_hex"]))
    if kind == "end":
        return frames.reply_end(call)
    if kind == "log":
        return frames.log(call, fields["stream"], fields["text"])
    if kind == "failed":
        return frames.failed(call, fields["reason"], fields["message"])
    return frames.grant(call, fields["bytes"])


class Vectors(unittest.TestCase):
    def test_every_valid_frame_of_a_host_is_decoded(self):
        for vector in VECTORS["valid"]:
            if vector["sender"] == "host":
                with self.subTest(vector["name"]):
                    expected = (KINDS[vector["kind"]], vector["call"], vector["fields"])
                    self.assertEqual(decode(bytes.fromhex(vector["hex"])), expected)

    def test_every_frame_of_a_worker_is_encoded(self):
        for vector in VECTORS["valid"]:
            if vector["sender"] == "worker":
                with self.subTest(vector["name"]):
                    data = encode(vector["kind"], vector["call"], vector["fields"])
                    self.assertEqual(data.hex(), vector["hex"])

    def test_every_invalid_frame_of_a_host_is_refused(self):
        for vector in VECTORS["invalid"]:
            if vector["sender"] == "host":
                with self.subTest(vector["name"]), self.assertRaises(frames.ProtocolError):
                    decode(bytes.fromhex(vector["hex"]))

    def test_frames_of_a_worker_are_refused_from_a_host(self):
        for vector in VECTORS["valid"]:
            if vector["sender"] == "worker":
                with self.subTest(vector["name"]), self.assertRaises(frames.ProtocolError):
                    decode(bytes.fromhex(vector["hex"]))


class Splitting(unittest.TestCase):
    def test_frames_are_found_however_the_bytes_arrive(self):
        data = b"".join(bytes.fromhex(v["hex"]) for v in VECTORS["valid"] if v["sender"] == "host")
        expected = frames.Splitter().feed(data)
        for size in (1, 2, 3, 7, 8, 9, 10, 64):
            splitter = frames.Splitter()
            found = []
            for start in range(0, len(data), size):
                found += splitter.feed(data[start : start + size])
            self.assertEqual(found, expected)

    def test_a_length_is_refused_before_its_bytes_have_come(self):
        with self.assertRaises(frames.ProtocolError):
            frames.Splitter().feed(b"\xff\xff\xff\xff")

    def test_every_cut_of_a_call_is_refused(self):
        vector = next(v for v in VECTORS["valid"] if v["kind"] == "call" and v["fields"]["query"])
        payload = bytes.fromhex(vector["hex"])[9:]
        for size in range(len(payload)):
            with self.subTest(size), self.assertRaises(frames.ProtocolError):
                decode_call(payload[:size])


if __name__ == "__main__":
    unittest.main()
