"""The HTTP layer of the service: what requests may say, what answers look like, and what is refused.

`security` guards every request, `fields` and `bodies` turn bodies into orders, `forms` streams uploads to disk, and
each group of routes has a module. Imports without torch; everything else is done by
the engine (`kinema.server.engine.Engine`).
"""
