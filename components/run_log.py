"""What a training logs to its MLflow run: noted at once, sent by one thread, never twice.

    add, log_*  -->  outbox  -->  one background thread  -->  tracking server
                       |               tries again for as long as the server is away
                       +--> pending() into a checkpoint, or a file beside it

Whoever logs never waits for the network. This module does not open or end runs.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image

from components.outbox import MEMORY_BYTES, Outbox
from components.patience import FIRST_PAUSE_S, LONGEST_PAUSE_S, PATIENCE_S, is_away, reason, server
from components.run_names import metric_name, params_of
from components.sending import Entry, RunGoneError, Sender, one_request
from components.store import split_url

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEND_EVERY_S = 5.0
KICK_AT = 500
"""So many entries are sent at once, however little time has passed."""

STOP_PATIENCE_S = 10.0
"""How long `with` waits for the server after an error or SIGTERM: a pod is killed after 30 s."""

_log = logging.getLogger(__name__)


class _Lane:
    """Entries of one kind of request, and how it goes with them."""

    def __init__(self, what: str, memory_bytes: int) -> None:
        self.what = what
        self.outbox = Outbox(memory_bytes)
        self.noted = 0
        self.away_since: float | None = None
        self.retry_at = 0.0
        self.pause_s = FIRST_PAUSE_S


class RunLog:
    """The pen of one run: metrics, params, tags, inputs, texts, figures and images.

        with RunLog(client, run_id, unsent=store.url("mlflow-unsent.jsonl")) as log:
            for row in state.history: ...          # on resume: the finished epochs first,
            log.restore(state.mlflow_pending)      # then what the checkpoint could not send
            log.add(step, {"train/loss": 0.7})
            state.mlflow_pending = log.pending()   # into the next one

    A step of a key that was noted or that the run has is passed over, so a resumed training may
    log the steps after its checkpoint again. Metrics go in order; files follow by themselves.
    While the server is away entries wait here, first in memory (32 MiB), then in a temporary
    file, and the log says so once; once more when it answers again.

    Args:
        unsent: Where `close` leaves what it could not send, a local path or an s3:// URL, and
            where `restore` looks for it. None: the loss is said in the log.
        memory_bytes: What waits in memory at most, metrics and files each.

    Threads: any may log. The network is touched by the one background thread only.
    """

    def __init__(
        self,
        client: mlflow.MlflowClient,
        run_id: str,
        *,
        unsent: str | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.run_id = run_id
        self._sender = Sender(client, run_id)
        self._unsent = split_url(unsent) if unsent else None
        self._records = _Lane("metrics", memory_bytes)
        self._files = _Lane("files", memory_bytes)
        self._lock = threading.Condition()
        self._kick = threading.Event()
        self._last_noted: dict[str, int] = {}
        self._gone = ""
        self._refused: list[str] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="run-log", daemon=True)
        self._thread.start()

    # ---- noting; nothing here waits for the network ----------------------------------------------

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Note one step's metrics; a key's steps must ascend, others are passed over."""
        now_ms = time.time_ns() // 1_000_000
        self._note(
            {"kind": "metric", "key": metric_name(key), "value": float(value), "time_ms": now_ms,
             "step": step}
            for key, value in values.items()
        )  # fmt: skip

    def add_sampled(self, values: Mapping[str, float]) -> None:
        """Note metrics that no step belongs to, such as a GPU's load; each gets its next step."""
        now_ms = time.time_ns() // 1_000_000
        self._note(
            {"kind": "metric", "key": metric_name(key), "value": float(value), "time_ms": now_ms,
             "step": None}
            for key, value in values.items()
        )  # fmt: skip

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Note nested settings as flat params, `train.lr`; those the run has stay as they are."""
        flat = params_of(values)
        self._note({"kind": "param", "key": k, "value": v} for k, v in flat.items())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Note tags; a later value replaces an earlier one."""
        self._note({"kind": "tag", "key": k, "value": str(v)} for k, v in tags.items())

    def log_input(self, entry: Entry) -> None:
        """Note a dataset split as an input; `tracking.input_entry` makes it."""
        self._note([entry])

    def log_text(self, text: str, path: str) -> None:
        """Note a file of text, `path` within the run's artifacts."""
        self._note_file(text.encode(), path)

    def log_figure(self, figure: Figure, path: str, *, dpi: int = 100) -> None:
        """Draw a figure, here and now, and note it as a PNG."""
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=dpi)
        self._note_file(data.getvalue(), path)

    def log_image(self, image: np.ndarray, key: str, *, step: int) -> None:
        """Note `uint8[height, width, 3]` under a key, so that MLflow's UI has a slider of steps.

        The names are those that MLflow's own log_image gives, but fixed here: sent twice after a
        lost answer, the second file replaces the first.
        """
        now_ms = time.time_ns() // 1_000_000
        name = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{now_ms}+{uuid.uuid4()}"
        picture = Image.fromarray(image)
        small = picture.copy()
        small.thumbnail((256, 256))
        for form, made, path in (("PNG", picture, f"{name}.png"),
                                 ("WEBP", small, f"{name}+compressed.webp")):  # fmt: skip
            data = io.BytesIO()
            made.save(data, format=form)
            self._note_file(data.getvalue(), path)
        self.set_tags({MLFLOW_LOGGED_IMAGES: "True"})

    # ---- checkpoints and the end -----------------------------------------------------------------

    def pending(self) -> list[str]:
        """What is not known to have arrived, as lines of JSON; a checkpoint keeps them."""
        with self._lock:
            return [*self._records.outbox, *self._files.outbox]

    def restore(self, lines: Iterable[str] = ()) -> None:
        """Note what an earlier process could not send: its `pending`, and its file of `unsent`.

        What arrived after all is passed over, as ever.
        """
        kept = list(lines)
        if self._unsent and self._unsent[0].exists(self._unsent[1]):
            store, name = self._unsent
            kept += store.read_bytes(name).decode().splitlines()
        self._note(json.loads(line) for line in kept if line.strip())

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that is noted is sent; no longer once the server is known to be away.

        Returns:
            Whether everything has arrived. A checkpoint with `pending` in it needs no flush.
        """
        until = {lane: lane.noted for lane in (self._records, self._files)}
        with self._lock:
            if not self._away():
                self._kick.set()
            return self._lock.wait_for(
                lambda: self._sent(until) or self._away() or self._ended(), timeout_s
            ) and self._sent(until)

    def close(self, timeout_s: float = PATIENCE_S) -> str:
        """Send what is left, waiting for an absent server up to `timeout_s`; then stop.

        Returns:
            The URL of the file with what could not be sent; empty where there is none. Run again
            with the same `unsent`, a RunLog sends it.
        """
        if self._closed:
            return ""
        try:
            self._send_what_is_left(timeout_s)
        finally:  # Ctrl-C ends the waiting, and nothing is lost
            with self._lock:
                self._closed = True
                self._kick.set()
            self._thread.join(STOP_PATIENCE_S)  # a request under way has its own timeout
            kept = self._keep_unsent()
            with self._lock:
                for lane in (self._records, self._files):
                    lane.outbox.close()
        return kept

    def _send_what_is_left(self, timeout_s: float) -> None:
        if not self.flush(min(timeout_s, 1.0)) and (left := self._left()) and not self._gone:
            _log.warning(
                "mlflow at %s still has to take %d entries of run %s; waiting up to %.0f s",
                server(), left, self.run_id, timeout_s,
            )  # fmt: skip
            with self._lock:
                self._kick.set()
                self._lock.wait_for(lambda: not self._left() or self._gone, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close(PATIENCE_S if error is None else STOP_PATIENCE_S)

    def _keep_unsent(self) -> str:
        lines = self._refused + self.pending()
        if self._unsent is None:
            if lines:
                _log.error("mlflow did not take %d entries of run %s", len(lines), self.run_id)
            return ""
        store, name = self._unsent
        if not lines:
            store.remove(name)
            return ""
        store.write_bytes(name, "".join(f"{line}\n" for line in lines).encode())
        _log.error(
            "mlflow did not take %d entries of run %s; they are kept in %s and sent when the same "
            "command runs again", len(lines), self.run_id, store.url(name),
        )  # fmt: skip
        return store.url(name)

    # ---- the queue -------------------------------------------------------------------------------

    def _note(self, entries: Iterable[Entry]) -> None:
        with self._lock:
            for entry in entries:
                if entry["kind"] == "metric" and entry["step"] is not None:
                    if entry["step"] <= self._last_noted.get(entry["key"], -1):
                        continue
                    self._last_noted[entry["key"]] = entry["step"]
                lane = self._files if entry["kind"] == "file" else self._records
                lane.outbox.put(json.dumps(entry))
                lane.noted += 1
            if len(self._records.outbox) >= KICK_AT and not self._away():
                self._kick.set()

    def _note_file(self, data: bytes, path: str) -> None:
        self._note([{"kind": "file", "path": path, "data": base64.b64encode(data).decode()}])

    def _left(self) -> int:
        return len(self._records.outbox) + len(self._files.outbox)

    def _ended(self) -> bool:
        return self._closed or bool(self._gone)

    def _away(self) -> bool:
        return self._records.away_since is not None or self._files.away_since is not None

    def _sent(self, until: Mapping[_Lane, int]) -> bool:
        return all(lane.noted - len(lane.outbox) >= count for lane, count in until.items())

    # ---- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._closed:
            self._kick.wait(self._pause_s())
            self._kick.clear()
            for lane, send in ((self._records, self._send_records), (self._files, self._send_file)):
                while not self._ended() and self._try(lane, send):
                    pass
                if lane.away_since is not None:
                    break  # files go to the same server: no need to find out again
            with self._lock:
                self._lock.notify_all()

    def _pause_s(self) -> float:
        waits = [lane.retry_at - time.monotonic() for lane in (self._records, self._files)
                 if lane.away_since is not None]  # fmt: skip
        return max(0.0, min(waits)) if waits else SEND_EVERY_S

    def _try(self, lane: _Lane, send: Callable[[list[str]], int]) -> bool:
        """Send one request's worth; whether there may be more to do at once."""
        with self._lock:
            lines = lane.outbox.head(1000 if lane is self._records else 1)
        if not lines:
            return False
        try:
            sent = send(lines)
        except RunGoneError as error:
            self._gone = str(error)
            _log.error(
                "mlflow: %s, expected the run of this training; nothing more is logged to it. Run "
                "the same command again: the finished epochs go to a new run", error,
            )  # fmt: skip
            return False
        except Exception as error:
            self._on_away(lane, error)
            return False
        with self._lock:
            lane.outbox.drop(sent)
        self._on_answer(lane)
        return True

    def _send_records(self, lines: list[str]) -> int:
        batch = one_request(json.loads(line) for line in lines)
        self._send_or_refuse(lines[: len(batch)], batch, self._sender.send)
        return len(batch)

    def _send_file(self, lines: list[str]) -> int:
        self._send_or_refuse(
            lines, [json.loads(lines[0])], lambda es: self._sender.send_file(es[0])
        )
        return 1

    def _send_or_refuse(
        self, lines: list[str], batch: list[Entry], send: Callable[[list[Entry]], None]
    ) -> None:
        """Send a batch; of one that the server refuses, all but the entries that are to blame."""
        try:
            send(batch)
        except MlflowException as error:
            if is_away(error) or error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
                raise
            self._sender.check_run()
            if len(batch) > 1:
                half = len(batch) // 2
                self._send_or_refuse(lines[:half], batch[:half], send)
                self._send_or_refuse(lines[half:], batch[half:], send)
                return
            name = batch[0].get("key") or batch[0].get("path") or batch[0].get("name")
            _log.error("mlflow refuses %s %s: %s", batch[0]["kind"], name, reason(error))
            self._refused.append(lines[0])

    def _on_away(self, lane: _Lane, error: Exception) -> None:
        now = time.monotonic()
        first = lane.away_since is None
        with self._lock:
            if first:
                lane.away_since, lane.pause_s = now, FIRST_PAUSE_S
            lane.retry_at = now + lane.pause_s
            lane.pause_s = min(2 * lane.pause_s, LONGEST_PAUSE_S)
        if first:
            _log.warning(
                "mlflow at %s does not take %s (%s); they wait here and the training goes on",
                server(), lane.what, reason(error),
            )  # fmt: skip

    def _on_answer(self, lane: _Lane) -> None:
        if lane.away_since is None:
            return
        spent_s, left = time.monotonic() - lane.away_since, len(lane.outbox)
        with self._lock:
            lane.away_since = None
        _log.warning(
            "mlflow at %s takes %s again after %.0f s; %d more to send",
            server(), lane.what, spent_s, left,
        )  # fmt: skip
