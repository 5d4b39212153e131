"""A web service with one page and a health check."""

import os
import platform

from flask import Flask, jsonify

app = Flask(__name__)


@app.get("/")
def hello():
    who = os.environ.get("WHO", "a Mayfly build")
    return f"Hello from {who}, Python {platform.python_version()}.\n"


@app.get("/healthz")
def healthz():
    return jsonify(status="ok")
