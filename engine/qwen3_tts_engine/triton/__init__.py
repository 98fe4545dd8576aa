"""The Triton edge: the only room that knows `triton_python_backend_utils`."""
