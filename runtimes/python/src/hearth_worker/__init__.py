"""Hearth's Python worker.

```text
             frames ◄── connection ──► session ──► threads | tasks ──► call ──► reply
             (bytes)    (start, end)   (states)    (who runs it)       (one call)
                                          │                             │
                                       loading                     context, native
```

A function whose ``main`` is a coroutine function is served by `tasks`, on one asyncio loop; any
other by `threads`. Everything either of them wants to send goes through one `outbox`.

A worker may be forked instead of started: `zygote`, with the system calls of `kernel`.

Not here: HTTP, deadlines, limits and log files. Those are the host's.
"""

VERSION = "0.1.0"
