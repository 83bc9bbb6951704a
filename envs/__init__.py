"""Gymnasium environments that model precision choices as actions."""
