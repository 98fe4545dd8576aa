"""The process that decodes: `python -m qwen3_tts_engine.reference_audio <descriptor> <limits as JSON>`."""

import json
import sys
from multiprocessing.connection import Connection

from qwen3_tts_engine.reference_audio.decoder import serve
from qwen3_tts_engine.reference_audio.limits import Limits

serve(Connection(int(sys.argv[1])), Limits(**json.loads(sys.argv[2])))
