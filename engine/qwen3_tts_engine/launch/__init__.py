"""Runs tritonserver, and a gateway with it: starts them, keeps them serving, drains them."""
