"""Answers what it is asked; asked for `$NAME`, answers that variable of its environment."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
        answer = os.environ.get(text[1:], "") if text.startswith("$") else text
        return pb_utils.InferenceResponse([pb_utils.Tensor("text", np.array([answer.encode()], object))])
