"""What callers can ask for, one module for each family of routes."""
