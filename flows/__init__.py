"""Prefect flows: decorators, retries, schedules and artifacts around the functions of `medicane`.

No science lives here. Flows and tasks exchange paths, URIs and small pydantic summaries. (Without
``from __future__ import annotations``: Prefect reads the parameter types at run time.)
"""
