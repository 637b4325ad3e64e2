"""The controller: what the meta group wants, made true in small steps that can be repeated.

plan.py and its parts are pure; driver.py asks nodes and carries out what is planned; admin.py and
jobs.py are the API. Imports cluster.meta, cluster.placement and node's interfaces.
"""
