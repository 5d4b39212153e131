"""Answers every path with a greeting to it."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import protocol


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = protocol.greeting(self.path.strip("/") or "world").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


ThreadingHTTPServer(("", protocol.PORT), Greeter).serve_forever()
