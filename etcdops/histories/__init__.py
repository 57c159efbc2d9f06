"""Histories from elsewhere, and ours for elsewhere: Jepsen's formats, and legal runs that no cluster ever served."""

from __future__ import annotations
