"""What had to be repaired, counted, and a page of it: `/metrics` for Prometheus, the others for probes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qwen3_tts_engine.launch.watching import Pulse


class Repairs:
    """Counts what was brought back and why; `under_way` names what is being brought back now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._under_way: set[str] = set()

    def begin(self, what: str, reason: str) -> None:
        with self._lock:
            self._counts[what, reason] += 1
            self._under_way.add(what)

    def end(self, what: str) -> None:
        with self._lock:
            self._under_way.discard(what)

    def under_way(self) -> list[str]:
        with self._lock:
            return sorted(self._under_way)

    def metrics(self) -> str:
        """In Prometheus' text format."""
        with self._lock:
            counts = sorted(self._counts.items())
        lines = [
            "# HELP qwen3_tts_repairs_total What was started or loaded again, and why",
            "# TYPE qwen3_tts_repairs_total counter",
            *(
                f'qwen3_tts_repairs_total{{what="{what}",reason="{reason}"}} {count}'
                for (what, reason), count in counts
            ),
            "# HELP qwen3_tts_repairs_under_way How much is being started or loaded again",
            "# TYPE qwen3_tts_repairs_under_way gauge",
            f"qwen3_tts_repairs_under_way {len(self.under_way())}",
        ]
        return "".join(f"{line}\n" for line in lines)

    def health(self) -> tuple[int, str]:
        """200, or 503 while something is being brought back."""
        what = self.under_way()
        return (503, f"bringing back {', '.join(what)}\n") if what else (200, "healthy\n")


@contextmanager
def page_of(repairs: Repairs, host: str, port: int, pulse: Pulse | None = None) -> Iterator[None]:
    """Serve it inside the block; `pulse` is that of whoever repairs."""
    live = (pulse or Pulse()).is_live

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {
                "/metrics": (200, repairs.metrics()),
                "/health": repairs.health(),
                "/live": (200, "live\n") if live() else (503, "nobody looks any more\n"),
            }
            status, text = pages.get(self.path, (404, "there is /metrics, /health and /live\n"))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Every scrape would be a line."""

    with ThreadingHTTPServer((host, port), Page) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="repairs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
