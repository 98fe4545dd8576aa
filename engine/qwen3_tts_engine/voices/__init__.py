"""Saved voices: under a name, in a directory, a Redis or a bucket that several servers may share."""
