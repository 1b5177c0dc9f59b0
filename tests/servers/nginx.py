"""nginx on 127.0.0.1, with the files of one folder: what benchmarks read from, and https tests.

    with nginx.running(folder) as server:
        server.url + "/train.json"

Ranges, If-Match, keep-alive, sendfile; it costs half a core-second per GB, so that what is measured
is the client. Only GET and HEAD. ETags are nginx's: time of change and size.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers import process

INSTALL = "scripts/install_packages.sh servers"

# tcp_nopush: with it, each range request waits 43 ms for the client's delayed acknowledgement.
CONF = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path temporary-body;
    proxy_temp_path temporary-proxy;
    fastcgi_temp_path temporary-fastcgi;
    uwsgi_temp_path temporary-uwsgi;
    scgi_temp_path temporary-scgi;
    default_type application/octet-stream;
    types {{ application/json json; }}
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    server_tokens off;
    server {{
        listen 127.0.0.1:{port}{tls} backlog=4096;
        root "{root}";
        {limit}
        {certificate}
    }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class WebServer:
    """Where the folder is served; `authority` is the PEM file to trust where that is https."""

    url: str
    authority: Path | None


@contextlib.contextmanager
def running(
    folder: Path, *, tls: bool = False, bytes_per_s: int | None = None
) -> Iterator[WebServer]:
    """Serve `folder`, at most `bytes_per_s` to each request if given. Raises ServerError.

    Files may come and change meanwhile: nothing is remembered of them.
    """
    options = {"root": str(folder.resolve()), "tls": tls, "bytes_per_s": bytes_per_s}
    with process.running(__name__, **options) as facts:
        authority = Path(facts["authority"]) if facts["authority"] else None
        yield WebServer(url=facts["url"], authority=authority)


def start(keeper: process.Keeper, options: process.Facts) -> process.Facts:
    # Debian keeps it out of the PATH of other users than root.
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    process.need(["nginx"], INSTALL)
    [port] = process.free_ports(1)
    root, tls, authority, certificate = options.get("root", os.getcwd()), "", None, ""
    if options.get("tls"):
        from tests.servers.tls import make_certificate  # a tenth of a second

        files = make_certificate(keeper.folder)
        tls, authority = " ssl", str(files.authority)
        certificate = f"ssl_certificate {files.chain}; ssl_certificate_key {files.key};"
    rate = options.get("bytes_per_s")
    conf = keeper.folder / "nginx.conf"
    conf.write_text(
        CONF.format(
            port=port,
            tls=tls,
            root=root,
            limit=f"limit_rate {rate};" if rate else "",
            certificate=certificate,
            # As nobody, nginx could not read the private folders of tests that root runs.
            user="user root;" if os.geteuid() == 0 else "",
        )
    )
    keeper.spawn("nginx", "nginx", "-p", keeper.folder, "-c", conf, "-e", "stderr")
    keeper.wait_until(lambda: process.answers(port), "answer of nginx")
    scheme = "https" if options.get("tls") else "http"
    return {"url": f"{scheme}://127.0.0.1:{port}", "authority": authority}


if __name__ == "__main__":
    process.keep(start)
