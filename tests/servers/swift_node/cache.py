"""Swift's cache in the memory of its one proxy process, instead of a memcached beside it.

Swift keeps what it knows of accounts and containers there, for a minute, and asks for nothing but
what is below. Values go through JSON, as they do on the way to a memcached.
"""

import json
import time


class Cache:
    def __init__(self):
        self._held = {}

    def get(self, key, raise_on_error=False):
        text, until = self._held.get(key, ("null", 0))
        return json.loads(text) if time.time() < until else None

    def set(self, key, value, time=0, **_):
        self._held[key] = (json.dumps(value), _end(time))

    def incr(self, key, delta=1, time=0):
        value = max(0, (self.get(key) or 0) + delta)
        self.set(key, value, time)
        return value

    def decr(self, key, delta=1, time=0):
        return self.incr(key, -delta, time)

    def delete(self, key, server_key=None):
        self._held.pop(key, None)


def _end(seconds):
    return time.time() + seconds if seconds else float("inf")


def filter_factory(global_conf, **_):
    cache = Cache()

    def wrap(app):
        def serve(env, start_response):
            env["swift.cache"] = cache
            return app(env, start_response)

        return serve

    return wrap
