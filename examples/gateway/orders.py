"""A service that takes orders and knows nothing of retries: `python3 orders.py PORT`."""

import itertools
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

numbers = itertools.count(1)


class Orders(BaseHTTPRequestHandler):
    """Takes every POST request for an order."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Numbers the order."""
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        order = json.dumps({"order": next(numbers), "item": wish["item"]}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(order)))
        self.end_headers()
        self.wfile.write(order)


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Orders)
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
