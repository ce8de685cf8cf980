"""``kinema serve``: a video service over HTTP (extra ``serve``).

The server process (`app`, uvicorn) answers requests and never imports torch. It keeps jobs in a SQLite file (`store`)
and starts child processes that talk to it in JSON lines over their standard streams: one worker per device, which keeps
models loaded and generates clips (`worker`); a planner, which settles requests before they are queued (`planner`); and
for each upload a short-lived process with limits on memory and time, which decodes it (`inspector`).
"""
