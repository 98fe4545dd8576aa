"""The hot path: the published weights in lean modules with static shapes and caller-owned state."""
