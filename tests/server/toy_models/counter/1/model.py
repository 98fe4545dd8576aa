"""Streams 0, waits until the file `gate` exists, streams 1 to 4; has the gauge that the talkers have."""

import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.gauges = pb_utils.MetricFamily(
            name="qwen3_tts_active_slots", description="Streams", kind=pb_utils.MetricFamily.GAUGE
        )
        self.active = self.gauges.Metric(labels={"model": "counter", "version": "1"})

    def execute(self, requests):
        for request in requests:
            gate = pb_utils.get_input_tensor_by_name(request, "gate").as_numpy()[0].decode()
            self.active.increment(1)
            threading.Thread(target=self._count, args=(Path(gate), request.get_response_sender())).start()

    def _count(self, gate, sender):
        self._send(sender, 0)
        while not gate.exists():
            time.sleep(0.01)
        for number in range(1, 5):
            self._send(sender, number)
        self.active.increment(-1)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send(self, sender, number):
        sender.send(
            pb_utils.InferenceResponse([pb_utils.Tensor("number", np.array([number], dtype=np.int32))])
        )
