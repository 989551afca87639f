"""nginx and haproxy as child processes: TLS in front of a local Stripe, configured by a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import trustme

ROOT = Path(__file__).parent.parent.parent.parent
ENDS_WITHIN_SECONDS = 20
LOOK_EVERY_SECONDS = 0.02
LOOKS_MAX = 1500


class Certificates:
    """A certificate for this host, and the authority that signed it, as files."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self.authority = directory / "authority.pem"
        self.server = directory / "server.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.server))


def program(name: str) -> str:
    """Return the path of the program *name*; where there is none, fail with the command for it."""
    found = shutil.which(name, path=f"{ROOT / '.tools'}:{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, f"{name} is not on this machine; run: .ci/debian-tool {name}"
    return found


class Proxy:
    """A proxy on a port of its own; ended by `with`.

    Args:
        directory: For its files.
        certificates: What it shows to clients.
        upstream: The URL of the server behind it.
        rules: Its rules for requests, in the words of its configuration.
    """

    name: str
    ready_words: str
    """What it writes whenever workers with the configuration of that time have begun."""

    def __init__(
        self, directory: Path, certificates: Certificates, upstream: str, rules: str = ""
    ) -> None:
        self.directory = directory
        self.certificates = certificates
        self.upstream = upstream.removeprefix("http://")
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self._program = program(self.name)
        self._file = directory / f"{self.name}.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._readings = 0
        self.configure(rules)

    @abstractmethod
    def configuration(self, rules: str) -> str:
        """Return the whole configuration."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that runs it in the foreground."""

    @abstractmethod
    def signal_reload(self) -> None:
        """Ask for new workers."""

    def reload(self) -> None:
        """Have new workers read the configuration; the old ones end what they have begun."""
        self.signal_reload()
        self._wait_until_ready()

    def configure(self, rules: str) -> None:
        """Write other rules, which are followed after `reload`."""
        self._file.write_text(self.configuration(rules))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        """What it has written, for a failed test."""
        return (self.directory / "output").read_text(errors="replace")

    def __enter__(self) -> Self:
        with (self.directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # One group, so that its workers end with it, whatever happens.
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def is_ready(self) -> bool:
        """Whether it has read its configuration as often as it was told to."""
        return self.output.count(self.ready_words) >= self._readings and is_listening(self.port)

    def _wait_until_ready(self) -> None:
        self._readings += 1
        for _ in range(LOOKS_MAX):
            if self.is_ready:
                return
            try:
                self.process.wait(LOOK_EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(f"{self.name} did not start: {self.output}")

    def __exit__(self, *_exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(ENDS_WITHIN_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(ENDS_WITHIN_SECONDS)


class Nginx(Proxy):
    """nginx; its rules stand in a `location`."""

    name = "nginx"
    ready_words = "start worker processes"

    def configuration(self, rules: str) -> str:
        here = self.directory
        temporary = "\n".join(
            f"  {kind}_temp_path {here}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # Workers of root are those of another user unless this says otherwise.
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""
daemon off;
{user}
worker_processes 2;
pid {here}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
  access_log off;
{temporary}
  upstream stripe {{ server {self.upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{self.port} ssl;
    ssl_certificate {self.certificates.server};
    ssl_certificate_key {self.certificates.server};
    location / {{
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host {self.upstream};
      proxy_pass http://stripe;
      {rules}
    }}
  }}
}}
"""

    def command(self) -> list[str]:
        return ["-c", str(self._file), "-e", "stderr", "-p", str(self.directory)]

    def signal_reload(self) -> None:
        subprocess.run(
            [self._program, *self.command(), "-s", "reload"],
            check=True,
            capture_output=True,
            timeout=ENDS_WITHIN_SECONDS,
        )


class Haproxy(Proxy):
    """haproxy with a master process; its rules stand in the `frontend`."""

    name = "haproxy"
    ready_words = "Loading success"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._master_port = free_port()
        super().__init__(*arguments, **options)

    def configuration(self, rules: str) -> str:
        return f"""
global
  maxconn 256
  hard-stop-after 10s
defaults
  mode http
  timeout connect 2s
  timeout client 20s
  timeout server 20s
  retries 0
frontend clients
  bind 127.0.0.1:{self.port} ssl crt {self.certificates.server}
  default_backend stripe
  {rules}
backend stripe
  http-request set-header Host {self.upstream}
  server one {self.upstream}
"""

    def command(self) -> list[str]:
        return ["-W", "-db", "-f", str(self._file), "-S", f"127.0.0.1:{self._master_port}"]

    @property
    def is_ready(self) -> bool:
        # An answer, because the master loses commands and dies of signals that come too early.
        return super().is_ready and b"worker" in self._ask(b"show proc")

    def signal_reload(self) -> None:
        self._ask(b"reload")

    def _ask(self, command: bytes) -> bytes:
        address, answer = ("127.0.0.1", self._master_port), b""
        with (
            suppress(OSError),  # of a master that is being executed, or executes itself anew
            socket.create_connection(address, timeout=1) as master,
        ):
            master.sendall(command + b"\n")
            master.shutdown(socket.SHUT_WR)
            while more := master.recv(1024):
                answer += more
        return answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except OSError:
        return False
    return True
