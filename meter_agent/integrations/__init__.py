"""Thin glue: for servers that end without telling Python, for web frameworks, and for monitoring.

`meter_agent.integrations.asgi`
    A lifespan and a middleware for FastAPI, Starlette, Django and other ASGI applications.
`meter_agent.integrations.celery`
    The process signals of Celery's prefork workers.
`meter_agent.integrations.starlette`, `.flask`, `.django`
    One event for each request that was answered.
`meter_agent.integrations.prometheus`
    The metrics of an agent for prometheus_client, its multiprocess mode included.
`meter_agent.integrations.opentelemetry`
    The same as instruments of OpenTelemetry.

Nothing here is imported by `import meter_agent`. There is nothing for gunicorn: its sync and
gthread workers run `atexit`, and its uvicorn workers run the lifespan.
"""
