"""How a served page bears several browsers at once: 8 clients that draw 20 pictures each.

    python benchmarks/serving.py runs/digits

Starts `ardiff serve`, and prints the time to the first patch that has grown and that of a whole
picture, as a client sees them; how many pictures were lost, or were another client's; the memory of
the server before and after; and how it ends at SIGTERM in the midst of a drawing. Needs the extra
`serve`.
"""

import argparse
import base64
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
from gradio_client import Client
from PIL import Image

PACKAGE = "autoregressive_diffusion_pytorch"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a run on images")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=20, help="of each client")
    args = parser.parse_args()

    command = [sys.executable, "-m", PACKAGE, "serve", args.run]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[0]
        measure(args, server, url)
    finally:
        server.kill()


def measure(args, server, url):
    process = psutil.Process(server.pid)
    first = Client(url, verbose=False, analytics_enabled=False)
    settings = default_settings(first)
    alone = [draw(first, settings, seed)[1:] for seed in range(3)][1:]  # the first one warms up
    before = process.memory_info().rss
    found, lock = [], threading.Lock()

    def client(number):
        one = Client(url, verbose=False, analytics_enabled=False)
        for i in range(args.pictures):
            seed = 1000 * (number + 1) + i
            result = (seed, *draw(one, settings, seed))
            with lock:
                found.append(result)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(args.clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    time.sleep(5)
    after = process.memory_info().rss

    wanted = args.clients * args.pictures
    others = sum(seed != drawn for seed, drawn, *_ in found)
    rows = [
        ("pictures wanted, lost, another client's", f"{wanted}, {wanted - len(found)}, {others}"),
        ("first patch, one client", told([first for first, _ in alone])),
        ("whole picture, one client", told([whole for _, whole in alone])),
        (f"first patch, {args.clients} clients", told([row[2] for row in found])),
        (f"whole picture, {args.clients} clients", told([row[3] for row in found])),
        ("pictures per second in all", f"{len(found) / seconds:.1f}"),
        ("memory before, after", f"{before / 2**20:.0f} MiB, {after / 2**20:.0f} MiB"),
    ]
    long = first.submit(*(settings | dict(Pictures=64)).values(), api_name="/draw")
    next(iter(long))
    started = time.monotonic()
    server.send_signal(signal.SIGTERM)
    code = server.wait(60)
    seconds = time.monotonic() - started
    rows.append(("SIGTERM in the midst", f"exit code {code} after {seconds:.1f} s"))
    print("| | |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")


def default_settings(client):
    """The values of the page's widgets, but one picture of one class."""
    api = client.view_api(return_format="dict", print_info=False)
    parameters = api["named_endpoints"]["/draw"]["parameters"]
    settings = {one["label"]: one["parameter_default"] for one in parameters}
    if "What to draw" in settings:
        settings["What to draw"] = [0]
    return settings | dict(Pictures=1)


def draw(client, settings, seed):
    """The seed of the picture that came, the seconds to its first patch, and to the whole."""
    started, first = time.monotonic(), None
    job = client.submit(*(settings | dict(Seed=seed)).values(), api_name="/draw")
    while page := next(job, None):
        first, last = first or time.monotonic() - started, page
    data = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', last)[1])
    drawn = json.loads(Image.open(io.BytesIO(data)).text["settings"])["seed"]
    return drawn, first, time.monotonic() - started


def told(seconds):
    """The median and the longest."""
    seconds = sorted(seconds)
    return f"{seconds[len(seconds) // 2]:.2f} s, at most {seconds[-1]:.2f} s"


if __name__ == "__main__":
    main()
