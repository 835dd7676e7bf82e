"""The logical replication protocol and the pgoutput plugin, as bytes to messages.

Sans I/O: no socket, no SQL, no asyncio. Usable alone.
"""
