"""What every side of the wire shares, written by hand: slots, limits, errors, bodies, credentials.

Imports nothing of mailraft but the generated stubs.
"""
