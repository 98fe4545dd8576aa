class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("no plankton left")
