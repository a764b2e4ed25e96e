"""XenStore: the protocol, a complete server and a client.

`wire` `path` `permissions`                    what the bytes mean
`tree` `transaction` `watch` `quota` `domains` what the server keeps
`server`                                       the server as a function; `serve` puts it behind sockets
`snapshot` `recorder` `journal` `journal_file`  what a restart finds again
`client_core` `client` `connect`               the client without I/O; with a channel; which channel
"""
